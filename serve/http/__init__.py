"""The HTTP front: one module per API, all of them on `latentrt.serve.desk`."""
