"""The axes of every tensor of a graph, in the dims that its inputs declare.

The symbols that exporters write inside a graph (`s23`, `unk__7`, none at all) are no use for this. Instead ONNX's own
shape inference runs with numbers in place of the dims: once with a base size for each, once more for each dim with that
one doubled, and a last time with all of them changed, to check. A length that grows with exactly one dim, in steps of a
whole number, is an axis; any other is unknown.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from latentrt.runtime.bundle.specs import Axis, Sizes
from latentrt.runtime.errors import BundleError

WEIGHT_BYTES = 1024
"""Constants from this size on are weights; smaller ones may be shapes, which decide about other shapes."""

BASE = 8
"""A multiple of every factor by which a U-Net divides its sizes; small, since ONNX follows the elements of vectors."""


@dataclass(frozen=True, slots=True)
class Described:
    """Dtype and axes of a tensor; None for an axis that no single dim explains."""

    dtype: ir.DataType
    axes: tuple[Axis | None, ...]


def input_axes(value: ir.Value) -> tuple[Axis, ...]:
    """A graph input's axes as it declares them; one without a name gets `<input>_<index>`."""
    found = []
    for index, length in enumerate(value.shape or ()):
        name = str(length) if isinstance(length, int) else length.value or f"{value.name}_{index}"
        try:
            found.append(Axis.parse(name))
        except BundleError:  # not a name that a spec could have
            found.append(Axis(name))
    return tuple(found)


def describe_tensors(graph: ir.Graph) -> dict[str, Described]:
    """Dtype and axes of every tensor whose shape ONNX can infer, by name."""
    proto = without_weights(graph)
    inputs = {str(value.name): input_axes(value) for value in graph.inputs}
    dims = sorted({axis.dim for axes in inputs.values() for axis in axes if axis.dim})
    base = {dim: BASE * (index + 2) for index, dim in enumerate(dims)}
    first = infer(proto, inputs, base)
    varied = [infer(proto, inputs, base | {dim: 2 * base[dim]}) for dim in dims]
    last = infer(proto, inputs, {dim: 3 * size + BASE for dim, size in base.items()})
    checks = {dim: 3 * size + BASE for dim, size in base.items()}
    found = {}
    for name, (dtype, lengths) in first.items():
        others = [shapes.get(name, (dtype, ()))[1] for shapes in varied]
        final = last.get(name, (dtype, ()))[1]
        if any(len(shape) != len(lengths) for shape in (*others, final)):
            continue
        axes = []
        for index, length in enumerate(lengths):
            grown = {dim: shape[index] for dim, shape in zip(dims, others, strict=True)}
            axis = fit_axis(length, grown, base)
            axes.append(axis if axis and axis.size(checks) == final[index] else None)
        found[name] = Described(ir.DataType(dtype), tuple(axes))
    return found


def fit_axis(length: int, grown: Mapping[str, int], base: Sizes) -> Axis | None:
    """The axis that has `length` at the base sizes and `grown[dim]` with that one dim doubled."""
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
    """The graph as a message of a few megabytes: weights are named but not there, recorded shapes are gone."""
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
    proto: onnx.ModelProto = ir.to_proto(ir.Model(copy, ir_version=11))
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def infer(
    proto: onnx.ModelProto, inputs: Mapping[str, tuple[Axis, ...]], sizes: Sizes
) -> dict[str, tuple[int, list[int]]]:
    """Dtype and shape of every tensor for these sizes; -1 for a length that stays unknown."""
    for value in proto.graph.input:
        for dim, axis in zip(value.type.tensor_type.shape.dim, inputs[value.name], strict=True):
            dim.dim_value = axis.size(sizes)
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {value.name: shape for value in (*graph.input, *graph.value_info, *graph.output) for shape in known(value)}


def known(value: onnx.ValueInfoProto) -> Iterator[tuple[int, list[int]]]:
    """Dtype and shape of one tensor, if its number of axes is known."""
    kind = value.type.tensor_type
    if kind.HasField("shape"):
        yield kind.elem_type, [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
