"""Describes where a run happened: machine, GPUs, driver, versions, commit."""

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from latentrt.benchmarks.results import Environment
from latentrt.runtime.backends.cuda import describe_device, device_count
from latentrt.runtime.backends.onnxruntime import usable_cores

PACKAGES = (
    "latentrt",
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-python",
    "numpy",
)
GPU_FACTS = ("name", "compute_cap", "driver_version", "memory.total", "clocks.max.sm", "power.limit", "vbios_version")
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_INFO = Path("/proc/meminfo")


def describe(command: str, threads: int) -> Environment:
    """The environment of this process, as a record."""
    return Environment(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        commit=commit(Path(__file__).parent),
        machine=machine(),
        gpus=tuple(gpus()),
        versions=versions(),
        threads=threads,
    )


def commit(folder: Path) -> str:
    """The commit of the source tree, followed by `+` if files differ from it; empty for an installed package."""
    found = _output(["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"])
    changed = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return found + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """Processor, number of cores that this process may use, memory, system, load."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": _field(CPU_INFO, "model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_gb": round(int((_field(MEMORY_INFO, "MemTotal") or "0 kB").split()[0]) / 1e6, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": None if load is None else round(load, 2),
    }


def gpus() -> list[dict[str, str]]:
    """Every NVIDIA GPU as nvidia-smi reports it, or where that is missing CUDA; none without a driver."""
    query = f"--query-gpu={','.join(GPU_FACTS)}"
    lines = _output(["nvidia-smi", query, "--format=csv,noheader"]).splitlines()
    if lines:
        return [dict(zip(GPU_FACTS, (part.strip() for part in line.split(",")), strict=False)) for line in lines]
    found = map(describe_device, range(device_count()))
    return [{"name": gpu.name, "compute_cap": f"{gpu.major}.{gpu.minor}"} for gpu in found]


def versions() -> dict[str, str]:
    """Versions of those of `PACKAGES` that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _output(command: Sequence[str]) -> str:
    """The output of a program; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _field(file: Path, name: str) -> str:
    """The value of the first line `name: value` in a file of /proc."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
