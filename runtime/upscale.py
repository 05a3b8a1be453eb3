"""The high-resolution fix: a picture drawn small, enlarged, and drawn again at the large size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Unpack

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.drawing.loop import StepProgress
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.metadata import UpscaleNote, describe
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.images import read_pictures
from latentrt.runtime.request.settings import SETTINGS, Settings
from latentrt.runtime.request.signature import takes_settings
from latentrt.runtime.request.source import Source

Filter = Literal["lanczos", "bicubic", "bilinear", "nearest"]

STRENGTH = 0.5

NO_PLACE = ("image", "latents", "mask", "paste_back", "denoising_start", "denoising_end")
"""Settings of requests that begin or end otherwise."""


@takes_settings(without=NO_PLACE)
def generate_large(
    pipeline: Pipeline,
    prompt: str | Sequence[str],
    *,
    scale: float = 2.0,
    resample: Filter = "lanczos",
    enlarge: Literal["pixels", "latents"] = "pixels",
    progress: StepProgress | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Draw at `width` x `height`, enlarge by `scale`, and run image to image on that.

    `enlarge`: the pictures, or the latents, which costs no decoding and encoding. `strength` is the second pass's, 0.5
    where it is not given.

    The composition is that of the small size, which the model was trained for; the details are drawn at the large one.
    `timings` has the seconds of both passes, the first one's as `small <stage>`.

    Raises:
        RequestError: the large size is not served, or a setting is not; nothing has run then.
    """
    filter_ = _filter(scale, resample, enlarge)
    if misplaced := [name for name in NO_PLACE if settings.get(name) not in (None, False)]:
        raise RequestError(f"{', '.join(misplaced)}: the high-resolution fix begins with a prompt; leave it out")
    strength = settings.pop("strength", None)
    strength = STRENGTH if strength is None else SETTINGS["strength"].read("strength", strength)
    asked = pipeline.request(prompt, **settings)
    width, height = (round(length * scale / 8) * 8 for length in (asked.width, asked.height))
    small = replace(asked, settings={**asked.settings, "decode": enlarge == "pixels"})
    start = Source(strength)
    large = replace(asked, width=width, height=height, source=start)
    pipeline.check(small)
    pipeline.check(large)
    first = pipeline.run(small, progress)
    if enlarge == "pixels":
        pictures = [image.resize((width, height), filter_) for image in first.images]
        source = replace(start, pixels=read_pictures(pictures, None, None, lambda width, height: None))
    else:
        pixels_per_latent = pipeline.bundle.manifest.model.latent_scale
        size = (width // pixels_per_latent, height // pixels_per_latent)
        source = replace(start, latents=_resize(first.latents, size, filter_))
    second = pipeline.run(replace(large, source=source), progress)
    earlier = {f"small {stage}": seconds for stage, seconds in first.timings.items()}
    metadata = describe(pipeline.note, prompt, settings, small)
    note = UpscaleNote(scale=scale, resample=resample, enlarge=enlarge, strength=start.strength)
    return replace(
        second, timings=earlier | dict(second.timings), metadata=metadata.model_copy(update={"upscale": note})
    )


def _filter(scale: float, resample: str, enlarge: str) -> Image.Resampling:
    """The resampling filter, after a look at how the picture is to be enlarged."""
    if not scale > 1:
        raise RequestError(f"scale {scale!r}: must be above 1; it enlarges the picture before it is drawn again")
    known = {"lanczos", "bicubic", "bilinear", "nearest"}
    if resample not in known:
        raise RequestError(f"resample {resample!r}: the filters are {', '.join(sorted(known))}")
    if enlarge not in ("pixels", "latents"):
        raise RequestError(f"enlarge {enlarge!r}: must be 'pixels' or 'latents'")
    return Image.Resampling[resample.upper()]


def _resize(latents: Float32s, size: tuple[int, int], filter_: Image.Resampling) -> Float32s:
    """Latents (images, channels, h, w) at (width, height) `size`, channel by channel."""
    planes = latents.reshape(-1, *latents.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize(size, filter_)) for plane in planes]
    return np.stack(resized).reshape(*latents.shape[:2], *size[::-1])
