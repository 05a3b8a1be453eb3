"""Builds a bundle's engines, one per component and two for the U-Net, unless an engine with the same key exists."""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from latentrt.engine.base import Builder, BuildProgress, Job
from latentrt.engine.folder import BuildFolder
from latentrt.engine.progress import Tracker
from latentrt.runtime.backends import identity
from latentrt.runtime.backends.registry import default_target
from latentrt.runtime.backends.targets import normal_target
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.bundle.build_record import BuildRecord, EngineRecord
from latentrt.runtime.bundle.disk import check_space, disk_errors
from latentrt.runtime.bundle.engine_key import EngineKey
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import LoraSlots, recorded_slots
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.bundle.unet_parts import LOOP_INPUTS, PARTS, PASSES, WHOLE, recorded_parts, replace_whole
from latentrt.runtime.errors import BackendError, BuildError, BundleError

if TYPE_CHECKING:  # it imports onnx, which takes longer than finding out that nothing has to be built
    from latentrt.engine.split_unet import GraphFiles

logger = logging.getLogger(__name__)

GRAPH_FILES = "latentrt.engine.split_unet:GraphFiles"
GRAPHS = ".graphs"
"""Folder within a build's folder for the ONNX files of the U-Net's parts while they are built."""


SHARE = 0.8
"""An engine holds its network's weights, so it takes at least this share of the ONNX files' bytes."""


class BuilderEntry(NamedTuple):
    """The `module:class` of a builder, and a first guess at its seconds per 10⁹ bytes of ONNX files."""

    place: str
    seconds_per_gigabyte: float


BUILDERS = {
    "onnxruntime": BuilderEntry("latentrt.engine.onnxruntime:OnnxRuntimeBuilder", 10.0),
    "tensorrt": BuilderEntry("latentrt.engine.tensorrt:TensorRTBuilder", 90.0),
    "tensorrt-rtx": BuilderEntry("latentrt.engine.tensorrt:TensorRTBuilder", 27.0),  # measured on two CPU cores
}
"""The builder of each backend; a backend's library is imported when the builder is opened."""


def build_engines(
    bundle: Bundle,
    backend: str,
    limits: Limits | None = None,
    *,
    target: str | None = None,
    options: BuildOptions | None = None,
    progress: Callable[[BuildProgress], None] | None = None,
    force: bool = False,
    hoist: bool = True,
    lora: LoraSlots | None = None,
) -> BuildRecord:
    """Build the engines that are missing or out of date, and return the whole build.

    `limits` defaults to the bundle's own, `target` to `default_target(backend)`; `options` are TensorRT's. `force`
    builds every engine again. `hoist` splits the U-Net into a part that runs once per request and one that runs on
    every step. `lora`: the room for LoRAs; such a build lies beside one without.

    Raises:
        BackendError: the backend is unknown or its library is not installed.
        RequestError: there are options, and the backend takes none.
        BuildError: an engine cannot be built as asked, the disk cannot take it, or another process is building here.
    """
    limits = limits or bundle.manifest.limits
    specs = bundle.manifest.specs(limits)
    plan = plan_build(bundle, backend, limits, target, options, lora)
    target = plan.target
    folder = BuildFolder(bundle.path, plan.name)
    installed = identity(backend, target, options)
    hoist = hoist and WHOLE in specs and any(port.name not in LOOP_INPUTS for port in specs[WHOLE].inputs)
    before = specs_before(folder, specs, lora)
    parts = parts_before(bundle, folder, before) if hoist else None
    reusable = not force and bool(parts) == hoist
    if reusable and (built := folder.finished(plan, bundle.keys(replace_whole(before, parts), lora, **installed))):
        logger.info("%s: up to date", folder.path)
        return built
    open_files = load_attribute(GRAPH_FILES)
    if not folder.records():
        check_room(folder, {name: file.size for name, file in bundle.manifest.files.items()})
    with (
        disk_errors(folder.path, BuildError),
        folder.lock(),
        open_files(bundle, folder.path / GRAPHS, target, lora) as graphs,
    ):
        folder.clean()
        specs = graphs.with_slots(specs, hoist)
        if hoist:
            specs = replace_whole(specs, parts or graphs.parts(specs[WHOLE]))
        keys = bundle.keys(specs, lora, **installed)
        engines = {} if force else folder.reusable(keys)
        missing = {name: specs[name] for name in keys if name not in engines}
        if missing:
            build_missing(plan, folder, graphs, missing, keys, engines, progress)
        finished = plan.model_copy(update={"engines": {name: engines[name] for name in keys}})
        folder.commit(finished)
    return finished


def plan_build(
    bundle: Bundle,
    backend: str,
    limits: Limits,
    target: str | None,
    options: BuildOptions | None,
    lora: LoraSlots | None,
) -> BuildRecord:
    """The record of a build without engines."""
    return BuildRecord(
        backend=backend,
        precision=bundle.manifest.precision,
        target=normal_target(target) if target else default_target(backend),
        named_target=target is not None,
        limits=limits,
        options=options or BuildOptions(),
        lora=lora,
        engines={},
    )


def build_missing(
    plan: BuildRecord,
    folder: BuildFolder,
    graphs: "GraphFiles",
    missing: Mapping[str, ComponentSpec],
    keys: Mapping[str, EngineKey],
    engines: dict[str, EngineRecord],
    progress: Callable[[BuildProgress], None] | None,
) -> None:
    """Build the missing engines one after the other; each is added to `engines` and saved when it is finished."""
    place, seconds_per_gigabyte = BUILDERS[plan.backend]
    sizes = {name: graphs.size(name) for name in missing}
    check_room(folder, sizes)
    tracker = Tracker(seconds_per_gigabyte, sizes, seconds_before(folder), progress)
    builder: Builder = load_attribute(place)(plan.backend, plan.target)
    for name, spec in missing.items():
        engines[name] = build_one(graphs, folder, builder, spec, keys[name], tracker, plan.options.for_engine(name))
        folder.save(plan.model_copy(update={"engines": engines}))


def check_backend(backend: str, target: str | None = None, options: BuildOptions | None = None) -> None:
    """Check that engines can be built here, before a checkpoint is exported for them.

    Raises:
        BackendError: the backend is unknown, or a library that it needs is not installed.
        RequestError: there are options, and the backend takes none.
        BuildError: the target is unknown, or cannot be built for on this machine.
    """
    target = target or default_target(backend)
    identity(backend, target, options)
    load_attribute(GRAPH_FILES)
    load_attribute(BUILDERS[backend].place)(backend, target)


def check_room(folder: BuildFolder, sizes: Mapping[str, int]) -> None:
    """Raise `BuildError` if the disk lacks room for engines of ONNX files of these sizes."""
    check_space(folder.path, int(SHARE * sum(sizes.values())), "the build", BuildError)


def load_attribute(place: str) -> Any:
    """Import the `attribute` of `module:attribute`.

    Raises:
        BackendError: a library that is needed for building is not installed.
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


def specs_before(
    folder: BuildFolder, specs: Mapping[str, ComponentSpec], lora: LoraSlots | None
) -> dict[str, ComponentSpec]:
    """Specs with the inputs for LoRAs as recorded by an earlier build in this folder."""
    for record in folder.records() if lora else ():
        try:
            return recorded_slots(specs, {name: engine.key for name, engine in record.engines.items()})
        except BundleError as error:
            logger.warning("%s: %s. Its engines are built anew", folder.path, error)
    return dict(specs)


def parts_before(
    bundle: Bundle, folder: BuildFolder, specs: Mapping[str, ComponentSpec]
) -> dict[str, ComponentSpec] | None:
    """The U-Net's parts as recorded by an earlier build in this folder, if file and passes are the same."""
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
    graphs: "GraphFiles",
    folder: BuildFolder,
    builder: Builder,
    spec: ComponentSpec,
    key: EngineKey,
    tracker: Tracker,
    options: BuildOptions,
) -> EngineRecord:
    """Build one engine and move its files to their final place."""
    tracker.begin(spec.name)
    with folder.new_files() as temporary:
        file, float32 = graphs.file(spec.name), graphs.float32_layers(spec.name)
        job = Job(spec, key.precision, file, temporary, folder.stem(key), tracker.phase, float32, options)
        built = builder.build(job)
        files = folder.adopt(temporary, built.files)
    seconds = tracker.done()
    size = sum(file.size for file in files.values())
    logger.info("%s: built in %.1f s, %.1f MB", spec.name, seconds, size / 1e6)
    notes = (*graphs.notes(spec.name), *built.notes)
    return EngineRecord(key=key, files=files, seconds=round(seconds, 2), layers=dict(built.layers), notes=notes)


def seconds_before(folder: BuildFolder) -> dict[str, float]:
    """The seconds that each engine took the last time it was built in this folder."""
    return {name: engine.seconds for record in folder.records() for name, engine in record.engines.items()}
