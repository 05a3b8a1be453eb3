"""One `.safetensors` file in an original layout of Stable Diffusion, with configs that ship with latentrt."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from latentrt.export.sources.describe import describe_other
from latentrt.export.sources.families import CONFIGS, families_by_text_width, is_openai_clip, shipped_configs
from latentrt.export.sources.folder import Folder
from latentrt.export.sources.layouts import NAMES, places_of
from latentrt.export.sources.markers import MARKERS, latents_of, schedule_of
from latentrt.export.sources.places import Place, clip_place, open_clip_place, unet_place, vae_place
from latentrt.export.sources.source import TOKENIZERS, Classes, Config, Source
from latentrt.export.sources.tokenizers import END, check_vocabulary, folder_tokenizer, installed_vocabulary
from latentrt.export.sources.weight_file import (
    NO_CONFIG,
    Naming,
    WeightFile,
    check_places,
    filled_network,
    sha256,
)
from latentrt.runtime.bundle.model import inpainting_channels
from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.lora.tensor_file import list_keys

PREFIXES = {folder: tuple(names.prefixes) for folder, names in NAMES.items()}
"""Folder of each network -> what its keys may begin with."""

UNUSED = re.compile(
    # what training leaves behind
    r"model_ema\..*|first_stage_model\.(loss|model_ema)\..*|global_step"
    # parts of CLIP that the loop does not use
    r"|.*\bposition_ids|.*\blogit_scale|(cond_stage_model|conditioner\.embedders\.0\.(transformer|model))\..*text_projection.*"
    # the schedule, which is computed
    r"|betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas"
    + f"|{'|'.join(map(re.escape, MARKERS))}"
)
"""Keys that are known, and that no network needs."""

OTHER_CONFIG = (
    "The weights belong to another config than the family's: pruned and otherwise changed models (SSD-1B, Segmind "
    "Vega, KOALA) need their own. Name a folder that holds it in diffusers format with --config FOLDER"
)
"""What to do where a file does not fit the configs that ship."""

INPAINT = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}
INPAINT_CHANNELS = inpainting_channels(latents=4)
PREDICTIONS = {
    "epsilon": ("epsilon", "eps", "noise"),
    "v_prediction": ("v_prediction", "v-prediction", "v prediction", "vpred", "v_pred", "v", "velocity"),
    "sample": ("sample", "x0"),
}
"""diffusers' name of what a U-Net predicts -> values of `modelspec.prediction_type` in files' headers."""


@dataclass(frozen=True)
class SingleFile(Source):
    """A checkpoint in one file.

    `folder`: the user's own configs, in diffusers format, used in place of those that ship. `tokenizer_folder`: the
    user's own tokenizers. `prediction_type`: what the U-Net predicts, where the user says so.
    """

    file: WeightFile
    folder: Folder | None = None
    tokenizer_folder: Path | None = None
    prediction_type: str | None = None
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.file.path)
        if "model.diffusion_model.input_blocks.0.0.weight" not in self.file.shapes:
            raise CheckpointError(f"{self.path}: {describe_other(self.file)}")

    @cached_property
    def family(self) -> str:
        """Name of the shipped configs; follows from the text's width, and for SD 2.x from what the U-Net predicts.

        Raises:
            CheckpointError: a width that no family has, or a file that does not say what it predicts.
        """
        width, families = text_width(self.file), families_by_text_width()
        if width not in families:
            raise CheckpointError(
                f"{self.path}: its U-Net takes text {width} wide; latentrt ships configs for "
                f"{', '.join(f'{known} ({name})' for known, name in families.items())}. "
                "Name a folder in diffusers format that holds this model's configs with --config"
            )
        if families[width] != "sd2" or self.unet_channels == INPAINT_CHANNELS:
            return families[width]
        if self.prediction is None:
            raise CheckpointError(
                f"{self.path}: an SD 2.x model that does not say what it predicts. Add --prediction-type epsilon "
                "(the 512-pixel models) or --prediction-type v_prediction (the 768-pixel models)"
            )
        return "sd2-v" if self.prediction == "v_prediction" else "sd2"

    @property
    def unet_channels(self) -> int:
        """Channels of the U-Net's input."""
        return self.file.shapes["model.diffusion_model.input_blocks.0.0.weight"][1]

    @property
    def prediction(self) -> str | None:
        """What the U-Net predicts: from the user, else the file's marker, else its header; None where none says.

        Raises:
            CheckpointError: the header says it in a word that is not known.
        """
        if self.prediction_type or "v_pred" in self.file.shapes:
            return self.prediction_type or "v_prediction"
        word = self.file.metadata.get("modelspec.prediction_type", "")
        name = next((name for name, words in PREDICTIONS.items() if word.strip().lower() in words), None)
        if word.strip() and name is None:
            raise CheckpointError(
                f"{self.path}: modelspec.prediction_type in its header is {word!r}; latentrt knows "
                f"{', '.join(word for words in PREDICTIONS.values() for word in words)}. Say what the U-Net predicts "
                f"with --prediction-type {' or '.join(PREDICTIONS)}"
            )
        return name

    @cached_property
    def _shipped(self) -> dict[str, Any]:
        """The family's configs, with the file's number of input channels and the pipeline class that goes with it."""
        configs = shipped_configs(self.family)
        configs["unet"]["in_channels"] = self.unet_channels
        if self.unet_channels == INPAINT_CHANNELS:
            name = configs["model_index"]["_class_name"]
            configs["model_index"]["_class_name"] = INPAINT.get(name, name)
        return configs

    def config(self, folder: str, name: str = "config.json") -> Config:
        """Read a config from the user's folder, or the family's; the file's own markers change the schedule's."""
        if self.folder is not None:
            config = self.folder.config(folder, name)
        else:
            config = Config(CONFIGS / f"{self.family}.json", self._shipped.get(folder or "model_index", {}))
        if folder == "scheduler":
            config.update(schedule_of(self.file))
            config.update({"prediction_type": self.prediction} if self.prediction else {})
        if folder == "vae":
            config.update(latents_of(self.file, config["latent_channels"]))
        if folder == "" and (named := schedule_of(self.file).get("_class_name")):
            config["scheduler"] = ["diffusers", named]
        return config

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """Read the files from one of the user's folders, or from an installed package."""
        if self.tokenizer_folder is None and self.folder is not None:
            return self.folder.tokenizer(folder)
        encoder = next(encoder for encoder, tokenizer in TOKENIZERS.items() if tokenizer == folder)
        # OpenAI's CLIP pads with its end token, OpenCLIP with token 0.
        pad = END if is_openai_clip(self.config(encoder)) else "!"
        if self.tokenizer_folder is not None:
            return folder_tokenizer(self.tokenizer_folder, folder, pad)
        return installed_vocabulary(self.path).tokenizer(pad)

    def check(self, classes: Classes) -> None:
        """Refuse a file that lacks a tensor of these networks, or holds one that latentrt does not know."""
        asked = tuple(self._prefix(folder) for folder in classes)
        others = tuple(prefix for prefixes in PREFIXES.values() for prefix in prefixes if prefix not in asked)
        known: set[str] = set()
        for folder, kind in classes.items():
            remedy = OTHER_CONFIG if self.folder is None else NO_CONFIG
            known |= check_places(self.file, kind, self.config(folder), self._naming(folder), remedy)
        left = sorted(
            key
            for key in self.file.shapes.keys() - known
            if not key.startswith(others) and not UNUSED.fullmatch(key) and not self._is_last_layer(key)
        )
        if left:
            raise CheckpointError(
                f"{self.path}: {len(left)} keys belong to no part of a Stable Diffusion checkpoint: {list_keys(left)}. "
                "latentrt would ignore what they do; export another form of this model"
            )
        for folder in classes:
            if folder in TOKENIZERS:
                check_vocabulary(self, TOKENIZERS[folder], self.config(folder)["vocab_size"])

    def _is_last_layer(self, key: str) -> bool:
        """Whether a key belongs to the last text layer of SD 2.x, which its files hold but its U-Net does not read."""
        match = re.match(r"(cond_stage_model|conditioner\.embedders\.0)\.model\.transformer\.resblocks\.(\d+)\.", key)
        if match is None or not (self.config("", "model_index.json").get("text_encoder") or [None])[0]:
            return False
        return bool(int(match[2]) >= self.config("text_encoder")["num_hidden_layers"])

    def _prefix(self, folder: str) -> str:
        for prefix in PREFIXES[folder]:
            if any(key.startswith(prefix) and not UNUSED.fullmatch(key) for key in self.file.shapes):
                return prefix
        remedy = "Name one with --vae PATH" if folder == "vae" else "Take the complete checkpoint"
        raise CheckpointError(f"{self.path}: holds no {folder} (keys {' or '.join(PREFIXES[folder])}*). {remedy}")

    def _naming(self, folder: str) -> Naming:
        prefix = self._prefix(folder)
        if folder == "unet":
            inner: Naming = partial(unet_place, config=self.config(folder))
        elif folder == "vae":
            inner = partial(vae_place, config=self.config(folder))
        else:
            inner = open_clip_place if prefix.endswith("model.") else clip_place

        def naming(name: str) -> Place:
            place = inner(name)
            place = next((other for other in places_of(folder, place) if prefix + other.key in self.file.shapes), place)
            return Place(prefix + place.key, place.third, place.transposed)

        return naming

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """Load one network with the file's weights."""
        return filled_network(self.file, kind, self.config(folder), self._naming(folder), dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Yield the file's hash, and the configs."""
        yield sha256(self.path)
        for folder in folders:
            yield self.config(folder).to_bytes()

    def provenance(self) -> dict[str, Any]:
        """Name the file."""
        return {"checkpoint": self.path.name, "weights": "checkpoint"}


def text_width(file: WeightFile) -> int:
    """Width of the text that the U-Net's cross-attention takes; 0 for a U-Net that takes none."""
    widths: Mapping[str, int] = {
        key: shape[1] for key, shape in file.shapes.items() if key.endswith(".attn2.to_k.weight") and len(shape) == 2
    }
    return next(iter(widths.values()), 0)
