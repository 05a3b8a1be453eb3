"""Masks of attention for ONNX Runtime's CUDA provider: not spread over the rows, and causal ones as a flag."""

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import get_const_tensor
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.rewriting import attribute

MASK = 3
"""The place of the mask among the inputs of `Attention` (ONNX, opset 23)."""


def simplify_masks(model: ir.Model) -> PassResult:
    """Read masks before they are spread, and replace constant causal masks by `is_causal`.

    1. `Attention` spreads a mask over rows and heads itself, so `Expand` to a tensor of as many axes is left out.
    2. A constant boolean mask (1, 1, n, n) that is true on and below the diagonal, for queries and keys that are the
       same tokens, says what `is_causal` says. With the flag the provider has a fused kernel, with a mask it has none.
    """
    changed = False
    for node in model.graph:
        if node.op_type != "Attention" or len(node.inputs) <= MASK or node.inputs[MASK] is None:
            continue
        if (narrow := before_expansion(node.inputs[MASK])) is not None:
            node.replace_input_with(MASK, narrow)
            changed = True
        if len(node.inputs) == MASK + 1 and not attribute(node, "is_causal", 0) and is_causal(node.inputs[MASK]):
            node.replace_input_with(MASK, None)
            node.resize_inputs(MASK)
            node.attributes["is_causal"] = ir.AttrInt64("is_causal", 1)
            changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, changed)


def before_expansion(mask: ir.Value | None) -> ir.Value | None:
    """What a mask was before `Expand`, if that has as many axes."""
    expand = mask.producer() if mask is not None else None
    narrow = expand.inputs[0] if expand is not None and expand.op_type == "Expand" else None
    if mask is None or narrow is None or narrow.shape is None or mask.shape is None:
        return None
    return narrow if len(narrow.shape) == len(mask.shape) else None


def is_causal(mask: ir.Value | None) -> bool:
    """Whether a mask is the constant of rule 2."""
    tensor = get_const_tensor(mask) if mask is not None else None
    if tensor is None or tensor.dtype != ir.DataType.BOOL or len(tensor.shape) != 4:
        return False
    values = tensor.numpy()
    return values.shape[:2] == (1, 1) and np.array_equal(values[0, 0], np.tri(*values.shape[2:], dtype=np.bool_))
