"""The `latentrt` and `build-engine` commands: arguments in, errors and one JSON line out; the work is done elsewhere."""
