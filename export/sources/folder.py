"""A checkpoint as a folder in diffusers format, the form in which it is published together with its configs."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from latentrt.export.random_weights import random_network, tensor_shapes
from latentrt.export.sources.config_fields import checked_config, checked_index
from latentrt.export.sources.source import TOKENIZERS, Classes, Config, Source, read_config
from latentrt.export.sources.tokenizers import check_vocabulary, read_tokenizer_files
from latentrt.export.sources.weight_file import (
    OLD_ATTENTION,
    WeightFile,
    refuse_keys,
    sha256,
)
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.lora.tensor_file import PICKLE_REMEDY, PICKLES, Shape


def network_name(key: str) -> str:
    """The one name of a tensor that the libraries read under several: with `text_model.`, or with old attentions."""
    for new, old in OLD_ATTENTION.items():
        key = key.replace(f".{old}.", f".{new}.")
    return key.removeprefix("text_model.")


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
        """Read a JSON file of the folder; its fields are checked, and those that are missing have their defaults."""
        config = read_config(self.path / folder / name)
        if name == "model_index.json":
            return checked_index(config)
        return checked_config(config, folder) if name == "config.json" else config

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """Read the tokenizer's files as they are."""
        files = read_tokenizer_files(self.path / folder)
        if not ("tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files.keys()):
            raise CheckpointError(f"{self.path / folder}: needs tokenizer.json, or vocab.json and merges.txt")
        return files

    def check(self, classes: Classes) -> None:
        """Read the header of every weight file, unless the weights are random, and every tokenizer."""
        if self.random_seed is None:
            for folder, kind in classes.items():
                self._check_weights(folder, kind)
            if self.variant and not any(self._variant_name(folder) for folder in classes):
                raise CheckpointError(
                    f"{self.path}: no network has weights of the variant {self.variant}. Leave out --variant"
                )
        for folder in classes.keys() & TOKENIZERS:
            check_vocabulary(self, TOKENIZERS[folder], self.config(folder)["vocab_size"], exactly=False)

    def _check_weights(self, folder: str, kind: Any) -> None:
        """Refuse weight files that cannot be read, or whose tensors are not exactly the network's."""
        found: dict[str, Shape] = {}
        for file in self.weight_files(folder):
            found |= {network_name(key): shape for key, shape in WeightFile.open(file).shapes.items()}
        needed = {network_name(name): shape for name, shape in tensor_shapes(kind, self.config(folder)).items()}
        report = {
            "missing_keys": needed.keys() - found.keys(),
            "mismatched_keys": {
                (name, found[name], needed[name]) for name in needed.keys() & found if found[name] != needed[name]
            },
            "unexpected_keys": found.keys() - needed.keys(),
        }
        refuse_keys(self.path / folder, report)

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
        places = read_config(index)["weight_map"]
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{index}: weight_map must map keys to files. Download it again")
        names = sorted(set(places.values()))
        if not names or any(Path(name).name != name for name in names):
            raise CheckpointError(f"{index}: weight_map must name files of its folder, not {names}. Download it again")
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
                **self._overrides(folder, kind),
            )
        except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.path / folder}: the weights do not load as {kind.__name__}: {error}"
            ) from error
        refuse_keys(self.path / folder, report)
        return cast(torch.nn.Module, network).eval()

    def _overrides(self, folder: str, kind: Any) -> dict[str, Any]:
        """Arguments of `from_pretrained` that replace nulls for which the libraries do not take their own defaults."""
        written, config = read_config(self.path / folder / "config.json"), self.config(folder)
        nulls = {name: config[name] for name, value in written.items() if value is None and config[name] is not None}
        if not nulls or hasattr(kind, "load_config"):
            return nulls
        return {"config": kind.config_class(**config)}

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
