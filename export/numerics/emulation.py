"""bf16 graphs on a CPU, in float32, for ONNX Runtime has no bf16 convolution, matmul or attention there.

Every weight and every stored tensor is a bfloat16 number; sums are float32, as on tensor cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

BF16, FLOAT = ir.DataType.BFLOAT16, ir.DataType.FLOAT

EXACT = frozenset({"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}) | {
    "Transpose",
    "Unsqueeze",
}
"""Operators that move numbers and make no new ones, so their outputs need no rounding."""


@contextmanager
def emulated(file: Path) -> Iterator[Path]:
    """A float32 copy of a bf16 ONNX file, twice its size, deleted when the block ends. Tensors keep their names.

    Run it without optimisation, which would first remove the casts to bf16 and back.
    """
    model = ir.load(file)
    emulate(model)
    with TemporaryDirectory(prefix="latentrt-bf16-") as folder:
        copy = Path(folder) / file.name
        ir.save(model, copy, external_data=f"{file.name}.data")
        yield copy


def emulate(model: ir.Model) -> None:
    """Rewrite a graph in place: bf16 becomes float32, and two casts round every operator's output to bf16."""
    graph = model.graph
    for weight in graph.initializers.values():
        if weight.const_value is not None and weight.const_value.dtype == BF16:
            weight.const_value = ir.tensor(weight.const_value.numpy().astype(np.float32), name=weight.name)
            weight.dtype = FLOAT
    for value in graph.inputs:
        if value.dtype == BF16:
            value.dtype = FLOAT
    for node in list(graph):
        _widen_attributes(node)
        for output in node.outputs:
            if output.dtype == BF16:
                output.dtype = FLOAT
                if node.op_type not in EXACT:
                    _round(graph, node, output)


def _widen_attributes(node: ir.Node) -> None:
    """Turn bf16 into float32 in the attributes of casts and constants."""
    for name, attribute in list(node.attributes.items()):
        if name == "to" and attribute.as_int() == BF16:
            node.attributes[name] = ir.AttrInt64(name, FLOAT)
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == BF16:
            values = attribute.as_tensor().numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(values))


def _round(graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
    """Insert casts to bf16 and back after an output; the rounded tensor takes over its name and its uses."""
    uses = list(output.uses())
    narrow = ir.node("Cast", [output], {"to": BF16.value})
    wide = ir.node("Cast", [narrow.outputs[0]], {"to": FLOAT.value})
    rounded = wide.outputs[0]
    rounded.name, rounded.type, rounded.shape = output.name, ir.TensorType(FLOAT), output.shape
    output.name = f"{output.name}.unrounded"
    narrow.outputs[0].name, narrow.outputs[0].type = f"{output.name}.bf16", ir.TensorType(BF16)
    for user, index in uses:
        user.replace_input_with(index, rounded)
    graph.outputs[:] = [rounded if value is output else value for value in graph.outputs]
    graph.insert_after(node, [narrow, wide])
