"""Reads networks that TensorRT has parsed: tensors, dtypes and layers in the terms of `engine.checks`.

A strongly typed network runs in the dtypes written in it, so what is read here holds for the engine.
"""

from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from latentrt.engine.checks import Layer, Tensor
from latentrt.runtime.bundle.specs import ComponentSpec

DTYPES = {"HALF": "float16", "FLOAT": "float32", "BF16": "bfloat16", "INT64": "int64", "UINT8": "uint8"}
"""TensorRT's names of the dtypes that a port may have."""

HEAVY = frozenset({"ATTENTION_INPUT", "CONVOLUTION", "DECONVOLUTION", "EINSUM", "MATRIX_MULTIPLY"})
"""Layer types that do nearly all of a network's arithmetic."""


def dtype_name(dtype: Any) -> str:
    """A TensorRT dtype's name in latentrt, or TensorRT's own in lower case where no port has that dtype."""
    return DTYPES.get(dtype.name, str(dtype.name).lower())


def inputs(network: Any) -> dict[str, Tensor]:
    """Every input of a network, by name."""
    return {tensor.name: describe(tensor) for tensor in map(network.get_input, range(network.num_inputs))}


def outputs(network: Any) -> dict[str, Tensor]:
    """Every output of a network, by name."""
    return {tensor.name: describe(tensor) for tensor in map(network.get_output, range(network.num_outputs))}


def describe(tensor: Any) -> Tensor:
    """Dtype and shape of a TensorRT tensor."""
    return Tensor(dtype_name(tensor.dtype), tuple(tensor.shape))


def fix_lengths(network: Any, spec: ComponentSpec) -> None:
    """Give inputs the lengths that the spec fixes, where the graph leaves them open.

    TensorRT then knows every shape that follows from them when it optimises the graph, not only when it times kernels.
    """
    for tensor in map(network.get_input, range(network.num_inputs)):
        port = next((port for port in spec.inputs if port.name == tensor.name), None)
        if port is None or len(port.axes) != len(tensor.shape):
            continue  # `check_ports` says so
        low, high = port.shape(spec.sizes("min")), port.shape(spec.sizes("max"))
        found = tuple(tensor.shape)
        fixed = tuple(
            small if length == -1 and axis.dim and small == large else length
            for length, axis, small, large in zip(found, port.axes, low, high, strict=True)
        )
        if fixed != found:
            tensor.shape = fixed


def walk(network: Any) -> Iterator[Any]:
    """Every layer of a network, in order."""
    return map(network.get_layer, range(network.num_layers))


def layer_dtype(layer: Any) -> str:
    """Dtype of a layer's first output, `-` if it has none."""
    return dtype_name(layer.get_output(0).dtype) if layer.num_outputs else "-"


def count_layers(network: Any) -> dict[str, int]:
    """The number of layers of each `TYPE dtype`."""
    return dict(sorted(Counter(f"{layer.type.name} {layer_dtype(layer)}" for layer in walk(network)).items()))


def heavy_layers(network: Any) -> list[Layer]:
    """The convolutions, matmuls and attentions of a network."""
    return [
        Layer(layer.type.name, layer.name, layer_dtype(layer)) for layer in walk(network) if layer.type.name in HEAVY
    ]


def strongly_typed(trt: ModuleType) -> int:
    """The creation flags of a strongly typed network; TensorRT versions without the flag have no other kind."""
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
