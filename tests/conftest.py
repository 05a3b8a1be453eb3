"""What all tests share: checkpoints, their exports, a stand-in GPU. README.md: what each costs, and when to use it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cuda_stand_in import StandInCuda

pytest_plugins = ["parallel"]
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's own bundles and caches."""
    os.environ["LATENTRT_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This run's folder, the same one in every process of it; what lies in it is made with `exports.made_once`."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"


@pytest.fixture(scope="session")
def sdxl_checkpoint(shared_folder: Path) -> Path:
    """A tiny SDXL checkpoint; read only."""
    from exports import shared_checkpoint

    return shared_checkpoint(shared_folder, "sdxl")


@pytest.fixture(scope="session")
def sdxl_configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs and tokenizers of that checkpoint, without weights; read only."""
    from checkpoints import write_sdxl

    return write_sdxl(tmp_path_factory.mktemp("configs") / "sdxl", weights=False)


@pytest.fixture(scope="session")
def sdxl_bundle(shared_folder: Path) -> Path:
    """The tiny checkpoint exported in fp32, compared with torch at every case; read only."""
    from exports import shared_bundle

    return shared_bundle(shared_folder, "sdxl")


@pytest.fixture(scope="session")
def sdxl_bundle_fp16(shared_folder: Path) -> Path:
    """The tiny checkpoint exported in fp16, compared with torch at every case; read only."""
    from exports import shared_bundle

    return shared_bundle(shared_folder, "sdxl", "fp16")


@pytest.fixture(scope="session")
def family(shared_folder: Path) -> Callable[[str], tuple[Path, Path]]:
    """Family -> a tiny checkpoint of it and its fp32 bundle, made when first asked for; read only."""

    def made(name: str) -> tuple[Path, Path]:
        from exports import shared_bundle, shared_checkpoint

        return shared_checkpoint(shared_folder, name), shared_bundle(shared_folder, name)

    return made


@pytest.fixture(scope="session")
def demo_bundle(shared_folder: Path) -> Path:
    """The checkpoint that ships, exported in fp32; read only."""
    from exports import shared_bundle

    return shared_bundle(shared_folder, "demo")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> "StandInCuda":
    """A stand-in for CUDA's bindings, whose device memory is host memory."""
    from cuda_stand_in import StandInCuda

    from latentrt.runtime.backends import cuda

    stand_in = StandInCuda()
    monkeypatch.setattr(cuda, "bindings", lambda: stand_in)
    return stand_in
