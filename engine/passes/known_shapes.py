"""Shapes without arithmetic: ONNX Runtime's CUDA provider leaves additions and products of lengths to the CPU."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import get_const_tensor
from onnx_ir.passes import PassResult
from onnx_ir.passes.common import RemoveUnusedNodesPass

from latentrt.engine.passes.lengths_at import lengths_at_trials
from latentrt.engine.passes.rewriting import add_constant, only_reader, put_in_place

SHAPE_OPERAND = {"Reshape": 1, "Expand": 1, "Resize": 3}
"""Operators whose operand at this place is the shape of their output."""

TO_CHANNELS_FIRST = (0, 3, 1, 2)
"""Permutation from NHWC to NCHW."""

Runs = dict[bytes, tuple[ir.Value, int, int]]
"""Tensors by the lengths of neighbouring axes at every trial: the tensor, the first axis, the axis after the last."""


def read_known_shapes(model: ir.Model) -> PassResult:
    """Replace shapes that a graph computes by constants, or by the shape of a tensor that has these lengths anyway.

    1. `Reshape` to lengths that are fixed, the input's own at the same place, and at most one other: a constant, with 0
       for the input's own and -1 for the other.
    2. Any other shape of `Reshape`, `Expand` and `Resize`: `Shape` of neighbouring axes of a tensor that is there
       before: a graph input, else a group norm's output, else any other. `Resize` gets the axes that change alone.
    3. Pixels (rows, pixels, channels) that become an image with channels last and then first are transposed first: it
       is the images before that have channels first, and so the shape that is needed.
    4. A shape that no tensor has stays as it is.

    Where ONNX Runtime moves a transpose behind `Shape`, lengths have to be permuted. So tensors that a `Transpose`
    makes are not asked for their shape, and convolutions' only if there is no other: they may run with channels last.
    """
    shaped = {node for node in model.graph if is_computed(node)}
    if not shaped:
        return PassResult(model, False)
    known = lengths_at_trials(model.graph)
    runs, others = Runs(), Runs()
    for value in model.graph.inputs:
        enter_runs(runs, value, known.axes)
    changed = False
    for node in list(model.graph):
        if node in shaped:
            before, after = (known.axes.get(str(value.name)) for value in (node.inputs[0], node.outputs[0]) if value)
            if before is not None and after is not None:
                changed |= simplify(model.graph, node, before, after, others | runs)
        if node.op_type != "Transpose" and node.outputs[0].uses():
            for value in node.outputs:
                enter_runs(runs if node.op_type == "GroupNormalization" else others, value, known.axes)
    if changed:
        RemoveUnusedNodesPass()(model)
    return PassResult(model, changed)


def is_computed(node: ir.Node) -> bool:
    """Whether a node is given a shape that comes from other nodes, but not from `Shape` alone."""
    place = SHAPE_OPERAND.get(node.op_type, len(node.inputs))
    value = node.inputs[place] if place < len(node.inputs) else None
    maker = value.producer() if value is not None else None
    return maker is not None and maker.op_type != "Shape" and value is not None and get_const_tensor(value) is None


def simplify(graph: ir.Graph, node: ir.Node, before: NDArray[np.int64], after: NDArray[np.int64], runs: Runs) -> bool:
    """Give a node whose input and output have these lengths a shape by rules 1 to 3. Returns whether there is one."""
    if node.op_type == "Reshape" and (view := constant_view(before, after)) is not None:
        shape: ir.Value | None = add_constant(graph, f"{node.outputs[0].name}_view", np.array(view, np.int64))
    elif node.op_type == "Reshape" and transpose_first(graph, node, before, after, runs):
        return True
    elif node.op_type == "Resize":
        if "axes" in node.attributes or before.shape != after.shape:
            return False
        changing = [axis for axis in range(after.shape[1]) if (before[:, axis] != after[:, axis]).any()]
        shape = shape_of(graph, node, after[:, changing], runs)
        if shape is not None:
            node.attributes["axes"] = ir.AttrInt64s("axes", changing)
    else:
        shape = shape_of(graph, node, after, runs)
    if shape is None:
        return False
    node.replace_input_with(SHAPE_OPERAND[node.op_type], shape)
    node.attributes.pop("allowzero", None)
    return True


def transpose_first(
    graph: ir.Graph, node: ir.Node, before: NDArray[np.int64], after: NDArray[np.int64], runs: Runs
) -> bool:
    """Apply rule 3 to a `Reshape` between these lengths, which then has no reader. Returns whether it could be."""
    transpose = only_reader(node.outputs[0], "Transpose")
    pixels = node.inputs[0]
    if transpose is None or pixels is None or (before.shape[1], after.shape[1]) != (3, 4):
        return False
    same_ends = (before[:, [0, 2]] == after[:, [0, 3]]).all()
    if not same_ends or tuple(transpose.attributes["perm"].as_ints()) != TO_CHANNELS_FIRST:
        return False
    shape = shape_of(graph, node, after[:, TO_CHANNELS_FIRST], runs)
    if shape is None:
        return False
    turned = ir.node("Transpose", [pixels], {"perm": (0, 2, 1)})
    turned.name = turned.outputs[0].name = f"{transpose.outputs[0].name}_pixels"
    put_in_place(graph, transpose, [turned, ir.node("Reshape", [turned.outputs[0], shape])])
    return True


def constant_view(before: NDArray[np.int64], after: NDArray[np.int64]) -> list[int] | None:
    """The shape operand of a `Reshape` between these lengths as a constant, or None."""
    view = []
    for axis in range(after.shape[1]):
        column = after[:, axis]
        if (column == column[0]).all():
            view.append(int(column[0]))
        else:
            kept = axis < before.shape[1] and (before[:, axis] == column).all()
            view.append(0 if kept else -1)
    return view if view.count(-1) <= 1 else None


def shape_of(graph: ir.Graph, node: ir.Node, wanted: NDArray[np.int64], runs: Runs) -> ir.Value | None:
    """`Shape` of neighbouring axes with these lengths, inserted before `node`."""
    found = runs.get(key(wanted))
    if found is None:
        return None
    value, start, end = found
    made = ir.node("Shape", [value], {"start": start, "end": end})
    made.name = made.outputs[0].name = f"{node.outputs[0].name}_shape"
    graph.insert_before(node, made)
    return made.outputs[0]


def enter_runs(runs: Runs, value: ir.Value, axes: Mapping[str, NDArray[np.int64]]) -> None:
    """Enter every run of neighbouring axes of a tensor; the first tensor that has one keeps it."""
    found = axes.get(str(value.name))
    count = 0 if found is None else found.shape[1]
    for start in range(count):
        for end in range(start + 1, count + 1):
            runs.setdefault(key(found[:, start:end]), (value, start, end))  # type: ignore[index]


def key(lengths: NDArray[np.int64]) -> bytes:
    """Lengths at every trial, to look them up by."""
    return np.ascontiguousarray(lengths).tobytes()
