"""Fixtures shared by all tests: a tiny checkpoint and its exports, each made once per run and only read."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's own bundles and caches."""
    os.environ["LATENTRT_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def sdxl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL checkpoint, written once per run; read only."""
    from checkpoints import write_sdxl

    return write_sdxl(tmp_path_factory.mktemp("checkpoint") / "sdxl")


@pytest.fixture(scope="session")
def sdxl_bundle(sdxl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported in fp32, compared with torch at every case; read only."""
    return _export(sdxl_checkpoint, tmp_path_factory.mktemp("bundle") / "fp32", "fp32")


@pytest.fixture(scope="session")
def sdxl_bundle_fp16(sdxl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint exported in fp16, compared with torch at every case; read only."""
    return _export(sdxl_checkpoint, tmp_path_factory.mktemp("bundle") / "fp16", "fp16")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Family -> a tiny checkpoint of it and its fp32 bundle, made when first asked for; read only."""

    @cache
    def made(name: str) -> tuple[Path, Path]:
        from family_bundles import make_family

        return make_family(tmp_path_factory.mktemp(name), name)

    return made


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that ships, exported in fp32; read only."""
    from latentrt.demo import CHECKPOINT
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.exporter import export_bundle

    folder = tmp_path_factory.mktemp("demo") / "bundle"
    return export_bundle(Checkpoint.open(CHECKPOINT), folder, precision="fp32", depth="quick").path


def _export(checkpoint: Path, target: Path, precision: str) -> Path:
    from latentrt.export.checkpoint import Checkpoint
    from latentrt.export.exporter import export_bundle

    return export_bundle(Checkpoint.open(checkpoint), target, precision=precision).path
