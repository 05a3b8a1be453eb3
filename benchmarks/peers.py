"""Environments of peers whose libraries conflict with latentrt's: found, or installed on request."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from latentrt.benchmarks.contenders import CONTENDERS, OPTIMUM_PACKAGES, Contender
from latentrt.benchmarks.models import benchmark_home
from latentrt.runtime.errors import BenchmarkError

PYTHON = Path("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def peer_home(name: str) -> Path:
    """The folder in which `--install-peers` puts a peer's environment."""
    return benchmark_home() / "peers" / name


def parse_pythons(texts: Sequence[str]) -> dict[str, Path]:
    """Parse `NAME=PATH` into the Python interpreter of each peer.

    Raises:
        BenchmarkError: a text is not of that form, no peer has that name, or there is no file at the path.
    """
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        own = [peer for peer, contender in CONTENDERS.items() if contender.own_environment]
        if name not in own:
            raise BenchmarkError(f"--peer-python {text}: write NAME=PATH; names are {', '.join(own)}")
        if not Path(path).is_file():
            raise BenchmarkError(f"--peer-python {text}: {path} is no file. Name that environment's python")
        found[name] = Path(path).absolute()
    return found


def peer_python(contender: Contender, named: Mapping[str, Path]) -> Path:
    """The Python interpreter of a peer's own environment.

    Raises:
        BenchmarkError: none was given and none is installed; the message says how to install it.
    """
    python = named.get(contender.name) or peer_home(contender.name) / PYTHON
    if not python.is_file():
        raise BenchmarkError(
            f"{contender.name}: it needs an environment of its own, and there is none. Get it with: {contender.install}"
        )
    return python


def install_optimum() -> Path:
    """Install optimum-onnx's environment in the cache folder, with the torch version that is installed here.

    Raises:
        BenchmarkError: pip failed.
    """
    home = peer_home("optimum")
    torch = f"torch=={version('torch').partition('+')[0]}"
    packages = [torch if package.startswith("torch") else package for package in OPTIMUM_PACKAGES]
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(home / PYTHON), "-m", "pip", "install", "--quiet", *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"--install-peers: {' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    return home / PYTHON
