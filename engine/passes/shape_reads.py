"""Reads lengths of axes from the tensors that one side of a split graph has."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import get_const_tensor

from latentrt.engine.passes.axes import Described
from latentrt.runtime.bundle.specs import Axis


class LengthSource:
    """Tensors of a graph from which lengths may be read, and the nodes that read them, each made once.

    The nodes stand at the graph's beginning, since `values` are inputs of the side that is to be cut out.
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
        """An int64 tensor (len(axes),) with these lengths, or one as a scalar; None where one is not to be had."""
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


def add_constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    """A new constant of a graph."""
    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace_shape_reads(graph: ir.Graph, foreign: set[str], source: LengthSource) -> None:
    """Where the shape of a `foreign` tensor is read, read the lengths from the source's tensors, as far as they go.

    A `Gather` of constant places reads only those; anything else reads the whole shape.
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
                replace_uses(use.node.outputs[0], lengths)
            elif whole is not None:
                use.node.replace_input_with(use.idx, whole)


def axes_read(node: ir.Node, described: Mapping[str, Described]) -> tuple[Axis | None, ...] | None:
    """The axes whose lengths a `Shape` gives; None for any other node, and where the tensor is not known."""
    found = described.get(str(node.inputs[0].name)) if node.op_type == "Shape" and node.inputs[0] else None
    return None if found is None else found.axes[attribute(node, "start", 0) : attribute(node, "end", len(found.axes))]


def replace_uses(value: ir.Value, other: ir.Value | None) -> None:
    """Let every reader of `value` read `other`, if there is one."""
    for reader, index in list(value.uses()) if other is not None else ():
        reader.replace_input_with(index, other)


def gathered_places(node: ir.Node, length: int) -> NDArray[Any] | None:
    """The constant places, a scalar or a row, that a `Gather` reads of a vector; None for any other node."""
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 0 or node.inputs[1] is None:
        return None
    indices = get_const_tensor(node.inputs[1])
    places = np.empty(0) if indices is None else indices.numpy()
    return (
        places if places.ndim <= 1 and places.size and (-length <= places).all() and (places < length).all() else None
    )


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute of a node."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()
