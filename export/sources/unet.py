"""Another U-Net in place of the checkpoint's own: distilled ones (Lightning, DMD2, Hyper) are published alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from latentrt.export.sources.config_fields import checked_config, one_for_all
from latentrt.export.sources.other import NetworkFile, OtherNetwork
from latentrt.export.sources.places import Place, unet_place
from latentrt.export.sources.source import Classes, Config, Source, read_config
from latentrt.export.sources.weight_file import check_places, is_text_encoder
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.lora.tensor_file import list_keys

UNET_CLASS = "UNet2DConditionModel"

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
"""What keys of a U-Net alone begin with: in checkpoints, in ComfyUI's files, in diffusers' pipelines, and by itself."""

ORIGINAL_IN, DIFFUSERS_IN = "input_blocks.0.0.weight", "conv_in.weight"
"""The first convolution in each layout."""

OTHER_MODEL = "The U-Net was made for another model than this checkpoint, or needs its own config.json beside it"


class UnetFile(NetworkFile):
    """One file with a U-Net's weights, in diffusers' layout or the original one; ignores the names of folders.

    Its config is the file beside it; without one that of the checkpoint's own U-Net, `own`, with the input channels and
    the guidance embedding that the weights have.
    """

    def __init__(self, path: Path, own: Config):
        super().__init__(path)
        keys = self.file.shapes
        found = [
            (prefix, layout == ORIGINAL_IN)
            for prefix in PREFIXES
            for layout in (ORIGINAL_IN, DIFFUSERS_IN)
            if prefix + layout in keys
        ]
        if not found:
            raise CheckpointError(f"--unet {path}: {self._what_it_is()}")
        self._prefix, self._original = found[0]
        beside = path.with_name("config.json")
        config = read_config(beside) if beside.is_file() else own
        config = checked_config(config, "unet") if config.get("_class_name") == UNET_CLASS else own
        self._config = Config(config.file, config | self._shown(config) | {"_class_name": UNET_CLASS})

    def _what_it_is(self) -> str:
        keys = self.file.shapes
        if any("lora" in key for key in keys):
            return "a LoRA, no U-Net. Add it with --lora FILE:WEIGHT"
        if is_text_encoder(self.file):
            return "a text encoder (CLIP), no U-Net. Name the U-Net's file or folder"
        return (
            f"no U-Net: it has no {DIFFUSERS_IN} (diffusers) and no {ORIGINAL_IN} (the original layout); its first "
            f"key is {next(iter(keys), 'none')}"
        )

    def _shown(self, config: Config) -> dict[str, Any]:
        """The fields of the config that the weights show."""
        guidance = self._place_for("time_embedding.cond_proj.weight", config).key
        channels = self.file.shapes[self._place_for(DIFFUSERS_IN, config).key]
        return {
            "in_channels": channels[1] if len(channels) == 4 else config["in_channels"],
            "time_cond_proj_dim": self.file.shapes[guidance][-1] if guidance in self.file.shapes else None,
        }

    def _place_for(self, name: str, config: Config) -> Place:
        return Place(self._prefix + (unet_place(name, config).key if self._original else name))

    def _place(self, name: str) -> Place:
        return self._place_for(name, self._config)

    def check(self, classes: Classes) -> None:
        """Check that the file holds every tensor of the U-Net, and no other ones below its prefix."""
        for kind in classes.values():
            known = check_places(self.file, kind, self._config, self._place, OTHER_MODEL)
            left = sorted(key for key in self.file.shapes if key.startswith(self._prefix) and key not in known)
            if left:
                raise CheckpointError(
                    f"--unet {self.path}: {len(left)} keys belong to no part of this U-Net: {list_keys(left)}. "
                    + OTHER_MODEL
                )


class OtherUnet(OtherNetwork):
    """A checkpoint whose U-Net comes from elsewhere. `random_seed` and `variant` are those of `Folder`.

    `prediction_type`: what the U-Net predicts, where it is not what the checkpoint's own one does.
    """

    def __init__(
        self,
        base: Source,
        path: Path,
        random_seed: int | None = None,
        variant: str | None = None,
        prediction_type: str | None = None,
    ):
        super().__init__(base, path, "unet", lambda file: UnetFile(file, base.config("unet")), random_seed, variant)
        self.prediction_type = prediction_type
        if self.class_name != UNET_CLASS:
            nameless = f"{self.config('unet').file} is no U-Net's config, it names no class"
            what = f"a {self.class_name}" if self.class_name else nameless
            raise CheckpointError(f"--unet {path}: {what}; latentrt serves {UNET_CLASS}")
        self._check_fits()

    def _check_fits(self) -> None:
        try:
            own = self.base.config("unet")
        except CheckpointError:  # a base without a U-Net of its own; its text encoders are compared later
            return
        width, needed = (one_for_all(config, "cross_attention_dim") for config in (self.config("unet"), own))
        if width != needed:
            raise CheckpointError(
                f"--unet {self.given}: takes text {width} wide, this checkpoint's own takes {needed}. "
                "Take a U-Net made for this family"
            )

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read the new U-Net's config, or the base's; the scheduler's says what the new U-Net predicts."""
        config = super().config(folder, name)
        if folder == "scheduler" and self.prediction_type:
            return Config(config.file, config | {"prediction_type": self.prediction_type})
        return config

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield what identifies the base's other networks, the new U-Net, and what it predicts."""
        yield from super().identity(folders)
        yield str(self.prediction_type).encode()
