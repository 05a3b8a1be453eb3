"""The interface behind which a checkpoint's configs, tokenizers and weights come from anywhere."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

Classes = Mapping[str, Any]
"""Folder of each network ("unet", "vae", ...) -> its class in diffusers or transformers."""


TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Folder of each text encoder -> folder of its tokenizer."""


class Config(dict[str, Any]):
    """The fields of one config file; asking for one that it lacks raises an error that names the file."""

    def __init__(self, file: Path, values: Any):
        super().__init__(values)
        self.file = file

    def __missing__(self, field: str) -> Any:
        raise CheckpointError(f"{self.file}: has no field {field}. Download the checkpoint again")

    def to_bytes(self) -> bytes:
        """Bytes that change with any field."""
        return json.dumps(self, sort_keys=True).encode()


def read_config(file: Path) -> Config:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: it is missing, cannot be read, or holds something else.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing. The checkpoint is incomplete; download it again") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON ({error}). Download the checkpoint again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, not {str(values)[:40]}. Download the checkpoint again")
    return Config(file, values)


class Source(ABC):
    """A checkpoint's configs, tokenizers and weights, by the names they have in a folder in diffusers format."""

    path: Path
    """The path that error messages and the bundle's provenance name."""

    @abstractmethod
    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read one component's config; the pipeline's is `model_index.json` in the folder ""."""

    @abstractmethod
    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """Read the files of one tokenizer: name -> content."""

    @abstractmethod
    def check(self, classes: Classes) -> None:
        """Raise `CheckpointError` if the files show that these networks' weights are missing or belong to others."""

    @abstractmethod
    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load one network with its weights in `dtype`, in evaluation mode; `kind` is its class.

        Raises:
            CheckpointError: the weights cannot be read, or are not exactly the network's tensors.
        """

    @abstractmethod
    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield bytes that change with any weight or config of these networks."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Say where the weights come from, as fields of the bundle's `Provenance`."""


class Overlay(Source):
    """A source that changes something in another one, `base`, and passes on the rest."""

    def __init__(self, base: Source):
        self.base = base
        self.path = base.path

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read the base's config."""
        return self.base.config(folder, name)

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """Read the base's tokenizer."""
        return self.base.tokenizer(folder)

    def check(self, classes: Classes) -> None:
        """Check the base's weights."""
        self.base.check(classes)

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load the base's network."""
        return self.base.network(folder, kind, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield what identifies the base's networks."""
        return self.base.identity(folders)

    def provenance(self) -> dict[str, Any]:
        """Say where the base's weights come from."""
        return self.base.provenance()
