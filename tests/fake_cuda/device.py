"""Builds the fake libraries, makes an environment with onnxruntime-gpu, and runs programs on the fake device.

Both are kept in a folder of their own between runs: `$LATENTRT_TEST_CACHE`, or pytest's cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exports import made_once
from fake_cuda.trace import Part, read_trace

SOURCES = Path(__file__).parent / "sources"
LIBRARIES = {
    "libcudart.so.13": "cudart.cpp",
    "libcublas.so.13": "cublas.cpp",
    "libcublasLt.so.13": "cublaslt.cpp",
    "libcudnn.so.9": "cudnn.cpp",
    "libcuda.so.1": "driver.cpp",
    "libcurand.so.10": "driver.cpp",
}
HEADERS = ("nvidia-cuda-runtime>=13,<14", "nvidia-cuda-crt>=13,<14")
ONNXRUNTIME = ("onnxruntime-gpu>=1.31,<1.32",)
CAPABILITIES = ("8.9", "9.0", "12.0")


class Missing(Exception):
    """Something this machine lacks: the tests skip, and say what."""


def build_libraries(cache: Path) -> Path:
    """The folder of the fake libraries, compiled where their sources have changed.

    Raises:
        Missing: no g++, or the headers cannot be downloaded.
    """
    if shutil.which("g++") is None:
        raise Missing("the fake CUDA device is compiled with g++, which is not here")
    headers = made_once(cache / f"headers-{_digest(*HEADERS)}", lambda target: _install(HEADERS, target))
    include = headers / "nvidia" / "cu13" / "include"
    sources = [file.read_text() for file in sorted(SOURCES.iterdir())]
    return made_once(cache / f"libraries-{_digest(*sources)}", lambda target: _compile(target, include))


def make_environment(cache: Path) -> Path:
    """The Python of a virtual environment in which `onnxruntime` is onnxruntime-gpu, and all else is this one's.

    Raises:
        Missing: onnxruntime-gpu cannot be downloaded.
    """
    name = f"environment-{_digest(*ONNXRUNTIME, sys.version, sysconfig.get_path('purelib'))}"

    def make(target: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", target], check=True)
        packages = next(target.glob("lib/python*/site-packages"))
        _install(ONNXRUNTIME, packages)
        # Folders of a .pth file come after the environment's own, so its onnxruntime is found first.
        ours = sysconfig.get_path("purelib")
        (packages / "tests.pth").write_text(f"import site; site.addsitedir({ours!r})\n")

    return made_once(cache / name, make) / "bin" / "python"


def _install(packages: Sequence[str], target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--target", target, *packages], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise Missing(f"pip cannot install {', '.join(packages)}: {last}")


def _compile(target: Path, include: Path) -> None:
    target.mkdir(parents=True)
    for library, source in LIBRARIES.items():
        # The provider asks for symbols with the library's name as their version.
        version = target / "version.map"
        version.write_text(f"{library} {{ global: *; }};")
        options = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread", f"-I{include}"]
        link = [f"-Wl,-soname,{library}", f"-Wl,--version-script={version}"]
        base = [] if source == "cudart.cpp" else [target / "libcudart.so.13"]
        command = ["g++", *options, SOURCES / source, "-o", target / library, *link, *base]
        subprocess.run(command, check=True)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class FakeDevice:
    """The libraries and a Python to run on them; with `python=sys.executable`, without onnxruntime-gpu."""

    libraries: Path
    python: Path

    def run(self, log: Path, program: str, *arguments: object, capability: str = "8.9") -> tuple[str, list[Part]]:
        """Run a program of this folder in a process of its own; what it printed, and the parts of its log.

        Raises:
            RuntimeError: the program failed.
        """
        log.unlink(missing_ok=True)
        tests = Path(__file__).parents[1]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.libraries),
            "PYTHONPATH": str(tests),
            "FAKE_CUDA_LOG": str(log),
            "FAKE_CUDA_CAPABILITY": capability,
        }
        command = [self.python, "-m", f"fake_cuda.{program}", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout, read_trace(log)
