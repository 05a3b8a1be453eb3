"""Edits that several passes make: add a constant, find a tensor's reader, put new nodes in the place of old ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_all_uses_with

MICROSOFT = "com.microsoft"
"""Domain of the operators that ONNX Runtime adds to ONNX's."""

MICROSOFT_DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""Dtypes for which ONNX Runtime's CUDA provider has kernels of these operators."""


def add_constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """Add an initializer to a graph."""
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def constant_values(value: ir.Value) -> NDArray[Any]:
    """The elements of an initializer, also where its data file has several links, as those of a split U-Net have.

    onnx_ir refuses to read such a file, since a link may lead anywhere; ours are made by `engine.graph.link_data`.
    """
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"{value.name} is not a constant")
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    shape, dtype = tensor.shape.numpy(), tensor.dtype.numpy()
    return np.fromfile(tensor.path, dtype, tensor.size, offset=tensor.offset or 0).reshape(shape)


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node, or its default."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def has_constants(node: ir.Node) -> bool:
    """Whether every input but the first is a constant."""
    return all(value is not None and value.const_value is not None for value in node.inputs[1:])


def only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    """The only reader of a tensor, if it is a node of this kind and the tensor is not an output of the graph."""
    uses = tuple(value.uses())
    alone = len(uses) == 1 and not value.is_graph_output()
    return uses[0].node if alone and uses[0].node.op_type == kind else None


def replace_uses(value: ir.Value, other: ir.Value) -> None:
    """Let every node that reads `value` read `other`; an output of the graph stays what it is."""
    for reader, index in list(value.uses()):
        reader.replace_input_with(index, other)


def take_over(new: ir.Value, old: ir.Value) -> None:
    """Give `new` the name, type, shape and readers of `old`, its place among the graph's outputs included."""
    new.name, new.type, new.shape = old.name, old.type, old.shape
    old.name = f"{old.name}_before"
    replace_all_uses_with(old, new, replace_graph_outputs=True)


def put_in_place(graph: ir.Graph, old: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Insert `nodes` after `old`; the output of the last takes over from the old output."""
    graph.insert_after(old, nodes)
    take_over(nodes[-1].outputs[0], old.outputs[0])
