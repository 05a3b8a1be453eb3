"""Constants of a graph, as the passes write and read them."""

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """A new initializer."""
    made = ir.Value(name=name, const_value=ir.tensor(values))
    made.dtype, made.shape = ir.DataType.from_numpy(values.dtype), ir.Shape(values.shape)
    graph.register_initializer(made)
    return made


def has_constants(node: ir.Node) -> bool:
    """Whether every input but the first is known."""
    return all(value is not None and value.const_value is not None for value in node.inputs[1:])
