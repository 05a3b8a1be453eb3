"""From a checkpoint to a bundle: reads it, traces its networks to ONNX, compares them with torch."""
