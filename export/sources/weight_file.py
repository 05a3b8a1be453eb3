"""One safetensors file: its header, which is read before any weight, and networks filled with its tensors."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latentrt.export.random_weights import empty_network, tensor_shapes
from latentrt.export.sources.places import Place, Shape
from latentrt.runtime.errors import CheckpointError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
LFS_POINTER = b"version https://git-lfs"
"""How the text begins that Git LFS puts in place of a large file."""

PICKLE_REMEDY = "a pickle, which can run any code when read. Convert it to safetensors"

TEXT_ENCODER = "a text encoder (CLIP)"
"""What messages call a file for which `is_text_encoder` is true."""

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Name of a part of attention -> its name in files that early versions of diffusers wrote."""

LISTED_KEYS = 12
"""How many keys an error names."""


@dataclass(frozen=True)
class WeightFile:
    """The header of a safetensors file: `shapes`, key -> shape of its tensor, and `metadata`."""

    path: Path
    shapes: Mapping[str, Shape]
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> "WeightFile":
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
            with safe_open(path, framework="pt") as file:
                shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
                return cls(path, shapes, file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: not a readable safetensors file ({error}). Download it again, or convert it"
            ) from error

    def tensors(self, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Read these tensors one by one, in the file's own dtypes."""
        with safe_open(self.path, framework="pt") as file:
            for key in keys:
                yield key, file.get_tensor(key)


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


def given_path(path: Path) -> Path:
    """Make a path absolute and keep its own names: Hugging Face's cache links them to files named by a hash."""
    return path.resolve() if path.name in ("", "..") else path.absolute()


def is_text_encoder(file: WeightFile) -> bool:
    """Whether a file holds nothing but a CLIP text encoder, in transformers' names or OpenCLIP's."""
    keys = [key for key in file.shapes if ".self_attn." in key or ".resblocks." in key]
    return bool(keys) and not any("down" in key or "conv_in" in key for key in file.shapes)


def sha256(file: Path) -> bytes:
    """Compute a file's SHA-256."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


Naming = Callable[[str], Place]
"""Gives for the name of a network's tensor the place where a file keeps it."""


def check_places(file: WeightFile, kind: Any, config: Mapping[str, Any], naming: Naming) -> set[str]:
    """Check that a file holds every tensor of a network of class `kind`; returns the keys that do.

    Raises:
        CheckpointError: keys are missing, or tensors have other shapes.
    """
    places = [(naming(name), shape) for name, shape in tensor_shapes(kind, config).items()]
    missing = {place.key for place, _ in places if place.key not in file.shapes}
    mismatched = {
        (place.key, file.shapes[place.key], shape)
        for place, shape in places
        if place.key in file.shapes and not place.fits(file.shapes[place.key], shape)
    }
    refuse_keys(file.path, {"missing_keys": missing, "mismatched_keys": mismatched})
    return {place.key for place, _ in places}


def filled_network(
    file: WeightFile, kind: Any, config: Mapping[str, Any], naming: Naming, dtype: torch.dtype
) -> nn.Module:
    """Fill a network of class `kind` with a file's weights; to be checked by `check_places` before."""
    network = empty_network(kind, config, dtype)
    targets: dict[str, list[tuple[Tensor, Place]]] = {}
    for name, tensor in network.state_dict().items():
        place = naming(name)
        targets.setdefault(place.key, []).append((tensor, place))
    with torch.no_grad():
        for key, stored in file.tensors(sorted(targets)):
            for tensor, place in targets[key]:
                tensor.copy_(place.read(stored, tuple(tensor.shape)))
    return network.eval()


def refuse_keys(where: Path, report: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` if a library's loading report names missing, mismatched or unexpected keys.

    The libraries themselves only warn, and leave such tensors random.
    """
    harmless = "position_ids"
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # Mismatched keys come as (name, shape in the file, shape in the network).
        names = (entry if isinstance(entry, str) else " ".join(map(str, entry)) for entry in report.get(kind, ()))
        keys = sorted(name for name in names if harmless not in name)
        if keys:
            raise CheckpointError(
                f"{where}: {len(keys)} {kind.replace('_', ' ')} in the weights, first {keys[0]}. "
                "The weights belong to another config"
            )


def list_keys(keys: list[str]) -> str:
    """Name the first keys of a list in a sentence, and how many more there are."""
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more
