"""Group normalisation and the SiLU after it as one operator of ONNX Runtime's CUDA provider."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.group_norm import epsilon_of
from latentrt.engine.passes.rewriting import (
    MICROSOFT,
    MICROSOFT_DTYPES,
    add_constant,
    has_constants,
    only_reader,
    put_in_place,
)

TO_CHANNELS_LAST, TO_CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Permutations from NCHW to NHWC and back."""


def fuse_group_norm(model: ir.Model) -> PassResult:
    """Replace `GroupNormalization` of images, with the SiLU x * sigmoid(x) after it, by `com.microsoft.GroupNorm`.

    1. The tensor has four axes and is float32 or float16; scale and bias are initializers, which become float32.
    2. The operator takes channels last, so a transpose is put before and after it; ONNX Runtime removes pairs of
       transposes that cancel.
    3. The SiLU is included where nothing else reads the normalised values.
    """
    nodes = [node for node in model.graph if node.op_type == "GroupNormalization" and _is_image(node)]
    for node in nodes:
        silu = _silu_after(node)
        put_in_place(model.graph, silu or node, _channels_last(model.graph, node, activation=silu is not None))
    if nodes:
        model.graph.opset_imports[MICROSOFT] = 1
        RemoveUnusedNodesPass()(model)
    return PassResult(model, bool(nodes))


def _is_image(node: ir.Node) -> bool:
    value = node.inputs[0]
    if value is None or value.shape is None:
        return False
    return len(value.shape) == 4 and value.dtype in MICROSOFT_DTYPES and has_constants(node)


def _silu_after(node: ir.Node) -> ir.Node | None:
    """The product of the normalised values and their sigmoid, if nothing else reads the normalised values."""
    normal = node.outputs[0]
    readers = {use.node for use in normal.uses()}
    sigmoids = [reader for reader in readers if reader.op_type == "Sigmoid"]
    products = [reader for reader in readers if reader.op_type == "Mul"]
    if normal.is_graph_output() or len(readers) != 2 or not len(sigmoids) == len(products) == 1:
        return None
    sigmoid, (product,) = sigmoids[0].outputs[0], products
    alone = only_reader(sigmoid, "Mul") is product
    return product if alone and set(product.inputs) == {normal, sigmoid} else None


def _channels_last(graph: ir.Graph, node: ir.Node, activation: bool) -> list[ir.Node]:
    """Transpose, `com.microsoft.GroupNorm`, transpose back."""
    value, scale, bias = (one for one in node.inputs if one is not None)
    name = str(node.outputs[0].name)
    scale_and_bias = [
        add_constant(graph, f"{name}_{suffix}", one.const_value.numpy().astype(np.float32))
        for suffix, one in (("gamma", scale), ("beta", bias))
        if one.const_value is not None
    ]
    attributes = {
        "groups": node.attributes["num_groups"].as_int(),
        "epsilon": epsilon_of(node),
        "activation": int(activation),
        "channels_last": 1,
    }
    last = ir.node("Transpose", [value], {"perm": TO_CHANNELS_LAST})
    normal = ir.node("GroupNorm", [last.outputs[0], *scale_and_bias], attributes, domain=MICROSOFT)
    first = ir.node("Transpose", [normal.outputs[0]], {"perm": TO_CHANNELS_FIRST})
    last.outputs[0].name, normal.outputs[0].name = f"{name}_channels_last", f"{name}_normal"
    return [last, normal, first]
