"""The worker process: pipelines, scheduler and engine, and a pipe to the front."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from latentrt.runtime import Bundle, LatentRTError, Pipeline
from latentrt.runtime.lora.adapter import rank_of
from latentrt.runtime.lora.files import LoraFile
from latentrt.serve.engine import BatchEngine
from latentrt.serve.limits import ServerLimits
from latentrt.serve.logs import configure_server_logging
from latentrt.serve.messages import Cancel, LoadFailed, Memory, ModelNote, Ready, Stop, Submit
from latentrt.serve.previews import PreviewMap, preview_map

IDLE_SECONDS = 1.0
"""How often an idle worker looks up, to report its memory."""

MEMORY_SECONDS = 5.0
"""How often a worker reports its memory."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process serves. `bundles`: folder by model's name; the rest as in `Pipeline.load`.

    `loras`: files that are loaded into every bundle.

    Batches of a lane come in many sizes, each with buffers and a captured step of its own: `kept_steps` of them stay.
    """

    bundles: dict[str, Path]
    backend: str | None = None
    device: str | None = None
    build: str | None = None
    max_batch: int = 8
    kept_steps: int = 24
    limits: ServerLimits = field(default_factory=ServerLimits)
    json_logs: bool = True
    loras: tuple[Path, ...] = ()


def run_worker(connection: Connection, config: WorkerConfig) -> None:
    """Load every bundle, say so, and draw until told to stop or the front is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the front decides when its worker ends
        signal.signal(number, signal.SIG_IGN)
    configure_server_logging(config.json_logs)
    serving = False
    try:
        with _pipelines(config) as (pipelines, previews):
            engine = BatchEngine(pipelines, config.limits, config.max_batch, connection.send, previews)
            notes = tuple(describe_model(name, pipeline) for name, pipeline in pipelines.items())
            connection.send(Ready(notes, os.getpid()))
            serving = True
            serve(connection, engine)
    except LatentRTError as error:
        if serving:
            raise  # the device has failed; the front replaces this process
        connection.send(LoadFailed(type(error).__name__, str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the front is gone


@contextmanager
def _pipelines(config: WorkerConfig) -> Iterator[tuple[dict[str, Pipeline], dict[str, PreviewMap]]]:
    with ExitStack() as stack:
        pipelines = {
            name: stack.enter_context(load_pipeline(folder, config)) for name, folder in config.bundles.items()
        }
        maps = {name: preview_map(pipeline) for name, pipeline in pipelines.items()}
        yield pipelines, {name: found for name, found in maps.items() if found is not None}


def load_pipeline(folder: Path, config: WorkerConfig) -> Pipeline:
    """A bundle's pipeline, with the LoRAs loaded, each under its file's name.

    Raises:
        LatentRTError: it cannot be loaded, or has no room for them.
    """
    rank = sum(rank_of(LoraFile(file)) for file in config.loras)
    pipeline = Pipeline.load(
        Bundle.open(folder),
        config.backend,
        config.device,
        build=config.build,
        lora_rank=rank,
        kept_steps=config.kept_steps,
    )
    try:
        for file in config.loras:
            pipeline.load_lora(file, file.stem)
    except BaseException:
        pipeline.close()
        raise
    return pipeline


def serve(connection: Connection, engine: BatchEngine) -> None:
    """Take messages between steps, and draw. Returns when told to stop."""
    reported = 0.0
    while True:
        while connection.poll(IDLE_SECONDS if engine.is_idle else 0):
            message = connection.recv()
            if isinstance(message, Submit):
                engine.submit(message)
            elif isinstance(message, Cancel):
                engine.cancel(message.id)
            elif isinstance(message, Stop):
                return
        engine.work()
        if time.monotonic() - reported > MEMORY_SECONDS:
            connection.send(Memory(resident_bytes()))
            reported = time.monotonic()


def resident_bytes() -> int:
    """Memory of this process that is in use; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def describe_model(name: str, pipeline: Pipeline) -> ModelNote:
    """What the front tells of a model."""
    manifest, note = pipeline.bundle.manifest, pipeline.note
    return ModelNote(
        name=name,
        family=manifest.model.family,
        native_size=manifest.model.native_size,
        weights_sha256=note.weights_sha256,
        precision=note.precision,
        backend=note.backend,
        device=note.device,
        sampler=manifest.defaults.sampler,
        steps=manifest.defaults.steps,
        guidance=manifest.defaults.guidance,
        inpainting=manifest.model.is_inpainting,
        ranges={name: pipeline.limits.bounds(name) for name in ("width", "height", "images")},
        loras=tuple(pipeline.loras),
    )
