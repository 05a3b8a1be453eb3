"""A request as the user writes it, normalised and checked before anything runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from latentrt.runtime.errors import RequestError
from latentrt.runtime.model import Limits
from latentrt.runtime.samplers import SAMPLERS

Size = tuple[int, int]
"""(height, width) in pixels, or (top, left) of a crop, in SDXL's own order."""

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class MicroConditioning:
    """SDXL's six time ids: the size an image had, where it was cropped, the size asked for (Podell et al. 2023, 2.2).

    `original` and `target` default to the request's own size.

    Raises:
        RequestError: one of them is not a pair of whole numbers.
    """

    original: Size | None = None
    crop: Size = (0, 0)
    target: Size | None = None

    def __post_init__(self) -> None:
        pairs = {"original size": self.original or (0, 0), "crop": self.crop, "target size": self.target or (0, 0)}
        for name, pair in pairs.items():
            if not isinstance(pair, Sequence) or len(pair) != 2 or not all(is_whole(number, 0) for number in pair):
                raise RequestError(
                    f"{name} {pair!r}: must be two whole numbers of at least 0, (height, width) or (top, left)"
                )

    def time_ids(self, height: int, width: int) -> tuple[int, ...]:
        """The six numbers for an image of this size."""
        return (*(self.original or (height, width)), *self.crop, *(self.target or (height, width)))


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request: `prompts` * `images` pictures of one size, drawn as one batch.

    `negatives` has one entry per prompt, None where none was given. `seeds` has one entry for the whole batch, whose
    noise then comes from one generator as in diffusers, or one per picture.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str | None, ...]
    images: int
    steps: int
    guidance: float
    seeds: tuple[int, ...]
    width: int
    height: int
    sampler: str
    conditioning: MicroConditioning = field(default_factory=MicroConditioning)
    negative_conditioning: MicroConditioning | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise RequestError("prompt: an empty list; give at least one prompt (an empty text is allowed)")
        for name, texts, kind in (("prompt", self.prompts, str), ("negative", self.negatives, str | None)):
            for text in texts:
                if not isinstance(text, kind):
                    raise RequestError(f"{name} {text!r}: must be text")
        for name in ("steps", "images", "width", "height"):
            if not is_whole(getattr(self, name), 1):
                raise RequestError(f"{name} {getattr(self, name)!r}: must be a whole number of at least 1")
        scale = self.guidance
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= scale < float("inf"):
            raise RequestError(
                f"guidance {scale!r}: must be a number of 0 or more; 1 and below turn guidance off, 5 is usual"
            )
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            raise RequestError(f"sampler {self.sampler!r}: unknown. The samplers are {', '.join(sorted(SAMPLERS))}")
        if len(self.seeds) not in (1, self.count):
            raise RequestError(
                f"seeds: {len(self.seeds)} given for {self.count} pictures; give one, or one per picture"
            )
        for seed in self.seeds:
            if not is_whole(seed, 0) or seed > MAX_SEED:
                raise RequestError(f"seed {seed!r}: must be a whole number from 0 to {MAX_SEED}")

    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return len(self.prompts) * self.images

    @property
    def guided(self) -> bool:
        """Guidance above 1 needs a second, negative row per picture (Ho & Salimans 2022, equation 6)."""
        return self.guidance > 1

    @property
    def texts(self) -> set[str]:
        """Every text that is to be encoded: without guidance a negative prompt is not."""
        return {*self.prompts, *(text for text in self.negatives if text is not None and self.guided)}

    def check(self, limits: Limits, rebuild: Callable[[Limits], str]) -> None:
        """Compare with what is served; `rebuild` gives the command that would serve more.

        Raises:
            RequestError: names the dimension, the nearest valid values and the command.
        """
        check_images(self.count, limits, rebuild)
        _check_range(limits, rebuild, "width", self.width)
        _check_range(limits, rebuild, "height", self.height)


def _check_range(limits: Limits, rebuild: Callable[[Limits], str], name: str, value: int) -> None:
    low, opt, high = limits.bounds(name)
    step = limits.STEP[name]
    if value % step:
        below, above = value // step * step, (value // step + 1) * step
        nearest = f"nearest are {below} and {above}" if below else f"smallest is {above}"
        raise RequestError(f"{name} {value}: must be a multiple of {step}; the {nearest}")
    if not low <= value <= high:
        wider = limits.replace(**{name: f"{min(low, value)}:{opt}:{max(high, value)}"})
        steps = f" in steps of {step}" if step > 1 and low < high else ""
        served = f"{low} to {high}{steps}" if low < high else f"{low} only"
        raise RequestError(f"{name} {value}: this build serves {served}. Rebuild with: {rebuild(wider)}")


def check_images(count: int, limits: Limits, rebuild: Callable[[Limits], str]) -> None:
    """Raise `RequestError` where one batch would have more pictures, or fewer, than are served."""
    _check_range(limits, rebuild, "images", count)


def check_tokens(tokens: int, limits: Limits, rebuild: Callable[[Limits], str], prompt: str) -> None:
    """Raise `RequestError` where a prompt needs more tokens (77 per chunk) than are served."""
    low, opt, high = limits.bounds("tokens")
    if tokens > high:
        wider = limits.replace(tokens=f"{low}:{opt}:{tokens}")
        chunks, most = tokens // limits.STEP["tokens"], high // limits.STEP["tokens"]
        start = prompt if len(prompt) <= 30 else f"{prompt[:30]}…"
        raise RequestError(
            f"prompt {start!r}: it needs {chunks} chunks of 75 tokens, this build serves up to {most}. "
            f"Shorten it, or rebuild with: {rebuild(wider)}"
        )


def is_whole(value: object, least: int) -> bool:
    """Whether a value is a whole number, Python's or numpy's, of at least `least`; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def one_or_more(value: object) -> tuple[Any, ...]:
    """A tuple from one value or a list of them; a text is one value."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def per_prompt(name: str, value: str | Sequence[str | None] | None, prompts: int) -> tuple[str | None, ...]:
    """One entry per prompt from one for all or a list.

    Raises:
        RequestError: a list of another length.
    """
    if value is None or isinstance(value, str):
        return (value,) * prompts
    values = one_or_more(value)
    if len(values) != prompts:
        raise RequestError(f"{name}: {len(values)} given for {prompts} prompts; give one, or one per prompt")
    return values
