"""TensorRT's three Python modules, with stand-ins in place of their classes."""

from pathlib import Path
from types import ModuleType

import pytest
from cuda_stand_in import StandInCuda
from tensorrt_runner import BACKENDS, StandInTensorRT
from tensorrt_stand_ins import import_tensorrt_bindings


@pytest.fixture(scope="session")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Full TensorRT's classes."""
    return import_tensorrt_bindings(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENTRT_HOME", str(tmp_path / "cache" / "latentrt"))


@pytest.fixture(params=list(BACKENDS))
def tensorrt(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, tmp_path: Path
) -> StandInTensorRT:
    """TensorRT-RTX, the lean runtime, and full TensorRT, one after the other."""
    full = request.param == "tensorrt_bindings"
    module = request.getfixturevalue("bindings") if full else pytest.importorskip(request.param)
    return StandInTensorRT(monkeypatch, gpu, module, tmp_path)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, tmp_path: Path) -> StandInTensorRT:
    """TensorRT-RTX alone."""
    return StandInTensorRT(monkeypatch, gpu, pytest.importorskip("tensorrt_rtx"), tmp_path)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch, gpu: StandInCuda, bindings: ModuleType, tmp_path: Path) -> StandInTensorRT:
    """Full TensorRT alone."""
    return StandInTensorRT(monkeypatch, gpu, bindings, tmp_path)
