"""Group normalisation by operators for which ONNX Runtime has kernels on the CPU."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.rewriting import add_constant, has_constants, put_in_place

EPSILON = 1e-5
"""Default epsilon of the operators here."""


def use_instance_norm(model: ir.Model) -> PassResult:
    """Replace `GroupNormalization` by `InstanceNormalization` with one channel per group, then scale and bias.

    ONNX Runtime has no kernel for the former on the CPU: it runs the ten operators of its definition.

    1. Scale and bias are initializers, one number per channel (opset 21 and later).
    2. (rows, channels, ...) is reshaped to (rows, groups, elements of a group), normalised and reshaped back.
    3. `BatchNormalization` with mean 0 and variance 1 applies scale and bias to every channel in one operator.
    """
    nodes = [node for node in model.graph if node.op_type == "GroupNormalization" and has_constants(node)]
    for node in nodes:
        put_in_place(model.graph, node, _instance_norm(model.graph, node))
    if nodes:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(nodes))


def epsilon_of(node: ir.Node) -> float:
    """The number that a group norm adds to the variance."""
    return node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else EPSILON


def _instance_norm(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    value, scale, bias = (one for one in node.inputs if one is not None)
    name, groups = str(node.outputs[0].name), node.attributes["num_groups"].as_int()

    def operator(kind: str, inputs: list[ir.Value], **attributes: float) -> ir.Node:
        made = ir.node(kind, inputs, attributes)
        made.outputs[0].name = f"{name}_{kind}{len(inputs)}"
        return made

    assert scale.const_value is not None
    dtype = scale.const_value.numpy().dtype
    channels = len(scale.const_value.numpy())
    shape = operator("Shape", [value])
    grouped = operator("Reshape", [value, add_constant(graph, f"{name}_groups", np.array([0, groups, -1], np.int64))])
    plain = [
        add_constant(graph, f"{name}_ones", np.ones(groups, dtype)),
        add_constant(graph, f"{name}_zeros", np.zeros(groups, dtype)),
    ]
    normal = operator("InstanceNormalization", [grouped.outputs[0], *plain], epsilon=epsilon_of(node))
    back = operator("Reshape", [normal.outputs[0], shape.outputs[0]])
    back.outputs[0].name = f"{name}_ungrouped"
    known = [
        add_constant(graph, f"{name}_mean", np.zeros(channels, dtype)),
        add_constant(graph, f"{name}_variance", np.full(channels, 1 - EPSILON, dtype)),
    ]
    scaled = operator("BatchNormalization", [back.outputs[0], scale, bias, *known], epsilon=EPSILON)
    return [shape, grouped, normal, back, scaled]
