"""The high-resolution fix: a picture drawn small, enlarged, and drawn again at the large size."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Unpack

from PIL import Image

from latentrt.runtime.errors import RequestError
from latentrt.runtime.loop import StepProgress
from latentrt.runtime.metadata import UpscaleNote, describe
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.result import Result
from latentrt.runtime.settings import Settings

Filter = Literal["lanczos", "bicubic", "bilinear", "nearest"]

STRENGTH = 0.5


def generate_large(
    pipeline: Pipeline,
    prompt: str | Sequence[str],
    *,
    scale: float = 2.0,
    resample: Filter = "lanczos",
    progress: StepProgress | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Draw at `width` x `height`, enlarge the pictures by `scale`, and run image to image on them.

    `strength` is the second pass's, 0.5 where it is not given.

    The composition is that of the small size, which the model was trained for; the details are drawn at the large one.
    `timings` has the seconds of both passes, the first one's as `small <stage>`.

    Raises:
        RequestError: the large size is not served, or a setting is not; nothing has run then.
    """
    if not scale > 1:
        raise RequestError(f"scale {scale!r}: must be above 1; it enlarges the picture before it is drawn again")
    strength = settings.pop("strength", None) or STRENGTH
    small = pipeline.request(prompt, **settings)
    width, height = (round(length * scale / 8) * 8 for length in (small.width, small.height))
    large = replace(small, width=width, height=height)
    large.check(pipeline.limits, pipeline.rebuild_command)
    first = pipeline.run(small, progress)
    filter_ = Image.Resampling[resample.upper()]
    enlarged = [image.resize((width, height), filter_) for image in first.images]
    again = settings.copy()
    again |= {"seed": small.seeds, "width": None, "height": None, "image": enlarged, "strength": strength}
    second = pipeline.run(pipeline.request(prompt, **again), progress)
    earlier = {f"small {stage}": seconds for stage, seconds in first.timings.items()}
    metadata = describe(pipeline.bundle, pipeline.selection, prompt, settings, small)
    note = UpscaleNote(scale=scale, resample=resample, strength=strength)
    return replace(
        second, timings=earlier | dict(second.timings), metadata=metadata.model_copy(update={"upscale": note})
    )
