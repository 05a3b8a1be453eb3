"""Real exports become real engines: TensorRT-RTX without a GPU, ONNX Runtime on this CPU."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from latentrt.cli.main import application
from latentrt.engine.build import build_engines
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.pipeline import Pipeline

COMPONENTS = {"text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder", "sampler"}

TENSORRT_RTX_MAGIC = b"vtrt"


@pytest.fixture
def fp16(sdxl_bundle_fp16: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sdxl_bundle_fp16, tmp_path / "fp16")


@pytest.fixture
def fp32(sdxl_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sdxl_bundle, tmp_path / "fp32")


def test_build_engine_builds_every_component_with_tensorrt_rtx(fp16: Path) -> None:
    command = ["build-engine", str(fp16), "--backend", "tensorrt-rtx", "--width", "64:128:160", "--images", "1:1:2"]
    found = CliRunner().invoke(application(), command, catch_exceptions=False)
    assert found.exit_code == 0
    result = json.loads(found.stdout.strip().splitlines()[-1])
    assert set(result["engines"]) == COMPONENTS
    (build,) = Bundle.open(fp16).builds().values()
    assert build.limits.bounds("width") == (64, 128, 160)
    assert build.engines["unet"].key.dims["rows"] == "1:2:4"
    for name, engine in build.engines.items():
        (file,) = engine.files
        assert (fp16 / file).read_bytes()[:4] == TENSORRT_RTX_MAGIC, f"{name} is no engine"
    kinds = build.engines["unet"].layers
    assert kinds["CONVOLUTION float16"] == 35
    heavy = {kind for kind in kinds if kind.startswith(("CONVOLUTION", "MATRIX_MULTIPLY", "ATTENTION"))}
    assert {kind.split()[1] for kind in heavy} == {"float16"}


def test_fp32_builds_too(fp32: Path) -> None:
    build = build_engines(Bundle.open(fp32), "tensorrt-rtx")
    assert set(build.engines) == COMPONENTS
    # float32 attention has no dedicated kernel, so all of it must be allowed to decompose.
    assert "attention layers: 22, decomposed for want of a dedicated kernel: 22" in build.engines["unet"].notes


def test_onnxruntime_engines_draw_what_the_onnx_files_draw(fp32: Path) -> None:
    request = {"steps": 4, "seed": 1, "sampler": "euler_a", "negative": "blue"}
    with Pipeline.load(fp32, "onnxruntime", "cpu") as pipe:
        plain = pipe.generate("a red circle", **request)
    build = build_engines(Bundle.open(fp32), "onnxruntime")
    with Pipeline.load(fp32) as pipe:
        built = pipe.generate("a red circle", **request)
        assert pipe.limits == build.limits
    np.testing.assert_allclose(built.latents, plain.latents, atol=1e-3)
    assert np.abs(np.asarray(built.images[0]).astype(int) - np.asarray(plain.images[0])).max() <= 1


def test_other_vae_bounds_rebuild_the_vae_alone(fp32: Path) -> None:
    bundle = Bundle.open(fp32)
    first = build_engines(bundle, "onnxruntime")
    again = build_engines(bundle, "onnxruntime")
    assert again == first
    changed = build_engines(bundle, "onnxruntime", bundle.manifest.limits.replace(vae_images="1:1:2"))
    rebuilt = {name for name in COMPONENTS if changed.engines[name] != first.engines[name]}
    assert rebuilt == {"vae_decoder", "vae_encoder"}


def test_a_decoder_for_one_image_serves_larger_requests_in_slices(fp32: Path) -> None:
    bundle = Bundle.open(fp32)
    request = {"steps": 2, "seed": [1, 2, 3], "images": 3}
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        one_by_one = pipe.generate("a red circle", **request)
    build_engines(bundle, "onnxruntime", bundle.manifest.limits.replace(vae_images="1:1:2"))
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        in_twos = pipe.generate("a red circle", **request)
    for first, second in zip(one_by_one.images, in_twos.images, strict=True):
        assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1
