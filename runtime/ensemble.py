"""Base and refiner: two models that draw one picture (Podell et al. 2023, arXiv:2307.01952, section 2.5)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Unpack, cast

import numpy as np

from latentrt.runtime.drawing.loop import StepProgress
from latentrt.runtime.errors import RequestError
from latentrt.runtime.pipeline import Pipeline
from latentrt.runtime.record.metadata import RefinerNote, describe
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.request import Request
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.request.signature import takes_settings

log = logging.getLogger(__name__)

STRENGTH = 0.3
"""Of the refiner's pass over finished latents, where none is given: it changes details only."""

HANDOVER = 0.8
"""The share of the denoising that the base does; the refiner was trained on the last 200 of 1,000 timesteps."""

SHARED_FACTS = ("latent_channels", "latent_scale", "scaling_factor", "latents_mean", "latents_std")
"""Facts of two models whose latents mean the same pictures."""

BASE_ONLY = frozenset({"prompt_2", "negative_2", "clip_skip", "image", "mask", "latents", "strength", "paste_back"})
NO_PLACE = ("denoising_start", "denoising_end", "decode")
"""Settings that the ensemble decides by itself."""

REFINER_ONLY = frozenset({"aesthetic_score", "negative_aesthetic_score"})


@dataclass(frozen=True, slots=True)
class Ensemble:
    """A base and a refiner with one latent space. As a context manager it closes both.

    Raises:
        RequestError: the two models' latents do not mean the same pictures.
    """

    base: Pipeline
    refiner: Pipeline

    def __post_init__(self) -> None:
        base, refiner = (one.bundle.manifest.model for one in (self.base, self.refiner))
        for fact in SHARED_FACTS:
            ours, theirs = getattr(base, fact), getattr(refiner, fact)
            if ours != theirs:
                raise RequestError(
                    f"refiner {self.refiner.bundle.path}: its VAE has {fact} {theirs}, the base's {ours}, so it would "
                    "not understand the base's latents. Use a refiner of the same family"
                )
        hashes = [one.bundle.manifest.provenance.vae_sha256 for one in (self.base, self.refiner)]
        if all(hashes) and hashes[0] != hashes[1]:
            log.warning(
                "refiner %s: its VAE has other weights than the base's, though the same facts. Colours may shift; "
                "export both with the same --vae",
                self.refiner.bundle.path,
            )

    @takes_settings(without=NO_PLACE)
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        handover: float = HANDOVER,
        progress: StepProgress | None = None,
        **settings: Unpack[Settings],
    ) -> Result:
        """The base denoises up to `handover`, a share of the whole, and the refiner goes on from its latents.

        Steps are those of the whole schedule, which both share. `timings` has the seconds of both, the base's as
        `base <stage>`.

        Raises:
            RequestError: as of `Pipeline.generate`; or `handover` is not between 0 and 1.
        """
        if not 0 < handover < 1:
            raise RequestError(
                f"handover {handover!r}: must lie between 0 and 1; the refiner was trained for 0.8 and up"
            )
        ours, theirs = _split(settings)
        ours["denoising_end"] = theirs["denoising_start"] = handover
        return self._noted(prompt, settings, *self._draw(prompt, ours, theirs, progress), start=handover)

    @takes_settings(without=NO_PLACE)
    def refine(
        self,
        prompt: str | Sequence[str],
        *,
        progress: StepProgress | None = None,
        **settings: Unpack[Settings],
    ) -> Result:
        """Two passes: the base finishes its latents, and the refiner runs image to image on them.

        `strength` is the refiner's, 0.3 where it is not given.

        Raises:
            RequestError: as of `Pipeline.generate`.
        """
        strength = settings.pop("strength", None)
        ours, theirs = _split(settings)
        theirs["strength"] = strength = STRENGTH if strength is None else strength
        return self._noted(prompt, settings, *self._draw(prompt, ours, theirs, progress), strength=strength)

    def _draw(
        self, prompt: str | Sequence[str], ours: Settings, theirs: Settings, progress: StepProgress | None
    ) -> tuple[Result, Result]:
        """The base's result, and the refiner's on its latents. Both requests are known to be served before one runs."""
        model = self.base.bundle.manifest.model
        first = self.base.request(prompt, **(ours | {"decode": False}))
        size = (first.height // model.latent_scale, first.width // model.latent_scale)
        latents = np.zeros((first.count, model.latent_channels, *size), np.float32)
        second = self.refiner.request(prompt, **(theirs | _decided_by(first) | {"latents": latents}))
        self.base.check(first)
        self.refiner.check(second)
        drawn = self.base.run(first, progress)
        assert second.source is not None
        second = replace(second, source=replace(second.source, latents=drawn.latents))
        return drawn, self.refiner.run(second, progress)

    def _noted(
        self, prompt: str | Sequence[str], settings: Settings, first: Result, second: Result, **how: float
    ) -> Result:
        """The refiner's result with the timings and the metadata of both; `how`: fields of `RefinerNote`."""
        timings = {f"base {stage}": seconds for stage, seconds in first.timings.items()}
        metadata = describe(self.base.note, prompt, settings, first.request)
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

    def __enter__(self) -> "Ensemble":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _split(settings: Settings) -> tuple[Settings, Settings]:
    """What the base is told, and what the refiner is told."""
    if misplaced := [name for name in NO_PLACE if settings.get(name) is not None]:
        raise RequestError(f"{', '.join(misplaced)}: base and refiner decide this together; leave it out")
    ours = {name: value for name, value in settings.items() if name not in REFINER_ONLY}
    theirs = {name: value for name, value in settings.items() if name not in BASE_ONLY}
    return cast(Settings, ours), cast(Settings, theirs)


def _decided_by(first: Request) -> Settings:
    """Settings that the base's request has decided and the refiner shares; the size is that of its latents."""
    return {
        "seed": first.seeds,
        "steps": first.steps,
        "sampler": first.sampler,
        "guidance": first.guidance,
        "width": None,
        "height": None,
    }
