"""Pipelines of the shared bundles, ours and diffusers', and copies of bundles that a test may change."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from latentrt.runtime import Pipeline


@pytest.fixture(scope="module")
def sdxl_pipeline(sdxl_bundle: Path) -> Iterator[Pipeline]:
    """latentrt's pipeline of the tiny SDXL checkpoint."""
    with Pipeline.load(sdxl_bundle, "onnxruntime", "cpu") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def sdxl_peer(sdxl_checkpoint: Path) -> StableDiffusionXLPipeline:
    """The tiny SDXL checkpoint as diffusers itself loads it."""
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def demo_pipeline(demo_bundle: Path) -> Iterator[Pipeline]:
    """latentrt's pipeline of the checkpoint that ships."""
    with Pipeline.load(demo_bundle, "onnxruntime", "cpu") as pipe:
        yield pipe


@pytest.fixture
def sdxl_copy(sdxl_bundle: Path, tmp_path: Path) -> Path:
    """The tiny fp32 bundle, this test's own."""
    return shutil.copytree(sdxl_bundle, tmp_path / "fp32")


@pytest.fixture
def sdxl_copy_fp16(sdxl_bundle_fp16: Path, tmp_path: Path) -> Path:
    """The tiny fp16 bundle, this test's own."""
    return shutil.copytree(sdxl_bundle_fp16, tmp_path / "fp16")
