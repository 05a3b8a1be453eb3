"""Targets: the machines that an engine runs on, by name.

A target names everything outside the bundle that an engine depends on, and is part of its key and of its folder:

    onnxruntime    cpu-x86_64-avx512             layouts are chosen for the vector width
                   cuda-sm89                     fusions are chosen for the GPU's generation
    tensorrt       sm89-linux-geforce-rtx-4090   kernels are timed on one GPU model, for one operating system
    tensorrt-rtx   sm80+                         compute capability 8.0 and newer, any operating system
                   sm75, sm86, sm89, ...         one compute capability alone
                   sm86+sm89                     these compute capabilities
"""

import platform
import re
from collections.abc import Sequence

import numpy as np

from latentrt.runtime.backends.cuda import Device

RTX_DEFAULT = "sm80+"
"""The portable target of TensorRT-RTX: compute capabilities 8.0, 8.6, 8.9 and 12.x."""


def cpu_target() -> str:
    """`cpu-<architecture>-<vector width>`; ONNX Runtime blocks convolution weights by the vector width."""
    return f"cpu-{platform.machine().lower()}-{vector_width()}"


def generation_targets(gpu: Device) -> tuple[str, ...]:
    """ONNX Runtime's target for a GPU's generation: `cuda-sm<capability>`."""
    return (f"cuda-{_capability(gpu)}",)


def gpu_model_targets(gpu: Device) -> tuple[str, ...]:
    """TensorRT's target for a GPU's model: `sm<capability>-<operating system>-<name>`."""
    return (f"{_capability(gpu)}-{platform.system().lower()}-{slug(gpu.name)}",)


def capability_targets(gpu: Device) -> tuple[str, ...]:
    """TensorRT-RTX's targets for a GPU's compute capability; there are none for 9.0 and 10.x."""
    capability = _capability(gpu)
    return (capability, RTX_DEFAULT) if gpu.major in (8, 12) else (capability,) if capability == "sm75" else ()


def capabilities(target: str) -> tuple[str, ...]:
    """The compute capabilities in a target of TensorRT-RTX, such as `sm86+sm89`; another target is its own only one."""
    return tuple(target.split("+")) if re.fullmatch(r"sm\d+(\+sm\d+)+", target) else (target,)


def normal_target(target: str) -> str:
    """A target as builds are named after it: several compute capabilities in order, each once."""
    listed = capabilities(target)
    return target if len(listed) == 1 else "+".join(sorted(set(listed), key=lambda name: int(name[2:])))


def suitability(target: str, runnable: Sequence[str]) -> tuple[int, int] | None:
    """How well a build's target suits a machine that runs these targets; lower is better, None if it does not run.

    Of builds for several compute capabilities, the one for the fewest is the best.
    """
    listed = capabilities(target)
    places = [runnable.index(name) for name in listed if name in runnable]
    return (min(places), len(listed)) if places else None


def _capability(gpu: Device) -> str:
    return f"sm{gpu.major}{gpu.minor}"


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
