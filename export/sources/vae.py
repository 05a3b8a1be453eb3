"""Another VAE in place of the checkpoint's own: a folder or a file with an AutoencoderKL or AutoencoderTiny (TAESD)."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from latentrt.export.sources.folder import Folder
from latentrt.export.sources.layouts import places_of
from latentrt.export.sources.places import Place, vae_place
from latentrt.export.sources.source import Classes, Config, Overlay, Source
from latentrt.export.sources.weight_file import (
    OLD_ATTENTION,
    TEXT_ENCODER,
    WeightFile,
    check_places,
    filled_network,
    given_path,
    is_text_encoder,
    sha256,
)
from latentrt.runtime.errors import CheckpointError

VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")

TINY = {
    "_class_name": "AutoencoderTiny",
    "latent_channels": 4,
    "block_out_channels": [64, 64, 64, 64],
    "scaling_factor": 1.0,
}
"""Config of TAESD (https://github.com/madebyollin/taesd), whose latents are the loop's own: scaling factor 1."""

ORIGINAL = "first_stage_model."
"""Beginning of the keys of some VAEs that were cut out of a checkpoint."""


def latent_scale(vae: Config) -> int:
    """Pixels per latent, along each axis."""
    channels = vae.get("block_out_channels") or vae["decoder_block_out_channels"]
    return int(2 ** (len(channels) - 1))


class VaeFile(Source):
    """One file with a VAE's weights, in diffusers' layout or the original one; ignores the names of folders.

    Its config is the file beside it; without one, TAESD's if the keys are TAESD's, and for an AutoencoderKL that of the
    checkpoint's own VAE, `own`.
    """

    def __init__(self, path: Path, own: Config):
        self.path = path
        self.file = WeightFile.open(path)
        keys = self.file.shapes
        self._prefix = ORIGINAL if any(key.startswith(ORIGINAL) for key in keys) else ""
        self._original = f"{self._prefix}encoder.down.0.block.0.conv1.weight" in keys
        if is_text_encoder(self.file):
            raise CheckpointError(f"--vae {path}: {TEXT_ENCODER}, no VAE. Name the VAE's file or folder")
        beside = path.with_name("config.json")
        found = Folder(path.parent).config("") if beside.is_file() else None
        if found is not None and found.get("_class_name") in VAE_CLASSES:
            self._config = found
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
        """Give the VAE's config."""
        return self._config

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """Give no files: a VAE has no tokenizer."""
        return {}

    def check(self, classes: Classes) -> None:
        """Check that the file holds every tensor of the VAE."""
        for kind in classes.values():
            check_places(self.file, kind, self._config, self._place)

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load the VAE."""
        return filled_network(self.file, kind, self._config, self._place, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield the config, and the file's hash."""
        yield self._config.to_bytes()
        yield sha256(self.path)

    def provenance(self) -> dict[str, Any]:
        """Name the file."""
        return {"checkpoint": self.path.name, "weights": "checkpoint"}

    def _place(self, name: str) -> Place:
        if self._original:
            places = [Place(self._prefix + place.key) for place in places_of("vae", vae_place(name, self._config))]
            return next((place for place in places if place.key in self.file.shapes), places[0])
        old_name = name
        for new, old in OLD_ATTENTION.items():
            old_name = old_name.replace(f".{new}.", f".{old}.")
        return Place(old_name if name not in self.file.shapes and old_name in self.file.shapes else name)


class OtherVae(Overlay):
    """A checkpoint whose VAE comes from elsewhere. `random_seed` and `variant` are those of `Folder`."""

    def __init__(self, base: Source, path: Path, random_seed: int | None = None, variant: str | None = None):
        super().__init__(base)
        self.given = given_path(path)
        is_checkpoint = (self.given / "model_index.json").is_file()
        place = self.given / "vae" if is_checkpoint else self.given
        self.folder = place.name
        self.vae: Source = (
            Folder(place.parent, random_seed, variant) if place.is_dir() else VaeFile(place, base.config("vae"))
        )
        kind = self.config("vae").get("_class_name")
        if kind not in VAE_CLASSES:
            what = f"a {kind}" if kind else f"{self.config('vae').file} is no VAE's config, it names no class"
            raise CheckpointError(f"--vae {path}: {what}; latentrt serves {' and '.join(VAE_CLASSES)}")
        self._check_fits()

    def _check_fits(self) -> None:
        config, own = self.config("vae"), self.base.config("vae")
        for unit, number, needed in (
            ("latent channels", config["latent_channels"], own["latent_channels"]),
            ("pixels per latent", latent_scale(config), latent_scale(own)),
        ):
            if number != needed:
                raise CheckpointError(
                    f"--vae {self.given}: has {number} {unit}, this checkpoint's own has {needed}. "
                    "Take a VAE made for this family"
                )

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read the new VAE's config, or the base's; the pipeline's names the new VAE's class."""
        if folder == "vae":
            return self.vae.config(self.folder)
        config = self.base.config(folder, name)
        if folder == "":
            return Config(config.file, config | {"vae": ["diffusers", self.config("vae")["_class_name"]]})
        return config

    def check(self, classes: Classes) -> None:
        """Check the new VAE's weights, and those of the base's other networks."""
        self.base.check({folder: kind for folder, kind in classes.items() if folder != "vae"})
        self.vae.check({self.folder: classes["vae"]})

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load the new VAE, or another network of the base."""
        if folder == "vae":
            return self.vae.network(self.folder, kind, dtype)
        return self.base.network(folder, kind, dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield what identifies the base's other networks and the new VAE."""
        yield from self.base.identity([folder for folder in folders if folder != "vae"])
        yield from self.vae.identity([self.folder])

    def provenance(self) -> dict[str, Any]:
        """Say where the base's weights and the new VAE come from."""
        return self.base.provenance() | {"vae": f"{self.config('vae')['_class_name']} of {self.given.name}"}
