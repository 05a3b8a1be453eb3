"""Another VAE in place of the checkpoint's own: a folder or a file with an AutoencoderKL or AutoencoderTiny (TAESD)."""

from pathlib import Path

from latentrt.export.sources.folder import Folder
from latentrt.export.sources.layouts import places_of
from latentrt.export.sources.other import NetworkFile, OtherNetwork
from latentrt.export.sources.places import Place, vae_place
from latentrt.export.sources.source import Classes, Config, Source
from latentrt.export.sources.weight_file import OLD_ATTENTION, TEXT_ENCODER, check_places, is_text_encoder
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


class VaeFile(NetworkFile):
    """One file with a VAE's weights, in diffusers' layout or the original one; ignores the names of folders.

    Its config is the file beside it; without one, TAESD's if the keys are TAESD's, and for an AutoencoderKL that of the
    checkpoint's own VAE, `own`.
    """

    def __init__(self, path: Path, own: Config):
        super().__init__(path)
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

    def check(self, classes: Classes) -> None:
        """Check that the file holds every tensor of the VAE."""
        for kind in classes.values():
            check_places(self.file, kind, self._config, self._place)

    def _place(self, name: str) -> Place:
        if self._original:
            places = [Place(self._prefix + place.key) for place in places_of("vae", vae_place(name, self._config))]
            return next((place for place in places if place.key in self.file.shapes), places[0])
        old_name = name
        for new, old in OLD_ATTENTION.items():
            old_name = old_name.replace(f".{new}.", f".{old}.")
        return Place(old_name if name not in self.file.shapes and old_name in self.file.shapes else name)


class OtherVae(OtherNetwork):
    """A checkpoint whose VAE comes from elsewhere. `random_seed` and `variant` are those of `Folder`."""

    def __init__(self, base: Source, path: Path, random_seed: int | None = None, variant: str | None = None):
        super().__init__(base, path, "vae", lambda file: VaeFile(file, base.config("vae")), random_seed, variant)
        if self.class_name not in VAE_CLASSES:
            nameless = f"{self.config('vae').file} is no VAE's config, it names no class"
            what = f"a {self.class_name}" if self.class_name else nameless
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
