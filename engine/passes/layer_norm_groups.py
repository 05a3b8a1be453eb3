"""Group normalisation by operators for which ONNX Runtime has kernels on CUDA that give the same bits on every run."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.group_norm import epsilon_of
from latentrt.engine.passes.rewriting import add_constant, constant_values, has_constants, put_in_place


def use_layer_norm(model: ir.Model) -> PassResult:
    """Replace `GroupNormalization` by `LayerNormalization` of each group, then scale and bias of each channel.

    ONNX Runtime's CUDA provider has no kernel for the former, nor for `InstanceNormalization` from opset 22 on, and its
    `com.microsoft.GroupNorm` adds with atomics, in an order that changes from run to run.

    1. Scale and bias are initializers, one number per channel (opset 21 and later).
    2. (rows, channels, ...) becomes (rows * groups, channels of a group, ...), and all axes but the first are
       normalised. Neither view needs a length that is not known. The operator's own scale is a single 1.
    3. A product and a sum apply scale and bias to every channel.
    """
    nodes = [node for node in model.graph if node.op_type == "GroupNormalization" and _is_known(node)]
    for node in nodes:
        put_in_place(model.graph, node, _layer_norm(model.graph, node))
    if nodes:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(nodes))


def _is_known(node: ir.Node) -> bool:
    value = node.inputs[0]
    return has_constants(node) and value is not None and value.shape is not None


def _layer_norm(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    value, scale, bias = (one for one in node.inputs if one is not None)
    assert value.shape is not None
    name, groups = str(node.outputs[0].name), node.attributes["num_groups"].as_int()
    factors, terms = constant_values(scale), constant_values(bias)
    channel = (len(factors),) + (1,) * (len(value.shape) - 2)

    def operator(kind: str, what: str, *inputs: ir.Value, **attributes: float) -> ir.Node:
        made = ir.node(kind, inputs, attributes)
        made.name = made.outputs[0].name = f"{name}_{what}"
        return made

    channels, rest = len(factors), [0] * (len(value.shape) - 2)
    views = [
        add_constant(graph, f"{name}_{what}", np.array([-1, count, *rest], np.int64))
        for what, count in (("group_view", channels // groups), ("channel_view", channels))
    ]
    grouped = operator("Reshape", "grouped", value, views[0])
    one = add_constant(graph, f"{name}_one", np.ones(1, factors.dtype))
    normal = operator("LayerNormalization", "normal", grouped.outputs[0], one, axis=1, epsilon=epsilon_of(node))
    back = operator("Reshape", "ungrouped", normal.outputs[0], views[1])
    by_channel = [
        add_constant(graph, f"{name}_{what}", values.reshape(channel))
        for what, values in (("factors", factors), ("terms", terms))
    ]
    scaled = operator("Mul", "scaled", back.outputs[0], by_channel[0])
    moved = operator("Add", "moved", scaled.outputs[0], by_channel[1])
    for made in (back, scaled):
        made.outputs[0].type, made.outputs[0].shape = value.type, value.shape
    return [grouped, normal, back, scaled, moved]
