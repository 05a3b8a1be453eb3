"""The pipeline classes whose checkpoints latentrt serves, and what each of them does that no config file says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentrt.runtime.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Conventions:
    """The behaviour that diffusers' pipelines of one kind share, and that no config file states.

    The U-Net reads the text encoders without their last `skipped` layers, through the final norm or not.
    `zero_negative` and `guidance` are the pipeline's defaults. `addition_embed_type` is what the pipeline requires of
    the U-Net's config. `sample_size` is the one that the family was trained with, for configs without any.

    The pipelines of Stable Diffusion also repair old configs when they load them: `schedule` replaces fields of the
    scheduler's config, and `repairs_sample_size` says that a `sample_size` below 64, in a U-Net that diffusers before
    0.9 saved, becomes 64.
    """

    addition_embed_type: str | None
    skipped: int
    final_norm: bool
    zero_negative: bool
    guidance: float
    sample_size: int
    schedule: Mapping[str, Any] = field(default_factory=dict)
    repairs_sample_size: bool = False


LCM = Conventions(
    addition_embed_type=None, skipped=0, final_norm=True, zero_negative=False, guidance=7.5, sample_size=64
)
SD = replace(LCM, schedule={"steps_offset": 1, "clip_sample": False}, repairs_sample_size=True)
SD_INPAINT = replace(SD, schedule={"steps_offset": 1, "skip_prk_steps": True})
SDXL = Conventions(
    addition_embed_type="text_time", skipped=1, final_norm=False, zero_negative=True, guidance=5.0, sample_size=128
)

PIPELINES: Mapping[str, Conventions] = {
    "StableDiffusionPipeline": SD,
    "StableDiffusionImg2ImgPipeline": SD,
    "StableDiffusionInpaintPipeline": SD_INPAINT,
    "LatentConsistencyModelPipeline": LCM,
    "LatentConsistencyModelImg2ImgPipeline": LCM,
    "StableDiffusionXLPipeline": SDXL,
    "StableDiffusionXLImg2ImgPipeline": SDXL,
    "StableDiffusionXLInpaintPipeline": SDXL,
}
"""Every pipeline class that is served. The task that a class is for does not matter: one export serves all tasks."""

REFUSED: Mapping[str, str] = {
    "ControlNet": "a ControlNet beside the U-Net",
    "Adapter": "an adapter beside the U-Net",
    "GLIGEN": "boxes with labels as conditions",
    "Upscale": "a small image and its noise level as conditions",
    "Pix2Pix": "a U-Net of 8 channels that takes an image",
    "Depth2Img": "a U-Net of 5 channels that takes a depth map",
    "UnCLIP": "image embeddings as conditions",
    "ImageVariation": "image embeddings as conditions",
    "StableDiffusion3": "a transformer in place of the U-Net",
    "PixArt": "a transformer in place of the U-Net",
    "Flux": "a transformer in place of the U-Net",
    "Sana": "a transformer in place of the U-Net",
}
"""Part of a pipeline class's name -> what such a checkpoint has that latentrt does not serve."""


def find_conventions(path: Path, index: Mapping[str, Any]) -> Conventions:
    """The conventions of the pipeline class that a `model_index.json` names.

    Raises:
        CheckpointError: latentrt does not serve the class.
    """
    name = str(index.get("_class_name"))
    if name in PIPELINES:
        return PIPELINES[name]
    reason = next((f", which has {feature}" for part, feature in REFUSED.items() if part in name), "")
    if index.get("_class_name") is None:
        raise CheckpointError(f"{path}: its model_index.json names no pipeline class. Download the checkpoint again")
    raise CheckpointError(f"{path}: a {name}{reason}. latentrt serves checkpoints of {', '.join(PIPELINES)}")
