"""Attention on 3-D tensors: the operator splits them into heads itself, without a reshape and a transpose."""

import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.rewriting import replace_uses

HEADS_FIRST = (0, 2, 1, 3)
"""The permutation from (rows, length, heads, width) to (rows, heads, length, width), and back."""


def flatten_attention(model: ir.Model) -> PassResult:
    """Pass queries, keys and values to `Attention` as (rows, length, heads * width), and take its result likewise.

    1. Queries, keys and values are 3-D tensors, reshaped to (rows, length, heads, width) and transposed; the shapes
       recorded in the graph must confirm that.
    2. The result is transposed back and reshaped to 3-D, and nothing else reads it.
    3. The operator accepts both layouts (ONNX `Attention`, opset 23): `q_num_heads` and `kv_num_heads` select 3-D.
    """
    flattened = 0
    for node in list(model.graph):
        if node.op_type != "Attention" or len(node.inputs) != 3 or len(node.outputs) != 1:
            continue
        operands = [flat_operand(value) for value in node.inputs]
        result = flat_result(node.outputs[0])
        heads = {found[1] for found in operands if found}
        if None in operands or result is None or len(heads) != 1:
            continue
        (count,) = heads
        attributes = dict(node.attributes) | {
            name: ir.AttrInt64(name, count) for name in ("q_num_heads", "kv_num_heads")
        }
        flat = ir.Node("", "Attention", [found[0] for found in operands if found], attributes.values(), name=node.name)
        output = flat.outputs[0]
        output.name, output.type, output.shape = f"{result.name}_flat", result.type, result.shape
        model.graph.insert_after(node, flat)
        replace_uses(result, output)
        flattened += 1
    if flattened:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(flattened))


def flat_operand(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """The 3-D tensor that a query, key or value was made from, and its number of heads."""
    view = producer_input(value, "Transpose")
    flat = producer_input(view, "Reshape")
    if value is None or view is None or flat is None or not exchanges_heads(value.producer()):
        return None
    before, after = flat.shape, view.shape
    if before is None or after is None or (len(before), len(after)) != (3, 4):
        return None
    heads, width = after[2], after[3]
    same_rows = before[0] == after[0] and str(before[0]) != "None"
    if not (same_rows and isinstance(heads, int) and isinstance(width, int) and before[2] == heads * width):
        return None
    return flat, heads


def flat_result(value: ir.Value) -> ir.Value | None:
    """The tensor (rows, length, heads * width) that is made of an attention's result."""
    for kind in ("Transpose", "Reshape"):
        uses = tuple(value.uses())
        node = uses[0].node if len(uses) == 1 else None
        if node is None or node.op_type != kind or (kind == "Transpose" and not exchanges_heads(node)):
            return None
        value = node.outputs[0]
    return value if value.shape is not None and len(value.shape) == 3 and not value.is_graph_output() else None


def producer_input(value: ir.Value | None, kind: str) -> ir.Value | None:
    """The first input of the node that made a tensor, if that is of this kind."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == kind else None


def exchanges_heads(node: ir.Node | None) -> bool:
    """Whether a node transposes heads and length."""
    return node is not None and "perm" in node.attributes and tuple(node.attributes["perm"].as_ints()) == HEADS_FIRST
