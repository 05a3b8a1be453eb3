"""Base and refiner: two models that draw one picture (Podell et al. 2023, arXiv:2307.01952, section 2.5)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, Unpack, cast

import numpy as np

from latentrt.runtime.drawing.loop import StepProgress, check_progress
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.metadata import RefinerNote, describe
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.kinds import Kind, is_number, python_number
from latentrt.runtime.request.reading import read_given, read_prompts
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.request.signature import takes_settings

log = logging.getLogger(__name__)

REFINER_STRENGTH = 0.3
"""Default strength of the refiner's pass over finished latents, which then changes details only."""

HANDOVER = 0.8
"""Default share of the denoising that the base does; the refiner was trained on the last 200 of 1,000 timesteps."""

BETWEEN = Kind(
    "a number between 0 and 1; the refiner was trained for 0.8 and up",
    lambda value: is_number(value) and 0 < value < 1,
    python_number,
)

SHARED_FACTS = ("latent_channels", "latent_scale", "scaling_factor", "latents_mean", "latents_std")
"""Facts that two models share if their latents mean the same pictures."""

BASE_ONLY = frozenset({"loras", "prompt_2", "negative_2", "clip_skip", "image", "latents", "strength"})
"""Settings that the refiner does not get."""

REFINER_ONLY = frozenset({"aesthetic_score", "negative_aesthetic_score"})
"""Settings that the base does not get."""

KEEPING = ("mask", "paste_back")
"""Settings that keep a part of the picture, which the refiner would draw over."""

STARTS = ("image", "latents")
"""Settings that give a start, to which two passes would have two strengths."""

REFUSED = ("denoising_start", "denoising_end", "decode")
"""Settings that base and refiner decide together."""


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A base and a refiner that share a latent space. A context manager, which closes both.

    Raises:
        RequestError: the two models' latents mean different pictures.
    """

    base: Pipeline
    refiner: Pipeline

    def __post_init__(self) -> None:
        for name in ("base", "refiner"):
            if not isinstance(getattr(self, name), Pipeline):
                raise RequestError(f"{name}: a {type(getattr(self, name)).__name__}; it must be a Pipeline")
        base, refiner = self.base.bundle.manifest, self.refiner.bundle.manifest
        for fact in SHARED_FACTS:
            ours, theirs = getattr(base.model, fact), getattr(refiner.model, fact)
            if ours != theirs:
                raise RequestError(
                    f"refiner {self.refiner.bundle.path}: its VAE has {fact} {theirs}, the base's {ours}, so it would "
                    "not understand the base's latents. Use a refiner of the same family"
                )
        hashes = base.provenance.vae_sha256, refiner.provenance.vae_sha256
        if all(hashes) and hashes[0] != hashes[1]:
            log.warning(
                "refiner %s: its VAE has other weights than the base's, though the same facts. Colours may shift; "
                "export both with the same --vae",
                self.refiner.bundle.path,
            )

    @takes_settings(without=(*REFUSED, *KEEPING))
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        handover: float | None = None,
        progress: StepProgress | None = None,
        **settings: Unpack[Settings],
    ) -> Result:
        """Draw with the base up to `handover`, a share of the denoising (0.8), and with the refiner from there on.

        `steps` counts the whole schedule, which both share. `timings` has the seconds of both, the base's as
        `base <stage>`.

        Raises:
            RequestError: as for `Pipeline.generate`; or `handover` is not between 0 and 1.
        """
        handover = BETWEEN.read("handover", HANDOVER if handover is None else handover)
        _check_settings(settings)
        prompts, given = read_prompts(prompt), read_given(settings)
        base, refiner = _split(given)
        base["denoising_end"] = refiner["denoising_start"] = handover
        return self._combine(prompts, given, *self._draw(prompts, base, refiner, progress), start=handover)

    @takes_settings(without=(*REFUSED, *KEEPING, *STARTS))
    def refine(
        self,
        prompt: str | Sequence[str],
        *,
        progress: StepProgress | None = None,
        **settings: Unpack[Settings],
    ) -> Result:
        """Draw with the base to the end, then run the refiner's image to image on the latents.

        `strength` is the refiner's, 0.3 by default.

        Raises:
            RequestError: as for `Pipeline.generate`.
        """
        _check_settings(settings, starts=False)
        prompts, given = read_prompts(prompt), read_given(settings)
        wanted = given.pop("strength", None)
        strength = REFINER_STRENGTH if wanted is None else wanted
        base, refiner = _split(given)
        refiner["strength"] = strength
        return self._combine(prompts, given, *self._draw(prompts, base, refiner, progress), strength=strength)

    def _draw(
        self, prompt: str | Sequence[str], base: Settings, refiner: Settings, progress: StepProgress | None
    ) -> tuple[Result, Result]:
        """The base's result, and the refiner's on its latents. Both requests are checked before either runs."""
        check_progress(progress)
        model = self.base.bundle.manifest.model
        first = self.base.request(prompt, **(base | {"decode": False}))
        size = (first.height // model.latent_scale, first.width // model.latent_scale)
        latents = np.zeros((first.count, model.latent_channels, *size), np.float32)
        second = self.refiner.request(prompt, **(refiner | _shared_settings(first) | {"latents": latents}))
        self.base.check(first)
        self.refiner.check(second)
        drawn = self.base.run(first, progress)
        assert second.source is not None
        second = replace(second, source=replace(second.source, latents=drawn.latents))
        return drawn, self.refiner.run(second, progress)

    def _combine(
        self, prompt: str | Sequence[str], settings: Settings, first: Result, second: Result, **how: float
    ) -> Result:
        """The refiner's result with the timings and the metadata of both. `how`: fields of `RefinerNote`."""
        timings = {f"base {stage}": seconds for stage, seconds in first.timings.items()}
        metadata = describe(self.base.note, prompt, settings, first.request, self.base.loras.values())
        note = RefinerNote(bundle=self.refiner.note, **how)
        return replace(
            second,
            timings=timings | dict(second.timings),
            metadata=metadata.model_copy(update={"refiner": note}),
        )

    def close(self) -> None:
        """Close both pipelines."""
        self.base.close()
        self.refiner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_settings(settings: Settings, starts: bool = True) -> None:
    """Raise `RequestError` for settings that base and refiner together do not take."""
    if misplaced := [name for name in REFUSED if settings.get(name) is not None]:
        raise RequestError(f"{', '.join(misplaced)}: base and refiner decide this together; leave it out")
    if keeping := [name for name in KEEPING if not _says_nothing(settings.get(name))]:
        raise RequestError(
            f"{', '.join(keeping)}: the refiner would draw over what a mask keeps; draw with the base alone"
        )
    if not starts and (given := [name for name in STARTS if settings.get(name) is not None]):
        raise RequestError(
            f"{', '.join(given)}: two passes begin with a prompt alone; draw first, and refine the picture then"
        )


def _says_nothing(value: object) -> bool:
    return value is None or value is False


def _split(settings: Settings) -> tuple[Settings, Settings]:
    """The settings of the base, and those of the refiner."""
    base = {name: value for name, value in settings.items() if name not in REFINER_ONLY}
    refiner = {name: value for name, value in settings.items() if name not in BASE_ONLY}
    return cast(Settings, base), cast(Settings, refiner)


def _shared_settings(first: Request) -> Settings:
    """The settings that the refiner takes over from the base's request; its size follows from the latents."""
    return {
        "seed": first.seeds,
        "variation_seed": first.variation_seeds or None,
        "steps": first.steps,
        "sampler": first.sampler,
        "schedule": first.settings["schedule"],
        "guidance": first.guidance,
        "width": None,
        "height": None,
    }
