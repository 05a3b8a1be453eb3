"""The high-resolution fix: a picture drawn small, enlarged, and drawn again at the large size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack, get_args

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.drawing.loop import StepProgress
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.metadata import Enlarge, Filter, UpscaleNote, describe
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.images import read_pictures
from latentrt.runtime.request.kinds import Kind, is_number, python_number
from latentrt.runtime.request.settings import SETTINGS, Settings
from latentrt.runtime.request.signature import takes_settings
from latentrt.runtime.request.source import Source

UPSCALE_STRENGTH = 0.5
"""Default strength of the second pass."""

REFUSED = ("image", "latents", "mask", "paste_back", "denoising_start", "denoising_end")
"""Settings of requests that do not begin with noise, or do not end with a picture."""

ABOVE_1 = Kind(
    "a number above 1; it enlarges the picture before it is drawn again",
    lambda value: is_number(value) and value > 1,
    python_number,
)


@takes_settings(without=REFUSED)
def generate_large(
    pipeline: Pipeline,
    prompt: str | Sequence[str],
    *,
    scale: float = 2.0,
    resample: Filter = "lanczos",
    enlarge: Enlarge = "pixels",
    progress: StepProgress | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Draw at `width` x `height`, enlarge by `scale`, and run image to image on the result.

    `enlarge`: the pictures, or the latents, which saves decoding and encoding. `strength` is the second pass's, 0.5 by
    default.

    The composition is that of the small size, which the model was trained for; the details are drawn at the large one.
    `timings` has the seconds of both passes, the first one's as `small <stage>`.

    Raises:
        RequestError: the large size, or a setting, is not served; nothing has run.
    """
    scale = ABOVE_1.read("scale", scale)
    _check(resample, enlarge)
    if misplaced := [name for name in REFUSED if settings.get(name) not in (None, False)]:
        raise RequestError(f"{', '.join(misplaced)}: the high-resolution fix begins with a prompt; leave it out")
    strength = settings.pop("strength", None)
    strength = UPSCALE_STRENGTH if strength is None else SETTINGS["strength"].read("strength", strength)
    asked = pipeline.request(prompt, **settings)
    small = replace(asked, settings={**asked.settings, "decode": enlarge == "pixels"})
    width, height = (round(length * scale / 8) * 8 for length in (asked.width, asked.height))
    large = replace(asked, width=width, height=height, source=Source(strength))
    pipeline.check(small)
    pipeline.check(large)
    first = pipeline.run(small, progress)
    source = _enlarged(first, strength, (width, height), pipeline.bundle.manifest.model.latent_scale, resample)
    second = pipeline.run(replace(large, source=source), progress)
    earlier = {f"small {stage}": seconds for stage, seconds in first.timings.items()}
    metadata = describe(pipeline.note, prompt, settings, small)
    note = UpscaleNote(scale=scale, resample=resample, enlarge=enlarge, strength=strength)
    return replace(
        second, timings=earlier | dict(second.timings), metadata=metadata.model_copy(update={"upscale": note})
    )


def _check(resample: str, enlarge: str) -> None:
    """Raise `RequestError` if the picture cannot be enlarged like this."""
    if resample not in get_args(Filter):
        raise RequestError(f"resample {resample!r}: the filters are {', '.join(sorted(get_args(Filter)))}")
    if enlarge not in get_args(Enlarge):
        raise RequestError(f"enlarge {enlarge!r}: must be 'pixels' or 'latents'")


def _enlarged(drawn: Result, strength: float, size: tuple[int, int], latent_scale: int, resample: Filter) -> Source:
    """The drawn pictures at (width, height) `size`, or their latents if they were not decoded."""
    filter_ = Image.Resampling[resample.upper()]
    if drawn.images:
        pictures = [image.resize(size, filter_) for image in drawn.images]
        return Source(strength, pixels=read_pictures(pictures, None, None, lambda width, height: None))
    width, height = size
    return Source(strength, latents=_resize(drawn.latents, (width // latent_scale, height // latent_scale), filter_))


def _resize(latents: Float32s, size: tuple[int, int], filter_: Image.Resampling) -> Float32s:
    """Resize latents (images, channels, h, w) to (width, height) `size`, channel by channel."""
    planes = latents.reshape(-1, *latents.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize(size, filter_)) for plane in planes]
    return np.stack(resized).reshape(*latents.shape[:2], *size[::-1])
