"""Program: run ONNX files as the runtime runs its step, six times each, in parts "<file> <n>".

Arguments: files. What the runtime logs is printed.
"""

import logging
import sys
from pathlib import Path

import onnx
from fake_cuda import bindings

CALLS = 6
LENGTH = 2
"""Of every axis that has a name."""


def main(files: list[Path]) -> None:
    """Run every file."""
    bindings.install()
    from latentrt.runtime.backends import open_backend

    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    backend = open_backend("onnxruntime", "cuda:0")
    for file in files:
        engine = backend.load(read_spec(file), file)
        step = backend.record(engine.bind({}).run)
        for number in range(CALLS):
            bindings.mark(f"{file.stem} {number}")
            step()
        bindings.mark("close")
        engine.close()
    backend.close()


def read_spec(file: Path) -> object:
    """The ports of a file."""
    from latentrt.runtime.bundle.specs import ONNX_TYPES, ComponentSpec, port

    dtypes = {number: dtype for dtype, number in ONNX_TYPES.items()}
    graph = onnx.load(file).graph
    inputs, outputs = (
        tuple(
            port(value.name, dtypes[tensor.elem_type], *(axis.dim_value or LENGTH for axis in tensor.shape.dim))
            for value in values
            for tensor in [value.type.tensor_type]
        )
        for values in (graph.input, graph.output)
    )
    return ComponentSpec(file.stem, inputs, outputs, {})


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
