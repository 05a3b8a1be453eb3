"""A checked request: every value is decided before anything runs."""

from dataclasses import dataclass, field
from typing import NamedTuple

from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.model import Model
from latentrt.runtime.errors import RequestError
from latentrt.runtime.lora.mix import Mix
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.micro_conditioning import MicroConditioning
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.request.size_checks import Rebuild, check_guidance, check_images, check_size
from latentrt.runtime.request.source import Source
from latentrt.runtime.samplers import SAMPLERS, fields_read

OWN_SCHEDULE = ("timesteps", "sigmas")
"""Settings that hold the schedule itself."""


@dataclass(frozen=True, slots=True)
class Request:
    """One checked request: `prompts` * `settings["images"]` pictures of one size, drawn as one batch.

    The fields are decided by several settings, or together with the bundle or the model. `settings` holds every
    setting, checked, with its default; a value that one setting decides alone is found only there.

    `negatives`, `prompts_2`, `negatives_2`, `loras` and `guidance` have one entry per prompt; None stands for the first
    encoder's text, or for a negative prompt that was not given. `seeds` has one entry per picture, or one for the whole
    batch, whose noise then comes from one generator, as in diffusers; `variation_seeds` likewise, and none without a
    variation. `guided`: the U-Net runs a second, negative row
    for each picture (Ho & Salimans 2022, equation 6). `schedule` overrides fields of the scheduler config.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str | None, ...]
    prompts_2: tuple[str | None, ...]
    negatives_2: tuple[str | None, ...]
    guidance: tuple[float, ...]
    guided: bool
    seeds: tuple[int, ...]
    steps: int
    sampler: str
    schedule: tuple[tuple[str, object], ...]
    width: int
    height: int
    settings: Settings
    variation_seeds: tuple[int, ...] = ()
    source: Source | None = None
    embeddings: Embeddings | None = None
    loras: tuple[Mix, ...] = ()
    conditioning: MicroConditioning = field(default_factory=MicroConditioning)
    negative_conditioning: MicroConditioning | None = None

    @property
    def images(self) -> int:
        """Pictures per prompt."""
        return self.settings["images"]

    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return len(self.prompts) * self.images

    @property
    def always_guided(self) -> bool:
        """Whether every step runs a negative row for every picture."""
        low, high = self.settings["guidance_interval"]
        return self.guided and min(self.guidance) > 1 and low <= 0 and high >= 1

    @property
    def texts(self) -> set[str]:
        """Every text as it was given; without guidance, no negative one."""
        if self.embeddings is not None:
            return set()
        negatives = (*self.negatives, *self.negatives_2) if self.guided else ()
        return {text for text in (*self.prompts, *self.prompts_2, *negatives) if text is not None}

    @property
    def schedule_fields(self) -> dict[str, object]:
        """Fields of the scheduler config that the request sets, with timesteps or sigmas of its own."""
        own = {"timesteps": self.settings["timesteps"], "sigmas": self.settings["sigmas"]}
        return dict(self.schedule) | {name: values for name, values in own.items() if values is not None}

    @property
    def unread_fields(self) -> list[str]:
        """Fields of `schedule` that the sampler ignores, as in diffusers."""
        read = fields_read(SAMPLERS[self.sampler])
        return [name for name, _ in self.schedule if name not in read]

    def check_model(self, model: Model) -> None:
        """Check that the model can do what the request asks.

        Raises:
            RequestError: names the setting, and says what this model can do.
        """
        if model.is_inpainting and (self.source is None or self.source.mask is None):
            raise RequestError(
                f"this model is for inpainting: its U-Net takes {model.unet_channels} channels, which hold an image "
                "and a mask too. Give image= and mask="
            )
        if self.embeddings is not None:
            self.embeddings.check(model, self.guided)
        seconds = [text for text in (*self.prompts_2, *self.negatives_2) if text is not None]
        if seconds and len(model.text_encoders) < 2:
            raise RequestError(
                "prompt_2, negative_2: this model has one text encoder; put all into prompt and negative"
            )
        if self.settings["clip_skip"] > model.max_clip_skip:
            raise RequestError(
                f"clip_skip {self.settings['clip_skip']}: this model's text encoders serve 0 to {model.max_clip_skip}"
            )
        self._check_micro_conditioning(model)
        for name in ("width", "height"):
            if getattr(self, name) % model.latent_scale:
                raise RequestError(
                    f"{name} {getattr(self, name)}: this model's VAE needs multiples of {model.latent_scale}"
                )

    def _check_micro_conditioning(self, model: Model) -> None:
        given = [ids for ids in (self.conditioning, self.negative_conditioning) if ids is not None]
        if not model.time_ids and any(ids != MicroConditioning() for ids in given):
            raise RequestError(
                "original size, crop, target size, aesthetic score: this model has no micro-conditioning"
            )
        if "aesthetic_score" not in model.time_ids and any(ids.aesthetic_score is not None for ids in given):
            raise RequestError("aesthetic score: only SDXL's refiner takes one; leave it out")

    def check(self, limits: Limits, rebuild: Rebuild) -> None:
        """Check that a build serves the request; `rebuild` gives the command to build for more.

        Raises:
            RequestError: names the dimension, the nearest valid values and the command.
        """
        check_images(self.count, limits, rebuild)
        check_size(self.width, self.height, limits, rebuild)
        check_guidance(self.guided, not self.always_guided, limits, rebuild)


class Demand(NamedTuple):
    """What a request takes: the tokens in which its prompts are encoded, and the U-Net's evaluations and most rows."""

    tokens: int
    evaluations: int
    rows: int
