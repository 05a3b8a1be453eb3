"""Builds a bundle's engines: one per component, two for the U-Net, keyed, and built only where none has that key."""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from latentrt.engine.base import Builder, BuildProgress, Job
from latentrt.engine.folder import BuildFolder
from latentrt.engine.progress import Tracker
from latentrt.runtime.backends import identity
from latentrt.runtime.backends.targets import default_target
from latentrt.runtime.bundle.builds import BuildRecord, EngineKey, EngineRecord
from latentrt.runtime.bundle.folder import Bundle
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.bundle.unet_parts import LOOP_INPUTS, PARTS, PASSES, WHOLE, recorded_parts, replace_whole
from latentrt.runtime.errors import BackendError, BundleError

if TYPE_CHECKING:
    from latentrt.engine.split import GraphFiles

logger = logging.getLogger(__name__)

GRAPH_FILES = "latentrt.engine.split:GraphFiles"
GRAPHS = ".graphs"
"""Folder within a build's folder that holds the U-Net's parts while they are built."""

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
    hoist: bool = True,
) -> BuildRecord:
    """Build what is missing or out of date, reuse the rest, and return the whole build.

    `limits` defaults to the bundle's own, `target` to what `default_target` says; `force` builds every engine anew;
    `hoist` splits the U-Net into what runs once per request and what runs on every step.

    Raises:
        BackendError: the backend is unknown or its library is not installed.
        BuildError: an engine cannot be built as asked, or another process is building here.
    """
    limits = limits or bundle.manifest.limits
    specs = bundle.manifest.specs(limits)
    target = target or default_target(backend)
    plan = BuildRecord(backend=backend, precision=bundle.manifest.precision, target=target, limits=limits, engines={})
    folder = BuildFolder(bundle.path, plan.name)
    names = identity(backend, target)
    hoist = hoist and WHOLE in specs and any(port.name not in LOOP_INPUTS for port in specs[WHOLE].inputs)
    parts = parts_before(bundle, folder, specs) if hoist else None
    reusable = not force and bool(parts) == hoist
    if reusable and (built := folder.finished(plan, bundle.keys(replace_whole(specs, parts), **names))):
        logger.info("%s: up to date", folder.path)
        return built
    open_files = load_attribute(GRAPH_FILES)
    with folder.lock(), open_files(bundle, folder.path / GRAPHS, target) as graphs:
        folder.clean()
        if hoist:
            specs = replace_whole(specs, parts or graphs.parts(specs[WHOLE]))
        keys = bundle.keys(specs, **names)
        engines = {} if force else folder.reusable(keys)
        sizes = {name: graphs.size(name) for name in keys if name not in engines}
        tracker = Tracker(backend, sizes, seconds_before(folder), progress)
        if tracker.order:
            builder = open_builder(backend, target)
        for name in tracker.order:
            engines[name] = build_one(graphs, folder, builder, specs[name], keys[name], tracker)
            folder.save(plan.model_copy(update={"engines": engines}))
        finished = plan.model_copy(update={"engines": {name: engines[name] for name in keys}})
        folder.commit(finished)
    return finished


def open_builder(backend: str, target: str) -> Builder:
    """The builder of a backend; importing it may import the backend's library."""
    builder: Builder = load_attribute(BUILDERS[backend])(backend, target)
    return builder


def load_attribute(place: str) -> Any:
    """Import `module:attribute`.

    Raises:
        BackendError: a library that building needs is not installed.
    """
    module, name = place.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        missing = error.name or "a library"
        raise BackendError(
            f"building engines needs {missing}, which is not installed ({error}). "
            f"Install it with: pip install {missing}"
        ) from error


def parts_before(
    bundle: Bundle, folder: BuildFolder, specs: Mapping[str, ComponentSpec]
) -> dict[str, ComponentSpec] | None:
    """The U-Net's parts as an earlier build here recorded them, if they are of the same file and passes."""
    for record in folder.records():
        keys = {name: engine.key for name, engine in record.engines.items() if name in PARTS}
        content = bundle.manifest.content(WHOLE)
        if any((key.content, key.passes) != (content, PASSES) for key in keys.values()):
            continue
        try:
            if parts := recorded_parts(specs, keys):
                return parts
        except BundleError as error:
            logger.warning("%s: %s. The parts are built anew", folder.path, error)
    return None


def build_one(
    graphs: "GraphFiles", folder: BuildFolder, builder: Builder, spec: ComponentSpec, key: EngineKey, tracker: Tracker
) -> EngineRecord:
    """Build one engine and put its files in their place."""
    tracker.begin(spec.name)
    with folder.new_files() as temporary:
        file, float32 = graphs.file(spec.name), graphs.float32_layers(spec.name)
        job = Job(spec, key.precision, file, temporary, folder.stem(key), tracker.phase, float32)
        built = builder.build(job)
        files = folder.adopt(temporary, built.files)
    seconds = tracker.done()
    size = sum(file.size for file in files.values())
    logger.info("%s: built in %.1f s, %.1f MB", spec.name, seconds, size / 1e6)
    notes = (*graphs.notes(spec.name), *built.notes)
    return EngineRecord(key=key, files=files, seconds=round(seconds, 2), layers=dict(built.layers), notes=notes)


def seconds_before(folder: BuildFolder) -> dict[str, float]:
    """What each engine took the last time it was built here."""
    return {name: engine.seconds for record in folder.records() for name, engine in record.engines.items()}
