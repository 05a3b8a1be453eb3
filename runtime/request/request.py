"""A request as the user writes it, normalised and checked before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.errors import RequestError
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.limit_checks import Rebuild, check_images, check_size
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.source import Source
from latentrt.runtime.request.values import is_number, is_share, is_whole
from latentrt.runtime.samplers import SAMPLERS

MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request: `prompts` * `images` pictures of one size, drawn as one batch.

    `negatives` has one entry per prompt, None where none was given. `prompts_2` and `negatives_2` are for the second
    text encoder, one entry per prompt or none at all; None stands for the first encoder's text. `clip_skip`: layers of
    the text encoders that the prompts skip beyond those that the model skips. `guidance` has one entry per prompt; of
    the steps, the share between the two numbers of `guidance_interval` is guided. `seeds` has one entry for the whole
    batch, whose noise then comes from one generator as in diffusers, or one per picture. `schedule` overrides fields of
    the scheduler config. `latentrt.runtime.request.settings` describes every setting.
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

    def check(self, limits: Limits, rebuild: Rebuild) -> None:
        """Compare with what is served; `rebuild` gives the command that would serve more.

        Raises:
            RequestError: names the dimension, the nearest valid values and the command.
        """
        check_images(self.count, limits, rebuild)
        check_size(self.width, self.height, limits, rebuild)
