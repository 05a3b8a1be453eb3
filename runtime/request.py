"""A request as the user writes it, normalised and checked before anything runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    """

    original: Size | None = None
    crop: Size = (0, 0)
    target: Size | None = None

    def time_ids(self, height: int, width: int) -> tuple[int, ...]:
        """The six numbers for an image of this size."""
        return (*(self.original or (height, width)), *self.crop, *(self.target or (height, width)))


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request: `prompts` × `images` pictures of one size, drawn as one batch.

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
        for name, value in (("steps", self.steps), ("images", self.images)):
            if not isinstance(value, int) or value < 1:
                raise RequestError(f"{name} {value}: must be a whole number of at least 1")
        if not 0 <= self.guidance < float("inf"):
            raise RequestError(f"guidance {self.guidance}: must be 0 or more; 1 and below turn guidance off, 5 is usual")
        if self.sampler not in SAMPLERS:
            raise RequestError(f"sampler {self.sampler!r}: unknown. The samplers are {', '.join(sorted(SAMPLERS))}")
        if len(self.seeds) not in (1, self.count):
            raise RequestError(f"seeds: {len(self.seeds)} given for {self.count} pictures; give one, or one per picture")
        for seed in self.seeds:
            if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
                raise RequestError(f"seed {seed}: must be a whole number from 0 to {MAX_SEED}")

    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return len(self.prompts) * self.images

    @property
    def guided(self) -> bool:
        """Guidance above 1 needs a second, negative row per picture (Ho & Salimans 2022, equation 6)."""
        return self.guidance > 1

    def check(self, limits: Limits, rebuild: Callable[[Limits], str]) -> None:
        """Compare with what is served; `rebuild` gives the command that would serve more.

        Raises:
            RequestError: names the dimension, the nearest valid values and the command.
        """
        _check_range(limits, rebuild, "images", self.count)
        _check_range(limits, rebuild, "width", self.width)
        _check_range(limits, rebuild, "height", self.height)


def _check_range(limits: Limits, rebuild: Callable[[Limits], str], name: str, value: int) -> None:
    low, opt, high = limits.bounds(name)
    step = limits.STEP[name]
    if not isinstance(value, int) or value < 1:
        raise RequestError(f"{name} {value}: must be a whole number of at least 1")
    if value % step:
        below = value // step * step
        raise RequestError(f"{name} {value}: must be a multiple of {step}; the nearest are {below} and {below + step}")
    if not low <= value <= high:
        wider = limits.replace(**{name: f"{min(low, value)}:{opt}:{max(high, value)}"})
        steps = f" in steps of {step}" if step > 1 and low < high else ""
        served = f"{low} to {high}{steps}" if low < high else f"{low} only"
        raise RequestError(f"{name} {value}: this build serves {served}. Rebuild with: {rebuild(wider)}")


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


def per_prompt(name: str, value: str | None | Sequence[str | None], prompts: int) -> tuple[str | None, ...]:
    """One entry per prompt from one for all or a list.

    Raises:
        RequestError: a list of another length.
    """
    if value is None or isinstance(value, str):
        return (value,) * prompts
    if len(value) != prompts:
        raise RequestError(f"{name}: {len(value)} given for {prompts} prompts; give one, or one per prompt")
    return tuple(value)
