"""Checks a network as a backend sees it: its ports against the spec, its dtypes against the precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from latentrt.runtime.bundle.specs import DTYPES, ComponentSpec, Port, Precision
from latentrt.runtime.errors import BuildError, PrecisionError

FLOAT32_COMPONENTS = frozenset({"sampler"})
"""Components that compute in float32, whatever the dtypes of their ports."""

REMEDY = "Export the checkpoint again"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A network's input or output as a backend sees it; -1 for a length that is only known at run time."""

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
    """Raise `BuildError` if the ports differ from the spec's in names, dtypes, number of axes or fixed lengths."""
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
    """Whether a tensor matches a port.

    A length with a range must be unknown and a fixed one known; an output's length may be unknown in any case, since
    some graphs compute shapes at run time.
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
    """Raise `PrecisionError` if a convolution, matmul or attention does not run in the dtype of the precision.

    These layers do nearly all the arithmetic. Others (normalisation, softmax, sinusoids) may stay in float32.
    `float32_layers`: exactly how many of these layers the export declared to be float32.
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
