"""The fake device, made once for all runs of this checkout."""

import os
from pathlib import Path

import pytest
from fake_cuda.device import FakeDevice, Missing, build_libraries, make_environment


@pytest.fixture(scope="session")
def fake_device(request: pytest.FixtureRequest) -> FakeDevice:
    """Programs on it have onnxruntime-gpu in place of onnxruntime."""
    given = os.environ.get("LATENTRT_TEST_CACHE")
    cache = Path(given) / "fake_cuda" if given else Path(request.config.cache.mkdir("fake_cuda"))
    try:
        return FakeDevice(build_libraries(cache), make_environment(cache))
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def demo_bundle_fp16(shared_folder: Path) -> Path:
    """The checkpoint that ships, exported in fp16; read only."""
    from exports import shared_bundle

    return shared_bundle(shared_folder, "demo", "fp16")
