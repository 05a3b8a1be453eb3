"""Bias, residual and layer norm as one operator of ONNX Runtime, and bias and residual where no norm follows."""

import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.group_norm import epsilon_of
from latentrt.engine.passes.rewriting import (
    MICROSOFT,
    MICROSOFT_DTYPES,
    attribute,
    has_constants,
    put_in_place,
    take_over,
)

BIAS_ADD_WIDTHS = frozenset({320, 640, 1280})
"""Widths of the last axis for which ONNX Runtime 1.31 has a kernel of `BiasAdd`."""


def fuse_skip_layer_norm(model: ir.Model) -> PassResult:
    """Replace LayerNormalization((x + bias) + skip) by `com.microsoft.SkipLayerNormalization`.

    1. Both tensors have the same three axes; the norm is of the last one, its scale and bias are initializers.
    2. The sum of all, which the next residual reads, is the operator's fourth output.
    3. The bias is an initializer of one axis whose sum nothing else reads; without one, the operator has none.
    """
    fused = 0
    for node in list(model.graph):
        norm = _norm_of(node)
        if norm is None:
            continue
        value, bias, skip = _terms(node)
        inputs = [value, skip, norm.inputs[1], norm.inputs[2], *([bias] if bias is not None else [])]
        made = ir.node("SkipLayerNormalization", inputs, {"epsilon": epsilon_of(norm)}, domain=MICROSOFT, num_outputs=4)
        _take_over(model.graph, node, norm, made)
        fused += 1
    return _finish(model, fused)


def fuse_bias_add(model: ir.Model) -> PassResult:
    """Replace (x + bias) + skip by `com.microsoft.BiasAdd`, which ONNX Runtime has on CUDA alone.

    1. Both tensors have the same three axes; the bias is an initializer of one axis whose sum nothing else reads.
    2. The operator has a kernel for this width.
    """
    fused = 0
    for node in list(model.graph):
        if node.op_type != "Add" or not _is_skip(node):
            continue
        value, bias, skip = _terms(node)
        width = node.outputs[0].shape[2] if node.outputs[0].shape is not None else None
        if bias is not None and width in BIAS_ADD_WIDTHS:
            put_in_place(model.graph, node, [ir.node("BiasAdd", [value, bias, skip], domain=MICROSOFT)])
            fused += 1
    return _finish(model, fused)


def _finish(model: ir.Model, fused: int) -> PassResult:
    if fused:
        model.graph.opset_imports[MICROSOFT] = 1
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(fused))


def _norm_of(node: ir.Node) -> ir.Node | None:
    """The layer norm that reads a sum of two tensors with the same axes."""
    if node.op_type != "Add" or not _is_skip(node):
        return None
    for norm in (use.node for use in node.outputs[0].uses()):
        axis = attribute(norm, "axis", -1)
        if norm.op_type == "LayerNormalization" and axis in (-1, 2) and len(norm.inputs) == 3 and has_constants(norm):
            scale = norm.inputs[1]
            if scale is not None and scale.dtype == node.outputs[0].dtype and len(norm.outputs) == 1:
                return norm
    return None


def _is_skip(node: ir.Node) -> bool:
    """Whether an addition has two computed operands with the same three axes, of a dtype that has kernels."""
    first, second = (None if value is None else value.shape for value in node.inputs)
    return (
        first is not None
        and len(first) == 3
        and first == second
        and all(length is not None and str(length) != "None" for length in first)
        and node.outputs[0].dtype in MICROSOFT_DTYPES
        and not any(value is not None and value.is_initializer() for value in node.inputs)
    )


def _terms(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None]:
    """Value, bias and skip of a sum; without a bias, its two operands are value and skip."""
    for value, skip in (tuple(node.inputs), tuple(reversed(node.inputs))):
        add = value.producer() if value is not None else None
        if value is None or add is None or add.op_type != "Add" or len(tuple(value.uses())) != 1:
            continue
        biases = [one for one in add.inputs if one is not None and one.is_initializer()]
        (other, *_) = [one for one in add.inputs if one not in biases] or (None,)
        one_axis = len(biases) == 1 and biases[0].shape is not None and len(biases[0].shape) == 1
        if one_axis and other is not None and other.shape == value.shape and not value.is_graph_output():
            return other, biases[0], skip
    return node.inputs[0], None, node.inputs[1]


def _take_over(graph: ir.Graph, add: ir.Node, norm: ir.Node, made: ir.Node) -> None:
    """Put the fused node in the place of the addition and its norm."""
    normal, mean, deviation, total = made.outputs
    mean.name = deviation.name = total.name = ""  # outputs that are not asked for
    graph.insert_after(add, made)
    take_over(normal, norm.outputs[0])
    if len(tuple(add.outputs[0].uses())) > 1 or add.outputs[0].is_graph_output():
        take_over(total, add.outputs[0])
        norm.replace_input_with(0, add.outputs[0])
