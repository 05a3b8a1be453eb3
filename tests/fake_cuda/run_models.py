"""Program: place ONNX files on the fake device and run each twice; print, as JSON, which nodes the CPU was given.

Arguments: files. `{file: [[operator, name], …]}` is printed; the log's parts are "<file> load", "<file> first run" and
"<file> second run".
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fake_cuda import bindings

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
TYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def main(files: list[str]) -> None:
    """Place and run every file."""
    print(json.dumps({file: run(file) for file in files}))


def run(file: str) -> list[tuple[str, str]]:
    """The nodes that the CPU was given, by operator and name."""
    bindings.mark(f"{Path(file).stem} load")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(file, options, providers=PROVIDERS)
    if session.get_providers() != PROVIDERS:
        raise RuntimeError(f"{file}: ONNX Runtime has no CUDA provider on the fake device")
    inputs = {value.name: zeros(value) for value in session.get_inputs()}
    for time in ("first", "second"):
        bindings.mark(f"{Path(file).stem} {time} run")
        session.run(None, inputs)
    bindings.mark(f"{Path(file).stem} close")
    parts = session.get_provider_graph_assignment_info()
    return [(node.op_type, node.name) for part in parts if part.ep_name != PROVIDERS[0] for node in part.get_nodes()]


def zeros(value: Any) -> np.ndarray[Any, Any]:
    """An input of zeros; named axes have these lengths."""
    lengths = {"h": 8, "w": 8, "height": 64, "width": 64, "tokens": 77}
    return np.zeros(
        [lengths.get(axis, 1) if isinstance(axis, str) else axis for axis in value.shape], TYPES[value.type]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
