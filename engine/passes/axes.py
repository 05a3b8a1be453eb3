"""The axes of every tensor of a graph, expressed in the dims that its inputs declare.

The symbols that exporters write inside a graph (`s23`, `unk__7`, or none) cannot be used for this. Instead, ONNX's
shape inference runs with numbers in place of the dims: once with a base size for each, once per dim with that dim
doubled, and once with all of them changed, as a check. A length that grows with exactly one dim, by a whole multiple of
it, is an axis; any other is unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from latentrt.engine.graph import WEIGHT_BYTES, lengths
from latentrt.runtime.bundle.specs import Axis, Sizes
from latentrt.runtime.errors import BundleError

BASE = 8
"""A multiple of every factor by which a U-Net divides its sizes; small, since ONNX tracks every element of vectors."""

IR_VERSION = 11
"""ONNX IR version of the graph that is only used for shape inference."""


@dataclass(frozen=True, slots=True)
class Described:
    """Dtype and axes of a tensor; None for an axis that is not a multiple of one dim plus a constant."""

    dtype: ir.DataType
    axes: tuple[Axis | None, ...]


def input_axes(value: ir.Value) -> tuple[Axis, ...]:
    """The axes that a graph input declares; an unnamed one is called `<input>_<index>`."""
    found = []
    for index, length in enumerate(value.shape or ()):
        name = str(length) if isinstance(length, int) else length.value or f"{value.name}_{index}"
        try:
            found.append(Axis.parse(name))
        except BundleError:  # a name that no spec could have
            found.append(Axis(name))
    return tuple(found)


def describe_tensors(graph: ir.Graph) -> dict[str, Described]:
    """Dtype and axes of every tensor whose shape ONNX can infer, by name."""
    proto = without_weights(graph)
    inputs = {str(value.name): input_axes(value) for value in graph.inputs}
    dims = sorted({axis.dim for axes in inputs.values() for axis in axes if axis.dim})
    base = {dim: BASE * (index + 2) for index, dim in enumerate(dims)}
    check = {dim: 3 * size + BASE for dim, size in base.items()}
    at_base = infer(proto, inputs, base)
    doubled = [infer(proto, inputs, base | {dim: 2 * base[dim]}) for dim in dims]
    at_check = infer(proto, inputs, check)
    found = {}
    for name, (dtype, shape) in at_base.items():
        others = [shapes.get(name, (dtype, ()))[1] for shapes in doubled]
        checked = at_check.get(name, (dtype, ()))[1]
        if any(len(other) != len(shape) for other in (*others, checked)):
            continue
        axes = []
        for index, length in enumerate(shape):
            grown = {dim: other[index] for dim, other in zip(dims, others, strict=True)}
            axis = fit_axis(length, grown, base)
            axes.append(axis if axis and axis.size(check) == checked[index] else None)
        found[name] = Described(ir.DataType(dtype), tuple(axes))
    return found


def fit_axis(length: int, grown: Mapping[str, int], base: Sizes) -> Axis | None:
    """The axis whose length is `length` at the base sizes and `grown[dim]` with that dim doubled, or None."""
    if min(length, *grown.values()) < 0:
        return None
    changed = [dim for dim, other in grown.items() if other != length]
    if not changed:
        return Axis("", offset=length)
    dim = changed[0]
    scale, rest = divmod(grown[dim] - length, base[dim])
    offset = length - scale * base[dim]
    return Axis(dim, scale, offset) if len(changed) == 1 and not rest and scale > 0 and offset >= 0 else None


def without_weights(graph: ir.Graph) -> onnx.ModelProto:
    """The graph as a protobuf of a few megabytes: without the weights' values and without recorded shapes."""
    copy = graph.clone()
    for value in copy.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= WEIGHT_BYTES:
            value.const_value = ir.ExternalTensor(
                "absent",
                0,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(list(tensor.shape.numpy())),
                name=str(value.name),
            )
    proto: onnx.ModelProto = ir.to_proto(ir.Model(copy, ir_version=IR_VERSION))
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def infer(
    proto: onnx.ModelProto, inputs: Mapping[str, tuple[Axis, ...]], sizes: Sizes
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Dtype and shape at these sizes of every tensor whose number of axes is known; -1 for an unknown length."""
    for value in proto.graph.input:
        for dim, axis in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            dim.dim_value = axis.size(sizes)
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {
        value.name: (value.type.tensor_type.elem_type, lengths(value))
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
