"""The place of the largest integer by an operator for which ONNX Runtime's CUDA provider has a kernel."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult

from latentrt.engine.passes.rewriting import add_constant, attribute, put_in_place

INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
"""Dtypes for which the CUDA provider has `TopK` and no `ArgMax`."""


def use_top_k(model: ir.Model) -> PassResult:
    """Replace `ArgMax` of integers by the index that `TopK` of one gives.

    1. The first of equal numbers is asked for: it is what `TopK` gives, by its definition.
    2. Without `keepdims`, the axis is squeezed out.
    """
    nodes = [node for node in model.graph if node.op_type == "ArgMax" and _is_first_integer(node)]
    for node in nodes:
        put_in_place(model.graph, node, _top_k(model.graph, node))
        model.graph.remove(node, safe=True)
    return PassResult(model, bool(nodes))


def _is_first_integer(node: ir.Node) -> bool:
    value = node.inputs[0]
    return value is not None and value.dtype in INTEGERS and not attribute(node, "select_last_index", 0)


def _top_k(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    name, axis = str(node.outputs[0].name), attribute(node, "axis", 0)
    count = add_constant(graph, f"{name}_count", np.ones(1, np.int64))
    found = ir.node("TopK", [node.inputs[0], count], {"axis": axis}, num_outputs=2)
    found.name, found.outputs[0].name, found.outputs[1].name = f"{name}_top", f"{name}_largest", f"{name}_place"
    if attribute(node, "keepdims", 1):
        return [found, ir.node("Identity", [found.outputs[1]])]
    axes = add_constant(graph, f"{name}_axis", np.array([axis], np.int64))
    return [found, ir.node("Squeeze", [found.outputs[1], axes])]
