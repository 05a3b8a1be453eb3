"""The gated GELU of transformer blocks as one operator of ONNX Runtime's CUDA provider."""

import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.rewriting import MICROSOFT, MICROSOFT_DTYPES, only_reader, put_in_place

WIDTHS = frozenset({1280, 2560, 3072, 5120, 6144})
"""Widths of one half for which ONNX Runtime 1.31 has a kernel."""


def fuse_gated_gelu(model: ir.Model) -> PassResult:
    """Replace a * gelu(b), where a, b = split(x + bias), by `com.microsoft.BiasSplitGelu` (GEGLU, Shazeer 2020).

    1. The bias is an initializer of one axis, the split halves the last axis, the GELU is the exact one.
    2. Nothing else reads the sum, its halves or the GELU.
    3. The operator has a kernel for this width and dtype.
    """
    fused = 0
    for gelu in [node for node in model.graph if node.op_type == "Gelu"]:
        product = only_reader(gelu.outputs[0], "Mul")
        add = _sum_before(gelu, product) if product is not None else None
        if add is None or product is None:
            continue
        value, bias = sorted((one for one in add.inputs if one is not None), key=lambda one: one.is_initializer())
        made = ir.node("BiasSplitGelu", [value, bias], domain=MICROSOFT)
        put_in_place(model.graph, product, [made])
        fused += 1
    if fused:
        model.graph.opset_imports[MICROSOFT] = 1
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(fused))


def _sum_before(gelu: ir.Node, product: ir.Node) -> ir.Node | None:
    """The addition of the bias, if its second half goes to `gelu` and its first half to `product`, and nowhere else."""
    half = gelu.inputs[0]
    split = half.producer() if half is not None else None
    exact = "approximate" not in gelu.attributes or gelu.attributes["approximate"].as_string() == "none"
    if half is None or split is None or split.op_type != "Split" or not exact:
        return None
    first, second = split.outputs[0], split.outputs[-1]
    halves = len(split.outputs) == 2 and half is second and set(product.inputs) == {first, gelu.outputs[0]}
    alone = only_reader(first, "Mul") is product and only_reader(second, "Gelu") is gelu
    if not (halves and alone and _halves_last_axis(split)):
        return None
    total = split.inputs[0]
    add = total.producer() if total is not None else None
    if add is None or add.op_type != "Add" or only_reader(add.outputs[0], "Split") is not split:
        return None
    known = [one for one in add.inputs if one is not None and one.is_initializer()]
    one_axis = len(known) == 1 and known[0].shape is not None and len(known[0].shape) == 1
    return add if one_axis and add.outputs[0].dtype in MICROSOFT_DTYPES else None


def _halves_last_axis(split: ir.Node) -> bool:
    value = split.inputs[0]
    shapes = [one.shape for one in split.outputs]
    if (
        value is None
        or value.shape is None
        or any(shape is None or len(shape) != 3 for shape in (value.shape, *shapes))
    ):
        return False
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    widths = {shape[-1] for shape in shapes if shape is not None}
    return axis in (-1, 2) and len(widths) == 1 and widths <= WIDTHS
