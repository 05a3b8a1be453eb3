"""An ONNX file in ONNX Runtime on the CPU: the session, and its inputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from latentrt.runtime.backends.bfloat16 import from_bits, to_bits
from latentrt.runtime.bundle.specs import ComponentSpec, Port


def open_session(file: Path, optimise: bool = True) -> onnxruntime.InferenceSession:
    """Open a session on the CPU that logs errors alone."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def rounded(values: NDArray[Any], port: Port) -> NDArray[Any]:
    """Round values to a port's dtype; bfloat16, which numpy lacks, comes as float32 numbers."""
    return from_bits(to_bits(values)) if port.dtype == "bfloat16" else values.astype(port.numpy_dtype)


def feed(spec: ComponentSpec, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Inputs by name, rounded to the dtypes of their ports. A bf16 component must be `numerics.emulation`'s copy."""
    return {port.name: rounded(np.asarray(inputs[port.name]), port) for port in spec.inputs}
