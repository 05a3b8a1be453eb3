"""Constant folding of lengths: head and channel counts that a traced graph computes from shapes on every run."""

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

from latentrt.engine.graph import WEIGHT_BYTES
from latentrt.engine.passes.axes import describe_tensors
from latentrt.engine.passes.rewriting import add_constant, replace_uses
from latentrt.engine.passes.shape_reads import axes_read, gathered_places

ARITHMETIC = frozenset(
    ("Add", "Cast", "Concat", "Div", "Gather", "Mul", "Reshape", "Slice", "Squeeze", "Sub", "Unsqueeze")
)
"""Operators by which traced code computes with lengths."""


def fold_lengths(model: ir.Model) -> PassResult:
    """Replace values that are computed from fixed lengths alone by constants.

    1. `Shape`, alone or followed by `Gather`, becomes a constant where the axes it reads have fixed lengths.
    2. Arithmetic on small constants becomes its result; weights are left alone.
    3. Both repeat until nothing changes, since a shape that has become known may make others known. Nodes that are no
       longer used are removed.
    """
    modified = False
    while fold_once(model.graph):
        modified = True
    if modified:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, modified)


def fold_once(graph: ir.Graph) -> bool:
    """Fold in one walk over the nodes, in order. Returns whether anything was replaced."""
    described = describe_tensors(graph)
    folded = False
    for node in graph:
        if (axes := axes_read(node, described)) is not None:
            # -1 marks a length that is not fixed; nodes that read it are left alone.
            lengths = np.array([-1 if axis is None or axis.dim else axis.offset for axis in axes], np.int64)
            folded |= fold_reads(graph, node, lengths)
        elif node.op_type in ARITHMETIC and (constants := small_constants(node)) and node.outputs[0].uses():
            replace_output(graph, node, evaluate(graph, node, constants))
            folded = True
    return folded


def fold_reads(graph: ir.Graph, shape: ir.Node, lengths: NDArray[np.int64]) -> bool:
    """Replace the nodes that read only fixed lengths of a shape by constants. Returns whether there were any."""
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
    """A node's operands, if all are constants smaller than a weight."""
    found = [None if value is None else get_const_tensor(value) for value in node.inputs]
    if any(tensor is None or tensor.nbytes >= WEIGHT_BYTES for tensor in found):
        return None
    return [tensor.numpy() for tensor in found if tensor is not None]


def evaluate(graph: ir.Graph, node: ir.Node, operands: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The node's result, computed by ONNX's reference implementation."""
    proto: onnx.NodeProto = ir.to_proto(node)
    proto.input[:] = [f"operand{index}" for index in range(len(operands))]
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UNDEFINED, None) for name in proto.input]
    output = onnx.helper.make_tensor_value_info(proto.output[0], onnx.TensorProto.UNDEFINED, None)
    opset = onnx.helper.make_opsetid("", graph.opset_imports[""])
    single = onnx.helper.make_model(onnx.helper.make_graph([proto], "fold", inputs, [output]), opset_imports=[opset])
    (result,) = ReferenceEvaluator(single).run(None, dict(zip(proto.input, operands, strict=True)))
    return np.asarray(result)


def replace_output(graph: ir.Graph, node: ir.Node, values: NDArray[Any]) -> None:
    """Let every reader of a node's output read a constant with these values."""
    replace_uses(node.outputs[0], add_constant(graph, f"{node.outputs[0].name}_folded", values))
