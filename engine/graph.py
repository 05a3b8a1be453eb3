"""An ONNX graph, in latentrt's words."""

import os
import shutil
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir

from latentrt.engine.checks import Layer, Tensor

HEAVY = frozenset({"Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})

SMALL_BYTES = 1024
"""Constants up to this size may be shapes, which decide about other shapes; larger ones are weights."""


def read_graph(file: Path) -> onnx.GraphProto:
    """The graph of an ONNX file without its weights, with the dtype of every tensor.

    Raises:
        Exception: whatever onnx raises for a file that it cannot read or that contradicts itself.
    """
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > SMALL_BYTES:
            tensor.ClearField("raw_data")
    return onnx.shape_inference.infer_shapes(model).graph


def dtype_name(number: int) -> str:
    """An ONNX dtype by latentrt's name."""
    name = onnx.TensorProto.DataType.Name(number).lower()
    return "float32" if name == "float" else name


def describe(value: onnx.ValueInfoProto) -> Tensor:
    """Dtype and shape of a graph's input or output."""
    kind = value.type.tensor_type
    lengths = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return Tensor(dtype_name(kind.elem_type), lengths)


def node_dtypes(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, str]]:
    """Every node with the dtype of its first output, `-` where it is not known.

    ONNX infers no dtype where it cannot infer a shape (`Attention` behind a reshape); an input then stands for the
    output, which is of the same dtype for all nodes that `heavy_nodes` looks at.
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
    """How many nodes of each `Type dtype` the graph has."""
    return dict(sorted(Counter(f"{node.op_type} {dtype}" for node, dtype in node_dtypes(graph)).items()))


def heavy_nodes(graph: onnx.GraphProto) -> list[Layer]:
    """The convolutions, matmuls and attentions of a graph."""
    return [
        Layer(node.op_type, node.name or node.output[0], dtype)
        for node, dtype in node_dtypes(graph)
        if node.op_type in HEAVY
    ]


def link_data(model: ir.Model, source: Path, folder: Path) -> None:
    """Put the model's data files into `folder`, too: ONNX Runtime refuses ones that lie elsewhere.

    A hard link where the disk is the same, a copy elsewhere.
    """
    tensors = (value.const_value for value in model.graph.initializers.values())
    for name in {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target)
        except OSError:
            shutil.copyfile(source / name, target)
