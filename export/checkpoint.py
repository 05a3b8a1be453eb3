"""A checkpoint as the export sees it: the facts that its configs state, its networks and its tokenizers."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ValidationError

from latentrt.export.family import read_defaults, read_model
from latentrt.export.schedule import SCHEDULER_CONFIG, check_schedule
from latentrt.export.sources import open_source
from latentrt.export.sources.config_fields import check_constructs
from latentrt.export.sources.source import Config, Source
from latentrt.runtime.bundle.manifest import Defaults
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, wherever its configs and weights come from."""

    source: Source

    @classmethod
    def open(
        cls, path: str | Path, random_seed: int | None = None, variant: str | None = None, **options: Any
    ) -> "Checkpoint":
        """Read every config and find every weight, before anything is loaded. `options`: see `open_source`.

        Raises:
            CheckpointError: not a checkpoint, an unknown family, a missing file, or weights only as pickles.
        """
        try:
            checkpoint = cls(open_source(Path(path), random_seed, variant, **options))
            checkpoint.check()
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(f"{error.filename or path}: cannot be read ({reason})") from error
        return checkpoint

    def check(self) -> None:
        """Check all that configs, headers and tokenizers show, before any weight is loaded.

        Raises:
            CheckpointError: as `open`.
        """
        classes = {folder: self.network_class(folder) for folder in self.folders}  # `folders` checks the facts first
        for folder, kind in classes.items():
            check_constructs(kind, self.config(folder))
        check_schedule(self.config("scheduler", SCHEDULER_CONFIG).file, self.model.scheduler, self.defaults)
        self.source.check(classes)

    @property
    def path(self) -> Path:
        """The path that messages name."""
        return self.source.path

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read one component's config."""
        return self.source.config(folder, name)

    def vocabulary(self, folder: str) -> int:
        """Number of token ids that a network knows; 0 for one that takes no tokens."""
        return int(self.config(folder).get("vocab_size", 0))

    @cached_property
    def model(self) -> Model:
        """The facts that the configs state.

        Raises:
            CheckpointError: the pipeline or one of its parts is of a kind that latentrt does not serve.
        """
        try:
            return read_model(self.source)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"{self.path}: {where}: {first['msg']}. Download the checkpoint again") from error

    @property
    def defaults(self) -> Defaults:
        """The defaults of a request."""
        return read_defaults(self.source, self.model)

    @property
    def folders(self) -> list[str]:
        """Folder of each network that this checkpoint has."""
        return [*(encoder.component for encoder in self.model.text_encoders), "unet", "vae"]

    def network_class(self, folder: str) -> Any:
        """Import the class of one network."""
        library, name = self.config("", "model_index.json")[folder]
        return getattr(import_module(library), name)

    def network(self, folder: str, dtype: torch.dtype) -> torch.nn.Module:
        """Load one network with its weights in `dtype`, in evaluation mode.

        Raises:
            CheckpointError: the weights cannot be read, or are not exactly the network's tensors.
        """
        return self.source.network(folder, self.network_class(folder), dtype)

    def write_tokenizer(self, name: str, folder: Path) -> None:
        """Write one tokenizer's files into a new folder."""
        folder.mkdir()
        for file, content in self.source.tokenizer(name).items():
            (folder / file).write_bytes(content)

    def tokenizer(self, name: str) -> Tokenizer:
        """Load one tokenizer as the runtime does."""
        with TemporaryDirectory() as folder:
            self.write_tokenizer(name, Path(folder) / name)
            return Tokenizer.load(Path(folder) / name)

    def provenance(self) -> dict[str, Any]:
        """Say where the weights come from, as fields of the bundle's `Provenance`."""
        own = f"{self.network_class('vae').__name__} of the checkpoint"
        return {"vae": own, "vae_sha256": self.vae_sha256()} | self.source.provenance()

    def vae_sha256(self) -> str:
        """Compute a hash of the VAE's tensors: models with equal hashes can take over each other's latents."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network("vae", torch.float32).state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy())
        return digest.hexdigest()

    def weights_sha256(self) -> str:
        """Compute a hash that changes with any weight, LoRA or config; if weights are random, with the seed."""
        digest = hashlib.sha256()
        for part in self.source.identity(self.folders):
            digest.update(part)
        return digest.hexdigest()
