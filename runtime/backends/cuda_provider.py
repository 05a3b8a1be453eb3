"""ONNX Runtime's CUDA provider: its libraries, its options, and why it does not start where it does not."""

import contextlib
import ctypes
import io
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

from latentrt.runtime.backends import cuda
from latentrt.runtime.errors import BackendError

logger = logging.getLogger(__name__)

WINDOWS = sys.platform == "win32"
DRIVER = "nvcuda.dll" if WINDOWS else "libcuda.so.1"
LIBRARIES = (
    ("cudart64_13.dll", "cublasLt64_13.dll", "cublas64_13.dll", "curand64_10.dll", "cudnn64_9.dll")
    if WINDOWS
    else ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
)
"""What the provider of onnxruntime-gpu 1.31 is linked to, or loads for its first convolution."""

SEARCHES = ("HEURISTIC", "EXHAUSTIVE", "DEFAULT")
"""How cuDNN's algorithm for a convolution is found. Only EXHAUSTIVE measures times, so its choice, and with it the last
bits of a picture, may differ from process to process."""

SEARCH_VARIABLE = "LATENTRT_CUDNN_SEARCH"
LIBRARIES_REMEDY = "Install them with: pip install 'latentrt[cuda]'"


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the provider does not start on this machine, and what to do."""

    detail: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.detail}. {self.remedy}"


def provider_options(index: int | str) -> dict[str, str]:
    """The options of every session on a GPU, when it is built as when it runs.

    float32 stays float32 (no TF32), the same seed draws the same bits, a convolution adds its bias itself, and memory
    grows by what is needed rather than by powers of two.

    Raises:
        BackendError: `LATENTRT_CUDNN_SEARCH` is none of `SEARCHES`.
    """
    search = os.environ.get(SEARCH_VARIABLE, SEARCHES[0])
    if search not in SEARCHES:
        raise BackendError(f"{SEARCH_VARIABLE} {search!r}: must be one of {', '.join(SEARCHES)}")
    return {
        "device_id": str(index or 0),
        "use_tf32": "0",
        "cudnn_conv_algo_search": search,
        "fuse_conv_bias": "1",
        "arena_extend_strategy": "kSameAsRequested",
    }


def preload(library: Any) -> None:
    """Load CUDA's libraries from the wheels that the extra `cuda` brings; onnxruntime itself does not look there.

    What onnxruntime prints about those that are missing goes to the log, as stdout belongs to the caller.
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        library.preload_dlls()
    if said.getvalue():
        logger.debug("preload_dlls: %s", " ".join(said.getvalue().split()))


def find_fault() -> Fault:
    """The first reason for which the provider cannot start, from the driver up."""
    if not _loads(DRIVER):
        return Fault(f"no NVIDIA driver is installed ({DRIVER} cannot be loaded)", cuda.DRIVER_REMEDY)
    missing = [name for name in LIBRARIES if not _loads(name)]
    if missing:
        return Fault(f"the driver is there, but not CUDA's {', '.join(missing)}", LIBRARIES_REMEDY)
    try:
        if cuda.call("cudaGetDeviceCount") == 0:
            return Fault("the driver is there, but it shows no GPU to this process", "See what nvidia-smi says")
    except BackendError as error:
        return Fault(f"the driver does not serve CUDA 13 ({error})", cuda.DRIVER_REMEDY)
    return Fault("driver and libraries are there", "Run with ONNX Runtime's log on to see what it lacks")


def fallback(what: str) -> str:
    """The message for a session that fell back to the CPU."""
    return f"{what}: ONNX Runtime fell back to the CPU: {find_fault()}"


def _loads(library: str) -> bool:
    """Whether the system's loader finds a library, or has it already."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
