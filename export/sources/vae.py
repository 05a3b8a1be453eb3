"""Another VAE in place of the checkpoint's own: a folder or a file, AutoencoderKL or AutoencoderTiny (TAESD)."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from latentrt.export.sources.folder import Folder
from latentrt.export.sources.places import Place, vae_place
from latentrt.export.sources.source import Classes, Config, Overlay, Source
from latentrt.export.sources.weight_file import WeightFile, check_places, filled_network, sha256
from latentrt.runtime.errors import CheckpointError

VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")

TINY = {
    "_class_name": "AutoencoderTiny",
    "latent_channels": 4,
    "block_out_channels": [64, 64, 64, 64],
    "scaling_factor": 1.0,
}
"""TAESD (https://github.com/madebyollin/taesd): its own latents are the loop's."""

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names in files that early versions of diffusers wrote."""

ORIGINAL = "first_stage_model."
"""What the keys of a VAE that was cut out of a checkpoint may begin with."""


def latent_scale(vae: Config) -> int:
    """Pixels per latent, along each axis."""
    channels = vae.get("block_out_channels") or vae["decoder_block_out_channels"]
    return int(2 ** (len(channels) - 1))


class VaeFile(Source):
    """One file with a VAE's weights, in diffusers' layout or in the original one. Folder names play no part.

    Its config: the one beside it; else by its keys TAESD's, or for an AutoencoderKL the checkpoint's own.
    """

    def __init__(self, path: Path, own: Config):
        self.path = path
        self.file = WeightFile.open(path)
        keys = self.file.shapes
        self._prefix = ORIGINAL if any(key.startswith(ORIGINAL) for key in keys) else ""
        self._original = f"{self._prefix}encoder.down.0.block.0.conv1.weight" in keys
        beside = path.with_name("config.json")
        if beside.is_file():
            self._config = Folder(path.parent).config("")
        elif "decoder.layers.0.weight" in keys:
            self._config = Config(path, TINY)
        elif f"{self._prefix}decoder.conv_in.weight" in keys:
            self._config = own
        else:
            raise CheckpointError(
                f"--vae {path}: no VAE: it has no decoder.conv_in.weight (AutoencoderKL) and no "
                f"decoder.layers.0.weight (AutoencoderTiny); its first key is {next(iter(keys), 'none')}"
            )

    def config(self, folder: str, name: str = "config.json") -> Config:
        """The VAE's."""
        return self._config

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """None."""
        return {}

    def check(self, classes: Classes) -> None:
        """Every tensor has its place."""
        for kind in classes.values():
            check_places(self.file, kind, self._config, self._place)

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """The VAE."""
        return filled_network(self.file, kind, self._config, self._place, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Hashes of the config and the file."""
        yield json.dumps(self._config, sort_keys=True).encode()
        yield sha256(self.path)

    def provenance(self) -> dict[str, Any]:
        """The file's name."""
        return {"checkpoint": self.path.name, "weights": "checkpoint"}

    def _place(self, name: str) -> Place:
        if self._original:
            return Place(self._prefix + vae_place(name, self._config).key)
        old = name
        for new, former in OLD_ATTENTION.items():
            old = old.replace(f".{new}.", f".{former}.")
        return Place(old if name not in self.file.shapes and old in self.file.shapes else name)


class OtherVae(Overlay):
    """A checkpoint whose VAE comes from elsewhere. `random_seed` and `variant` as for a folder."""

    def __init__(self, base: Source, path: Path, random_seed: int | None = None, variant: str | None = None):
        super().__init__(base)
        named = path.resolve()
        whole = (named / "model_index.json").is_file()
        inner = named / "vae" if whole else named
        self.vae: Source = (
            Folder(inner.parent, random_seed, variant) if inner.is_dir() else VaeFile(inner, base.config("vae"))
        )
        self.inner, self.named = inner.name, named
        kind = self.config("vae").get("_class_name")
        if kind not in VAE_CLASSES:
            raise CheckpointError(f"--vae {path}: a {kind}; latentrt serves {' and '.join(VAE_CLASSES)}")
        self._check_fits()

    def _check_fits(self) -> None:
        found, own = self.config("vae"), self.base.config("vae")
        for what, has, needed in (
            ("latent channels", found["latent_channels"], own["latent_channels"]),
            ("pixels per latent", latent_scale(found), latent_scale(own)),
        ):
            if has != needed:
                raise CheckpointError(
                    f"--vae {self.named}: has {has} {what}, this checkpoint's own has {needed}. "
                    "Take a VAE made for this family"
                )

    def config(self, folder: str, name: str = "config.json") -> Config:
        """The VAE's own, and the pipeline's with the VAE's class in it."""
        if folder == "vae":
            return self.vae.config(self.inner)
        found = self.base.config(folder, name)
        if folder == "":
            return Config(found.file, found | {"vae": ["diffusers", self.config("vae")["_class_name"]]})
        return found

    def check(self, classes: Classes) -> None:
        """The VAE's weights, and the base's others."""
        self.base.check({folder: kind for folder, kind in classes.items() if folder != "vae"})
        self.vae.check({self.inner: classes["vae"]})

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """The VAE, or the base's network."""
        if folder == "vae":
            return self.vae.network(self.inner, kind, dtype)
        return self.base.network(folder, kind, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Hashes of the VAE and of the base's other networks."""
        yield from self.base.identity([folder for folder in folders if folder != "vae"])
        yield from self.vae.identity([self.inner])

    def provenance(self) -> dict[str, Any]:
        """The base's, and where the VAE comes from."""
        return self.base.provenance() | {"vae": f"{self.config('vae')['_class_name']} of {self.named.name}"}
