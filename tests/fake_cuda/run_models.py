"""Program: place ONNX files on the fake device and run each three times; print, as JSON, which nodes the CPU was given.

Arguments: files, lengths of named axes as `rows=2`, and options of the provider, beside those that latentrt sets, as
`--prefer_nhwc=1`. `{file: [[operator, name], …]}` is printed; the log's parts are "<file> load", "<file> first run",
"<file> second run" and "<file> warm run".
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from fake_cuda import bindings

from latentrt.runtime.backends.cuda_provider import provider_options
from latentrt.runtime.bundle.specs import Axis

PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
TYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def main(arguments: list[str]) -> None:
    """Place and run every file."""
    named = [one.split("=", 1) for one in arguments if "=" in one]
    options = {name.removeprefix("--"): value for name, value in named if name.startswith("--")}
    sizes = {name: int(size) for name, size in named if not name.startswith("--")}
    print(json.dumps({file: run(file, sizes, options) for file in arguments if "=" not in file}))


def run(file: str, sizes: Mapping[str, int], own: Mapping[str, str]) -> list[tuple[str, str]]:
    """The nodes that the CPU was given, by operator and name."""
    bindings.mark(f"{Path(file).stem} load")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    providers = [(PROVIDERS[0], provider_options(0) | dict(own)), PROVIDERS[1]]
    session = onnxruntime.InferenceSession(file, options, providers=providers)
    if session.get_providers() != PROVIDERS:
        raise RuntimeError(f"{file}: ONNX Runtime has no CUDA provider on the fake device")
    inputs = {value.name: zeros(value, sizes) for value in session.get_inputs()}
    for time in ("first", "second", "warm"):  # the second lays out the memory that the first took
        bindings.mark(f"{Path(file).stem} {time} run")
        session.run(None, inputs)
    bindings.mark(f"{Path(file).stem} close")
    parts = session.get_provider_graph_assignment_info()
    return [(node.op_type, node.name) for part in parts if part.ep_name != PROVIDERS[0] for node in part.get_nodes()]


def zeros(value: Any, sizes: Mapping[str, int]) -> np.ndarray[Any, Any]:
    """An input of zeros, with the lengths that are given for its named axes."""
    axes = [Axis.parse(str(axis)) for axis in value.shape]
    if missing := {axis.dim for axis in axes if axis.dim} - sizes.keys():
        raise SystemExit(f"{value.name} {value.shape}: give a length for each name, as {missing.pop()}=2")
    return np.zeros([axis.size(sizes) for axis in axes], TYPES[value.type])


if __name__ == "__main__":
    main(sys.argv[1:])
