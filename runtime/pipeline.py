"""The runtime's front door: load a bundle, generate pictures."""

import logging
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from latentrt.runtime.backends import Backend, Engine
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import NumericsError
from latentrt.runtime.loop import Floats, StepProgress, denoise, draw_noise
from latentrt.runtime.model import Limits
from latentrt.runtime.parts import BODY, PROLOGUE, WHOLE
from latentrt.runtime.prompt import PromptEncoder
from latentrt.runtime.request import MicroConditioning, Request, Size, check_tokens, one_or_more, per_prompt
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler
from latentrt.runtime.selection import Selection, select
from latentrt.runtime.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What a request gave: pictures, the final latents (images, 4, h, w), seconds per stage, and the request itself."""

    images: list[Image.Image]
    latents: Floats
    timings: Mapping[str, float]
    request: Request


class Pipeline:
    """One bundle on one backend. For one thread of work; as a context manager it closes itself."""

    def __init__(self, bundle: Bundle, selection: Selection, backend: Backend, engines: Mapping[str, Engine]):
        self.bundle = bundle
        self.backend = backend
        self.limits = selection.limits
        self.selection = selection
        self._engines = dict(engines)
        model = bundle.manifest.model
        tokenizers = {
            encoder.tokenizer: Tokenizer.load(bundle.path / encoder.tokenizer) for encoder in model.text_encoders
        }
        self._prompts = PromptEncoder(model, tokenizers, self._engines)
        self._schedule = ScheduleConfig.from_diffusers(model.scheduler)

    @classmethod
    def load(cls, bundle: str | Path | Bundle, backend: str | None = None, device: str | None = None) -> "Pipeline":
        """Load every component for text to image.

        `backend`: `onnxruntime`, `tensorrt` or `tensorrt-rtx`; `device`: `cpu` or `cuda:<index>`. What is not named is
        chosen from the builds in the bundle and what is installed.

        Raises:
            BundleError: the bundle is damaged, or lacks the build that was asked for.
            StaleBuildError: the build is not for this bundle, version or machine; says what differs.
            BackendError: the backend is not installed, or the device is not there.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        selection = select(bundle, backend, device)
        opened = selection.open()
        engines: dict[str, Engine] = {}
        try:
            for name, spec in selection.specs.items():
                if name != "vae_encoder":
                    engines[name] = opened.load(spec, selection.file(name))
            return cls(bundle, selection, opened, engines)
        except BaseException:
            _close(engines, opened)
            raise

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str | Sequence[str | None] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | Sequence[int] | None = None,
        width: int | None = None,
        height: int | None = None,
        images: int = 1,
        sampler: str | None = None,
        original_size: Size | None = None,
        crop: Size = (0, 0),
        target_size: Size | None = None,
        negative_conditioning: MicroConditioning | None = None,
        progress: StepProgress | None = None,
    ) -> Result:
        """Draw `images` pictures for each prompt, as one batch.

        The same seed gives the picture that diffusers gives with a CPU generator of that seed. Sizes are (height,
        width), the crop (top, left), as SDXL's time ids order them; they default to the request's own size.

        Raises:
            RequestError: a value that this build does not serve; nothing has run then.
            NumericsError: a component gave NaN or infinity.
        """
        manifest = self.bundle.manifest
        defaults, native = manifest.defaults, manifest.model.native_size
        prompts = one_or_more(prompt)
        request = Request(
            prompts=prompts,
            negatives=per_prompt("negative", negative, len(prompts)),
            images=images,
            steps=defaults.steps if steps is None else steps,
            guidance=defaults.guidance if guidance is None else guidance,
            seeds=_seeds(seed),
            width=native if width is None else width,
            height=native if height is None else height,
            sampler=sampler or defaults.sampler,
            conditioning=MicroConditioning(original_size, crop, target_size),
            negative_conditioning=negative_conditioning,
        )
        return self.run(request, progress)

    def run(self, request: Request, progress: StepProgress | None = None) -> Result:
        """Serve a request; see `generate`."""
        request.check(self.limits, self._rebuild)
        longest, needed = self._prompts.longest(request)
        check_tokens(needed, self.limits, self._rebuild, longest)
        tokens = max(needed, self.limits.tokens.min)
        table = compile_sampler(request.sampler, self._schedule, request.steps)
        timings: dict[str, float] = {}
        with self._stage(timings, "text"):
            conditioning = self._prompts.encode(request, tokens)
        with self._stage(timings, "denoise"):
            model = self.bundle.manifest.model
            scale = model.latent_scale
            noise = draw_noise(request, table, (model.latent_channels, request.height // scale, request.width // scale))
            unet = self._engines.get(WHOLE) or self._engines[BODY]
            prologue, stepper = self._engines.get(PROLOGUE), self._engines["sampler"]
            latents = denoise(unet, stepper, request, conditioning, table, noise, progress, prologue)
        with self._stage(timings, "decode"):
            pictures = self._decode(latents)
        return Result(pictures, latents, timings, request)

    def _decode(self, latents: Floats) -> list[Image.Image]:
        """Pictures from latents (images, 4, h, w), as many at once as the decoder takes."""
        decoder = self._engines["vae_decoder"]
        at_once = decoder.spec.dims["vae_images"].max
        scaled = latents / np.float32(self.bundle.manifest.model.scaling_factor)
        pictures: list[Image.Image] = []
        for first in range(0, len(scaled), at_once):
            part = scaled[first : first + at_once]
            buffers = decoder.bind(
                {"vae_images": len(part), "latent_height": part.shape[2], "latent_width": part.shape[3]}
            )
            buffers["latent"].write(part)
            decoder.run()
            if not np.isfinite(buffers["magnitude"].numpy()).all():
                raise NumericsError(
                    "vae_decoder: the image holds NaN or infinity. The weights overflow in this precision; export "
                    "with fp32"
                )
            pictures += [Image.fromarray(pixels) for pixels in buffers["image"].numpy()]
        return pictures

    @contextmanager
    def _stage(self, timings: dict[str, float], name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.backend.synchronize()
        timings[name] = time.perf_counter() - started

    def _rebuild(self, limits: Limits) -> str:
        return self.bundle.build_command(self.backend.name, limits)

    def close(self) -> None:
        """Give back every engine, buffer and the stream. Closing twice is allowed."""
        _close(self._engines, self.backend)
        self._engines.clear()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _close(engines: Mapping[str, Engine], backend: Backend) -> None:
    for engine in engines.values():
        engine.close()
    backend.close()


def _seeds(seed: int | Sequence[int] | None) -> tuple[int, ...]:
    """The seeds given, or a fresh one, which the result's request then tells."""
    if seed is None:
        return (secrets.randbits(32),)
    return one_or_more(seed)
