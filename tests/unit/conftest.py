"""The bundle that most unit tests are about."""

from pathlib import Path

import pytest
from hollow_bundles import write_hollow_bundle

from latentrt.runtime.bundle import Bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A hollow bundle of full-size SDXL, this test's own."""
    return write_hollow_bundle(tmp_path / "my-bundle")
