"""The lowering of a traced program to operators that torch's translation to ONNX has.

Left alone, `torch.onnx.export` decomposes a program by tracing it twice more, which takes longer than the first trace.
In these networks nothing is left to decompose but casts. They are replaced here one by one, and other operators are
written as decomposing writes them, so that the graph is the same.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten


def lower(exported: ExportedProgram) -> bool:
    """Lower a program in place, and keep `torch.onnx.export` from decomposing it.

    Returns:
        False where an operator writes to its input, which only decomposing replaces; the program is then as it was.
    """
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    if any(_writes(node.target) for node in calls):
        return False
    for node in calls:
        if node.target in REPLACEMENTS:
            REPLACEMENTS[node.target](node)
    exported.graph_module.recompile()
    exported.run_decompositions = lambda *_: exported
    return True


def _writes(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and schema.is_mutable


def _cast(node: Node) -> None:
    node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": node.meta["val"].dtype}


def _view(node: Node) -> None:
    """Write the length that is known in place of a -1."""
    given: Any = node.args[1]
    lengths = zip(given, node.meta["val"].shape, strict=True)
    sizes = [length if size == -1 and isinstance(length, int) else size for size, length in lengths]
    node.target, node.args = aten.view.default, (node.args[0], sizes)


def _flatten(node: Node) -> None:
    if node.meta["val"].dim() == 1:
        node.target, node.args, node.kwargs = aten.view.default, (node.args[0], [-1]), {}


def _chunk(node: Node) -> None:
    """Count the axis from the front."""
    value: Any = node.args[0]
    if len(node.args) > 2:
        axis: Any = node.args[2]
        node.args = (value, node.args[1], axis % value.meta["val"].dim())


REPLACEMENTS: Mapping[Any, Callable[[Node], None]] = {
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.device: _cast,
    aten.reshape.default: _view,
    aten.flatten.using_ints: _flatten,
    aten.chunk.default: _chunk,
}
