"""Products of one small tensor as a single product: a U-Net projects the time embedding for every block."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.rewriting import add_constant, attribute, constant_values, has_constants, take_over

MOST_PARTS = 32
"""Parts whose addresses ONNX Runtime hands to its kernel as an argument."""


def merge_gemms(model: ir.Model) -> PassResult:
    """Replace the `Gemm`s x · Wᵢᵀ + bᵢ that read the same x by one with all rows of W and b, and `Split`.

    1. Weights and biases are initializers, x is plain and W is transposed, both factors are 1.
    2. Their widths are equal: to split into unequal parts, ONNX Runtime copies the widths from the host on every run.
       For the same reason, no more than `MOST_PARTS` are merged.
    3. There are at least two.
    """
    groups: dict[tuple[ir.Value, int | ir.SymbolicDim], list[ir.Node]] = {}
    for node in model.graph:
        if (found := _linear(node)) is not None:
            groups.setdefault(found, []).append(node)
    merged = [nodes[:MOST_PARTS] for nodes in groups.values() if len(nodes) > 1]
    for nodes in merged:
        _merge(model.graph, nodes)
    if merged:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(merged))


def _linear(node: ir.Node) -> tuple[ir.Value, int | ir.SymbolicDim] | None:
    """The x of a `Gemm` that rule 1 allows, and the width of its result."""
    if node.op_type != "Gemm" or len(node.inputs) != 3 or not has_constants(node):
        return None
    x, weights, bias = node.inputs
    if x is None or weights is None or weights.shape is None or bias is None or bias.shape is None:
        return None
    factors = {node.attributes[name].as_float() if name in node.attributes else 1.0 for name in ("alpha", "beta")}
    transposed = attribute(node, "transA", 0), attribute(node, "transB", 0)
    return (x, bias.shape[0]) if len(bias.shape) == 1 and factors == {1.0} and transposed == (0, 1) else None


def _merge(graph: ir.Graph, nodes: list[ir.Node]) -> None:
    """Put one product and its split in the place of the first of these nodes."""
    first = nodes[0]
    name = f"{first.outputs[0].name}_to_{nodes[-1].outputs[0].name}"
    joined = []
    for place, what in ((1, "weights"), (2, "biases")):
        tensors = [constant_values(value) for node in nodes if (value := node.inputs[place]) is not None]
        joined.append(add_constant(graph, f"{name}_{what}", np.concatenate(tensors)))
    product = ir.node("Gemm", [first.inputs[0], *joined], {"transB": 1})
    parts = {"axis": 1, "num_outputs": len(nodes)}
    split = ir.node("Split", [product.outputs[0]], parts, num_outputs=len(nodes))
    product.name = product.outputs[0].name = name
    split.name = f"{name}_split"
    graph.insert_before(first, [product, split])
    for node, output in zip(nodes, split.outputs, strict=True):
        take_over(output, node.outputs[0])
