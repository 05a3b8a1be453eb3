"""A request as the user writes it, normalised and checked before anything runs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from latentrt.runtime.embeddings import Embeddings
from latentrt.runtime.errors import RequestError
from latentrt.runtime.model import Limits, Model, TimeId
from latentrt.runtime.samplers import SAMPLERS
from latentrt.runtime.source import Source

Size = tuple[int, int]
"""(height, width) in pixels, or (top, left) of a crop, in SDXL's own order."""

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class MicroConditioning:
    """SDXL's time ids: the size an image had, where it was cropped, the size asked for (Podell et al. 2023, 2.2).

    `original` and `target` default to the request's own size. `aesthetic_score` is what SDXL's refiner takes in place
    of the target size; it defaults to 6.0, in the negative rows to 2.5, as in diffusers.

    Raises:
        RequestError: a size is not a pair of whole numbers, or the score not a number.
    """

    original: Size | None = None
    crop: Size = (0, 0)
    target: Size | None = None
    aesthetic_score: float | None = None

    def __post_init__(self) -> None:
        pairs = {"original size": self.original or (0, 0), "crop": self.crop, "target size": self.target or (0, 0)}
        for name, pair in pairs.items():
            if not isinstance(pair, Sequence) or len(pair) != 2 or not all(is_whole(number, 0) for number in pair):
                raise RequestError(
                    f"{name} {pair!r}: must be two whole numbers of at least 0, (height, width) or (top, left)"
                )
        score = self.aesthetic_score
        if score is not None and not is_number(score):
            raise RequestError(f"aesthetic score {score!r}: must be a number, usually 1 to 10")

    def time_ids(self, names: Sequence[TimeId], height: int, width: int, score: float) -> tuple[float, ...]:
        """The named numbers for an image of this size; `score` stands in for an aesthetic score that is not given."""
        original, target = self.original or (height, width), self.target or (height, width)
        values: Mapping[TimeId, float] = {
            "original_height": original[0],
            "original_width": original[1],
            "crop_top": self.crop[0],
            "crop_left": self.crop[1],
            "target_height": target[0],
            "target_width": target[1],
            "aesthetic_score": score if self.aesthetic_score is None else self.aesthetic_score,
        }
        return tuple(values[name] for name in names)


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request: `prompts` * `images` pictures of one size, drawn as one batch.

    `negatives` has one entry per prompt, None where none was given. `prompts_2` and `negatives_2` are for the second
    text encoder, one entry per prompt or none at all; None stands for the first encoder's text. `clip_skip`: layers of
    the text encoders that the prompts skip beyond those that the model skips. `guidance` has one entry per prompt; of
    the steps, the share between the two numbers of `guidance_interval` is guided. `seeds` has one entry for the whole
    batch, whose noise then comes from one generator as in diffusers, or one per picture. `schedule` overrides fields of
    the scheduler config. `latentrt.runtime.settings` describes every setting.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str | None, ...]
    images: int
    steps: int
    guidance: tuple[float, ...]
    seeds: tuple[int, ...]
    width: int
    height: int
    sampler: str
    conditioning: MicroConditioning = field(default_factory=MicroConditioning)
    negative_conditioning: MicroConditioning | None = None
    prompts_2: tuple[str | None, ...] = ()
    negatives_2: tuple[str | None, ...] = ()
    clip_skip: int = 0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    schedule: tuple[tuple[str, object], ...] = ()
    source: Source | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    decode: bool = True
    embeddings: Embeddings | None = None

    def __post_init__(self) -> None:
        self._check_texts()
        self._check_numbers()
        self._check_guidance()
        for name in ("denoising_start", "denoising_end"):
            share = getattr(self, name)
            if share is not None and not is_share(share):
                raise RequestError(f"{name} {share!r}: must be a number from 0 to 1, a share of the denoising")
        if self.source is not None:
            self._check_source(self.source)

    def _check_texts(self) -> None:
        if not self.prompts:
            raise RequestError("prompt: an empty list; give at least one prompt (an empty text is allowed)")
        for name, texts, kind in (
            ("prompt", self.prompts, str),
            ("negative", self.negatives, str | None),
            ("prompt_2", self.prompts_2, str | None),
            ("negative_2", self.negatives_2, str | None),
        ):
            for text in texts:
                if not isinstance(text, kind):
                    raise RequestError(f"{name} {text!r}: must be text")

    def _check_numbers(self) -> None:
        if not is_whole(self.clip_skip, 0):
            raise RequestError(f"clip_skip {self.clip_skip!r}: must be a whole number of at least 0")
        for name in ("steps", "images", "width", "height"):
            if not is_whole(getattr(self, name), 1):
                raise RequestError(f"{name} {getattr(self, name)!r}: must be a whole number of at least 1")
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            raise RequestError(f"sampler {self.sampler!r}: unknown. The samplers are {', '.join(sorted(SAMPLERS))}")
        if len(self.seeds) not in (1, self.count):
            raise RequestError(
                f"seeds: {len(self.seeds)} given for {self.count} pictures; give one, or one per picture"
            )
        for seed in self.seeds:
            if not is_whole(seed, 0) or seed > MAX_SEED:
                raise RequestError(f"seed {seed!r}: must be a whole number from 0 to {MAX_SEED}")

    def _check_guidance(self) -> None:
        if len(self.guidance) != len(self.prompts):
            raise RequestError(
                f"guidance: {len(self.guidance)} given for {len(self.prompts)} prompts; give one, or one per prompt"
            )
        for scale in self.guidance:
            if not is_number(scale) or not 0 <= scale < float("inf"):
                raise RequestError(
                    f"guidance {scale!r}: must be a number of 0 or more; 1 and below turn guidance off, 5 is usual"
                )
        if not is_share(self.guidance_rescale):
            raise RequestError(f"guidance_rescale {self.guidance_rescale!r}: must be a number from 0 to 1")
        interval = self.guidance_interval
        is_pair = isinstance(interval, Sequence) and len(interval) == 2
        if not is_pair or not all(map(is_share, interval)) or interval[0] > interval[1]:
            raise RequestError(
                f"guidance_interval {interval!r}: must be two shares of the steps, from and to, such as (0.2, 0.8)"
            )

    def _check_source(self, source: Source) -> None:
        if not is_share(source.strength):
            raise RequestError(f"strength {source.strength!r}: must be a number from 0 (keep) to 1 (draw anew)")
        if source.paste_back and source.mask is None:
            raise RequestError("paste_back: given without a mask; there is nothing to paste")
        for name, values in (("image", source.pixels), ("latents", source.latents), ("mask", source.mask)):
            if values is not None and len(values) not in (1, self.count):
                raise RequestError(
                    f"{name}: {len(values)} given for {self.count} pictures; give one, or one per picture"
                )
        if self.denoising_start is not None and source.latents is None:
            raise RequestError("denoising_start: goes on with the latents of another model; give latents, not an image")

    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return len(self.prompts) * self.images

    @property
    def guided(self) -> bool:
        """Whether any guidance is above 1, which needs a second, negative row (Ho & Salimans 2022, equation 6)."""
        return any(scale > 1 for scale in self.guidance) and self.guidance_interval[0] < self.guidance_interval[1]

    @property
    def texts(self) -> set[str]:
        """Every text that is to be encoded: without guidance a negative prompt is not."""
        if self.embeddings is not None:
            return set()
        negatives = (*self.negatives, *self.negatives_2) if self.guided else ()
        return {text for text in (*self.prompts, *self.prompts_2, *negatives) if text is not None}

    def check_model(self, model: Model) -> None:
        """Compare with what the checkpoint is.

        Raises:
            RequestError: the request asks for what this kind of model does not do.
        """
        if model.is_inpainting and (self.source is None or self.source.mask is None):
            raise RequestError(
                f"this model is for inpainting: its U-Net takes {model.unet_channels} channels, which hold an image "
                "and a mask too. Give image= and mask="
            )
        if self.embeddings is not None:
            self.embeddings.check(model, self.guided and not model.guidance_embedding)
        seconds = [text for text in (*self.prompts_2, *self.negatives_2) if text is not None]
        if seconds and len(model.text_encoders) < 2:
            raise RequestError(
                "prompt_2, negative_2: this model has one text encoder; put all into prompt and negative"
            )
        if self.clip_skip > model.max_clip_skip:
            raise RequestError(
                f"clip_skip {self.clip_skip}: this model's text encoders serve 0 to {model.max_clip_skip}"
            )
        given = [one for one in (self.conditioning, self.negative_conditioning) if one is not None]
        if not model.time_ids and any(one != MicroConditioning() for one in given):
            raise RequestError(
                "original size, crop, target size, aesthetic score: this model has no micro-conditioning"
            )
        if "aesthetic_score" not in model.time_ids and any(one.aesthetic_score is not None for one in given):
            raise RequestError("aesthetic score: this model has none, it is SDXL's refiner that does; leave it out")
        for name in ("width", "height"):
            if getattr(self, name) % model.latent_scale:
                raise RequestError(
                    f"{name} {getattr(self, name)}: this model's VAE needs multiples of {model.latent_scale}"
                )

    def check(self, limits: Limits, rebuild: Callable[[Limits], str]) -> None:
        """Compare with what is served; `rebuild` gives the command that would serve more.

        Raises:
            RequestError: names the dimension, the nearest valid values and the command.
        """
        check_images(self.count, limits, rebuild)
        check_size(self.width, self.height, limits, rebuild)


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


def check_size(width: int, height: int, limits: Limits, rebuild: Callable[[Limits], str]) -> None:
    """Raise `RequestError` where pictures of this size are not served."""
    _check_range(limits, rebuild, "width", width)
    _check_range(limits, rebuild, "height", height)


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


def is_number(value: object) -> bool:
    """Whether a value is a real number, Python's or numpy's; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_share(value: object) -> bool:
    """Whether a value is a number from 0 to 1."""
    return isinstance(value, Real) and is_number(value) and 0 <= float(value) <= 1


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
