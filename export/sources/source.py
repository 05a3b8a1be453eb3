"""Where the configs, tokenizers and weights of a checkpoint come from, behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from latentrt.runtime.errors import CheckpointError

Classes = Mapping[str, Any]
"""Folder of each network ("unet", "vae", ...) and its class."""


TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""Folder of each text encoder -> folder of its tokenizer."""


class Config(dict[str, Any]):
    """One config file; a field that it lacks is an error that names the file."""

    def __init__(self, file: Path, values: Any):
        super().__init__(values)
        self.file = file

    def __missing__(self, field: str) -> Any:
        raise CheckpointError(f"{self.file}: has no field {field}. Download the checkpoint again")


class Source(ABC):
    """A checkpoint's configs, tokenizers and weights, by the names they have in a folder in diffusers format."""

    path: Path
    """What error messages and the bundle's provenance name."""

    @abstractmethod
    def config(self, folder: str, name: str = "config.json") -> Config:
        """One component's config; that of the pipeline is `model_index.json` in the folder ""."""

    @abstractmethod
    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """The files of one tokenizer: name and content."""

    @abstractmethod
    def check(self, classes: Classes) -> None:
        """Raise `CheckpointError` where the weights of these networks are known to be missing or others."""

    @abstractmethod
    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """One network with its weights in `dtype`, in evaluation mode.

        Raises:
            CheckpointError: the weights cannot be read, or are not exactly the network's tensors.
        """

    @abstractmethod
    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Hashes that change with any weight or config of these networks."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Fields of the bundle's `Provenance`: where the weights come from."""


class Overlay(Source):
    """A source that changes something in another one and leaves the rest."""

    def __init__(self, base: Source):
        self.base = base
        self.path = base.path

    def config(self, folder: str, name: str = "config.json") -> Config:
        """The base's."""
        return self.base.config(folder, name)

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """The base's."""
        return self.base.tokenizer(folder)

    def check(self, classes: Classes) -> None:
        """The base's."""
        self.base.check(classes)

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """The base's."""
        return self.base.network(folder, kind, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """The base's."""
        return self.base.identity(folders)

    def provenance(self) -> dict[str, Any]:
        """The base's."""
        return self.base.provenance()
