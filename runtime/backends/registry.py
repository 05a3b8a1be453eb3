"""Every backend by name, one record each; a backend's library is imported when the backend is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, TypedDict

from latentrt.runtime.backends.base import Backend
from latentrt.runtime.backends.cuda import Device, describe_device, device_count, device_index
from latentrt.runtime.backends.targets import (
    RTX_DEFAULT,
    capability_targets,
    cpu_target,
    generation_targets,
    gpu_model_targets,
)
from latentrt.runtime.bundle.build_options import BuildOptions
from latentrt.runtime.errors import BackendError, RequestError

ACTIVATION_RESIZE = "RUNTIME_ACTIVATION_RESIZE_10_10"
"""TensorRT's preview feature by which an engine's activation memory is that of the sizes at hand."""

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"


def _always(_library: Any) -> bool:
    return True


def _activation_resize(_target: str, _options: BuildOptions) -> str:
    return ACTIVATION_RESIZE


def _tensorrt_options(_target: str, options: BuildOptions) -> str:
    return f"{ACTIVATION_RESIZE}, {options}"


def _cuda_sessions(target: str, _options: BuildOptions) -> str:
    """A form is chosen by its time and its bits, which depend on the options of `cuda_provider.provider_options`."""
    return "no TF32, heuristic search, fused bias" if target.startswith("cuda") else ""


def _has_cuda_provider(onnxruntime: Any) -> bool:
    return CUDA_PROVIDER in onnxruntime.get_available_providers()


@dataclass(frozen=True, slots=True)
class KnownBackend:
    """A backend's library, the class that runs its engines, and the machines that these run on."""

    module: str
    """The library's Python module."""
    extras: tuple[str, ...]
    """The extras of latentrt that install the library; the first one is recommended."""
    runner: str
    """The `module:class` that implements `Backend`."""
    gpu_targets: Callable[[Device], tuple[str, ...]]
    """The targets whose engines run on a GPU, best first."""
    build_options: Callable[[str, BuildOptions], str]
    """What the builder is told and the engine depends on, for a target and an engine's options: a part of its key."""
    cpu_targets: Callable[[], tuple[str, ...]] = tuple
    """The targets whose engines run on this machine's CPU, best first; by default none."""
    portable_target: str | None = None
    """What a build without a named target is made for; None: this machine, its CPU before its GPU."""
    uses_gpus: Callable[[Any], bool] = _always
    """Whether the library, given its module, was installed with support for GPUs."""
    runs_onnx_files: bool = False
    """Runs a bundle's ONNX files as they are, without a build."""
    takes_options: bool = False
    """Whether the builder takes `BuildOptions`."""
    rewrites_components: bool = False
    """Builds whole components, too, from graphs that went through latentrt's passes, not only the U-Net's parts."""


BACKENDS: Mapping[str, KnownBackend] = {
    "tensorrt": KnownBackend(
        module="tensorrt",
        extras=("tensorrt",),
        runner="latentrt.runtime.backends.tensorrt:TensorRTBackend",
        gpu_targets=gpu_model_targets,
        build_options=_tensorrt_options,
        takes_options=True,
    ),
    "tensorrt-rtx": KnownBackend(
        module="tensorrt_rtx",
        extras=("tensorrt-rtx",),
        runner="latentrt.runtime.backends.tensorrt:TensorRTBackend",
        gpu_targets=capability_targets,
        portable_target=RTX_DEFAULT,
        build_options=_activation_resize,
    ),
    "onnxruntime": KnownBackend(
        module="onnxruntime",
        extras=("cpu", "cuda"),
        runner="latentrt.runtime.backends.onnxruntime:OnnxRuntimeBackend",
        gpu_targets=generation_targets,
        cpu_targets=lambda: (cpu_target(),),
        uses_gpus=_has_cuda_provider,
        build_options=_cuda_sessions,
        runs_onnx_files=True,
        rewrites_components=True,
    ),
}
"""In the order of preference where a bundle holds builds for several."""

ONNX_BACKEND = next(name for name, known in BACKENDS.items() if known.runs_onnx_files)


def find_backend(name: str) -> KnownBackend:
    """The record of a backend.

    Raises:
        BackendError: no backend has this name.
    """
    if name not in BACKENDS:
        raise BackendError(f"backend {name!r} is unknown; the known ones are {', '.join(sorted(BACKENDS))}")
    return BACKENDS[name]


def load_module(name: str) -> ModuleType:
    """The Python module of a backend's library.

    Raises:
        BackendError: the backend is unknown, or its library is not installed or cannot be loaded.
    """
    known = find_backend(name)
    try:
        return import_module(known.module)
    except ImportError as error:
        remedy = f"Install it with: pip install 'latentrt[{known.extras[0]}]'"
        raise BackendError(f"backend {name}: {known.module} cannot be imported ({error}). {remedy}") from error


def open_backend(name: str, device: str) -> Backend:
    """Open a backend on `cpu` or `cuda:<index>`.

    Raises:
        BackendError: the backend is unknown or not installed, or the device is not there.
    """
    load_module(name)
    module, _, attribute = BACKENDS[name].runner.partition(":")
    backend: Backend = getattr(import_module(module), attribute)(name, device)
    return backend


def devices(name: str) -> list[str]:
    """The devices that an installed backend may run on, best first.

    A GPU that is not there is left out where the CPU can do; elsewhere whatever uses it says what is missing.
    """
    known = find_backend(name)
    cpus = ["cpu"] if known.cpu_targets() else []
    gpus = known.uses_gpus(load_module(name)) and (not cpus or device_count() > 0)
    return (["cuda:0"] if gpus else []) + cpus


def runnable_targets(name: str, device: str) -> tuple[str, ...]:
    """The targets whose engines run on `cpu` or `cuda:<index>`, best first."""
    known = find_backend(name)
    return known.cpu_targets() if device == "cpu" else known.gpu_targets(describe_device(device_index(device)))


def default_target(name: str) -> str:
    """The target of a build that names none."""
    known = find_backend(name)
    return known.portable_target or (known.cpu_targets() or runnable_targets(name, "cuda:0"))[0]


class Identity(TypedDict):
    """What an engine's key takes from the backend and this installation; see `Bundle.keys`."""

    backend: str
    backend_version: str
    target: str
    latentrt: str
    options: Callable[[str], str]
    rewritten: bool


def identity(name: str, target: str, options: BuildOptions | None = None) -> Identity:
    """What an engine built here for this target depends on, beside the bundle.

    Raises:
        RequestError: there are options, and the backend takes none.
    """
    known = find_backend(name)
    chosen = options or BuildOptions()
    if chosen.given and not known.takes_options:
        takers = " and ".join(backend for backend, other in BACKENDS.items() if other.takes_options)
        raise RequestError(
            f"{', '.join(chosen.given)}: only {takers} has such options, {name} has none. Leave them out"
        )
    return {
        "backend": name,
        "backend_version": str(load_module(name).__version__),
        "target": target,
        "latentrt": version("latentrt"),
        "options": lambda engine: known.build_options(target, chosen.for_engine(engine)),
        "rewritten": known.rewrites_components,
    }
