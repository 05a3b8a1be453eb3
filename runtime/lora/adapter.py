"""An opened LoRA: which layers it changes, and the two matrices for each (Hu et al. 2021, arXiv:2106.09685)."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.lora.files import LoraFile
from latentrt.runtime.lora.keys import Key, Layer, describe_unread, other_kind, read_key
from latentrt.runtime.lora.scale import LoraScale
from latentrt.runtime.lora.tensor_file import Shape, TensorFile, list_keys

FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}
"""Width of the text that a U-Net takes -> what messages call the models that do."""


class Matrices(NamedTuple):
    """What a LoRA adds to a layer: scale * up · down, with `down` (r, in, ...) and `up` (out, r, ...) flattened.

    `scale` is alpha / rank, or what stands in its place (`LoraScale`).
    """

    layer: str
    down: Float32s
    up: Float32s
    scale: float


@dataclass(frozen=True)
class Lora:
    """An opened LoRA: by network and layer, the keys of its two matrices and of its alpha."""

    file: TensorFile
    parts: Mapping[tuple[str, str], Mapping[str, str]]
    """(folder of the network, flattened layer) -> part ("down", "up", "alpha") -> key."""
    scale: LoraScale

    @classmethod
    def open(cls, path: Path, text_widths: Mapping[str, int] | None = None) -> "Lora":
        """Read the header. `text_widths`: width of each text encoder, by which those of PEFT's files are told apart.

        Raises:
            CheckpointError: not a readable file, not a LoRA, or of a kind that latentrt does not add.
        """
        file = TensorFile.open(path)
        if kind := other_kind(list(file.shapes)):
            raise CheckpointError(f"{path}: {kind}; latentrt adds plain LoRAs. Merge it into the checkpoint first")
        parts = _sort_keys(file, text_widths or {})
        scale = LoraScale.read(file, alphas=all("alpha" in keys for keys in parts.values()))
        opened = cls(file, parts, scale)
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
        self.check_family(text_width)
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

    def check_family(self, text_width: int) -> None:
        """Raise `CheckpointError` if a layer was trained on text of another width than the U-Net takes."""
        for (folder, layer), keys in self.parts.items():
            width = self.file.shapes[keys["down"]][1]
            if folder == "unet" and layer.endswith(("attn2_to_k", "attn2_to_v")) and width != text_width:
                made_for, is_for = map(_family_of, (width, text_width))
                raise CheckpointError(
                    f"{self.file.path}: made for {made_for}, this checkpoint is {is_for}. "
                    "Take a LoRA made for this family"
                )

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(self.file.shapes[keys["down"]][0] for keys in self.parts.values())

    def matrices(self, known: Mapping[str, Mapping[str, Layer]]) -> Iterator[tuple[str, Matrices]]:
        """Read, once, what is added to each layer of the networks in `known`, and yield it with its network.

        Raises:
            CheckpointError: a matrix holds NaN or infinity.
        """
        own_layers = {part: keys for part, keys in self.parts.items() if part[0] in known}
        tensors = dict(self.file.arrays({key for keys in own_layers.values() for key in keys.values()}))
        if bad := sorted(key for key, values in tensors.items() if not np.isfinite(values).all()):
            raise CheckpointError(
                f"{self.file.path}: {list_keys(bad)}: NaN or infinity. The training of this LoRA failed; take another "
                "file of it"
            )
        for (folder, layer), keys in own_layers.items():
            down, up = tensors[keys["down"]], tensors[keys["up"]]
            alpha = float(tensors[keys["alpha"]].item()) if "alpha" in keys else None
            name = known[folder][layer].name
            yield folder, Matrices(name, down, up, self.scale.scale(folder, name, len(down), alpha))


def rank_of(lora: LoraFile) -> int:
    """The room that a LoRA needs: the largest rank in its files. Only their headers are read.

    Raises:
        CheckpointError: a file is missing, or no LoRA.
    """
    return max(Lora.open(one.path).rank for one in lora.files())


def _sort_keys(file: TensorFile, text_widths: Mapping[str, int]) -> dict[tuple[str, str], dict[str, str]]:
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
    file: TensorFile, unplaced: set[str], parsed: Mapping[str, Key], text_widths: Mapping[str, int]
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
    return f"{FAMILIES.get(text_width, 'a model')} (text {text_width} wide)"
