"""An ONNX file in ONNX Runtime on the CPU: opened, fed, and its outputs measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from latentrt.runtime.backends.bfloat16 import from_bits, to_bits
from latentrt.runtime.bundle.specs import ComponentSpec, Port

SESSION_DTYPES = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(int64)": np.int64}


def open_session(file: Path, optimise: bool = True) -> onnxruntime.InferenceSession:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def rounded(values: NDArray[Any], port: Port) -> NDArray[Any]:
    """Values in a port's dtype; as float32 numbers where that is bfloat16, which numpy lacks."""
    return from_bits(to_bits(values)) if port.dtype == "bfloat16" else values.astype(port.numpy_dtype)


def feed(session: onnxruntime.InferenceSession, spec: ComponentSpec, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs rounded as the ports of the spec are, in the dtypes that the session takes."""
    return {
        port.name: rounded(np.asarray(inputs[port.name]), port).astype(SESSION_DTYPES[value.type])
        for port, value in zip(spec.inputs, session.get_inputs(), strict=True)
    }
