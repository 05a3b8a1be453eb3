"""Dims, ports and component specs: the only description of the inputs and outputs of components.

ONNX axes, TensorRT profiles, buffer sizes, request checks and sample inputs are all derived from these.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
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

ONNX_NAMES: Mapping[int, DType] = {number: name for name, number in ONNX_TYPES.items()}
"""The dtype of each of those numbers."""

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

    @property
    def is_static(self) -> bool:
        """Whether it is a single number."""
        return self.min == self.max

    @property
    def brief(self) -> str:
        """One number if it is static, else `min:opt:max`."""
        return str(self.min) if self.is_static else str(self)


Dims = Mapping[str, Dim]
"""The range of every dim, by its name."""


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
    """One network: its inputs, its outputs, and the sizes that it serves.

    `dims` is the whole range of every dim that a port uses. `profiles` are the ranges that an engine is optimised for;
    it serves what lies within one of them. By default there is one, `dims`. Dims that no port uses are left out, and so
    is a profile that then equals another.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    dims: Dims
    profiles: tuple[Dims, ...] = ()

    def __post_init__(self) -> None:
        names = sorted({axis.dim for port in self.ports for axis in port.axes if axis.dim})

        def used(dims: Dims) -> Dims:
            return MappingProxyType({name: dims[name] for name in names})

        profiles: list[Dims] = []
        for profile in map(used, self.profiles or (self.dims,)):
            profiles += [profile] if profile not in profiles else []
        object.__setattr__(self, "dims", used(self.dims))
        object.__setattr__(self, "profiles", tuple(profiles))

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

    @property
    def profile_table(self) -> tuple[dict[str, str], ...]:
        """Of several profiles, the dims that differ between them, as text; empty for one profile."""
        differing = [name for name in self.dims if len({profile[name] for profile in self.profiles}) > 1]
        table = tuple({name: profile[name].brief for name in differing} for profile in self.profiles)
        return table if differing else ()

    def profiles_of(self, sizes: Sizes) -> list[int]:
        """The numbers of the profiles that these sizes lie in."""
        return [
            number
            for number, profile in enumerate(self.profiles)
            if all(sizes[name] in dim for name, dim in profile.items())
        ]

    def profile_of(self, sizes: Sizes) -> int:
        """The number of the tightest profile that these sizes lie in: the one that serves the fewest sizes.

        Raises:
            RequestError: a size is missing, or no profile serves these sizes.
        """
        self._check_ranges(sizes)
        serving = self.profiles_of(sizes)
        if not serving:
            given = _list_sizes({name: str(sizes[name]) for name in self.profile_table[0]})
            served = " or ".join(map(_list_sizes, self.profile_table))
            raise RequestError(f"{self.name}: {given} is served by no profile of this build, which serves {served}")
        return min(serving, key=lambda number: prod(dim.max - dim.min + 1 for dim in self.profiles[number].values()))

    def check(self, sizes: Sizes) -> None:
        """Raise `RequestError` where a size is missing or outside its dim's range, or no profile serves the sizes."""
        self.profile_of(sizes)

    def _check_ranges(self, sizes: Sizes) -> None:
        for name, dim in self.dims.items():
            if name not in sizes:
                raise RequestError(f"{self.name}: no size given for {name}; its dims are {', '.join(self.dims)}")
            if sizes[name] not in dim:
                raise RequestError(f"{self.name}: {name} {sizes[name]} is outside {dim.min} to {dim.max}")


def _list_sizes(sizes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items())
