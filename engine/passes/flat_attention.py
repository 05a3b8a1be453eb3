"""Attention on flat tensors: the operator divides them into heads itself, so that no reshape and transpose has to."""

import onnx_ir as ir
from onnx_ir.convenience import replace_all_uses_with
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

HEADS_FIRST = (0, 2, 1, 3)
"""From (rows, length, heads, width) to (rows, heads, length, width) and back."""


def flatten_attention(model: ir.Model) -> PassResult:
    """Give `Attention` queries, keys and values as (rows, length, heads * width); its result likewise.

    1. Each of the three is a tensor of three axes, reshaped to (rows, length, heads, width) and transposed; the graph's
       recorded shapes must say so.
    2. The result, and nothing but it, is transposed back and reshaped to three axes.
    3. Both forms are in the operator's definition (ONNX `Attention`, opset 23): `q_num_heads` and `kv_num_heads`.
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
        replace_all_uses_with(result, output)
        flattened += 1
    if flattened:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(flattened))


def flat_operand(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """The flat tensor behind a query, key or value, and its number of heads."""
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
    """The tensor (rows, length, heads * width) that an attention's result becomes."""
    for kind in ("Transpose", "Reshape"):
        uses = tuple(value.uses())
        node = uses[0].node if len(uses) == 1 else None
        if node is None or node.op_type != kind or (kind == "Transpose" and not exchanges_heads(node)):
            return None
        value = node.outputs[0]
    return value if value.shape is not None and len(value.shape) == 3 and not value.is_graph_output() else None


def producer_input(value: ir.Value | None, kind: str) -> ir.Value | None:
    """What a tensor was before the operator of this kind that made it."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == kind else None


def exchanges_heads(node: ir.Node | None) -> bool:
    """Whether a transpose exchanges heads and length."""
    return node is not None and "perm" in node.attributes and tuple(node.attributes["perm"].as_ints()) == HEADS_FIRST
