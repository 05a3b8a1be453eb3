"""Is a network what was asked for? Compares ports with the spec and dtypes with the precision, for any backend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentrt.runtime.bundle.components import DTYPES
from latentrt.runtime.bundle.specs import ComponentSpec, Port, Precision
from latentrt.runtime.errors import BuildError, PrecisionError

FLOAT32_COMPONENTS = frozenset({"sampler"})
"""Components whose arithmetic is float32 whatever the dtype of their ports."""

REMEDY = "Export the checkpoint again"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A network's input or output as a backend sees it; -1 is a length that is only known at run time."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if length == -1 else str(length) for length in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that does heavy arithmetic: a convolution, a matmul or an attention."""

    kind: str
    name: str
    dtype: str


def check_ports(spec: ComponentSpec, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
    """Raise `BuildError` where the network's ports are not the spec's: names, dtypes, number of axes, fixed lengths."""
    for kind, found, ports in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
        needed = sorted(port.name for port in ports)
        if sorted(found) != needed:
            raise BuildError(
                f"{spec.name}: the network's {kind} are {', '.join(sorted(found)) or 'none'}, the bundle says "
                f"{', '.join(needed)}. {REMEDY}"
            )
    for port in spec.ports:
        tensor = inputs[port.name] if port in spec.inputs else outputs[port.name]
        if not fits(spec, port, tensor):
            raise BuildError(f"{spec.name}: {port.name} is {tensor} in the network, the bundle says {port}. {REMEDY}")


def fits(spec: ComponentSpec, port: Port, tensor: Tensor) -> bool:
    """Whether a tensor can serve as a port.

    A length with a range must be unknown, a fixed one known; an output's may stay unknown where shapes are computed.
    """
    low, high = port.shape(spec.sizes("min")), port.shape(spec.sizes("max"))
    if tensor.dtype != port.dtype or len(tensor.shape) != len(low):
        return False
    return all(
        length == smallest == largest or (length == -1 and (bool(axis.dim) or port in spec.outputs))
        for length, smallest, largest, axis in zip(tensor.shape, low, high, port.axes, strict=True)
    )


def check_precision(
    spec: ComponentSpec, precision: Precision, layers: Sequence[Layer], float32_layers: int = 0
) -> None:
    """Raise `PrecisionError` where a convolution, matmul or attention runs in another dtype than the precision's.

    They do nearly all the arithmetic. Other layers (normalisation, softmax, sinusoids) may be kept in float32.
    `float32_layers`: how many of them the export declared to be float32, no more and no fewer.
    """
    asked: Precision = "fp32" if spec.name in FLOAT32_COMPONENTS else precision
    wrong = [layer for layer in layers if layer.dtype != DTYPES[asked]]
    if wrong and (len(wrong) != float32_layers or any(layer.dtype != "float32" for layer in wrong)):
        declared = f", the bundle declares {float32_layers} as float32" if float32_layers else ""
        raise PrecisionError(
            f"{spec.name}: {wrong[0].kind} {wrong[0].name} runs in {wrong[0].dtype}, {asked} needs {DTYPES[asked]}; "
            f"{len(wrong)} of {len(layers)} such layers differ{declared}. {REMEDY} with --precision {asked}"
        )
    if not wrong and float32_layers:
        raise PrecisionError(
            f"{spec.name}: no layer runs in float32, the bundle declares {float32_layers} that must, because fp16 "
            f"overflows there. {REMEDY}"
        )
