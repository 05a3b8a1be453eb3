"""One `.safetensors` file in an original layout of Stable Diffusion, with configs that ship with latentrt."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from latentrt.export.sources.folder import Folder
from latentrt.export.sources.places import Place, clip_place, open_clip_place, unet_place, vae_place
from latentrt.export.sources.source import Classes, Config, Source
from latentrt.export.sources.tokenizers import END, check_vocabulary, folder_tokenizer, installed_vocabulary
from latentrt.export.sources.weight_file import Naming, WeightFile, check_places, filled_network, sha256, some
from latentrt.runtime.errors import CheckpointError

CONFIGS = Path(__file__).parent / "configs"

PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": (
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
        "conditioner.embedders.0.transformer.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),
}
"""Folder of each network, and what its keys may begin with. CLIP lies under `transformer.`, OpenCLIP under `model.`."""

UNUSED = re.compile(
    # what training leaves behind
    r"model_ema\..*|first_stage_model\.(loss|model_ema)\..*|global_step"
    # parts of CLIP that the loop does not use
    r"|.*\bposition_ids|.*\blogit_scale|(cond_stage_model|conditioner\.embedders\.0\.transformer)\..*text_projection.*"
    # the schedule, which is computed
    r"|betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar|scale_factor|denoiser\.sigmas"
    # markers that are read
    r"|v_pred|ztsnr"
)
"""Keys that are known and not needed."""

FAMILIES = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}
"""Width of the text that a U-Net's cross-attention takes, and its family."""

INPAINT = {
    "StableDiffusionPipeline": "StableDiffusionInpaintPipeline",
    "StableDiffusionXLPipeline": "StableDiffusionXLInpaintPipeline",
}
INPAINT_CHANNELS = 9
PREDICTIONS = {"v": "v_prediction", "epsilon": "epsilon"}
"""As the header's `modelspec.prediction_type` says it, and as diffusers does."""


@dataclass(frozen=True)
class SingleFile(Source):
    """`folder`: the user's own configs, in diffusers format. `tokenizer_folder`: the user's own tokenizers."""

    file: WeightFile
    folder: Folder | None = None
    tokenizer_folder: Path | None = None
    prediction_type: str | None = None
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.file.path)
        if "model.diffusion_model.input_blocks.0.0.weight" not in self.file.shapes:
            raise CheckpointError(f"{self.path}: {_what_it_is(self.file)}")

    @cached_property
    def family(self) -> str:
        """Name of the shipped configs: decided by the width of the text alone.

        Raises:
            CheckpointError: a width that no family has, or a file that does not say what it predicts.
        """
        width = context_width(self.file)
        if width not in FAMILIES:
            raise CheckpointError(
                f"{self.path}: its U-Net takes text {width} wide; latentrt ships configs for "
                f"{', '.join(f'{known} ({name})' for known, name in FAMILIES.items())}. "
                "Name a folder in diffusers format that holds this model's configs with --config"
            )
        if FAMILIES[width] != "sd2" or self.channels == INPAINT_CHANNELS:
            return FAMILIES[width]
        if self.prediction is None:
            raise CheckpointError(
                f"{self.path}: an SD 2.x model that does not say what it predicts. Add --prediction-type epsilon "
                "(the 512-pixel models) or --prediction-type v_prediction (the 768-pixel models)"
            )
        return "sd2-v" if self.prediction == "v_prediction" else "sd2"

    @property
    def channels(self) -> int:
        """Of the U-Net's input."""
        return self.file.shapes["model.diffusion_model.input_blocks.0.0.weight"][1]

    @property
    def prediction(self) -> str | None:
        """What the U-Net predicts: what the user says, the file's marker, or its header; None where nothing says."""
        if self.prediction_type or "v_pred" in self.file.shapes:
            return self.prediction_type or "v_prediction"
        return PREDICTIONS.get(self.file.metadata.get("modelspec.prediction_type", ""))

    @cached_property
    def _shipped(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((CONFIGS / f"{self.family}.json").read_text(encoding="utf-8"))
        values["unet"]["in_channels"] = self.channels
        if self.channels == INPAINT_CHANNELS:
            name = values["model_index"]["_class_name"]
            values["model_index"]["_class_name"] = INPAINT.get(name, name)
        return values

    def config(self, folder: str, name: str = "config.json") -> Config:
        """From the user's folder, or the family's; the schedule with what the file says of it."""
        if self.folder is not None:
            found = self.folder.config(folder, name)
        else:
            part = folder or "model_index"
            found = Config(CONFIGS / f"{self.family}.json", self._shipped.get(part, {}))
        if folder == "scheduler":
            found.update({"prediction_type": self.prediction} if self.prediction else {})
            if "ztsnr" in self.file.shapes:
                # Zero SNR at the last timestep is of use only where sampling begins there (Lin et al. 2023, 3.3).
                found.update(rescale_betas_zero_snr=True, timestep_spacing="trailing")
        return found

    def tokenizer(self, folder: str) -> dict[str, bytes]:
        """From the user's folders, or an installed package."""
        if self.tokenizer_folder is None and self.folder is not None:
            return self.folder.tokenizer(folder)
        # OpenAI's CLIP, which has quick_gelu, is filled up with its end token, OpenCLIP with token 0.
        encoder = self.config(folder.replace("tokenizer", "text_encoder"))
        pad = END if encoder.get("hidden_act", "quick_gelu") == "quick_gelu" else "!"
        if self.tokenizer_folder is not None:
            return folder_tokenizer(self.tokenizer_folder, folder, pad)
        return installed_vocabulary(self.path).tokenizer(pad)

    def check(self, classes: Classes) -> None:
        """Every tensor of these networks has its place, and what is left over is known to be unused."""
        asked = tuple(self._prefix(folder) for folder in classes)
        others = tuple(prefix for prefixes in PREFIXES.values() for prefix in prefixes if prefix not in asked)
        known: set[str] = set()
        for folder, kind in classes.items():
            known |= check_places(self.file, kind, self.config(folder), self._naming(folder))
        left = sorted(
            key
            for key in self.file.shapes.keys() - known
            if not key.startswith(others) and not UNUSED.fullmatch(key) and not self._is_last_layer(key)
        )
        if left:
            raise CheckpointError(
                f"{self.path}: {len(left)} keys belong to no part of a Stable Diffusion checkpoint: {some(left)}. "
                "latentrt would ignore what they do; export another form of this model"
            )
        for folder in classes:
            if folder.startswith("text_encoder"):
                tokenizer = folder.replace("text_encoder", "tokenizer")
                check_vocabulary(self, tokenizer, self.config(folder)["vocab_size"])

    def _is_last_layer(self, key: str) -> bool:
        """SD 2.x files hold a layer more than is used: its text is the penultimate layer's."""
        match = re.match(r"cond_stage_model\.model\.transformer\.resblocks\.(\d+)\.", key)
        return match is not None and int(match[1]) >= self.config("text_encoder")["num_hidden_layers"]

    def _prefix(self, folder: str) -> str:
        for prefix in PREFIXES[folder]:
            if any(key.startswith(prefix) for key in self.file.shapes):
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
            return Place(prefix + place.key, place.third, place.transposed)

        return naming

    def network(self, folder: str, kind: Any, dtype: torch.dtype) -> torch.nn.Module:
        """One network with the file's weights."""
        return filled_network(self.file, kind, self.config(folder), self._naming(folder), dtype)

    def identity(self, folders: Iterable[str]) -> Iterator[bytes]:
        """Hashes of the file and of the configs."""
        yield sha256(self.path)
        for folder in folders:
            yield json.dumps(self.config(folder), sort_keys=True).encode()

    def provenance(self) -> dict[str, Any]:
        """The file's name."""
        return {"checkpoint": self.path.name, "weights": "checkpoint"}


def context_width(file: WeightFile) -> int:
    """Width of the text that a U-Net takes, 0 for one that takes none."""
    widths: Mapping[str, int] = {
        key: shape[1] for key, shape in file.shapes.items() if key.endswith(".attn2.to_k.weight") and len(shape) == 2
    }
    return next(iter(widths.values()), 0)


def _what_it_is(file: WeightFile) -> str:
    keys = list(file.shapes)
    if any("lora" in key for key in keys):
        return "a LoRA, not a checkpoint. Export a checkpoint with --lora FILE:WEIGHT"
    if any(key.startswith(("encoder.", "decoder.")) for key in keys):
        return "a VAE, not a checkpoint. Export a checkpoint with --vae FILE"
    if any(key.startswith("down_blocks.") for key in keys):
        return "one network in diffusers format. Name the checkpoint's folder, which holds its model_index.json"
    first = f"its first key is {keys[0]}" if keys else "it is empty"
    return (
        f"not a checkpoint in an original layout of Stable Diffusion 1.x, 2.x or XL (no model.diffusion_model.*; "
        f"{first}). Convert it to diffusers format"
    )
