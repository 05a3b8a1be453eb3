"""The runtime's front door: load a bundle, generate pictures."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, Unpack, cast

import numpy as np
from PIL import Image

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Engine
from latentrt.runtime.build_selection import Selection, select
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import LoraSlots
from latentrt.runtime.bundle.specs import Precision
from latentrt.runtime.bundle.unet_parts import WHOLE
from latentrt.runtime.drawing.batch import check_table
from latentrt.runtime.drawing.clean_latents import clean_latents
from latentrt.runtime.drawing.inpainting import paste_back
from latentrt.runtime.drawing.loop import KEPT_STEPS, Loop, StepProgress, check_finite, check_progress, check_steps
from latentrt.runtime.drawing.lora_rows import fit_loras
from latentrt.runtime.drawing.picture import Drawing, call_back, check_free, read_drawings
from latentrt.runtime.drawing.start import start_pictures
from latentrt.runtime.drawing.timing import Timeline, stage
from latentrt.runtime.drawing.turns import Turns
from latentrt.runtime.drawing.vae import Vae
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.lora.bank import LoadedLora, LoraBank
from latentrt.runtime.lora.mix import UNET
from latentrt.runtime.recent import Recent
from latentrt.runtime.record.metadata import BundleNote, describe, describe_bundle
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.kinds import FLAG, PATH, TEXT, whole
from latentrt.runtime.request.reading import Prompt, make_request, read_given, read_prompt, read_prompts
from latentrt.runtime.request.request import Demand, Request
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.request.signature import takes_settings
from latentrt.runtime.request.size_checks import TOKENS, check_images, check_rows, check_size, check_tokens
from latentrt.runtime.samplers import SamplerTable, ScheduleConfig, compile_part
from latentrt.runtime.samplers.config import PredictionType
from latentrt.runtime.text.encoder import PromptEncoder
from latentrt.runtime.text.prompt_plan import check_plan, plan_request
from latentrt.runtime.text.tokenizer import Tokenizer

KEPT_TABLES = 32

SUGGESTED_RANK = 64
"""Room for LoRAs that messages suggest: that of one or two usual ones."""

LOADED_WHEN_NEEDED = frozenset({"vae_encoder"})
"""Components that are loaded when a request first needs them."""


class Pipeline:
    """One bundle on one backend. A context manager, which closes itself.

    Threads may share it: each public call waits for its turn. Called from inside its own work, such as from `progress`,
    or after `close`, it raises `RequestError`; `note`, `rebuild_command` and the attributes are there at any time.
    """

    def __init__(
        self,
        bundle: Bundle,
        selection: Selection,
        backend: Backend,
        engines: Mapping[str, Engine],
        kept_steps: int = KEPT_STEPS,
    ):
        self.bundle = bundle
        self.backend = backend
        self.limits = selection.limits
        self.selection = selection
        self._engines = dict(engines)
        model = bundle.manifest.model
        tokenizers = {
            encoder.tokenizer: Tokenizer.load(bundle.path / encoder.tokenizer) for encoder in model.text_encoders
        }
        self._loras = LoraBank(backend, selection.specs, selection.lora, model, self._command_with_room())
        self._prompts = PromptEncoder(backend, model, tokenizers, self._engines, self._loras)
        self._turns = Turns()
        self._loop = Loop(backend, self._engines, self._turns, self._loras, kept_steps)
        self._vae = Vae(backend, model, self._engine, self._precision)
        self._tables: Recent[Hashable, SamplerTable] = Recent(KEPT_TABLES)
        ScheduleConfig.from_diffusers(model.scheduler)  # a schedule that cannot be followed is an error now

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        backend: str | None = None,
        device: str | None = None,
        *,
        build: str | None = None,
        lora_rank: int = 0,
        kept_steps: int = KEPT_STEPS,
    ) -> "Pipeline":
        """Load every component for text to image; the VAE's encoder is loaded when a request first needs it.

        `backend`: `onnxruntime`, `tensorrt` or `tensorrt-rtx`; `device`: `cpu` or `cuda:<index>`; `build`: a folder's
        name under `builds/`. Whatever is None is chosen by the bundle's builds and the libraries installed.
        `lora_rank`: choose a build with at least this room for LoRAs. `kept_steps`: how many sets of sizes (pictures,
        rows, width, height, ...) keep their buffers and captured step; more cost memory, fewer cost captures.

        Raises:
            BundleError: the bundle is damaged, or lacks the build that was asked for.
            StaleBuildError: the build is for another bundle, version or machine; the message says what differs.
            BackendError: the backend is not installed, or the device does not exist.
        """
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        lora_rank, kept_steps = whole(0).read("lora_rank", lora_rank), whole(1).read("kept_steps", kept_steps)
        selection = select(bundle, backend, device, build, lora_rank)
        opened = selection.open()
        engines: dict[str, Engine] = {}
        try:
            for name in (name for name in selection.specs if name not in LOADED_WHEN_NEEDED):
                engines[name] = selection.load(opened, name)
            return cls(bundle, selection, opened, engines, kept_steps)
        except BaseException:
            _close(engines, opened)
            raise

    @takes_settings()
    def generate(self, prompt: Prompt, *, progress: StepProgress | None = None, **settings: Unpack[Settings]) -> Result:
        """Draw one request as one batch.

        `prompt`: a text, a list of texts, or `Embeddings`. `progress`: called after each step with (steps done,
        steps in all).

        Raises:
            RequestError: a value that this build does not serve; nothing has run.
            NumericsError: a component gave NaN or infinity.
        """
        prompt, given = read_prompt(prompt), read_given(settings)
        request = self.request(prompt, **given)
        metadata = describe(self.note, prompt, given, request, self.loras.values())
        return replace(self.run(request, progress), metadata=metadata)

    @takes_settings()
    def request(self, prompt: Prompt, **settings: Unpack[Settings]) -> Request:
        """Make the request that `generate` would run, without waiting for other threads.

        Raises:
            RequestError: a value that no build serves.
        """
        self._turns.check()
        check = partial(check_size, limits=self.limits, rebuild=self.rebuild_command)
        return make_request(prompt, settings, self.bundle.manifest, check)

    def check(self, request: Request, tokens: int = 0) -> Demand:
        """What a request will take. Raises an error if this build does not serve it, as `begin` does. Nothing runs.

        Raises:
            RequestError: names the value, what is served, and what to do.
        """
        return self._turns.take(self._check, request, tokens)

    def _check(self, request: Request, tokens: int) -> Demand:
        needed, table = self._prepare(request, tokens)
        return Demand(needed, table.step_count, check_plan(request, self.limits, self.rebuild_command))

    def run(self, request: Request, progress: StepProgress | None = None) -> Result:
        """Serve a request; see `generate`."""
        check_progress(progress)
        return self._turns.take(self._run, request, progress)

    def _run(self, request: Request, progress: StepProgress | None) -> Result:
        drawing = self._begin(request)
        self._advance([drawing], drawing.steps_left, progress)
        return self._finish(drawing)

    def begin(self, request: Request, tokens: int = 0) -> Drawing:
        """Do everything that comes before the first step: checks, text encoders, noise.

        `tokens`: the least number of tokens, a multiple of 77, in which to encode prompts, so that requests with
        shorter and longer prompts fit into one batch.

        Raises:
            RequestError: a value that this build does not serve.
        """
        return self._turns.take(self._begin, request, tokens)

    def _begin(self, request: Request, tokens: int = 0) -> Drawing:
        self.backend.activate()
        tokens, table = self._prepare(request, tokens)
        timeline = Timeline()
        with stage(self.backend, "text", [timeline]):
            conditioning = self._prompts.encode(request, tokens)
        has_pixels = request.source is not None and request.source.pixels is not None
        with stage(self.backend, "encode" if has_pixels else "denoise", [timeline]):
            pictures = start_pictures(request, conditioning, table, self.bundle.manifest.model, self._vae.encode)
        for number, picture in enumerate(pictures):
            picture.loras = self._loras.strengths(request.loras[number // request.images], UNET)
        fit_loras(pictures, self._loras)
        return Drawing(request, self.bundle.manifest.model, pictures, timeline)

    def _prepare(self, request: Request, tokens: int) -> tuple[int, SamplerTable]:
        """A checked request's tokens and its sampler's table."""
        tokens = TOKENS.read("tokens", tokens)
        if not isinstance(request, Request):
            raise RequestError(f"request: a {type(request).__name__}; make one with this pipeline's `request`")
        request.check(self.limits, self.rebuild_command)
        request.check_model(self.bundle.manifest.model)
        check_plan(request, self.limits, self.rebuild_command)
        self._loras.use(request.loras)
        return self._tokens(request, tokens), self._table(request)

    def _tokens(self, request: Request, least: int = 0) -> int:
        """The number of tokens in which a request's prompts are encoded: what the longest needs, checked."""
        longest, own = self._prompts.longest(request)
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

    @takes_settings()
    def embed(self, prompt: str | Sequence[str], **settings: Unpack[Settings]) -> Embeddings:
        """Encode a request's prompts and negative prompts, to be changed or kept.

        The embeddings, given as the prompt, draw the same pictures.

        Raises:
            RequestError: a value that this build does not serve.
        """
        return self._turns.take(self._embed, replace(self.request(read_prompts(prompt), **settings), guided=True))

    def _embed(self, request: Request) -> Embeddings:
        self.backend.activate()
        if not plan_request(request).is_plain:
            raise RequestError(
                "prompt: AND, a weight at the end, [from:to:when] and [a|b] are several texts, or change with the "
                "step; embeddings hold one text per prompt"
            )
        return self._prompts.embed(request, self._tokens(request))

    def advance(self, drawings: Sequence[Drawing], steps: int = 1, progress: StepProgress | None = None) -> None:
        """Advance several drawings by `steps` steps as one batch, whatever step each is at.

        The pictures come out as if each drawing were advanced alone. All must have one size and prompts of one length,
        and the build must serve so many images at once. Advancing the same drawings again costs only their steps.
        Another pipeline of the same model may have begun and advanced a drawing.

        Raises:
            RequestError: a drawing has fewer steps left or is of another model, or the drawings do not fit into one
                batch.
        """
        check_progress(progress)
        drawings = read_drawings(drawings)
        self._take_over(drawings)
        self._turns.take(self._advance, drawings, steps, progress)

    def _advance(self, drawings: Sequence[Drawing], steps: int, progress: StepProgress | None) -> None:
        self.backend.activate()
        pictures = [picture for drawing in drawings for picture in drawing.pictures]
        check_steps(pictures, steps)
        check_images(len(pictures), self.limits, self.rebuild_command)
        check_rows(sum(picture.most_rows for picture in pictures), self.limits, self.rebuild_command)
        if fit_loras(pictures, self._loras):
            self._loop.read_back()
        with stage(self.backend, "denoise", [drawing.timeline for drawing in drawings]):
            self._loop.advance(pictures, steps, progress)

    def peek(self, drawing: Drawing) -> Float32s:
        """The clean latents (images, 4, h, w) that a drawing's last step predicts, for previews; nothing is decoded.

        The drawing must be in the batch that this pipeline advanced last, and stays on the device.

        Raises:
            RequestError: it is not in that batch.
        """
        read_drawings([drawing])
        return self._turns.take(self._peek, drawing)

    def _peek(self, drawing: Drawing) -> Float32s:
        self.backend.activate()
        scheduler = self.bundle.manifest.model.scheduler | drawing.request.schedule_fields
        prediction = cast(PredictionType, ScheduleConfig.from_diffusers(scheduler).prediction_type)
        return clean_latents(drawing.pictures, *self._loop.peek(drawing.pictures), prediction)

    def finish(self, drawing: Drawing) -> Result:
        """Decode a drawing that has no steps left, whichever pipeline of this model advanced it.

        Raises:
            RequestError: it has steps left, or is of another model.
            NumericsError: a component gave NaN or infinity.
        """
        self._take_over(read_drawings([drawing]))
        return self._turns.take(self._finish, drawing)

    def _take_over(self, drawings: Sequence[Drawing]) -> None:
        """Let other pipelines give these drawings back: before this one's turn, so that no turn waits for another."""
        self._turns.check()
        for drawing in drawings:
            if drawing.model != self.bundle.manifest.model:
                raise RequestError(
                    f"this drawing is of another model than {self.bundle.path}. Go on with a pipeline of the model "
                    "that began it"
                )
            call_back(drawing.pictures, besides=self._loop)

    def _finish(self, drawing: Drawing) -> Result:
        if drawing.steps_left:
            raise RequestError(f"this drawing has {drawing.steps_left} steps left; advance it before it is finished")
        self.backend.activate()
        with stage(self.backend, "denoise", [drawing.timeline]):
            self._loop.read_back()
        check_free(drawing.pictures)
        check_finite(drawing.pictures, self._precision(WHOLE))
        latents = np.stack([picture.state[0] for picture in drawing.pictures])
        images: list[Image.Image] = []
        if drawing.request.settings["decode"]:
            with stage(self.backend, "decode", [drawing.timeline]):
                images = paste_back(self._vae.decode(latents), drawing.request.source)
        return Result(images, latents, drawing.timeline.seconds(), drawing.request)

    @property
    def note(self) -> BundleNote:
        """The bundle, backend and build, as metadata has them."""
        chosen = self.selection
        return describe_bundle(self.bundle, backend=chosen.backend, device=chosen.device, build=chosen.build)

    def load_lora(self, path: str | Path, name: str | None = None, *, evict: bool = False) -> str:
        """Load a LoRA into the room that this build has for them, to be used by `loras={name: strength}`.

        `path`: a safetensors file in any common format, or a folder as `save_pretrained` writes it. `name`: by default
        the file's. `evict`: where room is short, drop the LoRAs that were not used for longest. Returns the name.
        Drawings under way are not disturbed; loading the same file again under the same name changes nothing.

        Raises:
            RequestError: the build has no room, or not enough, or the name is taken.
            CheckpointError: not a LoRA, for another family, or for layers that have no room in this build.
        """
        path = PATH.read("path", path)
        name = None if name is None else TEXT.read("name", name)
        return self._turns.take(self._load_lora, Path(path), name, FLAG.read("evict", evict)).name

    def _load_lora(self, path: Path, name: str | None, evict: bool) -> LoadedLora:
        self.backend.activate()
        return self._loras.load(path, name, evict)

    def unload_lora(self, name: str) -> None:
        """Free the room of a LoRA. A drawing under way that uses it can go on only once it is loaded again.

        Raises:
            RequestError: no LoRA of this name is loaded.
        """
        self._turns.take(self._loras.unload, TEXT.read("name", name))

    @property
    def loras(self) -> Mapping[str, LoadedLora]:
        """The loaded LoRAs by name, the one not used for longest first."""
        return self._loras.loaded

    @property
    def is_captured(self) -> bool | None:
        """Whether the loop's steps are replayed as a CUDA graph; None before the first one, and where there is none."""
        return self._loop.is_captured

    def forget_prompts(self) -> None:
        """Drop the encoded prompts that are kept: for measurements, and to release memory."""
        self._turns.take(self._prompts.forget)

    def _command_with_room(self) -> str:
        room = LoraSlots(rank=SUGGESTED_RANK)
        if build := self.selection.record:
            return self.bundle.rebuild_command(build.model_copy(update={"lora": room}))
        return self.bundle.build_command(self.backend.name, self.limits, lora=room)

    def rebuild_command(self, limits: Limits) -> str:
        """The command that would build engines for other limits."""
        if build := self.selection.record:
            return self.bundle.rebuild_command(build, limits)
        return self.bundle.build_command(self.backend.name, limits)

    def close(self) -> None:
        """Release every engine, every buffer and the stream. Closing twice is allowed.

        Waits for the turns of other threads. Drawings on their way keep their state: another pipeline of the model can
        go on with them.
        """
        self._turns.take_last(self._release)

    def _release(self) -> None:
        try:
            self._loop.close()
        finally:
            self._loras.close()
            self._prompts.close()
            self._vae.close()
            _close(self._engines, self.backend)
            self._engines.clear()

    def __enter__(self) -> Self:
        self._turns.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(engines: Mapping[str, Engine], backend: Backend) -> None:
    for engine in engines.values():
        engine.close()
    backend.close()
