"""The runtime's front door: load a bundle, generate pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, Unpack

from latentrt.runtime.arrays import Float32s
from latentrt.runtime.backends import Backend, Engine
from latentrt.runtime.build_selection import Selection, select
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.drawing.loop import KEPT_STEPS, StepProgress, check_progress
from latentrt.runtime.drawing.picture import Drawing, call_back, read_drawings
from latentrt.runtime.drawing.turns import Turns
from latentrt.runtime.errors import RequestError
from latentrt.runtime.lora.bank import LoadedLora
from latentrt.runtime.pipeline_work import PipelineWork, close_engines
from latentrt.runtime.record.metadata import BundleNote, describe, describe_bundle
from latentrt.runtime.record.result import Result
from latentrt.runtime.request.embeddings import Embeddings
from latentrt.runtime.request.kinds import FLAG, PATH, TEXT, whole
from latentrt.runtime.request.reading import Prompt, make_request, read_given, read_prompt, read_prompts
from latentrt.runtime.request.request import Demand, Request
from latentrt.runtime.request.settings import Settings
from latentrt.runtime.request.signature import takes_settings
from latentrt.runtime.request.size_checks import check_size

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
        self._turns = Turns()
        self._work = PipelineWork(bundle, selection, backend, engines, self._turns, kept_steps)

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
            close_engines(engines, opened)
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
        return self._turns.take(self._work.check, request, tokens)

    def run(self, request: Request, progress: StepProgress | None = None) -> Result:
        """Serve a request; see `generate`."""
        check_progress(progress)
        return self._turns.take(self._work.run, request, progress)

    def begin(self, request: Request, tokens: int = 0) -> Drawing:
        """Do everything that comes before the first step: checks, text encoders, noise.

        `tokens`: the least number of tokens, a multiple of 77, in which to encode prompts, so that requests with
        shorter and longer prompts fit into one batch.

        Raises:
            RequestError: a value that this build does not serve.
        """
        return self._turns.take(self._work.begin, request, tokens)

    @takes_settings()
    def embed(self, prompt: str | Sequence[str], **settings: Unpack[Settings]) -> Embeddings:
        """Encode a request's prompts and negative prompts, to be changed or kept.

        The embeddings, given as the prompt, draw the same pictures.

        Raises:
            RequestError: a value that this build does not serve.
        """
        return self._turns.take(self._work.embed, replace(self.request(read_prompts(prompt), **settings), guided=True))

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
        self._turns.take(self._work.advance, drawings, steps, progress)

    def peek(self, drawing: Drawing) -> Float32s:
        """The clean latents (images, 4, h, w) that a drawing's last step predicts, for previews; nothing is decoded.

        The drawing must be in the batch that this pipeline advanced last, and stays on the device.

        Raises:
            RequestError: it is not in that batch.
        """
        read_drawings([drawing])
        return self._turns.take(self._work.peek, drawing)

    def finish(self, drawing: Drawing) -> Result:
        """Decode a drawing that has no steps left, whichever pipeline of this model advanced it.

        Raises:
            RequestError: it has steps left, or is of another model.
            NumericsError: a component gave NaN or infinity.
        """
        self._take_over(read_drawings([drawing]))
        return self._turns.take(self._work.finish, drawing)

    def _take_over(self, drawings: Sequence[Drawing]) -> None:
        """Let other pipelines give these drawings back: before this one's turn, so that no turn waits for another."""
        self._turns.check()
        for drawing in drawings:
            if drawing.model != self.bundle.manifest.model:
                raise RequestError(
                    f"this drawing is of another model than {self.bundle.path}. Go on with a pipeline of the model "
                    "that began it"
                )
            call_back(drawing.pictures, besides=self._work.loop)

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
        return self._turns.take(self._work.load_lora, Path(path), name, FLAG.read("evict", evict)).name

    def unload_lora(self, name: str) -> None:
        """Free the room of a LoRA. A drawing under way that uses it can go on only once it is loaded again.

        Raises:
            RequestError: no LoRA of this name is loaded.
        """
        self._turns.take(self._work.loras.unload, TEXT.read("name", name))

    @property
    def loras(self) -> Mapping[str, LoadedLora]:
        """The loaded LoRAs by name, the one not used for longest first."""
        return self._work.loras.loaded

    @property
    def is_captured(self) -> bool | None:
        """Whether the loop's steps are replayed as a CUDA graph; None before the first one, and where there is none."""
        return self._work.loop.is_captured

    def forget_prompts(self) -> None:
        """Drop the encoded prompts that are kept: for measurements, and to release memory."""
        self._turns.take(self._work.prompts.forget)

    def rebuild_command(self, limits: Limits) -> str:
        """The command that would build engines for other limits."""
        return self._work.rebuild_command(limits)

    def close(self) -> None:
        """Release every engine, every buffer and the stream. Closing twice is allowed.

        Waits for the turns of other threads. Drawings on their way keep their state: another pipeline of the model can
        go on with them.
        """
        self._turns.take_last(self._work.release)

    def __enter__(self) -> Self:
        self._turns.check()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
