"""One safetensors file: its header, which is read before any tensor, and its tensors as numpy arrays."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open

from latentrt.runtime.backends.bfloat16 import from_bits
from latentrt.runtime.errors import CheckpointError

Shape = tuple[int, ...]

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
PICKLE_REMEDY = "a pickle, which can run any code when read. Convert it to safetensors"

LFS_POINTER = b"version https://git-lfs"
"""How the text begins that Git LFS puts in place of a large file."""

LISTED_KEYS = 12
"""How many keys an error names."""

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "uint16"}
"""Dtypes of weights, by their names in safetensors files; numpy has no bfloat16, which is read as its bits."""


@dataclass(frozen=True)
class TensorFile:
    """The header of a safetensors file: `shapes`, key -> shape of its tensor, and `metadata`."""

    path: Path
    shapes: Mapping[str, Shape]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header.

        Raises:
            CheckpointError: the file is missing, a pickle, or no safetensors file.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file. Give the path of a .safetensors file")
        if path.suffix.lower() in PICKLES:
            raise CheckpointError(f"{path}: {PICKLE_REMEDY}, or download that form")
        _refuse_placeholder(path)
        try:
            with safe_open(path, framework="np") as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
                return cls(path, shapes, file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: not a readable safetensors file ({error}). Download it again, or convert it"
            ) from error

    def arrays(self, keys: Collection[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Read these tensors in float32.

        Raises:
            CheckpointError: the file cannot be read any more, or one of them is not of floating point.
        """
        try:
            stored = deserialize(self.path.read_bytes())  # type: ignore[no-untyped-call]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error}). Download it again") from error
        for key, tensor in stored:
            if key not in keys:
                continue
            if tensor["dtype"] not in DTYPES:
                raise CheckpointError(f"{self.path}: {key} is of {tensor['dtype']}; weights are read in float16 and up")
            values = np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            yield key, from_bits(values) if tensor["dtype"] == "BF16" else values.astype(np.float32)


def _refuse_placeholder(path: Path) -> None:
    """Raise `CheckpointError` for what stands where weights were not downloaded: nothing, or Git LFS's pointer."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not start:
        raise CheckpointError(f"{path}: empty, 0 bytes. Download it again")
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path}: a pointer of Git LFS, not the weights themselves. Fetch them with `git lfs pull` in its "
            "repository, or download the file again"
        )


def list_keys(keys: list[str]) -> str:
    """Name the first keys of a list in a sentence, and how many more there are."""
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more
