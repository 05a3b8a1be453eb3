"""`latentrt doctor`: what is installed, what works, and how to fix what does not."""

import platform
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

import numpy as np
import typer
from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from latentrt.cli.ending import FAILED
from latentrt.cli.output import console, finish
from latentrt.runtime.backends.cuda_provider import find_fault, preload
from latentrt.runtime.backends.registry import BACKENDS, load_module
from latentrt.runtime.errors import BackendError

Status = Literal["ok", "absent", "problem"]
COLOURS = {"ok": "green", "absent": "yellow", "problem": "bold red"}

PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""ONNX Runtime's providers that latentrt uses."""

IDENTITY_MODEL = bytes.fromhex(
    "08083a390a120a017812017922084964656e746974793a001201675a0f0a0178120a0a08080112040a020801620f0a017912"
    "0a0a08080112040a02080142040a00100d"
)
"""A whole ONNX model, y = Identity(x) for one float; a provider works if it runs this."""

GPU_FACTS = ("index", "name", "compute_cap", "driver_version", "memory.total")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def doctor() -> None:
    """Show versions, GPU, driver, the providers that work, and conflicts; exit 1 if something is wrong."""
    findings = [Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}"), *examine()]
    table = Table(show_header=False)
    for finding in findings:
        # Texts hold brackets, as in latentrt[cpu], which rich would take for its own.
        status = f"[{COLOURS[finding.status]}]{finding.status}[/]"
        table.add_row(escape(finding.name), status, escape(finding.detail), escape(finding.remedy))
    console().print(table)
    problems = [finding.name for finding in findings if finding.status == "problem"]
    finish(problems=problems, findings=[asdict(finding) for finding in findings])
    if problems:
        raise typer.Exit(FAILED)


def examine() -> Iterator[Finding]:
    """Run every check."""
    versions = {name.lower().replace("_", "-"): version for name, version in _installed()}
    yield from check_duplicates(versions)
    yield from check_versions(versions)
    yield from check_gpu()
    backends = [check_backend(backend) for backend in sorted(BACKENDS)]
    yield from backends
    if not any(finding.status == "ok" for finding in backends):
        yield Finding("backends", "problem", "none works, so nothing can be drawn", "pip install 'latentrt[cpu]'")


def _installed() -> Iterator[tuple[str, str]]:
    for distribution in metadata.distributions():
        name: str | None = distribution.metadata["Name"]
        if name:
            yield name, distribution.version


def check_duplicates(versions: dict[str, str]) -> Iterator[Finding]:
    """Find onnxruntime beside onnxruntime-gpu, which install one module and overwrite each other's files."""
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if name in versions]
    if len(both) == 2:
        yield Finding(
            "onnxruntime and onnxruntime-gpu",
            "problem",
            "both are installed, and they overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu, then install latentrt[cpu] or latentrt[cuda]",
        )


def check_versions(versions: dict[str, str]) -> Iterator[Finding]:
    """Compare every installed dependency with latentrt's version range for it."""
    seen: set[str] = set()
    for text in metadata.requires("latentrt") or ():
        requirement = Requirement(text)
        name = requirement.name.lower()
        if name == "latentrt" or name in seen or name not in versions:
            continue
        seen.add(name)
        if requirement.specifier.contains(versions[name], prereleases=True):
            yield Finding(name, "ok", versions[name])
        else:
            remedy = f"pip install '{requirement.name}{requirement.specifier}'"
            yield Finding(name, "problem", f"{versions[name]}, needed {requirement.specifier}", remedy)


def check_gpu() -> Iterator[Finding]:
    """Find each GPU and its driver, as nvidia-smi reports them."""
    query = ["nvidia-smi", f"--query-gpu={','.join(GPU_FACTS)}", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except FileNotFoundError:
        yield Finding(
            "gpu", "absent", "no NVIDIA driver: nvidia-smi is not there", "engines still build for TensorRT-RTX"
        )
        return
    except (subprocess.SubprocessError, OSError) as error:
        yield Finding("gpu", "problem", f"nvidia-smi fails: {error}", "reinstall the NVIDIA driver")
        return
    lines = found.stdout.strip().splitlines()
    if not lines:
        yield Finding("gpu", "absent", "the NVIDIA driver finds no GPU", "engines still build for TensorRT-RTX")
    for line in lines:
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != len(GPU_FACTS):
            yield Finding("gpu", "problem", f"nvidia-smi fails: {line}", "reinstall the NVIDIA driver")
            return
        index, name, capability, driver, memory = parts
        yield Finding(f"gpu {index}", "ok", f"{name}, compute capability {capability}, driver {driver}, {memory}")


def check_backend(backend: str) -> Finding:
    """Check that a backend's library imports and, for ONNX Runtime, which providers run a model."""
    try:
        library = load_module(backend)
    except BackendError as error:
        return Finding(f"backend {backend}", "absent", "not installed", str(error).partition("Install it with: ")[2])
    if backend != "onnxruntime":
        return Finding(f"backend {backend}", "ok", f"{library.__version__}")
    preload(library)
    working = [name for name in library.get_available_providers() if name in PROVIDERS and _runs(library, name)]
    broken = "CUDAExecutionProvider" in library.get_available_providers() and "CUDAExecutionProvider" not in working
    detail = f"{library.__version__}, working providers: {', '.join(working) or 'none'}"
    if broken:
        fault = find_fault()
        return Finding(f"backend {backend}", "problem", f"{detail}; {fault.detail}", fault.remedy)
    if not working:
        return Finding(
            f"backend {backend}",
            "problem",
            detail,
            f"pip install --force-reinstall 'latentrt[{BACKENDS[backend].extras[0]}]'",
        )
    return Finding(f"backend {backend}", "ok", detail)


def _runs(library: Any, provider: str) -> bool:
    options = library.SessionOptions()
    options.log_severity_level = 4
    try:
        session = library.InferenceSession(IDENTITY_MODEL, options, providers=[provider], enable_fallback=0)
        (answer,) = session.run(None, {"x": np.array([7], np.float32)})
    except Exception:  # whatever it raises, the provider does not work
        return False
    return bool(session.get_providers()[0] == provider and answer == 7)
