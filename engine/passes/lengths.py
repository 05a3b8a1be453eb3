"""Constant folding of lengths: the sizes of heads and channels that traced code computes again on every run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.convenience import get_const_tensor
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.axes import WEIGHT_BYTES, describe_tensors
from latentrt.engine.passes.shape_reads import add_constant, axes_read, gathered_places, replace_uses

ARITHMETIC = frozenset(
    ("Add", "Cast", "Concat", "Div", "Gather", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze")
)


def fold_lengths(model: ir.Model) -> PassResult:
    """Replace what is computed from fixed lengths alone by its value.

    1. Reading axes of fixed length, by `Shape` alone or by `Shape` and `Gather`, becomes a constant.
    2. Arithmetic on small constants becomes its result. Weights are left as they are.
    3. Both are repeated, since a shape that is now known may make others known; what is no longer used is removed.
    """
    modified = False
    while fold_once(model.graph):
        modified = True
    if modified:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, modified)


def fold_once(graph: ir.Graph) -> bool:
    """One walk over the nodes in order; whether anything was replaced."""
    described = describe_tensors(graph)
    folded = False
    for node in graph:
        if (axes := axes_read(node, described)) is not None:
            # -1 stands where the length is not fixed; a reader of such a place is left alone.
            lengths = np.array([-1 if axis is None or axis.dim else axis.offset for axis in axes], np.int64)
            folded |= fold_reads(graph, node, lengths)
        elif node.op_type in ARITHMETIC and (constants := small_constants(node)) and node.outputs[0].uses():
            replace_output(graph, node, evaluate(graph, node, constants))
            folded = True
    return folded


def fold_reads(graph: ir.Graph, shape: ir.Node, lengths: NDArray[np.int64]) -> bool:
    """Replace the reads of fixed places of a shape by constants; whether there were any."""
    folded = False
    for use in shape.outputs[0].uses():
        places = gathered_places(use.node, len(lengths)) if use.idx == 0 else None
        if places is not None and (lengths[places] >= 0).all() and use.node.outputs[0].uses():
            replace_output(graph, use.node, np.asarray(lengths[places]))
            folded = True
    if (lengths >= 0).all() and shape.outputs[0].uses():
        replace_output(graph, shape, lengths)
        folded = True
    return folded


def small_constants(node: ir.Node) -> list[NDArray[Any]] | None:
    """A node's operands, if all are constants of less than a weight's size."""
    found = [None if value is None else get_const_tensor(value) for value in node.inputs]
    if any(tensor is None or tensor.nbytes >= WEIGHT_BYTES for tensor in found):
        return None
    return [tensor.numpy() for tensor in found if tensor is not None]


def evaluate(graph: ir.Graph, node: ir.Node, operands: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The node's result by ONNX's reference implementation."""
    proto: onnx.NodeProto = ir.to_proto(node)
    proto.input[:] = [f"operand{index}" for index in range(len(operands))]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.input]
    output = onnx.helper.make_tensor_value_info(proto.output[0], onnx.TensorProto.UNDEFINED, None)
    opset = onnx.helper.make_opsetid("", graph.opset_imports[""])
    single = onnx.helper.make_model(onnx.helper.make_graph([proto], "fold", inputs, [output]), opset_imports=[opset])
    (result,) = ReferenceEvaluator(single).run(None, dict(zip(proto.input, operands, strict=True)))
    return np.asarray(result)


def replace_output(graph: ir.Graph, node: ir.Node, values: NDArray[Any]) -> None:
    """Let every reader of a node's output read a constant."""
    replace_uses(node.outputs[0], add_constant(graph, f"{node.outputs[0].name}_folded", values))
