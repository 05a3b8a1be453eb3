"""What passes do to graphs again and again: constants, who reads a tensor, new nodes in the place of old ones."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_all_uses_with


def constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """A new initializer."""
    made = ir.Value(name=name, const_value=ir.tensor(values))
    made.dtype, made.shape = ir.DataType.from_numpy(values.dtype), ir.Shape(values.shape)
    graph.register_initializer(made)
    return made


def has_constants(node: ir.Node) -> bool:
    """Whether every input but the first is known."""
    return all(value is not None and value.const_value is not None for value in node.inputs[1:])


def only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    """The one node that reads a tensor, if it is of this kind and nothing else reads it, not even the caller."""
    uses = tuple(value.uses())
    alone = len(uses) == 1 and not value.is_graph_output()
    return uses[0].node if alone and uses[0].node.op_type == kind else None


def put_in_place(graph: ir.Graph, old: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Insert nodes behind an old one; the last one's output takes the name, type, shape and readers of its output."""
    output, before = nodes[-1].outputs[0], old.outputs[0]
    output.name, output.type, output.shape = before.name, before.type, before.shape
    before.name = f"{before.name}_before"
    graph.insert_after(old, nodes)
    replace_all_uses_with(before, output, replace_graph_outputs=True)
