"""The high-resolution fix: a picture drawn small, enlarged, and drawn again at the large size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack, get_args

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.drawing.loop import StepProgress, check_progress
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.metadata import Enlarge, Filter, UpscaleNote, describe
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.images import read_pictures
from latentrt.runtime.request.kinds import Kind, is_number, one_of, python_number
from latentrt.runtime.request.reading import read_given, read_prompts
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.request.signature import takes_settings
from latentrt.runtime.request.source import Source

UPSCALE_STRENGTH = 0.5
"""Default strength of the second pass."""

REFUSED = ("image", "latents", "mask", "paste_back", "denoising_start", "denoising_end")
"""Settings of requests that do not begin with noise, or do not end with a picture."""

SCALE = 2.0
"""Default factor."""

FILTER, ENLARGE = one_of(get_args(Filter)), one_of(get_args(Enlarge))

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
    scale: float | None = None,
    resample: Filter | None = None,
    enlarge: Enlarge | None = None,
    progress: StepProgress | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Draw at `width` x `height`, enlarge by `scale` (2 by default), and run image to image on the result.

    `enlarge`: the pictures ("pixels", the default), or the latents, which saves decoding and encoding. `resample`: the
    filter, "lanczos" by default. `strength` is the second pass's, 0.5 by default.

    The composition is that of the small size, which the model was trained for; the details are drawn at the large one.
    `timings` has the seconds of both passes, the first one's as `small <stage>`.

    Raises:
        RequestError: the large size, or a setting, is not served; nothing has run.
    """
    if not isinstance(pipeline, Pipeline):
        raise RequestError(f"pipeline: a {type(pipeline).__name__}; it must be a Pipeline")
    scale = ABOVE_1.read("scale", SCALE if scale is None else scale)
    resample = FILTER.read("resample", "lanczos" if resample is None else resample)
    enlarge = ENLARGE.read("enlarge", "pixels" if enlarge is None else enlarge)
    check_progress(progress)
    if misplaced := [name for name in REFUSED if settings.get(name) is not None and settings.get(name) is not False]:
        raise RequestError(f"{', '.join(misplaced)}: the high-resolution fix begins with a prompt; leave it out")
    prompts, given = read_prompts(prompt), read_given(settings)
    wanted = given.pop("strength", None)
    strength = UPSCALE_STRENGTH if wanted is None else wanted
    asked = pipeline.request(prompts, **given)
    small = replace(asked, settings={**asked.settings, "decode": enlarge == "pixels"})
    width, height = (round(length * scale / 8) * 8 for length in (asked.width, asked.height))
    large = replace(asked, width=width, height=height, source=Source(strength))
    pipeline.check(small)
    pipeline.check(large)
    first = pipeline.run(small, progress)
    source = _enlarged(pipeline, first, strength, (width, height), resample)
    second = pipeline.run(replace(large, source=source), progress)
    earlier = {f"small {stage}": seconds for stage, seconds in first.timings.items()}
    metadata = describe(pipeline.note, prompts, given, small, pipeline.loras.values())
    note = UpscaleNote(scale=scale, resample=resample, enlarge=enlarge, strength=strength)
    return replace(
        second, timings=earlier | dict(second.timings), metadata=metadata.model_copy(update={"upscale": note})
    )


def _enlarged(pipeline: Pipeline, drawn: Result, strength: float, size: tuple[int, int], resample: Filter) -> Source:
    """The drawn pictures at (width, height) `size`, or their latents if they were not decoded."""
    filter_ = Image.Resampling[resample.upper()]
    if drawn.images:
        pictures = [image.resize(size, filter_) for image in drawn.images]
        return Source(strength, pixels=read_pictures(pictures, None, None, lambda width, height: None))
    latent_scale = pipeline.bundle.manifest.model.latent_scale
    width, height = size
    return Source(strength, latents=_resize(drawn.latents, (width // latent_scale, height // latent_scale), filter_))


def _resize(latents: Float32s, size: tuple[int, int], filter_: Image.Resampling) -> Float32s:
    """Resize latents (images, channels, h, w) to (width, height) `size`, channel by channel."""
    planes = latents.reshape(-1, *latents.shape[2:])
    resized = [np.asarray(Image.fromarray(plane).resize(size, filter_)) for plane in planes]
    return np.stack(resized).reshape(*latents.shape[:2], *size[::-1])
