"""The work behind a pipeline: one bundle's engines, prompts, loop and VAE, for one caller at a time."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Engine
from latentrt.runtime.build_selection import Selection
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import LoraSlots
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.bundle.unet_parts import WHOLE
from latentrt.runtime.drawing.batch import check_table
from latentrt.runtime.drawing.clean_latents import clean_latents
from latentrt.runtime.drawing.inpainting import paste_back
from latentrt.runtime.drawing.loop import Loop, StepProgress, check_finite, check_steps
from latentrt.runtime.drawing.lora_rows import fit_loras
from latentrt.runtime.drawing.picture import Drawing, check_free
from latentrt.runtime.drawing.start import start_pictures
from latentrt.runtime.drawing.timing import Timeline, stage
from latentrt.runtime.drawing.turns import Turns
from latentrt.runtime.drawing.vae import Vae
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.lora.bank import LoadedLora, LoraBank
from latentrt.runtime.lora.mix import UNET
from latentrt.runtime.recent import Recent
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.request import Demand, Request
from latentrt.runtime.request.size_checks import TOKENS, check_images, check_rows, check_tokens
from latentrt.runtime.samplers import SamplerTable, ScheduleConfig, compile_part
from latentrt.runtime.samplers.config import PredictionType
from latentrt.runtime.text.encoder import PromptEncoder
from latentrt.runtime.text.prompt_plan import check_plan, plan_request
from latentrt.runtime.text.tokenizer import Tokenizer

KEPT_TABLES = 32

SUGGESTED_RANK = 64
"""Room for LoRAs that messages suggest: that of one or two usual ones."""


class PipelineWork:
    """What a pipeline does in its turns. Its caller sees to it that one call runs at a time."""

    def __init__(
        self,
        bundle: Bundle,
        selection: Selection,
        backend: Backend,
        engines: Mapping[str, Engine],
        turns: Turns,
        kept_steps: int,
    ):
        self.bundle, self.selection, self.backend = bundle, selection, backend
        self.limits = selection.limits
        self._engines = dict(engines)
        model = bundle.manifest.model
        tokenizers = {
            encoder.tokenizer: Tokenizer.load(bundle.path / encoder.tokenizer) for encoder in model.text_encoders
        }
        self.loras = LoraBank(backend, selection.specs, selection.lora, model, self._command_with_room())
        self.prompts = PromptEncoder(backend, model, tokenizers, self._engines, self.loras)
        self.loop = Loop(backend, self._engines, turns, self.loras, kept_steps)
        self.vae = Vae(backend, model, self._engine, self._precision)
        self._tables: Recent[Hashable, SamplerTable] = Recent(KEPT_TABLES)
        ScheduleConfig.from_diffusers(model.scheduler)  # a schedule that cannot be followed is an error now

    def check(self, request: Request, tokens: int) -> Demand:
        """What a request will take; see `Pipeline.check`."""
        needed, table = self._prepare(request, tokens)
        return Demand(needed, table.step_count, check_plan(request, self.limits, self.rebuild_command))

    def run(self, request: Request, progress: StepProgress | None) -> Result:
        """Draw a request; see `Pipeline.run`."""
        drawing = self.begin(request)
        self.advance([drawing], drawing.steps_left, progress)
        return self.finish(drawing)

    def begin(self, request: Request, tokens: int = 0) -> Drawing:
        """Do what comes before the first step; see `Pipeline.begin`."""
        self.backend.activate()
        tokens, table = self._prepare(request, tokens)
        timeline = Timeline()
        with stage(self.backend, "text", [timeline]):
            conditioning = self.prompts.encode(request, tokens)
        has_pixels = request.source is not None and request.source.pixels is not None
        with stage(self.backend, "encode" if has_pixels else "denoise", [timeline]):
            pictures = start_pictures(request, conditioning, table, self.bundle.manifest.model, self.vae.encode)
        for number, picture in enumerate(pictures):
            picture.loras = self.loras.strengths(request.loras[number // request.images], UNET)
        fit_loras(pictures, self.loras)
        return Drawing(request, self.bundle.manifest.model, pictures, timeline)

    def _prepare(self, request: Request, tokens: int) -> tuple[int, SamplerTable]:
        """A checked request's tokens and its sampler's table."""
        tokens = TOKENS.read("tokens", tokens)
        if not isinstance(request, Request):
            raise RequestError(f"request: a {type(request).__name__}; make one with this pipeline's `request`")
        request.check(self.limits, self.rebuild_command)
        request.check_model(self.bundle.manifest.model)
        check_plan(request, self.limits, self.rebuild_command)
        self.loras.use(request.loras)
        return self._tokens(request, tokens), self._table(request)

    def _tokens(self, request: Request, least: int = 0) -> int:
        """The number of tokens in which a request's prompts are encoded: what the longest needs, checked."""
        longest, own = self.prompts.longest(request)
        check_tokens(max(own, least), self.limits, self.rebuild_command, longest)
        needed = int(max(own, least, self.limits.tokens.min))
        if request.embeddings is not None and own < needed:
            raise RequestError(f"embeddings: {own} tokens, {needed} are needed. Make them with this pipeline's `embed`")
        return needed

    def _engine(self, component: str) -> Engine:
        """A component's engine, loaded if it is not yet."""
        if component not in self._engines:
            self._engines[component] = self.selection.load(self.backend, component)
        return self._engines[component]

    def _precision(self, component: str) -> Precision:
        return self.bundle.manifest.components[component].precision

    def _table(self, request: Request) -> SamplerTable:
        """The sampler's table for the steps that the request runs."""
        try:
            schedule = ScheduleConfig.from_diffusers(self.bundle.manifest.model.scheduler | request.schedule_fields)
        except CheckpointError as error:  # the checkpoint's own config was read at load
            raise RequestError(f"schedule: {str(error).removeprefix('scheduler config: ')}") from error
        strength = request.source.strength if request.source else 1.0
        start, end = request.settings["denoising_start"], request.settings["denoising_end"]
        table = self._tables.get(
            (request.sampler, schedule, request.steps, strength, start, end),
            lambda: compile_part(
                request.sampler,
                schedule,
                request.steps,
                strength=strength,
                denoising_start=start,
                denoising_end=end,
            ),
        )
        check_table(table)
        return table

    def embed(self, request: Request) -> Embeddings:
        """Encode a request's prompts; see `Pipeline.embed`."""
        self.backend.activate()
        if not plan_request(request).is_plain:
            raise RequestError(
                "prompt: AND, a weight at the end, [from:to:when] and [a|b] are several texts, or change with the "
                "step; embeddings hold one text per prompt"
            )
        return self.prompts.embed(request, self._tokens(request))

    def advance(self, drawings: Sequence[Drawing], steps: int, progress: StepProgress | None) -> None:
        """Advance drawings as one batch; see `Pipeline.advance`."""
        self.backend.activate()
        pictures = [picture for drawing in drawings for picture in drawing.pictures]
        check_steps(pictures, steps)
        check_images(len(pictures), self.limits, self.rebuild_command)
        check_rows(sum(picture.most_rows for picture in pictures), self.limits, self.rebuild_command)
        if fit_loras(pictures, self.loras):
            self.loop.read_back()
        with stage(self.backend, "denoise", [drawing.timeline for drawing in drawings]):
            self.loop.advance(pictures, steps, progress)

    def peek(self, drawing: Drawing) -> Float32s:
        """Predict the clean latents of a drawing on the device; see `Pipeline.peek`."""
        self.backend.activate()
        scheduler = self.bundle.manifest.model.scheduler | drawing.request.schedule_fields
        prediction = cast(PredictionType, ScheduleConfig.from_diffusers(scheduler).prediction_type)
        return clean_latents(drawing.pictures, *self.loop.peek(drawing.pictures), prediction)

    def finish(self, drawing: Drawing) -> Result:
        """Decode a drawing; see `Pipeline.finish`."""
        if drawing.steps_left:
            raise RequestError(f"this drawing has {drawing.steps_left} steps left; advance it before it is finished")
        self.backend.activate()
        with stage(self.backend, "denoise", [drawing.timeline]):
            self.loop.read_back()
        check_free(drawing.pictures)
        check_finite(drawing.pictures, self._precision(WHOLE))
        latents = np.stack([picture.state[0] for picture in drawing.pictures])
        images: list[Image.Image] = []
        if drawing.request.settings["decode"]:
            with stage(self.backend, "decode", [drawing.timeline]):
                images = paste_back(self.vae.decode(latents), drawing.request.source)
        return Result(images, latents, drawing.timeline.seconds(), drawing.request)

    def load_lora(self, path: Path, name: str | None, evict: bool) -> LoadedLora:
        """Load a LoRA; see `Pipeline.load_lora`."""
        self.backend.activate()
        return self.loras.load(path, name, evict)

    def _command_with_room(self) -> str:
        room = LoraSlots(rank=SUGGESTED_RANK)
        if build := self.selection.record:
            return self.bundle.rebuild_command(build.model_copy(update={"lora": room}))
        return self.bundle.build_command(self.backend.name, self.limits, lora=room)

    def release(self) -> None:
        """Release every engine, every buffer and the stream."""
        try:
            self.loop.close()
        finally:
            self.loras.close()
            self.prompts.close()
            self.vae.close()
            close_engines(self._engines, self.backend)
            self._engines.clear()

    def rebuild_command(self, limits: Limits) -> str:
        """The command that would build engines for other limits."""
        if build := self.selection.record:
            return self.bundle.rebuild_command(build, limits)
        return self.bundle.build_command(self.backend.name, limits)


def close_engines(engines: Mapping[str, Engine], backend: Backend) -> None:
    """Close engines, then their backend."""
    for engine in engines.values():
        engine.close()
    backend.close()
