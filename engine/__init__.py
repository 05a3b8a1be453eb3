"""Builds engines from a bundle's ONNX files: `latentrt.engine.build.build_engines`."""
