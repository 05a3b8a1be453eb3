"""The `latentrt` and `build-engine` commands: they read arguments, call the other packages, and print results."""
