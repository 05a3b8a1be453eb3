"""The clean-up of a traced graph: constants folded, no-ops and repetitions gone."""

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

RULES = (
    *rules.mul_by_1_rule.commute(),
    *rules.add_0_rule.commute(),
    rules.sub_0_rule,
    rules.div_by_1_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.max_min_rule,
    rules.min_max_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
)
"""Those of onnxscript's default rules whose patterns diffusion networks have, in its order.

Left out are patterns with two outputs (slices that are a split, fusions of language models): onnxscript tries them on
every pair of nodes, so its optimiser's time grows with the square of their number.
"""

ROUNDS = 2
"""The second one folds what the first one's rules made constant."""


def simplify(model: ir.Model) -> None:
    """Simplify a model in place, as `torch.onnx.export(optimize=True)` does, in a time that grows with its nodes."""
    for _ in range(ROUNDS):
        folded = optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        rewritten = RewritePass(RULES)(model)
        common.RemoveUnusedNodesPass()(model)
        if not folded.modified and not rewritten.modified:
            break
    for finish in (
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        finish(model)
