"""Dims, ports and component specs: the only description of the inputs and outputs of components.

ONNX axes, TensorRT profiles, buffer sizes, request checks and sample inputs are all derived from these.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

import numpy as np

from latentrt.runtime.errors import BundleError, RequestError

Precision = Literal["fp16", "fp32", "bf16"]
DType = Literal["float16", "float32", "bfloat16", "int64", "uint8"]
Sizes = Mapping[str, int]

DTYPES: Mapping[Precision, DType] = {"fp16": "float16", "fp32": "float32", "bf16": "bfloat16"}
"""The dtype of each precision."""

ONNX_TYPES: Mapping[DType, int] = {"float32": 1, "uint8": 2, "int64": 7, "float16": 10, "bfloat16": 16}
"""Each dtype's number in ONNX files and in ONNX Runtime (`TensorProto.DataType`)."""

TOKENS_PER_CHUNK = 77
"""Tokens of one text-encoder row: begin, 75 words' tokens, end."""


@dataclass(frozen=True, slots=True)
class Dim:
    """A named size and its closed range; `min == max` makes it static.

    Raises:
        RequestError: the range is empty or not positive.
    """

    name: str
    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise RequestError(
                f"{self.name} {self.min}:{self.opt}:{self.max}: a range is min:opt:max with 1 <= min <= opt <= max"
            )

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a port: `scale * dim + offset`; a fixed length is an offset without a dim."""

    dim: str
    scale: int = 1
    offset: int = 0

    def size(self, sizes: Sizes) -> int:
        """Length of this axis for the named sizes."""
        return self.scale * sizes[self.dim] + self.offset if self.dim else self.offset

    def __str__(self) -> str:
        if not self.dim:
            return str(self.offset)
        return ("" if self.scale == 1 else f"{self.scale}*") + self.dim + (f"+{self.offset}" if self.offset else "")

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """Inverse of `str`: `rows`, `8*latent_height`, `steps+1` or `77`."""
        match = re.fullmatch(r"(?:(\d+)\*)?([a-z]\w*)(?:\+(\d+))?|(\d+)", text)
        if match is None:
            raise BundleError(f"axis {text!r}: an axis is written like rows, 8*latent_height, steps+1 or 77")
        scale, dim, offset, fixed = match.groups()
        return cls("", offset=int(fixed)) if fixed else cls(dim, int(scale or 1), int(offset or 0))


@dataclass(frozen=True, slots=True)
class Port:
    """A component's input or output: its name, dtype and axes."""

    name: str
    dtype: DType
    axes: tuple[Axis, ...]

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Shape for the named sizes."""
        return tuple(axis.size(sizes) for axis in self.axes)

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The numpy dtype; numpy has no bfloat16, which is held as raw uint16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.axes))}]"

    @classmethod
    def parse(cls, name: str, text: str) -> "Port":
        """Inverse of `str`: `float16[rows, 4, latent_height, latent_width]`."""
        dtype, _, axes = text.removesuffix("]").partition("[")
        if dtype not in get_args(DType):
            raise BundleError(f"{name} {text!r}: dtype {dtype!r} is none of {', '.join(get_args(DType))}")
        return cls(name, cast(DType, dtype), tuple(Axis.parse(axis.strip()) for axis in axes.split(",")))


def port(name: str, dtype: DType, *axes: str | int) -> Port:
    """A port with axes written as in the documentation: `port("sample", "float16", "rows", 4, "latent_height")`."""
    return Port(name, dtype, tuple(Axis.parse(str(axis)) for axis in axes))


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """One network: its inputs, its outputs and the range of every dim that they use."""

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dims: Mapping[str, Dim]

    def __post_init__(self) -> None:
        used = {axis.dim for port in self.ports for axis in port.axes if axis.dim}
        object.__setattr__(self, "dims", MappingProxyType({name: self.dims[name] for name in sorted(used)}))

    @property
    def ports(self) -> tuple[Port, ...]:
        """Inputs, then outputs."""
        return self.inputs + self.outputs

    def uses(self, dtype: DType) -> bool:
        """Whether a port has this dtype."""
        return any(port.dtype == dtype for port in self.ports)

    def sizes(self, which: Literal["min", "opt", "max"]) -> dict[str, int]:
        """Every dim at its minimum, optimum or maximum."""
        return {name: getattr(dim, which) for name, dim in self.dims.items()}

    def check(self, sizes: Sizes) -> None:
        """Raise `RequestError` where a size is missing or outside its dim's range."""
        for name, dim in self.dims.items():
            if name not in sizes:
                raise RequestError(f"{self.name}: no size given for {name}; its dims are {', '.join(self.dims)}")
            if sizes[name] not in dim:
                raise RequestError(f"{self.name}: {name} {sizes[name]} is outside {dim.min} to {dim.max}")
