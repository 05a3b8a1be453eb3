"""LoRAs, added to a checkpoint's weights: W + weight · alpha / rank · up · down (Hu et al. 2021, arXiv:2106.09685)."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentrt.export.sources.families import FAMILIES, families_by_text_width
from latentrt.export.sources.lora_keys import Layer, layers, other_kind, read_key
from latentrt.export.sources.places import Shape
from latentrt.export.sources.source import Classes, Overlay, Source
from latentrt.export.sources.weight_file import WeightFile, list_keys, sha256
from latentrt.runtime.errors import CheckpointError, RequestError

DIFFUSERS_METADATA = "lora_adapter_metadata"
"""Header field in which diffusers keeps ranks and alphas: its files hold no alphas beside the matrices."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A LoRA's file, and the weight with which it is added."""

    path: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "LoraFile":
        """Parse `FILE` or `FILE:WEIGHT`.

        Raises:
            RequestError: the weight is not a finite number.
        """
        head, colon, tail = text.rpartition(":")
        if not colon or Path(text).is_file():
            return cls(Path(text))
        try:
            weight = float(tail)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise RequestError(f"--lora {text}: weight {tail!r} is not a number. Write FILE:WEIGHT, such as {head}:0.8")
        return cls(Path(head), weight)


@dataclass(frozen=True)
class Lora:
    """An opened LoRA: by network and layer, the keys of its two matrices and of its alpha."""

    file: WeightFile
    weight: float
    parts: Mapping[tuple[str, str], Mapping[str, str]]
    """(folder of the network, flattened layer) -> part ("down", "up", "alpha") -> key."""

    @classmethod
    def open(cls, lora: LoraFile) -> "Lora":
        """Read the header.

        Raises:
            CheckpointError: not a readable file, not a LoRA, or of a kind that latentrt does not add.
        """
        file = WeightFile.open(lora.path)
        if kind := other_kind(list(file.shapes)):
            raise CheckpointError(f"{lora.path}: {kind}; latentrt adds plain LoRAs. Merge it into the checkpoint first")
        opened = cls(file, lora.weight, _sort_keys(file))
        opened._check_parts()
        opened._read_metadata()
        return opened

    def _check_parts(self) -> None:
        """Raise `CheckpointError` if a layer lacks one of its matrices, or has something else in its place."""
        for (folder, layer), keys in self.parts.items():
            if not {"down", "up"} <= keys.keys():
                raise CheckpointError(
                    f"{self.file.path}: {folder}, {layer}: holds {' and '.join(sorted(keys))} only. Download it again"
                )
            down, up = self._matrix_shapes(keys)
            if len(down) < 2 or len(up) < 2:
                raise CheckpointError(
                    f"{self.file.path}: {folder}, {layer}: its matrices have the shapes {down} and {up}. "
                    "Download it again"
                )

    def _matrix_shapes(self, keys: Mapping[str, str]) -> tuple[Shape, Shape]:
        """Shapes of a layer's matrices, down and up."""
        return self.file.shapes[keys["down"]], self.file.shapes[keys["up"]]

    def _read_metadata(self) -> dict[str, Any]:
        """Read what diffusers wrote into the header: `unet.lora_alpha`, `unet.alpha_pattern`, ..."""
        try:
            metadata = json.loads(self.file.metadata.get(DIFFUSERS_METADATA, "{}"))
        except ValueError as error:
            raise CheckpointError(f"{self.file.path}: {DIFFUSERS_METADATA} is not JSON ({error})") from error
        for option in ("use_dora", "use_rslora"):
            if any(value and key.endswith(option) for key, value in metadata.items()):
                raise CheckpointError(f"{self.file.path}: {option}; latentrt adds plain LoRAs, scaled by alpha / rank")
        return dict(metadata)

    def check(self, known: Mapping[str, Mapping[str, Layer]], text_width: int) -> None:
        """Raise `CheckpointError` if a layer is not in the networks, or has another shape there.

        `known`: folder of each network -> its layers by flattened name. `text_width`: width of the text that the U-Net
        takes.
        """
        self._check_family(text_width)
        unmatched = sorted(f"{folder}.{layer}" for folder, layer in self.parts if layer not in known.get(folder, {}))
        if unmatched:
            raise CheckpointError(
                f"{self.file.path}: {len(unmatched)} of its {len(self.parts)} layers are not in this checkpoint: "
                f"{list_keys(unmatched)}. The LoRA was made for another family of models"
            )
        for (folder, layer), keys in self.parts.items():
            shape = known[folder][layer].shape
            down, up = self._matrix_shapes(keys)
            if (up[0], math.prod(down[1:])) != (shape[0], math.prod(shape[1:])) or math.prod(up[1:]) != down[0]:
                raise CheckpointError(
                    f"{self.file.path}: {folder}.{layer}: up {up} times down {down} does not give the layer's "
                    f"{shape}. The LoRA was made for another model"
                )

    def _check_family(self, text_width: int) -> None:
        for (folder, layer), keys in self.parts.items():
            width = self.file.shapes[keys["down"]][1]
            if folder == "unet" and layer.endswith(("attn2_to_k", "attn2_to_v")) and width != text_width:
                made_for, is_for = map(_family_of, (width, text_width))
                raise CheckpointError(
                    f"{self.file.path}: made for {made_for}, this checkpoint is {is_for}. "
                    "Take a LoRA made for this family"
                )

    def deltas(self, folder: str, known: Mapping[str, Layer]) -> Iterator[tuple[str, Tensor]]:
        """Yield each layer's name and what is to be added to its weight, in float32, for one network."""
        own_layers = {layer: keys for (network, layer), keys in self.parts.items() if network == folder}
        for layer, keys in own_layers.items():
            tensors = {part: tensor.float() for part, tensor in zip(keys, self._tensors(keys), strict=True)}
            down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
            rank = down.shape[0]
            alpha = tensors["alpha"].item() if "alpha" in tensors else self._alpha(folder, known[layer].name, rank)
            yield known[layer].name, (self.weight * alpha / rank) * (up @ down).reshape(known[layer].shape)

    def _tensors(self, keys: Mapping[str, str]) -> Iterator[Tensor]:
        for _, tensor in self.file.tensors(list(keys.values())):
            yield tensor

    def _alpha(self, folder: str, name: str, rank: int) -> float:
        """Alpha from the header; the rank if the header says nothing."""
        metadata = self._read_metadata()
        for pattern, alpha in (metadata.get(f"{folder}.alpha_pattern") or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", name):
                return float(alpha)
        return float(metadata.get(f"{folder}.lora_alpha", rank))


def _sort_keys(file: WeightFile) -> dict[tuple[str, str], dict[str, str]]:
    """Sort a LoRA's keys by network and layer; see `Lora.parts`.

    Raises:
        CheckpointError: some keys are not a LoRA's.
    """
    parsed = {key: parts for key in file.shapes if (parts := read_key(key)) is not None}
    unread = sorted(file.shapes.keys() - parsed.keys())
    if not parsed:
        raise CheckpointError(
            f"{file.path}: holds no LoRA, its first key is {next(iter(file.shapes), 'none')}. "
            "A LoRA has keys that end in lora_down.weight, lora_A.weight or lora.down.weight"
        )
    if unread:
        raise CheckpointError(f"{file.path}: {len(unread)} keys are no LoRA's: {list_keys(unread)}")
    by_layer: dict[tuple[str, str], dict[str, str]] = {}
    for key, parts in parsed.items():
        by_layer.setdefault((parts.folder, parts.layer), {})[parts.part] = key
    return by_layer


def _family_of(text_width: int) -> str:
    """Name in messages for the models whose U-Net takes text of this width."""
    name = FAMILIES.get(families_by_text_width().get(text_width, ""), "a model")
    return f"{name} (text {text_width} wide)"


class WithLoras(Overlay):
    """A checkpoint with LoRAs added to its weights, in float32 and in an order that is always the same."""

    def __init__(self, base: Source, files: Iterable[LoraFile]):
        super().__init__(base)
        hashed = [(sha256(lora.file.path).hex(), lora.weight, lora) for lora in map(Lora.open, files)]
        self.loras = sorted(hashed, key=lambda entry: entry[:2])

    def check(self, classes: Classes) -> None:
        """Check the base's weights, and that every layer of the LoRAs is in the networks."""
        self.base.check(classes)
        networks = {folder: kind for folder, kind in classes.items() if folder != "vae"}
        known = {folder: layers(folder, kind, self.config(folder)) for folder, kind in networks.items()}
        for _, _, lora in self.loras:
            lora.check(known, self.config("unet")["cross_attention_dim"])

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load the base's network and add every LoRA to it."""
        relevant = [lora for _, weight, lora in self.loras if weight and any(name == folder for name, _ in lora.parts)]
        if not relevant:
            return self.base.network(folder, kind, dtype)
        network = self.base.network(folder, kind, torch.float32)
        known = layers(folder, kind, self.config(folder))
        with torch.no_grad():
            for lora in relevant:
                for name, delta in lora.deltas(folder, known):
                    network.get_submodule(name).get_parameter("weight").add_(delta)
        # diffusers' own `to` would warn about modules to keep in float32.
        return torch.nn.Module.to(network, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield what identifies the base's networks, and each LoRA's hash and weight."""
        yield from self.base.identity(folders)
        for digest, weight, _ in self.loras:
            yield f"LoRA {digest} {weight!r}".encode()

    def provenance(self) -> dict[str, Any]:
        """Say where the base's weights come from, and name each LoRA's file, hash and weight."""
        loras = [
            {"file": lora.file.path.name, "sha256": digest, "weight": weight} for digest, weight, lora in self.loras
        ]
        return self.base.provenance() | {"loras": loras}
