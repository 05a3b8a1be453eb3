"""Small graphs written as text, to try graph passes on."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

SIZES = {"rows": 2, "tokens": 5, "h": 3, "w": 4, "words": 6}
HEADER = '<ir_version: 10, opset_import: ["" : 23]>'

INPUTS = "float[rows,4,h,w] sample, float[rows] timestep, float[rows,tokens,16] prompt"
"""The inputs of a U-Net, in little."""


def parse(text: str) -> ir.Model:
    proto = onnx.parser.parse_model(HEADER + text)
    draw = np.random.default_rng(0).standard_normal
    for value in [value for value in proto.graph.value_info if value.name.isupper()]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(draw(shape).astype("f4"), value.name))
        proto.graph.value_info.remove(value)
    return ir.from_proto(proto)


def shaped(text: str) -> ir.Model:
    """A graph with the shapes of its tensors, as exporters write it."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(parse(text))))


def run(model: ir.Model, feeds: dict[str, Any]) -> dict[str, Any]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    given = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(outputs, session.run(outputs, given), strict=True))


def inputs_of(model: ir.Model, sizes: dict[str, int]) -> dict[str, Any]:
    draw = np.random.default_rng(1).standard_normal
    shapes = {str(value.name): value.shape or () for value in model.graph.inputs}
    return {
        name: np.asarray(draw([n if isinstance(n, int) else sizes[str(n)] for n in shape]), "f4")
        for name, shape in shapes.items()
    }


def operators(model: ir.Model) -> list[str]:
    return sorted(node.op_type for node in model.graph)


def names(values: Any) -> list[str]:
    return [value.name for value in values]
