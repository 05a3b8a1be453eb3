"""LoRAs, added to a checkpoint's weights: W + weight · alpha / rank · up · down (Hu et al. 2021, arXiv:2106.09685)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from latentrt.export.random_weights import meta_network
from latentrt.export.sources.config_fields import one_for_all
from latentrt.export.sources.places import unet_layers
from latentrt.export.sources.source import TOKENIZERS, Classes, Overlay, Source
from latentrt.export.sources.weight_file import sha256
from latentrt.runtime.lora.adapter import Lora
from latentrt.runtime.lora.files import LoraFile
from latentrt.runtime.lora.keys import Layer, layers_by_name

__all__ = ["Lora", "LoraFile", "WithLoras"]


def layers(folder: str, kind: Any, config: Mapping[str, Any], unet: Mapping[str, Any]) -> dict[str, Layer]:
    """Map every flattened name that files give to a layer of a network to that layer. `unet`: the U-Net's config."""
    modules = meta_network(kind, config).named_modules()
    shapes = {name: tuple(module.weight.shape) for name, module in modules if isinstance(module, nn.Linear | nn.Conv2d)}
    return layers_by_name(folder, shapes, unet_layers(unet))


class WithLoras(Overlay):
    """A checkpoint with LoRAs added to its weights, in float32 and in an order that is always the same."""

    def __init__(self, base: Source, files: Iterable[LoraFile]):
        super().__init__(base)
        index = base.config("", "model_index.json")
        encoders = [folder for folder in TOKENIZERS if (index.get(folder) or [None])[0]]
        widths = {folder: base.config(folder)["hidden_size"] for folder in encoders}
        opened = [(file, Lora.open(file.path, widths)) for lora in files for file in lora.files()]
        hashed = [(sha256(file.path).hex(), file.weight, lora) for file, lora in opened]
        self.loras = sorted(hashed, key=lambda entry: entry[:2])

    def check(self, classes: Classes) -> None:
        """Check the base's weights, and that every layer of the LoRAs is in the networks."""
        self.base.check(classes)
        networks = {folder: kind for folder, kind in classes.items() if folder != "vae"}
        known = {folder: self._layers(folder, kind) for folder, kind in networks.items()}
        for _, _, lora in self.loras:
            lora.check(known, one_for_all(self.config("unet"), "cross_attention_dim"))
            for _ in lora.matrices(known):
                pass  # reading them finds NaN, which no weight survives

    def _layers(self, folder: str, kind: Any) -> dict[str, Layer]:
        return layers(folder, kind, self.config(folder), self.config("unet"))

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load the base's network and add every LoRA to it."""
        relevant = [
            (weight, lora) for _, weight, lora in self.loras if weight and any(name == folder for name, _ in lora.parts)
        ]
        if not relevant:
            return self.base.network(folder, kind, dtype)
        network = self.base.network(folder, kind, torch.float32)
        known = self._layers(folder, kind)
        with torch.no_grad():
            for weight, lora in relevant:
                for _, (layer, down, up, scale) in lora.matrices({folder: known}):
                    changed = network.get_submodule(layer).get_parameter("weight")
                    product = torch.from_numpy(up).flatten(1) @ torch.from_numpy(down).flatten(1)
                    changed.add_(weight * scale * product.reshape(changed.shape))
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
