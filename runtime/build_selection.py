"""Selects the engine files that a pipeline loads: a build of the bundle, or its ONNX files as exported."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentrt.runtime.backends import BACKENDS, Backend, Engine, identity, open_backend
from latentrt.runtime.backends.chained import ChainedEngine
from latentrt.runtime.backends.registry import ONNX_BACKEND, devices, load_module, runnable_targets
from latentrt.runtime.backends.targets import suitability
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.build_record import BuildRecord
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.bundle.lora_slots import LoraSlots
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.bundle.unet_parts import PARTS
from latentrt.runtime.errors import BackendError, BundleError, shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Selection:
    """A backend, a device, and the ports and file of every engine."""

    backend: str
    device: str
    limits: Limits
    specs: Mapping[str, ComponentSpec]
    files: Mapping[str, Path]
    build: str | None = None
    """The folder under `builds/` that holds the files; None for the bundle's ONNX files as exported."""
    lora: LoraSlots | None = None
    """The room for LoRAs."""
    record: BuildRecord | None = None
    """That build's record."""

    def open(self) -> Backend:
        """Open the backend on the device."""
        return open_backend(self.backend, self.device)

    def load(self, backend: Backend, engine: str) -> Engine:
        """Load one engine."""
        return backend.load(self.specs[engine], self.files[engine], optimised=self.build is not None)

    def load_component(self, backend: Backend, spec: ComponentSpec) -> Engine:
        """Load a whole component; a U-Net that was built in two parts is loaded as a chain of both."""
        if spec.name in self.specs:
            return self.load(backend, spec.name)
        return ChainedEngine(spec, *(self.load(backend, part) for part in PARTS))


def select(
    bundle: Bundle,
    backend: str | None = None,
    device: str | None = None,
    build: str | None = None,
    lora_rank: int = 0,
) -> Selection:
    """Choose the best build for this machine, or the ONNX files where they can run as they are.

    `lora_rank`: the room for LoRAs that is needed at least. The build with the least room that will do is chosen.

    Raises:
        BackendError: a named backend is not installed, or none is; no such device.
        BundleError: the bundle has no build for a backend that needs one, or `build` is missing or for another machine.
        StaleBuildError: the build that would be used is out of date.
    """
    for name, value in (("backend", backend), ("device", device), ("build", build)):
        if value is not None and not isinstance(value, str):
            raise BackendError(
                f"{name} {shown(value)}: must be text, as in Pipeline.load(bundle, 'onnxruntime', 'cpu')"
            )
    _check_names(backend, device)
    if build is not None:
        return _named_build(bundle, build, backend, device)
    for name in [backend] if backend else _usable_backends(bundle):
        for place in [device] if device else devices(name):
            chosen = _build(bundle, name, place, lora_rank)
            if chosen is not None:
                return chosen
    if lora_rank:
        wanted = LoraSlots(rank=lora_rank)
        command = bundle.build_command(backend or ONNX_BACKEND, bundle.manifest.limits, lora=wanted)
        raise BundleError(
            f"{bundle.path}: no build for this machine has room for LoRAs of rank {lora_rank}; it has "
            f"{', '.join(bundle.builds()) or 'none'}. Build one with: {command}"
        )
    return _onnx_files(bundle, backend, device)


def _check_names(backend: str | None, device: str | None) -> None:
    """Refuse a backend or device that no bundle could be run with."""
    if backend is not None:
        load_module(backend)
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise BackendError(f"device {device!r}: must be cpu or cuda:<index>, such as cuda:0")
    if device == "cpu" and backend is not None and not runnable_targets(backend, device):
        raise BackendError(
            f"device cpu: {backend} runs on NVIDIA GPUs only. Name cuda:0, or the backend {ONNX_BACKEND}"
        )


def _usable_backends(bundle: Bundle) -> list[str]:
    """The backends, best first, that the bundle has builds for and whose library and device are here."""
    built = {build.backend for build in bundle.builds().values()}
    return [name for name in BACKENDS if name in built and _works(name)]


def _works(backend: str) -> bool:
    try:
        load_module(backend)
        return any(runnable_targets(backend, device) for device in devices(backend))
    except BackendError as error:
        logger.info("%s: not used, %s", backend, error)
        return False


def _build(bundle: Bundle, backend: str, device: str, lora_rank: int) -> Selection | None:
    """The build of this backend that runs on this device, with the least room for LoRAs that will do, checked."""
    builds = {name: build for name, build in bundle.builds().items() if build.backend == backend}
    targets = runnable_targets(backend, device) if builds else ()
    room = {name: build.lora.rank if build.lora else 0 for name, build in builds.items()}
    ranks = {name: suitability(build.target, targets) for name, build in builds.items() if room[name] >= lora_rank}
    runnable = {name: (*rank, room[name]) for name, rank in ranks.items() if rank is not None}
    if not runnable:
        return None
    name = min(runnable, key=lambda name: runnable[name])
    return _checked(bundle, name, builds[name], device)


def _named_build(bundle: Bundle, name: str, backend: str | None, device: str | None) -> Selection:
    """The build of this name, checked, on the first device that runs it."""
    builds = bundle.builds()
    if name not in builds:
        bundle.check_readable(name)
        raise BundleError(f"{bundle.path}: no build is called {name!r}; it has {', '.join(builds) or 'none'}")
    build = builds[name]
    if backend not in (None, build.backend):
        raise BundleError(f"{bundle.path}: the build {name} is for {build.backend}, not for {backend}. Name only one")
    load_module(build.backend)
    for place in [device] if device else devices(build.backend):
        if suitability(build.target, runnable_targets(build.backend, place)) is not None:
            return _checked(bundle, name, build, place)
    raise BundleError(
        f"{bundle.path}: the build {name} is for {build.target}, which this machine is not. Build one for it with: "
        f"{bundle.build_command(build.backend, build.limits)}"
    )


def _checked(bundle: Bundle, name: str, build: BuildRecord, device: str) -> Selection:
    """A build's engines, checked against what this bundle and this installation need."""
    bundle.check_build(build, **identity(build.backend, build.target, build.options))
    files = {component: bundle.path / next(iter(engine.files)) for component, engine in build.engines.items()}
    specs = bundle.engine_specs(build)
    return Selection(build.backend, device, build.limits, specs, files, name, build.lora, build)


def _onnx_files(bundle: Bundle, backend: str | None, device: str | None) -> Selection:
    """The bundle's ONNX files, which only one backend runs as they are."""
    if backend not in (None, ONNX_BACKEND):
        command = bundle.build_command(backend, bundle.manifest.limits)
        raise BundleError(
            f"{bundle.path}: no {backend} build for this machine; it has {', '.join(bundle.builds()) or 'none'}. "
            f"Build one with: {command}"
        )
    try:
        places = devices(ONNX_BACKEND)
    except BackendError as error:
        extra, *others = (extra for name in sorted(BACKENDS) for extra in BACKENDS[name].extras)
        raise BackendError(
            f"no backend is installed that can run this bundle here. Install one with: pip install 'latentrt[{extra}]' "
            f"(or {', '.join(f'[{other}]' for other in others)}, and build engines with build-engine)"
        ) from error
    place = device or places[0]
    logger.warning(
        "%s: no build for this machine; running its ONNX files through ONNX Runtime on %s", bundle.path, place
    )
    files = {name: bundle.onnx(name) for name in bundle.manifest.components}
    return Selection(ONNX_BACKEND, place, bundle.manifest.limits, bundle.manifest.specs(), files)
