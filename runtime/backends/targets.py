"""Which library serves a backend, its version, and the machines that an engine of it runs on.

A target names everything outside the bundle that an engine depends on, and is part of its key and of its folder:

    onnxruntime    cpu-x86_64-avx512             layouts are chosen for the vector width
                   cuda-sm89                     fusions are chosen for the GPU's generation
    tensorrt       sm89-linux-geforce-rtx-4090   kernels are timed on one GPU model, for one operating system
    tensorrt-rtx   sm80+                         compute capability 8.0 and newer, any operating system
                   sm75, sm86, sm89, ...         one compute capability alone
"""

import importlib
import platform
import re
from types import ModuleType

import numpy as np

from latentrt.runtime.errors import BackendError

MODULES = {"onnxruntime": "onnxruntime", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"onnxruntime": "cpu", "tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}

RTX_DEFAULT = "sm80+"
"""What TensorRT-RTX builds for when no compute capability is named: 8.0, 8.6, 8.9 and 12.x."""


def check_backend(backend: str) -> None:
    """Raise `BackendError` where no backend has this name."""
    if backend not in MODULES:
        raise BackendError(f"backend {backend!r} is unknown; the known ones are {', '.join(MODULES)}")


def load_module(backend: str) -> ModuleType:
    """The Python module of a backend's library.

    Raises:
        BackendError: the backend is unknown, or its library is not installed or cannot be loaded.
    """
    check_backend(backend)
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as error:
        remedy = f"Install it with: pip install 'latentrt[{EXTRAS[backend]}]'"
        raise BackendError(f"backend {backend}: {MODULES[backend]} cannot be imported ({error}). {remedy}") from error


def backend_version(backend: str) -> str:
    """Version of a backend's library, as its module says it."""
    return str(load_module(backend).__version__)


def runnable_targets(backend: str, device: str) -> tuple[str, ...]:
    """Targets whose engines run on `cpu` or `cuda:<index>`, best first; the first is what a build makes by default."""
    check_backend(backend)
    if device == "cpu":
        return (cpu_target(),) if backend == "onnxruntime" else ()
    from latentrt.runtime.backends.cuda import describe_device

    gpu = describe_device(int(device.partition(":")[2] or 0))
    capability = f"sm{gpu.major}{gpu.minor}"
    if backend == "onnxruntime":
        return (f"cuda-{capability}",)
    if backend == "tensorrt":
        return (f"{capability}-{platform.system().lower()}-{slug(gpu.name)}",)
    # TensorRT-RTX has no engines for 9.0 and 10.x.
    return (RTX_DEFAULT, capability) if gpu.major in (8, 12) else (capability,) if capability == "sm75" else ()


def default_target(backend: str) -> str:
    """The target of a build that names none: TensorRT-RTX's portable one, this CPU, or the first GPU for TensorRT."""
    check_backend(backend)
    if backend == "tensorrt-rtx":
        return RTX_DEFAULT
    return runnable_targets(backend, "cpu" if backend == "onnxruntime" else "cuda:0")[0]


def cpu_target() -> str:
    """`cpu-<architecture>-<vector width>`; ONNX Runtime blocks convolution weights by the vector width."""
    return f"cpu-{platform.machine().lower()}-{vector_width()}"


def vector_width() -> str:
    """The widest vector instructions of this CPU that ONNX Runtime chooses data layouts for."""
    features = np.show_config(mode="dicts") or {}
    found = set(features.get("SIMD Extensions", {}).get("found", ()))
    # numpy 2.4 began to name the x86-64 levels instead of single features.
    if found & {"X86_V4", "AVX512F"}:
        return "avx512"
    return "avx2" if found & {"X86_V3", "AVX2"} else "base"


def slug(text: str) -> str:
    """A name for folders: `NVIDIA GeForce RTX 4090` becomes `geforce-rtx-4090`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("nvidia", "")).strip("-")
