"""A checkpoint as a folder in diffusers format, the form in which it is published together with its configs."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from latentrt.export.random_weights import random_network
from latentrt.export.sources.source import Classes, Config, Source
from latentrt.export.sources.tokenizers import read_tokenizer_files
from latentrt.export.sources.weight_file import PICKLE_REMEDY, PICKLES, refuse_keys, sha256
from latentrt.runtime.errors import CheckpointError


@dataclass(frozen=True)
class Folder(Source):
    """A folder with `model_index.json` and a folder per component.

    `random_seed`: seed of random weights, in place of those in the folder, which may then lack them. `variant`: which
    weights to read, such as `fp16`.
    """

    path: Path
    random_seed: int | None = None
    variant: str | None = None

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read a JSON file of the folder."""
        file = self.path / folder / name
        try:
            return Config(file, json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CheckpointError(f"{file}: missing. The checkpoint is incomplete; download it again") from None
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: not valid JSON ({error}). Download the checkpoint again") from error

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """Read the tokenizer's files as they are."""
        files = read_tokenizer_files(self.path / folder)
        if not ("tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files.keys()):
            raise CheckpointError(f"{self.path / folder}: needs tokenizer.json, or vocab.json and merges.txt")
        return files

    def check(self, classes: Classes) -> None:
        """Find every weight file, unless the weights are random."""
        if self.random_seed is None:
            for folder in classes:
                self.weight_files(folder)
            if self.variant and not any(self._variant_name(folder) for folder in classes):
                raise CheckpointError(
                    f"{self.path}: no network has weights of the variant {self.variant}. Leave out --variant"
                )

    def weight_files(self, folder: str) -> list[Path]:
        """Find the safetensors files of one network.

        Raises:
            CheckpointError: a file is missing, or there are only pickles.
        """
        stem = "model" if folder.startswith("text_encoder") else "diffusion_pytorch_model"
        variants = [self.variant, ""] if self.variant else ["", "fp16"]
        for variant in variants:
            suffix = f".{variant}" if variant else ""
            single = self.path / folder / f"{stem}{suffix}.safetensors"
            index = self.path / folder / f"{stem}.safetensors.index{suffix}.json"
            if single.is_file():
                return [single]
            if index.is_file():
                return self._shards(index)
        names = " or ".join(f"{stem}{'.' + v if v else ''}.safetensors" for v in variants)
        files = sorted(file.name for file in (self.path / folder).glob("*"))
        pickles = [file.name for file in (self.path / folder).glob("*") if file.suffix.lower() in PICKLES]
        if pickles:
            raise CheckpointError(f"{self.path / folder}: only {pickles[0]}, {PICKLE_REMEDY} ({names})")
        found = {match[1] for file in files if (match := re.match(rf"{stem}\.([^.]+)\.safetensors$", file))}
        found |= {
            match[1] for file in files if (match := re.match(rf"{stem}\.safetensors\.index\.([^.]+)\.json$", file))
        }
        if found:
            raise CheckpointError(
                f"{self.path / folder}: {names} is missing, but there is the variant {' and '.join(sorted(found))}. "
                f"Add --variant {min(found)}"
            )
        raise CheckpointError(f"{self.path / folder}: {names} is missing. Download the checkpoint again")

    def _shards(self, index: Path) -> list[Path]:
        names = sorted(set(self.config(index.parent.name, index.name)["weight_map"].values()))
        for name in names:
            if not (index.parent / name).is_file():
                raise CheckpointError(f"{index.parent / name}: missing, but {index.name} names it. Download it again")
        return [index.parent / name for name in names]

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load one network by its library's own `from_pretrained`, or fill it with random weights."""
        if self.random_seed is not None:
            return random_network(kind, self.config(folder), dtype, self.random_seed)
        try:
            network, report = kind.from_pretrained(
                self.path / folder,
                torch_dtype=dtype,
                variant=self._variant_name(folder),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # or transformers' error names no tensor; ours does
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.path / folder}: the weights do not load as {kind.__name__}: {error}"
            ) from error
        refuse_keys(self.path / folder, report)
        return cast(torch.nn.Module, network).eval()

    def _variant_name(self, folder: str) -> str | None:
        """Name the variant of the weights that `weight_files` chose, as diffusers and transformers take it."""
        name = self.weight_files(folder)[0].name
        return next((variant for variant in (self.variant, "fp16") if variant and f".{variant}" in name), None)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield hashes of every config and weight file; with random weights, of the configs, and the seed."""
        if self.random_seed is not None:
            yield f"random seed {self.random_seed}".encode()
        for folder in folders:
            yield sha256(self.path / folder / "config.json")
            if self.random_seed is None:
                yield from map(sha256, self.weight_files(folder))

    def provenance(self) -> dict[str, Any]:
        """Name the folder, and the seed of random weights."""
        weights = "checkpoint" if self.random_seed is None else f"random weights, seed {self.random_seed}"
        return {"checkpoint": self.path.name, "weights": weights}
