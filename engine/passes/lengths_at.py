"""The lengths of every axis of a graph's tensors at several sizes of its inputs: equal at all of them, equal always.

`axes.py` says what an axis is in the dims of the inputs, which an interface needs. Here the question is only which
lengths are equal, so that one tensor can stand in for arithmetic on the lengths of another. That arithmetic is
evaluated as well, so lengths that it determines are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.convenience import get_const_tensor

from latentrt.engine.graph import WEIGHT_BYTES, lengths
from latentrt.engine.passes.axes import input_axes
from latentrt.engine.passes.lengths import ARITHMETIC, evaluate
from latentrt.runtime.bundle.specs import Sizes

TRIALS = 8
"""Every dim takes each remainder of 8 once: networks divide sizes by 2, 4 and 8, and round up or down."""

INTEGERS = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


@dataclass(frozen=True)
class LengthsAt:
    """What is known of tensors, by name.

    axes: lengths, shape (trials, axes). values: elements of small integer tensors, shape (trials, …).
    """

    axes: Mapping[str, NDArray[np.int64]]
    values: Mapping[str, NDArray[np.int64]]


def lengths_at_trials(graph: ir.Graph) -> LengthsAt:
    """Lengths and small integers of a graph at `TRIALS` sizes of its dims; what is not known at each is left out."""
    dims = sorted({axis.dim for value in graph.inputs for axis in input_axes(value) if axis.dim})
    sizes = [{dim: trial_size(number, trial) for number, dim in enumerate(dims)} for trial in range(TRIALS)]
    protos: dict[ir.Node, onnx.NodeProto] = {}
    walks = [_Walk(graph, each, protos) for each in sizes]
    return LengthsAt(
        _stack([{name: np.array(shape, np.int64) for name, shape in walk.shapes.items()} for walk in walks]),
        _stack([walk.values for walk in walks]),
    )


def trial_size(number: int, trial: int) -> int:
    """The size of the dim with this number: no two dims grow alike, and none is mistaken for a fixed length."""
    return 31 + 97 * number + trial + 8 * (trial * (number + 1) % 5)


def _stack(found: list[dict[str, NDArray[np.int64]]]) -> dict[str, NDArray[np.int64]]:
    return {
        name: np.stack(each)
        for name in found[0]
        if len(each := [one[name] for one in found if name in one]) == len(found)
        and len({one.shape for one in each}) == 1
    }


class _Walk:
    """One pass over the nodes, in order, with numbers in place of dims; `protos` is filled for the next."""

    def __init__(self, graph: ir.Graph, sizes: Sizes, protos: dict[ir.Node, onnx.NodeProto]):
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, NDArray[Any]] = {}
        self._types: dict[str, onnx.TypeProto] = {}
        self._graph, self._protos = graph, protos
        self._opsets = [onnx.helper.make_opsetid(*one) for one in graph.opset_imports.items()]
        for value in graph.inputs:
            if value.dtype is not None:
                self._enter(str(value.name), int(value.dtype), [axis.size(sizes) for axis in input_axes(value)])
        for value in graph.initializers.values():
            if (tensor := value.const_value) is not None:
                self._enter(str(value.name), int(tensor.dtype), tensor.shape.numpy())
        for node in graph:
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        """Enter what is known of a node's outputs."""
        names = operand_names(node)
        known = {name: self._small(value) for name, value in zip(names, filter(None, node.inputs), strict=True)}
        small = [value for name in names if (value := known[name]) is not None]
        if node.op_type == "Shape" and names[0] in self.shapes:
            start, end = (node.attributes[key].as_int() if key in node.attributes else None for key in ("start", "end"))
            self._know(node, np.array(self.shapes[names[0]], np.int64)[start:end])
        elif node.op_type == "Constant":
            if (values := self._small(node.outputs[0])) is not None:
                self._know(node, values)
        elif node.op_type in ARITHMETIC and len(small) == len(node.inputs):
            self._know(node, evaluate(self._graph, node, small))
        elif all(name in self._types for name in names):
            given = {name: onnx.numpy_helper.from_array(value) for name, value in known.items() if value is not None}
            for name, (dtype, shape) in self._infer(node, names, given).items():
                self._enter(name, dtype, shape)

    def _small(self, value: ir.Value) -> NDArray[Any] | None:
        """The elements of a tensor, if they are known and few."""
        if (found := self.values.get(str(value.name))) is not None:
            return found
        tensor = get_const_tensor(value)
        return tensor.numpy() if tensor is not None and tensor.nbytes < WEIGHT_BYTES else None

    def _know(self, node: ir.Node, values: NDArray[Any]) -> None:
        name, dtype = str(node.outputs[0].name), onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        self._enter(name, dtype, values.shape)
        if dtype in INTEGERS:
            self.values[name] = values

    def _enter(self, name: str, dtype: int, shape: Any) -> None:
        self.shapes[name] = tuple(map(int, shape))
        self._types[name] = onnx.helper.make_tensor_type_proto(dtype, self.shapes[name])

    def _infer(
        self, node: ir.Node, names: list[str], given: dict[str, onnx.TensorProto]
    ) -> dict[str, tuple[int, tuple[int, ...]]]:
        """Dtypes and shapes of a node's outputs; empty where they depend on values that are not known."""
        types = {name: self._types[name] for name in names}
        if (left_open := shape_left_open(node, [self.shapes[name] for name in names])) is not None:
            return {str(node.outputs[0].name): (types[names[0]].tensor_type.elem_type, left_open)}
        version = self._graph.opset_imports.get(node.domain, 1)
        if node not in self._protos:
            self._protos[node] = ir.to_proto(node)
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            found = onnx.shape_inference.infer_node_outputs(
                schema, self._protos[node], types, given, opset_imports=self._opsets
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
            return {}
        shapes = {name: lengths(onnx.ValueInfoProto(name=name, type=kind)) for name, kind in found.items()}
        return {
            name: (kind.tensor_type.elem_type, shapes[name])
            for name, kind in found.items()
            if kind.tensor_type.HasField("shape") and min(shapes[name], default=0) >= 0
        }


def operand_names(node: ir.Node) -> list[str]:
    """Names of the inputs that a node has."""
    return [str(value.name) for value in node.inputs if value is not None]


def shape_left_open(node: ir.Node, given: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The shape of an output that ONNX does not infer, by the operator's definition; None for any other node."""
    if node.op_type == "GroupNormalization":
        return given[0]
    if node.op_type == "Attention" and "q_num_heads" in node.attributes and len(node.outputs) == 1:
        heads, kv_heads = (node.attributes[key].as_int() for key in ("q_num_heads", "kv_num_heads"))
        rows, length, _width = given[0]
        return rows, length, heads * given[2][2] // kv_heads
    return None
