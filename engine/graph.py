"""Reads ONNX graphs: tensors, dtypes and layers in the terms of `engine.checks`."""

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir

from latentrt.engine.checks import Layer, Tensor
from latentrt.runtime.bundle.atomic_files import link_or_copy
from latentrt.runtime.bundle.specs import ONNX_NAMES

HEAVY = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})
"""Operators that do nearly all of a network's arithmetic."""

WEIGHT_BYTES = 1024
"""Constants of this size or larger are weights; smaller ones may be shapes, which determine other shapes."""


def read_graph(file: Path) -> onnx.GraphProto:
    """The graph of an ONNX file without its weights, with inferred dtypes.

    Raises:
        Exception: anything that onnx raises for a file that cannot be read or contradicts itself.
    """
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) >= WEIGHT_BYTES:
            tensor.ClearField("raw_data")
    return onnx.shape_inference.infer_shapes(model).graph


def dtype_name(number: int) -> str:
    """An ONNX dtype's name in latentrt, or ONNX's own in lower case where no port has that dtype."""
    return ONNX_NAMES.get(number) or onnx.TensorProto.DataType.Name(number).lower()


def lengths(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The length of every axis of a tensor; -1 where it is not a number."""
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)


def describe(value: onnx.ValueInfoProto) -> Tensor:
    """Dtype and shape of a graph's input or output."""
    return Tensor(dtype_name(value.type.tensor_type.elem_type), lengths(value))


def node_dtypes(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, str]]:
    """Every node with the dtype of its first output, `-` if unknown.

    ONNX infers no dtype where it cannot infer a shape (`Attention` after a reshape). For the heavy operators the dtype
    of an input is used instead: they all have the same dtype at inputs and output.
    """
    values = (*graph.input, *graph.value_info, *graph.output)
    known = {value.name: dtype_name(value.type.tensor_type.elem_type) for value in values}
    known |= {tensor.name: dtype_name(tensor.data_type) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        names = (node.output[0], *node.input) if node.op_type in HEAVY else node.output[:1]
        found.append((node, next((known[name] for name in names if name in known), "-")))
    return found


def count_nodes(graph: onnx.GraphProto) -> dict[str, int]:
    """The number of nodes of each `Type dtype`."""
    return dict(sorted(Counter(f"{node.op_type} {dtype}" for node, dtype in node_dtypes(graph)).items()))


def heavy_nodes(graph: onnx.GraphProto) -> list[Layer]:
    """The convolutions, matmuls and attentions of a graph."""
    return [
        Layer(node.op_type, node.name or node.output[0], dtype)
        for node, dtype in node_dtypes(graph)
        if node.op_type in HEAVY
    ]


def link_data(model: ir.Model, source: Path, folder: Path) -> None:
    """Make the model's data files available in `folder`: ONNX Runtime refuses files outside the model's own folder."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    for name in {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(source / name, target)
