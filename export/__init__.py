"""The export: reads a checkpoint, traces its networks to ONNX, compares them with torch, and writes a bundle."""

import latentrt.runtime as _runtime  # noqa: F401 - before ONNX Runtime, whose telemetry it switches off
