"""The runtime's front door: load a bundle, generate pictures."""

import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from latentrt.runtime.backends import Backend, Buffer, Engine
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.drawing import Drawing, draw_noise, start_pictures
from latentrt.runtime.errors import NumericsError, RequestError
from latentrt.runtime.loop import KEPT_SESSIONS, Loop, StepProgress, check_finite
from latentrt.runtime.model import Limits
from latentrt.runtime.picture import Floats
from latentrt.runtime.prompt import PromptEncoder
from latentrt.runtime.recent import Recent
from latentrt.runtime.request import (
    MicroConditioning,
    Request,
    Size,
    check_images,
    check_tokens,
    one_or_more,
    per_prompt,
)
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
        self._loop = Loop(backend, self._engines)
        self._decoders: Recent[tuple[int, ...], tuple[Mapping[str, Buffer], Callable[[], None]]] = Recent(KEPT_SESSIONS)
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
            for name, spec in bundle.manifest.specs(selection.limits).items():
                if name != "vae_encoder":
                    engines[name] = opened.load(spec, selection.file(name))
            return cls(bundle, selection, opened, engines)
        except BaseException:
            _close(engines, opened)
            raise

    def generate(self, prompt: str | Sequence[str], *, progress: StepProgress | None = None, **settings: Any) -> Result:
        """Draw one request as one batch; `settings` are those of `request`.

        Raises:
            RequestError: a value that this build does not serve; nothing has run then.
            NumericsError: a component gave NaN or infinity.
        """
        return self.run(self.request(prompt, **settings), progress)

    def request(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str | Sequence[str | None] | None = None,
        prompt_2: str | Sequence[str | None] | None = None,
        negative_2: str | Sequence[str | None] | None = None,
        clip_skip: int = 0,
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
        aesthetic_score: float | None = None,
        negative_aesthetic_score: float | None = None,
        negative_conditioning: MicroConditioning | None = None,
    ) -> Request:
        """A request of `images` pictures for each prompt; what is not given is the bundle's default.

        The same seed gives the picture that diffusers gives with a CPU generator of that seed. Sizes are (height,
        width), the crop (top, left), as SDXL's time ids order them; they default to the request's own size.
        `prompt_2` and `negative_2` go to the second text encoder, by default what the first one gets. `clip_skip` drops
        that many more of the text encoders' last layers for the prompts, not for the negatives, as in diffusers.

        Raises:
            RequestError: a value that no build serves.
        """
        manifest = self.bundle.manifest
        defaults, native = manifest.defaults, manifest.model.native_size
        prompts = one_or_more(prompt)
        conditioning = MicroConditioning(original_size, crop, target_size, aesthetic_score)
        if negative_aesthetic_score is not None:
            negative_conditioning = replace(
                negative_conditioning or conditioning, aesthetic_score=negative_aesthetic_score
            )
        return Request(
            prompts=prompts,
            negatives=per_prompt("negative", negative, len(prompts)),
            images=images,
            steps=defaults.steps if steps is None else steps,
            guidance=defaults.guidance if guidance is None else guidance,
            seeds=_seeds(seed),
            width=native if width is None else width,
            height=native if height is None else height,
            sampler=sampler or defaults.sampler,
            conditioning=conditioning,
            negative_conditioning=negative_conditioning,
            prompts_2=per_prompt("prompt_2", prompt_2, len(prompts)),
            negatives_2=per_prompt("negative_2", negative_2, len(prompts)),
            clip_skip=clip_skip,
        )

    def run(self, request: Request, progress: StepProgress | None = None) -> Result:
        """Serve a request; see `generate`."""
        drawing = self.begin(request)
        self.advance([drawing], drawing.steps_left, progress)
        return self.finish(drawing)

    def begin(self, request: Request, tokens: int = 0) -> Drawing:
        """Everything that comes before the first step: checks, text encoders, noise.

        `tokens`: encode prompts in at least so many tokens, a multiple of 77, so that requests with prompts of other
        lengths fit into one batch.

        Raises:
            RequestError: a value that this build does not serve.
        """
        self.backend.activate()
        request.check(self.limits, self._rebuild)
        request.check_model(self.bundle.manifest.model)
        longest, needed = self._prompts.longest(request)
        needed = max(needed, tokens)
        check_tokens(needed, self.limits, self._rebuild, longest)
        tokens = max(needed, self.limits.tokens.min)
        table = compile_sampler(request.sampler, self._schedule, request.steps)
        timings: dict[str, float] = {}
        with self._stage(timings, "text"):
            conditioning = self._prompts.encode(request, tokens)
        model = self.bundle.manifest.model
        latent = (model.latent_channels, request.height // model.latent_scale, request.width // model.latent_scale)
        noise = draw_noise(request, table, latent)
        return Drawing(request, start_pictures(request, conditioning, table, noise), timings)

    def advance(self, drawings: Sequence[Drawing], steps: int = 1, progress: StepProgress | None = None) -> None:
        """Advance several drawings by `steps` steps as one batch, whatever step each is at.

        The pictures come out as if each drawing were advanced alone. All must have one size and prompts of one length,
        and the build must serve as many images at once. A set that is advanced again costs nothing but its steps.

        Raises:
            RequestError: a drawing has fewer steps left, or they do not go together.
        """
        self.backend.activate()
        pictures = [picture for drawing in drawings for picture in drawing.pictures]
        check_images(len(pictures), self.limits, self._rebuild)
        started = time.perf_counter()
        self._loop.advance(pictures, steps, progress)
        seconds = time.perf_counter() - started
        for drawing in drawings:
            drawing.timings["denoise"] = drawing.timings.get("denoise", 0.0) + seconds

    def finish(self, drawing: Drawing) -> Result:
        """Decode a drawing whose steps are done.

        Raises:
            RequestError: it has steps left.
            NumericsError: a component gave NaN or infinity.
        """
        if drawing.steps_left:
            raise RequestError(f"this drawing has {drawing.steps_left} steps left; advance it before it is finished")
        self.backend.activate()
        started = time.perf_counter()
        self._loop.settle()
        drawing.timings["denoise"] += time.perf_counter() - started
        check_finite(drawing.pictures)
        latents = np.stack([picture.state[0] for picture in drawing.pictures])
        with self._stage(drawing.timings, "decode"):
            pictures = self._decode(latents)
        return Result(pictures, latents, drawing.timings, drawing.request)

    def _decode(self, latents: Floats) -> list[Image.Image]:
        """Pictures from latents (images, 4, h, w), as many at once as the decoder takes.

        While the device decodes one part, the host makes pictures of the part before.
        """
        at_once = self._engines["vae_decoder"].spec.dims["vae_images"].max
        scaled = self.bundle.manifest.model.to_vae(latents)
        pictures: list[Image.Image] = []
        waiting: Callable[[], list[Image.Image]] = list
        for first in range(0, len(scaled), at_once):
            part = scaled[first : first + at_once]
            buffers, run = self._decoders.get(part.shape, partial(self._bind_decoder, part.shape))
            buffers["latent"].write(part)
            run()
            pictures += waiting()
            waiting = _fetch_pictures(buffers)
        return pictures + waiting()

    def _bind_decoder(self, shape: tuple[int, ...]) -> tuple[Mapping[str, Buffer], Callable[[], None]]:
        images, _, height, width = shape
        binding = self._engines["vae_decoder"].bind(
            {"vae_images": images, "latent_height": height, "latent_width": width}
        )
        return binding.buffers, self.backend.record(binding.run)

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
        self._loop.close()
        self._prompts.close()
        self._decoders.clear()
        _close(self._engines, self.backend)
        self._engines.clear()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fetch_pictures(buffers: Mapping[str, Buffer]) -> Callable[[], list[Image.Image]]:
    """Start copying the decoder's outputs to the host; calling what this returns waits for them.

    Raises:
        NumericsError: a picture is not finite.
    """
    magnitude, image = buffers["magnitude"].fetch(), buffers["image"].fetch()

    def pictures() -> list[Image.Image]:
        if not np.isfinite(magnitude()).all():
            raise NumericsError(
                "vae_decoder: the image holds NaN or infinity. The weights overflow in this precision; export with fp32"
            )
        return [Image.fromarray(pixels) for pixels in image()]

    return pictures


def _close(engines: Mapping[str, Engine], backend: Backend) -> None:
    for engine in engines.values():
        engine.close()
    backend.close()


def _seeds(seed: int | Sequence[int] | None) -> tuple[int, ...]:
    """The seeds given, or a fresh one, which the result's request then tells."""
    if seed is None:
        return (secrets.randbits(32),)
    return one_or_more(seed)
