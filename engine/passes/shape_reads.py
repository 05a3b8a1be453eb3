"""Replace reads of shapes in one side of a split graph: lengths come from tensors that this side has."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import get_const_tensor

from latentrt.engine.passes.axes import Described
from latentrt.engine.passes.rewriting import add_constant, attribute, replace_uses
from latentrt.runtime.bundle.specs import Axis


class LengthSource:
    """Reads lengths of axes from some tensors of a graph; each node for that is made once.

    The nodes are inserted at the beginning of the graph, since `values` are inputs of the side that will be cut out.
    """

    def __init__(self, graph: ir.Graph, values: Sequence[ir.Value], described: Mapping[str, Described]):
        self.graph, self.described, self.first = graph, described, graph[0]
        self.places: dict[Axis, tuple[ir.Value, int]] = {}
        for value in values:
            found = described.get(str(value.name))
            for index, axis in enumerate(found.axes if found else ()):
                if axis is not None:
                    self.places.setdefault(axis, (value, index))
        self.shapes: dict[str, ir.Value] = {}
        self.made = 0

    def read(self, axes: Sequence[Axis | None], scalar: bool = False) -> ir.Value | None:
        """An int64 tensor (len(axes),) of these lengths, or a scalar of one; None if no tensor has one of the axes."""
        if any(axis is None or (axis.dim and axis not in self.places) for axis in axes):
            return None
        shape = () if scalar else (1,)
        parts = [self._length(axis, shape) for axis in axes if axis is not None]
        return parts[0] if len(parts) == 1 else self._node("Concat", parts)

    def _length(self, axis: Axis, shape: tuple[int, ...]) -> ir.Value:
        if not axis.dim:
            return self._constant(axis.offset, shape)
        value, index = self.places[axis]
        name = str(value.name)
        if name not in self.shapes:
            self.shapes[name] = self._node("Shape", [value])
        return self._node("Gather", [self.shapes[name], self._constant(index, shape)])

    def _constant(self, number: int, shape: tuple[int, ...]) -> ir.Value:
        return add_constant(self.graph, self._name("length"), np.full(shape, number, np.int64))

    def _node(self, kind: str, inputs: Sequence[ir.Value]) -> ir.Value:
        node = ir.node(kind, inputs, {} if kind == "Shape" else {"axis": 0})
        node.name = node.outputs[0].name = self._name(kind.lower())
        self.graph.insert_before(self.first, node)
        return node.outputs[0]

    def _name(self, what: str) -> str:
        self.made += 1
        return f"hoisted_{what}_{self.made}"


def replace_shape_reads(graph: ir.Graph, foreign: set[str], source: LengthSource) -> None:
    """Where a node reads the shape of a `foreign` tensor, let it read the lengths from `source`, if that has them.

    A `Gather` with constant indices needs only the lengths it picks; any other reader needs the whole shape.
    """
    for node in list(graph):
        axes = axes_read(node, source.described)
        if axes is None or str(node.inputs[0].name) not in foreign:  # type: ignore[union-attr]
            continue
        whole = source.read(axes)
        for use in list(node.outputs[0].uses()):
            places = gathered_places(use.node, len(axes)) if use.idx == 0 else None
            if places is not None:
                lengths = source.read([axes[place] for place in places.ravel()], scalar=places.ndim == 0)
                if lengths is not None:
                    replace_uses(use.node.outputs[0], lengths)
            elif whole is not None:
                use.node.replace_input_with(use.idx, whole)


def axes_read(node: ir.Node, described: Mapping[str, Described]) -> tuple[Axis | None, ...] | None:
    """The axes whose lengths a `Shape` node returns; None for any other node or a tensor that is not described."""
    found = described.get(str(node.inputs[0].name)) if node.op_type == "Shape" and node.inputs[0] else None
    return None if found is None else found.axes[attribute(node, "start", 0) : attribute(node, "end", len(found.axes))]


def gathered_places(node: ir.Node, length: int) -> NDArray[Any] | None:
    """The constant indices, a scalar or a vector, with which a `Gather` reads a vector; None for any other node."""
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 0 or node.inputs[1] is None:
        return None
    indices = get_const_tensor(node.inputs[1])
    places = np.empty(0) if indices is None else indices.numpy()
    return (
        places if places.ndim <= 1 and places.size and (-length <= places).all() and (places < length).all() else None
    )
