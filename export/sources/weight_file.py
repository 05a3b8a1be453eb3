"""One safetensors file: its header, which is read before any weight, and networks filled with its tensors."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from latentrt.export.random_weights import empty_network, tensor_shapes
from latentrt.export.sources.places import Place
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.lora.tensor_file import TensorFile

TEXT_ENCODER = "a text encoder (CLIP)"
"""What messages call a file for which `is_text_encoder` is true."""

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Name of a part of attention -> its name in files that early versions of diffusers wrote."""


class WeightFile(TensorFile):
    """A safetensors file whose tensors are read with torch."""

    def tensors(self, keys: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Read these tensors one by one, in the file's own dtypes.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                for key in keys:
                    yield key, file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: cannot be read ({error}). Was it changed meanwhile?") from error


def given_path(path: Path) -> Path:
    """Make a path absolute and keep its own names: Hugging Face's cache links them to files named by a hash."""
    return path.resolve() if path.name in ("", "..") else path.absolute()


def is_text_encoder(file: WeightFile) -> bool:
    """Whether a file holds nothing but a CLIP text encoder, in transformers' names or OpenCLIP's."""
    keys = [key for key in file.shapes if ".self_attn." in key or ".resblocks." in key]
    return bool(keys) and not any("down" in key or "conv_in" in key for key in file.shapes)


def sha256(file: Path) -> bytes:
    """Compute a file's SHA-256.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error


Naming = Callable[[str], Place]
"""Gives for the name of a network's tensor the place where a file keeps it."""


NO_CONFIG = "The weights belong to another config"
"""What an error says of weights that do not fit, where nothing better is known."""


def check_places(
    file: WeightFile, kind: Any, config: Mapping[str, Any], naming: Naming, remedy: str = NO_CONFIG
) -> set[str]:
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
    refuse_keys(file.path, {"missing_keys": missing, "mismatched_keys": mismatched}, remedy)
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


def refuse_keys(where: Path, report: Mapping[str, Any], remedy: str = NO_CONFIG) -> None:
    """Raise `CheckpointError` if a library's loading report names missing, mismatched or unexpected keys.

    The libraries themselves only warn, and leave such tensors random.
    """
    harmless = "position_ids"
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # Mismatched keys come as (name, shape in the file, shape in the network).
        names = (entry if isinstance(entry, str) else " ".join(map(str, entry)) for entry in report.get(kind, ()))
        keys = sorted(name for name in names if harmless not in name)
        if keys:
            words = kind.replace("_", " ")
            raise CheckpointError(f"{where}: {len(keys)} {words} in the weights, first {keys[0]}. {remedy}")
