"""LoRAs, added to a checkpoint's weights: W + weight · alpha / rank · up · down (Hu et al. 2021, arXiv:2106.09685)."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentrt.export.sources.config_fields import one_for_all
from latentrt.export.sources.families import FAMILIES, families_by_text_width
from latentrt.export.sources.lora_files import LoraFile
from latentrt.export.sources.lora_keys import Key, Layer, describe_unread, layers, other_kind, read_key
from latentrt.export.sources.lora_scale import LoraScale
from latentrt.export.sources.places import Shape
from latentrt.export.sources.source import TOKENIZERS, Classes, Overlay, Source
from latentrt.export.sources.weight_file import WeightFile, list_keys, sha256
from latentrt.runtime.errors import CheckpointError

__all__ = ["Lora", "LoraFile", "WithLoras"]


@dataclass(frozen=True)
class Lora:
    """An opened LoRA: by network and layer, the keys of its two matrices and of its alpha."""

    file: WeightFile
    weight: float
    parts: Mapping[tuple[str, str], Mapping[str, str]]
    """(folder of the network, flattened layer) -> part ("down", "up", "alpha") -> key."""
    scale: LoraScale

    @classmethod
    def open(cls, lora: LoraFile, text_widths: Mapping[str, int] | None = None) -> "Lora":
        """Read the header. `text_widths`: width of each text encoder, by which those of PEFT's files are told apart.

        Raises:
            CheckpointError: not a readable file, not a LoRA, or of a kind that latentrt does not add.
        """
        file = WeightFile.open(lora.path)
        if kind := other_kind(list(file.shapes)):
            raise CheckpointError(f"{lora.path}: {kind}; latentrt adds plain LoRAs. Merge it into the checkpoint first")
        parts = _sort_keys(file, text_widths or {})
        scale = LoraScale.read(file, alphas=all("alpha" in keys for keys in parts.values()))
        opened = cls(file, lora.weight, parts, scale)
        opened._check_parts()
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
            if "alpha" not in keys:
                self.scale.scale(folder, known[folder][layer].name, down[0], None)

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
            alpha = tensors["alpha"].item() if "alpha" in tensors else None
            scale = self.weight * self.scale.scale(folder, known[layer].name, rank, alpha)
            yield known[layer].name, scale * (up @ down).reshape(known[layer].shape)

    def _tensors(self, keys: Mapping[str, str]) -> Iterator[Tensor]:
        for _, tensor in self.file.tensors(list(keys.values())):
            yield tensor


def _sort_keys(file: WeightFile, text_widths: Mapping[str, int]) -> dict[tuple[str, str], dict[str, str]]:
    """Sort a LoRA's keys by network and layer; see `Lora.parts`. `text_widths`: see `Lora.open`.

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
        raise CheckpointError(f"{file.path}: {describe_unread(unread)}")
    unplaced = {parts.layer for parts in parsed.values() if not parts.folder}
    encoder = _text_encoder(file, unplaced, parsed, text_widths)
    by_layer: dict[tuple[str, str], dict[str, str]] = {}
    for key, parts in parsed.items():
        by_layer.setdefault((parts.folder or encoder, parts.layer), {})[parts.part] = key
    return by_layer


def _text_encoder(
    file: WeightFile, unplaced: set[str], parsed: Mapping[str, Key], text_widths: Mapping[str, int]
) -> str:
    """Name the text encoder that PEFT's file of one is for: the first as wide as its attention, else the first."""
    widths = {
        file.shapes[key][-1]
        for key, parts in parsed.items()
        if parts.layer in unplaced and parts.part == "down" and re.search("self_attn|fc1$", parts.layer)
    }
    return next((folder for folder, width in text_widths.items() if width in widths), "text_encoder")


def _family_of(text_width: int) -> str:
    """Name in messages for the models whose U-Net takes text of this width."""
    name = FAMILIES.get(families_by_text_width().get(text_width, ""), "a model")
    return f"{name} (text {text_width} wide)"


class WithLoras(Overlay):
    """A checkpoint with LoRAs added to its weights, in float32 and in an order that is always the same."""

    def __init__(self, base: Source, files: Iterable[LoraFile]):
        super().__init__(base)
        index = base.config("", "model_index.json")
        encoders = [folder for folder in TOKENIZERS if (index.get(folder) or [None])[0]]
        widths = {folder: base.config(folder)["hidden_size"] for folder in encoders}
        opened = [Lora.open(file, widths) for lora in files for file in lora.files()]
        hashed = [(sha256(lora.file.path).hex(), lora.weight, lora) for lora in opened]
        self.loras = sorted(hashed, key=lambda entry: entry[:2])

    def check(self, classes: Classes) -> None:
        """Check the base's weights, and that every layer of the LoRAs is in the networks."""
        self.base.check(classes)
        networks = {folder: kind for folder, kind in classes.items() if folder != "vae"}
        known = {folder: layers(folder, kind, self.config(folder)) for folder, kind in networks.items()}
        for _, _, lora in self.loras:
            lora.check(known, one_for_all(self.config("unet"), "cross_attention_dim"))

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
        for digest, weight, lora in self.loras:
            yield f"LoRA {digest} {weight!r}".encode()
            yield lora.scale.to_bytes()

    def provenance(self) -> dict[str, Any]:
        """Say where the base's weights come from, and name each LoRA's file, hash and weight."""
        loras = [
            {"file": lora.file.path.name, "sha256": digest, "weight": weight} for digest, weight, lora in self.loras
        ]
        return self.base.provenance() | {"loras": loras}
