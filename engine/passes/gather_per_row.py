"""One element of every row, without counting the rows: ONNX Runtime counts on the CPU."""

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import get_const_tensor
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.lengths_at import LengthsAt, lengths_at_trials
from latentrt.engine.passes.rewriting import attribute


def gather_per_row(model: ir.Model) -> PassResult:
    """Let `GatherND` with the indices (0, i), (1, j), … take element i of row 0, j of row 1, … as a batch of rows.

    1. The indices are two columns side by side, the first of them `Range` from 0 in steps of 1 as a column.
    2. It ends at the number of rows that there are.
    3. With `batch_dims` 1 the second column alone says the same.
    """
    nodes = [node for node in model.graph if node.op_type == "GatherND" and columns(node) is not None]
    known = lengths_at_trials(model.graph) if nodes else None
    changed = False
    for node in nodes:
        first, second = columns(node) or (None, None)
        if known is not None and second is not None and counts_rows(first, node.inputs[0], known):
            node.replace_input_with(1, second)
            node.attributes["batch_dims"] = ir.AttrInt64("batch_dims", 1)
            changed = True
    if changed:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, changed)


def columns(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None] | None:
    """The two columns of a `GatherND`'s indices."""
    indices = node.inputs[1]
    joined = indices.producer() if indices is not None else None
    if joined is None or joined.op_type != "Concat" or len(joined.inputs) != 2 or attribute(node, "batch_dims", 0):
        return None
    first, second = joined.inputs
    side_by_side = all(one is not None and one.shape is not None and len(one.shape) == 2 for one in (first, second))
    return (first, second) if side_by_side and joined.attributes["axis"].as_int() in (-1, 1) else None


def counts_rows(column: ir.Value | None, value: ir.Value | None, known: LengthsAt) -> bool:
    """Whether a column holds 0, 1, 2, … for every row of a tensor."""
    unsqueeze = column.producer() if column is not None else None
    numbers = unsqueeze.inputs[0] if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
    counting = numbers.producer() if numbers is not None else None
    if counting is None or value is None or counting.op_type != "Range":
        return False
    start, limit, step = counting.inputs
    begins, steps = (get_const_tensor(one) if one is not None else None for one in (start, step))
    ends = known.values.get(str(limit.name)) if limit is not None else None
    axes = known.axes.get(str(value.name))
    if begins is None or steps is None or ends is None or axes is None:
        return False
    return begins.numpy().item() == 0 and steps.numpy().item() == 1 and np.array_equal(ends.ravel(), axes[:, 0])
