"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def sdxl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL checkpoint, written once per run; read only."""
    from checkpoints import write_sdxl

    return write_sdxl(tmp_path_factory.mktemp("checkpoint") / "sdxl")
