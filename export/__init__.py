"""The export: reads a checkpoint, traces its networks to ONNX, compares them with torch, and writes a bundle."""
