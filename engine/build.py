"""Builds a bundle's engines: one per component, keyed, and built only where no engine with that key is there."""

import importlib
import logging
from collections.abc import Callable

from latentrt.engine.base import Builder, BuildProgress, Job
from latentrt.engine.folder import BuildFolder
from latentrt.engine.progress import Tracker
from latentrt.runtime.backends import identity
from latentrt.runtime.backends.targets import default_target
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.errors import BackendError
from latentrt.runtime.manifest import BuildRecord, EngineKey, EngineRecord
from latentrt.runtime.model import Limits
from latentrt.runtime.specs import ComponentSpec

logger = logging.getLogger(__name__)

BUILDERS = {
    "onnxruntime": "latentrt.engine.onnxruntime:OnnxRuntimeBuilder",
    "tensorrt": "latentrt.engine.tensorrt:TensorRTBuilder",
    "tensorrt-rtx": "latentrt.engine.tensorrt:TensorRTBuilder",
}


def build_engines(
    bundle: Bundle,
    backend: str,
    limits: Limits | None = None,
    *,
    target: str | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    force: bool = False,
) -> BuildRecord:
    """Build what is missing or out of date, reuse the rest, and return the whole build.

    `limits` defaults to the bundle's own, `target` to what `default_target` says; `force` builds every engine anew.

    Raises:
        BackendError: the backend is unknown or its library is not installed.
        BuildError: an engine cannot be built as asked, or another process is building here.
    """
    limits = limits or bundle.manifest.limits
    specs = bundle.manifest.specs(limits)
    target = target or default_target(backend)
    plan = BuildRecord(backend=backend, precision=bundle.manifest.precision, target=target, limits=limits, engines={})
    keys = bundle.keys(specs, **identity(backend, target))
    folder = BuildFolder(bundle.path, plan.name)
    built = None if force else folder.finished(plan, keys)
    if built:
        logger.info("%s: up to date", folder.path)
        return built
    with folder.lock():
        folder.clean()
        engines = {} if force else folder.reusable(keys)
        tracker = Tracker(backend, onnx_bytes(bundle, keys, engines), seconds_before(folder), progress)
        if tracker.order:
            builder = open_builder(backend, target)
        for name in tracker.order:
            engines[name] = build_one(bundle, folder, builder, specs[name], keys[name], tracker)
            folder.save(plan.model_copy(update={"engines": engines}))
        finished = plan.model_copy(update={"engines": {name: engines[name] for name in keys}})
        folder.commit(finished)
    return finished


def open_builder(backend: str, target: str) -> Builder:
    """The builder of a backend; importing it may import the backend's library.

    Raises:
        BackendError: a library that building needs is not installed.
    """
    module, name = BUILDERS[backend].split(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = error.name or "a library"
        raise BackendError(
            f"building engines needs {missing}, which is not installed ({error}). "
            f"Install it with: pip install {missing}"
        ) from error
    builder: Builder = kind(backend, target)
    return builder


def build_one(
    bundle: Bundle, folder: BuildFolder, builder: Builder, spec: ComponentSpec, key: EngineKey, tracker: Tracker
) -> EngineRecord:
    """Build one component and put its files in their place."""
    tracker.begin(spec.name)
    with folder.new_files() as temporary:
        numerics = bundle.manifest.components[spec.name].numerics
        islands = len(numerics.float32_layers) if numerics else 0
        job = Job(spec, key.precision, bundle.onnx(spec.name), temporary, folder.stem(key), tracker.phase, islands)
        built = builder.build(job)
        files = folder.adopt(temporary, built.files)
    seconds = tracker.done()
    size = sum(file.size for file in files.values())
    logger.info("%s: built in %.1f s, %.1f MB", spec.name, seconds, size / 1e6)
    return EngineRecord(key=key, files=files, seconds=round(seconds, 2), layers=dict(built.layers), notes=built.notes)


def onnx_bytes(bundle: Bundle, keys: dict[str, EngineKey], engines: dict[str, EngineRecord]) -> dict[str, int]:
    """Size of the ONNX files of each component that has no engine yet, in the order of the keys."""
    components = bundle.manifest.components
    return {
        name: sum(bundle.manifest.files[file].size for file in components[name].files)
        for name in keys
        if name not in engines
    }


def seconds_before(folder: BuildFolder) -> dict[str, float]:
    """What each component took the last time it was built here."""
    return {name: engine.seconds for record in folder.records() for name, engine in record.engines.items()}
