"""Runs bundles: vocabulary, tokenizers, samplers, engines and the pipeline. Needs neither torch nor onnx."""
