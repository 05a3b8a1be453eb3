"""Counts the work of a component from its ONNX graph: floating-point operations and bytes at given sizes.

Only convolutions, matrix products and attention are counted, at 2 operations per multiply-add. The rest (normalisation,
activations, additions) is below 1 % in the networks here. Weights are never read.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from latentrt.engine.graph import lengths
from latentrt.runtime.bundle.specs import Axis
from latentrt.runtime.errors import BenchmarkError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

SHAPE_KEEPING = ("GroupNormalization",)
"""Operators unknown to onnx's shape inference whose output has the shape of their first input."""

SHAPE_VALUES = 64
"""Integer tensors of up to this many elements are evaluated, since they may be shapes."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one run of a graph.

    `flops`: operations by operator type. `weight_bytes`: size of all weights. `port_bytes`: size of the graph's inputs
    and outputs. `activation_bytes`: bytes that all operators read and write, weights aside, if none are fused.
    """

    flops: Mapping[str, int]
    weight_bytes: int
    port_bytes: int
    activation_bytes: int

    @property
    def total_flops(self) -> int:
        """Operations of all operators together."""
        return sum(self.flops.values())

    @property
    def least_bytes(self) -> int:
        """Bytes that must cross the memory bus even with perfect fusion."""
        return self.weight_bytes + self.port_bytes


def conv(inputs: Sequence[Shape], output: Shape, node: onnx.NodeProto) -> int:
    """Operations of a convolution: each output element sums over the kernel and the input channels of its group."""
    return 2 * math.prod(output) * math.prod(inputs[1][1:])


def matmul(inputs: Sequence[Shape], output: Shape, node: onnx.NodeProto) -> int:
    """Operations of a matrix product: each output element is a dot product over the first operand's last axis."""
    return 2 * math.prod(output) * inputs[0][-1]


def gemm(inputs: Sequence[Shape], output: Shape, node: onnx.NodeProto) -> int:
    """Operations of a matrix product whose first operand may be transposed; the bias is not counted."""
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(output) * inputs[0][0 if transposed else 1]


def attention(inputs: Sequence[Shape], output: Shape, node: onnx.NodeProto) -> int:
    """Operations of queries times keys, then weights times values.

    Shapes are (batch, tokens, width) or (batch, heads, tokens, head width).
    """
    query, key, value = inputs[:3]
    return 2 * math.prod(query) * key[-2] + 2 * math.prod(query[:-1]) * key[-2] * _value_width(query, value, node)


def _value_width(query: Shape, value: Shape, node: onnx.NodeProto) -> int:
    """Width of the values per element of `query[:-1]`; with three axes, that of all heads together."""
    if len(value) == 4:
        return value[-1]
    heads: dict[str, int] = {attribute.name: attribute.i for attribute in node.attribute}
    return int(value[-1] * heads["q_num_heads"] // heads["kv_num_heads"])


OPERATORS: Mapping[str, Callable[[Sequence[Shape], Shape, onnx.NodeProto], int]] = {
    "Attention": attention,
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
}


def count(file: Path, sizes: Mapping[str, int]) -> Work:
    """Count the work of one ONNX file at the given sizes of its named axes.

    Raises:
        BenchmarkError: an axis has no size, or the shape of a product cannot be inferred.
    """
    model = onnx.load(file, load_external_data=False)
    _forget_weights(model.graph)
    weight_bytes = sum(math.prod(weight.dims) * _itemsize(weight.data_type) for weight in model.graph.initializer)
    shapes, dtypes = infer_shapes(model, sizes)
    weights = {weight.name for weight in model.graph.initializer}
    flops: dict[str, int] = {}
    activations = 0
    for node in model.graph.node:
        if node.op_type in OPERATORS:
            missing = [name for name in (*node.input, node.output[0]) if name and name not in shapes]
            if missing:
                raise BenchmarkError(
                    f"{file}: the shape of {missing[0]} at {node.op_type} {node.name} cannot be inferred from "
                    f"{dict(sizes)}, so its work cannot be counted. Export the bundle again"
                )
            own = OPERATORS[node.op_type]([shapes.get(name, ()) for name in node.input], shapes[node.output[0]], node)
            flops[node.op_type] = flops.get(node.op_type, 0) + own
        touched = [name for name in (*node.input, *node.output) if name in shapes and name not in weights]
        activations += sum(math.prod(shapes[name]) * dtypes[name] for name in touched)
    ports = [value.name for value in (*model.graph.input, *model.graph.output) if value.name in shapes]
    port_bytes = sum(math.prod(shapes[name]) * dtypes[name] for name in ports)
    return Work(flops, weight_bytes, port_bytes, activations)


def infer_shapes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shape, and bytes per element, of every tensor whose shape can be inferred at these sizes.

    Shapes that the graph itself computes are found by turns: infer, evaluate small integer tensors, infer again.

    Raises:
        BenchmarkError: a named axis of an input has no size.
    """
    model = _bare(model, sizes)
    known = {weight.name: _value(weight) for weight in model.graph.initializer if _is_shape_like(weight)}
    known |= {node.output[0]: _constant(node) for node in model.graph.node if node.op_type == "Constant"}
    known = {name: value for name, value in known.items() if value.size <= SHAPE_VALUES}
    while True:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
        shapes, dtypes = _tables(inferred.graph)
        found = _evaluate(model.graph, shapes, known)
        if not found:
            return shapes, dtypes
        known |= found
        _freeze(model.graph, found)


def _bare(model: onnx.ModelProto, sizes: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the model with the sizes written into its inputs, without the shapes of an earlier inference."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for value in bare.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = _axis_size(value.name, dim.dim_param, sizes)
    del bare.graph.value_info[:]
    for value in bare.graph.output:
        value.type.tensor_type.ClearField("shape")
    for node in bare.graph.node:
        if node.op_type in SHAPE_KEEPING:
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    return bare


def _axis_size(name: str, axis: str, sizes: Mapping[str, int]) -> int:
    try:
        return Axis.parse(axis).size(sizes)
    except KeyError:
        raise BenchmarkError(f"{name}: no size given for its axis {axis}; have {dict(sizes)}") from None


def _tables(graph: onnx.GraphProto) -> tuple[dict[str, Shape], dict[str, int]]:
    shapes: dict[str, Shape] = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    dtypes = {weight.name: _itemsize(weight.data_type) for weight in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and -1 not in lengths(value):
            shapes[value.name] = lengths(value)
            dtypes[value.name] = _itemsize(kind.elem_type)
    return shapes, dtypes


def _evaluate(graph: onnx.GraphProto, shapes: Shapes, known: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Values of small tensors that can be computed now and are not in `known`."""
    values = dict(known)
    for node in graph.node:
        if len(node.output) != 1 or node.output[0] in values or node.op_type in OPERATORS:
            continue
        if node.op_type == "Shape" and node.input[0] in shapes:
            feed = {node.input[0]: np.empty(shapes[node.input[0]], np.bool_)}
        elif node.input and all(name in values or not name for name in node.input):
            feed = {name: values[name] for name in node.input if name}
        else:
            continue
        (value,) = ReferenceEvaluator(node).run(None, feed)
        value = np.asarray(value)
        if value.size <= SHAPE_VALUES:
            values[node.output[0]] = value
    return {name: value for name, value in values.items() if name not in known}


def _freeze(graph: onnx.GraphProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Replace the nodes that compute these tensors by constants."""
    kept = [node for node in graph.node if not set(node.output) & values.keys()]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items())


def _forget_weights(graph: onnx.GraphProto) -> None:
    """Drop the weights that are stored in the graph itself: shape inference copies it, and would copy gigabytes."""
    for weight in graph.initializer:
        if not _is_shape_like(weight):
            weight.ClearField("raw_data")


def _is_shape_like(tensor: onnx.TensorProto) -> bool:
    small = math.prod(tensor.dims) <= SHAPE_VALUES and tensor.data_location != onnx.TensorProto.EXTERNAL
    return small and tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.FLOAT)


def _value(tensor: onnx.TensorProto) -> NDArray[Any]:
    return np.asarray(onnx.numpy_helper.to_array(tensor))


def _constant(node: onnx.NodeProto) -> NDArray[Any]:
    (value,) = ReferenceEvaluator(node).run(None, {})
    return np.asarray(value)


def _itemsize(data_type: int) -> int:
    kind: Any = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    return int(np.dtype(kind).itemsize)
