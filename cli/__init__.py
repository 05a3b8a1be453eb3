"""The `latentrt` and `build-engine` commands: arguments in, errors and one JSON line out; work is done elsewhere."""
