"""Real exports become real engines: TensorRT-RTX without a GPU, ONNX Runtime on this CPU."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from latentrt.cli.main import application
from latentrt.engine import tensorrt
from latentrt.engine.build import build_engines
from latentrt.engine.checks import Tensor, check_ports
from latentrt.runtime.backends import identity
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.specs import ComponentSpec
from latentrt.runtime.pipeline import Pipeline

ENGINES = {
    "text_encoder",
    "text_encoder_2",
    "unet_prologue",
    "unet_body",
    "vae_decoder",
    "vae_encoder",
    "sampler",
}

TENSORRT_RTX_MAGIC = b"vtrt"


def test_build_engine_builds_every_component_with_tensorrt_rtx(sdxl_copy_fp16: Path) -> None:
    options = ["--backend", "tensorrt-rtx", "--width", "64:128:160", "--images", "1:1:2"]
    command = ["build-engine", str(sdxl_copy_fp16), *options]
    found = CliRunner().invoke(application(), command, catch_exceptions=False)
    assert found.exit_code == 0
    result = json.loads(found.stdout.strip().splitlines()[-1])
    assert set(result["engines"]) == ENGINES
    (build,) = Bundle.open(sdxl_copy_fp16).builds().values()
    assert build.limits.bounds("width") == (64, 128, 160)
    assert build.engines["unet_body"].key.dims["rows"] == "1:2:4"
    for name, engine in build.engines.items():
        (file,) = engine.files
        assert (sdxl_copy_fp16 / file).read_bytes()[:4] == TENSORRT_RTX_MAGIC, f"{name} is no engine"
    kinds = build.engines["unet_body"].layers
    assert kinds["CONVOLUTION float16"] == 35
    heavy = {kind for kind in kinds if kind.startswith(("CONVOLUTION", "MATRIX_MULTIPLY", "ATTENTION"))}
    assert {kind.split()[1] for kind in heavy} == {"float16"}


@pytest.mark.slow
def test_static_engines_and_engines_of_several_sizes(sdxl_copy_fp16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT infers every fixed length in the exported graphs, too; each size has a profile of its own."""
    open_lengths: dict[str, list[str]] = {}

    def note(spec: ComponentSpec, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        tensors = {**inputs, **outputs}
        open_lengths[spec.name] = [name for name, tensor in tensors.items() if -1 in tensor.shape]
        check_ports(spec, inputs, outputs)

    monkeypatch.setattr(tensorrt, "check_ports", note)
    bundle = Bundle.open(sdxl_copy_fp16)
    static = bundle.manifest.limits.replace(width="128", height="64", images="1", tokens="77", guidance="on")
    assert set(build_engines(bundle, "tensorrt-rtx", static).engines) == ENGINES
    found = {name: names for name, names in open_lengths.items() if names}
    assert set(found) == {"text_encoder", "text_encoder_2", "sampler"}
    assert not {"noise_pred", "mask", "original", "sample"} & set(found["sampler"])
    several = bundle.manifest.limits.replace(profiles=["128x64", "64x128"], images="1", tokens="77")
    build = build_engines(bundle, "tensorrt-rtx", several)
    assert [len(build.engines[name].key.profiles) for name in ("unet_prologue", "unet_body", "vae_decoder")] == [
        2,
        4,
        2,
    ]
    bundle.check_build(build, **identity("tensorrt-rtx", build.target))


@pytest.mark.slow
def test_fp32_builds_too(sdxl_copy: Path) -> None:
    build = build_engines(Bundle.open(sdxl_copy), "tensorrt-rtx")
    assert set(build.engines) == ENGINES
    # float32 attention has no dedicated kernel, so all of it must be allowed to decompose.
    assert "attention layers: 22, decomposed for want of a dedicated kernel: 22" in build.engines["unet_body"].notes


def test_onnxruntime_engines_draw_what_the_onnx_files_draw(sdxl_copy: Path) -> None:
    request = {"steps": 4, "seed": 1, "sampler": "euler_a", "negative": "blue"}
    with Pipeline.load(sdxl_copy, "onnxruntime", "cpu") as pipe:
        plain = pipe.generate("a red circle", **request)
    build = build_engines(Bundle.open(sdxl_copy), "onnxruntime")
    with Pipeline.load(sdxl_copy) as pipe:
        built = pipe.generate("a red circle", **request)
        assert pipe.limits == build.limits
    np.testing.assert_allclose(built.latents, plain.latents, atol=1e-3)
    assert np.abs(np.asarray(built.images[0]).astype(int) - np.asarray(plain.images[0])).max() <= 1


def test_a_prologue_and_a_body_draw_what_the_whole_draws(sdxl_copy: Path) -> None:
    bundle = Bundle.open(sdxl_copy)
    request = {"steps": 4, "seed": [1, 2], "images": 2, "sampler": "euler_a", "negative": "blue " * 80}
    results, built = [], []
    for hoist in (False, True):
        built.append(build_engines(bundle, "onnxruntime", hoist=hoist))
        with Pipeline.load(bundle) as pipe:
            results += [pipe.generate("a red circle", **request), pipe.generate("a red circle", **request, guidance=1)]
    whole, parts = (build.engines for build in built)
    assert set(parts) == ENGINES
    assert set(whole) == ENGINES - {"unet_prologue", "unet_body"} | {"unet"}
    assert not parts["unet_prologue"].files.keys() & whole["unet"].files.keys()
    for one, other in zip(results[:2], results[2:], strict=True):
        np.testing.assert_allclose(other.latents, one.latents, rtol=1e-4, atol=1e-3)
        for first, second in zip(one.images, other.images, strict=True):
            assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1


def test_what_moves_out_of_the_loop(sdxl_copy_fp16: Path) -> None:
    build = build_engines(Bundle.open(sdxl_copy_fp16), "onnxruntime")
    prologue, body = build.engines["unet_prologue"], build.engines["unet_body"]
    # The keys and values of 11 cross-attentions, and the embedding of pooled text and time ids.
    assert len(prologue.key.outputs) == 23
    moved = "once per request instead of every step: 39 nodes, 0.07 M parameters; 23 tensors go to unet_body"
    assert prologue.notes == (moved,)
    assert set(prologue.key.inputs) == {"encoder_hidden_states", "text_embeds", "time_ids"}
    assert list(body.key.inputs) == ["sample", "timestep", *prologue.key.outputs]
    assert {text.partition("[")[0] for text in prologue.key.outputs.values()} == {"float16"}
    assert prologue.key.dims.keys() == {"rows", "tokens"}
    assert "Attention float16" not in prologue.layers
    assert body.layers["Attention float16"] == 22
    assert not list(sdxl_copy_fp16.glob("builds/*/.graphs"))


def test_other_vae_bounds_rebuild_the_vae_alone(sdxl_copy: Path) -> None:
    bundle = Bundle.open(sdxl_copy)
    first = build_engines(bundle, "onnxruntime")
    again = build_engines(bundle, "onnxruntime")
    assert again == first
    changed = build_engines(bundle, "onnxruntime", bundle.manifest.limits.replace(vae_images="1:1:2"))
    rebuilt = {name for name in ENGINES if changed.engines[name] != first.engines[name]}
    assert rebuilt == {"vae_decoder", "vae_encoder"}


def test_a_decoder_for_one_image_serves_larger_requests_in_slices(sdxl_copy: Path) -> None:
    bundle = Bundle.open(sdxl_copy)
    request = {"steps": 2, "seed": [1, 2, 3], "images": 3}
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        one_by_one = pipe.generate("a red circle", **request)
    build_engines(bundle, "onnxruntime", bundle.manifest.limits.replace(vae_images="1:1:2"))
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipe:
        in_twos = pipe.generate("a red circle", **request)
    for first, second in zip(one_by_one.images, in_twos.images, strict=True):
        assert np.abs(np.asarray(first).astype(int) - np.asarray(second)).max() <= 1
