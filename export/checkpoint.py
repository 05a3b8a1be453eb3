"""A checkpoint in diffusers format: its configs, the facts they state, its weight files, its networks."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from latentrt.export.family import CLASSES, read_model
from latentrt.export.random_weights import random_network
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.model import Model

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


class Config(dict[str, Any]):
    """One config file; a field that it lacks is an error that names the file."""

    def __init__(self, file: Path, values: Any):
        super().__init__(values)
        self.file = file

    def __missing__(self, field: str) -> Any:
        raise CheckpointError(f"{self.file}: has no field {field}. Download the checkpoint again")


@dataclass(frozen=True)
class Checkpoint:
    """A folder in diffusers format. `random_seed`: only its configs and tokenizers are read, weights are made up."""

    path: Path
    random_seed: int | None = None
    variant: str | None = None

    @classmethod
    def open(cls, path: str | Path, random_seed: int | None = None, variant: str | None = None) -> "Checkpoint":
        """Read every config, and find every weight file, before anything is loaded.

        Raises:
            CheckpointError: not a checkpoint, an unknown family, a missing file, or weights only as pickles.
        """
        path = Path(path)
        if not (path / "model_index.json").is_file():
            raise CheckpointError(
                f"{path}: not a checkpoint, it has no model_index.json. latentrt reads folders in diffusers format"
            )
        checkpoint = cls(path.resolve(), random_seed, variant)
        checkpoint.model  # noqa: B018 - reads and checks every config
        if random_seed is None:
            for folder in checkpoint.folders:
                checkpoint.weight_files(folder)
        return checkpoint

    def config(self, folder: str, name: str = "config.json") -> Config:
        """One component's config."""
        file = self.path / folder / name
        try:
            return Config(file, json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CheckpointError(f"{file}: missing. The checkpoint is incomplete; download it again") from None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: not valid JSON ({error}). Download the checkpoint again") from error

    def vocabulary(self, folder: str) -> int:
        """How many token ids a network knows; 0 for one that takes no tokens."""
        return int(self.config(folder).get("vocab_size", 0))

    @cached_property
    def model(self) -> Model:
        """The facts that the configs state.

        Raises:
            CheckpointError: the pipeline or one of its parts is of a kind that latentrt does not serve.
        """
        try:
            return read_model(self)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"{self.path}: {where}: {first['msg']}. Download the checkpoint again") from error

    @property
    def folders(self) -> list[str]:
        """Folders of the networks that this checkpoint has."""
        return [*(encoder.component for encoder in self.model.text_encoders), "unet", "vae"]

    def weight_files(self, folder: str) -> list[Path]:
        """The safetensors files of one network, all of them present.

        Raises:
            CheckpointError: one is missing, or there are only pickles.
        """
        stem = "model" if CLASSES[folder][0] == "transformers" else "diffusion_pytorch_model"
        variants = [self.variant] if self.variant else ["", "fp16"]
        for variant in variants:
            suffix = f".{variant}" if variant else ""
            single = self.path / folder / f"{stem}{suffix}.safetensors"
            index = self.path / folder / f"{stem}.safetensors.index{suffix}.json"
            if single.is_file():
                return [single]
            if index.is_file():
                return self._shards(index)
        wanted = " or ".join(f"{stem}{'.' + v if v else ''}.safetensors" for v in variants)
        pickles = [file.name for file in (self.path / folder).glob("*") if file.suffix.lower() in PICKLES]
        if pickles:
            raise CheckpointError(
                f"{self.path / folder}: only {pickles[0]}, a pickle, which can run any code when read. "
                f"Convert it to safetensors ({wanted})"
            )
        raise CheckpointError(f"{self.path / folder}: {wanted} is missing. Download the checkpoint again")

    def _shards(self, index: Path) -> list[Path]:
        names = sorted(set(self.config(index.parent.name, index.name)["weight_map"].values()))
        for name in names:
            if not (index.parent / name).is_file():
                raise CheckpointError(f"{index.parent / name}: missing, but {index.name} names it. Download it again")
        return [index.parent / name for name in names]

    def network(self, folder: str, dtype: torch.dtype) -> torch.nn.Module:
        """One network with its weights in `dtype`, in evaluation mode.

        Raises:
            CheckpointError: the weight files cannot be read, or do not hold exactly the network's tensors.
        """
        library, name = CLASSES[folder]
        kind = getattr(import_module(library), name)
        if self.random_seed is not None:
            config = self.config(folder)
            return random_network(kind, config, dtype, self.random_seed)
        try:
            network, report = kind.from_pretrained(
                self.path / folder,
                torch_dtype=dtype,
                variant=self._variant_found(folder),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # or transformers' error names no tensor; ours does
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{self.path / folder}: the weights do not load as {name}: {error}") from error
        self._check_keys(folder, report)
        return cast(torch.nn.Module, network).eval()

    def _variant_found(self, folder: str) -> str | None:
        return "fp16" if ".fp16" in self.weight_files(folder)[0].name else self.variant

    def _check_keys(self, folder: str, report: dict[str, Any]) -> None:
        """Refuse a network with made-up tensors: the libraries only warn."""
        harmless = "position_ids"
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
            # Mismatched ones come as (name, shape in the file, shape in the network).
            names = (entry if isinstance(entry, str) else " ".join(map(str, entry)) for entry in report.get(kind, ()))
            keys = sorted(name for name in names if harmless not in name)
            if keys:
                raise CheckpointError(
                    f"{self.path / folder}: {len(keys)} {kind.replace('_', ' ')} in the weights, first {keys[0]}. "
                    "The weights belong to another config"
                )

    def weights_sha256(self) -> str:
        """A hash that changes with any weight; with random weights, with any config or the seed."""
        digest = hashlib.sha256(f"random seed {self.random_seed}".encode())
        for file in self._identity_files():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()

    def _identity_files(self) -> Iterator[Path]:
        for folder in self.folders:
            yield self.path / folder / "config.json"
            if self.random_seed is None:
                yield from self.weight_files(folder)
