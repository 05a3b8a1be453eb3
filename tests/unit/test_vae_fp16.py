"""What the exact fp16 VAE is measured on, what it refuses, and what islands mean to a builder."""

import numpy as np
import pytest
import torch
from checkpoints import write_sdxl
from PIL import Image
from typer.testing import CliRunner
from vaes import inputs, tiny_vae

from latentrt.cli.main import application
from latentrt.engine.checks import Layer, check_precision
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.exporter import component_precisions
from latentrt.export.numerics import vae_scaling
from latentrt.export.numerics.vae_samples import synthetic_images, vae_samples
from latentrt.export.numerics.vae_scaling import fit_vae_to_fp16
from latentrt.export.numerics.vae_signals import vae_signals
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.errors import CheckpointError, NumericsError, ParityError, PrecisionError, RequestError


def test_samples_are_images_their_latents_and_noise_at_the_latents_scale(tmp_path):
    vae = tiny_vae()
    Image.effect_noise((100, 40), 50).convert("RGB").save(tmp_path / "mine.png")
    (tmp_path / "notes.txt").write_text("no image")
    images = vae_samples(vae, "vae_encoder", 64, tmp_path)
    assert [tuple(image.shape) for image in images] == [(1, 3, 64, 64)] * 4
    assert all(image.dtype == torch.float32 and -1 <= image.min() < image.max() <= 1 for image in images)
    assert [tuple(image.shape) for image in vae_samples(vae, "vae_encoder", 1024)] == [(1, 3, 192, 192)] * 3
    latents = vae_samples(vae, "vae_decoder", 64, tmp_path)
    assert [tuple(latent.shape) for latent in latents] == [(1, 4, 8, 8)] * 5
    with torch.no_grad():
        assert torch.equal(latents[3], vae.encode(images[3]).latent_dist.mean)
    assert latents[4].std().item() == pytest.approx(1 / 0.13025, rel=0.2)


def test_synthetic_images_differ_and_use_the_whole_range():
    images = synthetic_images(64)
    assert all(image.min() < -0.98 and image.max() > 0.98 for image in images)
    assert len({image.tobytes() for image in images}) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, r"^--samples .*: holds no image; it needs files ending in \.png, \.jpg, \.jpeg, \.webp, \.bmp$"),
        ("bad.png", r"^--samples: .*bad\.png is not a readable image .*\. Remove it from the folder$"),
    ],
)
def test_folders_that_are_no_samples(tmp_path, name, message):
    if name:
        (tmp_path / name).write_bytes(b"hello")
    with pytest.raises(RequestError, match=message):
        vae_samples(tiny_vae(), "vae_encoder", 64, tmp_path)


def test_values_that_are_not_finite_in_float32():
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = torch.nan
    message = r"^decoder\.mid_block\.resnets\.0\.conv1: gives values that are not finite in float32 already, .* again$"
    with pytest.raises(NumericsError, match=message):
        fit_vae_to_fp16(vae, "vae_decoder", inputs("vae_decoder"))


def test_a_block_of_an_unknown_kind():
    vae = tiny_vae()
    vae.decoder.up_blocks[1].resnets[0] = torch.nn.Identity()
    message = r"^decoder\.up_blocks\.1\.resnets\.0: a Identity of a kind .* Export with --vae-precision fp32$"
    with pytest.raises(CheckpointError, match=message):
        vae_signals(vae, "vae_decoder")


def test_scaling_that_is_not_exact_is_found(monkeypatch):
    vae = tiny_vae()
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(2.0**20)

    def forget_epsilons(signals, exponents):
        signals.network.encoder.conv_in.weight.data.mul_(2.0**-10)

    monkeypatch.setattr(vae_scaling, "fold", forget_epsilons)
    message = r"^vae_encoder: scaling by powers of two changed the float32 outputs by .* \(relative\), allowed 1e-06\."
    with pytest.raises(ParityError, match=message):
        fit_vae_to_fp16(vae, "vae_encoder", inputs("vae_encoder"))


def layers(*dtypes):
    return [Layer("CONVOLUTION", f"conv{index}", dtype) for index, dtype in enumerate(dtypes)]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    checkpoint = Checkpoint.open(write_sdxl(tmp_path_factory.mktemp("checkpoint"), weights=False), random_seed=0)
    precisions = component_precisions("fp16", "auto")
    return component_specs(checkpoint.model, Limits.around(128), precisions)["vae_decoder"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_float32_layers_as_declared_are_right(decoder, count):
    check_precision(decoder, "fp16", layers("float16", *["float32"] * count), count)


@pytest.mark.parametrize(
    ("dtypes", "declared", "message"),
    [
        (("float16", "float32", "float32"), 1, "2 of 3 such layers differ, the bundle declares 1 as float32. Export"),
        (("float16", "float32"), 0, "conv1 runs in float32, fp16 needs float16; 1 of 2 such layers differ. Export"),
        (
            ("float16", "bfloat16"),
            1,
            "conv1 runs in bfloat16, fp16 needs float16; 1 of 2 such layers differ, the bundle",
        ),
        (
            ("float16", "float16"),
            2,
            "no layer runs in float32, the bundle declares 2 that must, because fp16 overflows",
        ),
    ],
)
def test_float32_layers_that_nobody_declared_or_that_are_missing(decoder, dtypes, declared, message):
    with pytest.raises(PrecisionError) as caught:
        check_precision(decoder, "fp16", layers(*dtypes), declared)
    assert message in str(caught.value)


def test_noise_is_the_same_every_time():
    first, second = (vae_samples(tiny_vae(), "vae_decoder", 64) for _ in range(2))
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("command", ["export", "build-engine"])
def test_the_command_line_hands_precision_and_samples_on(command, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def stop(checkpoint, target, **options):
        raise Reached(options["vae_precision"], options["samples"])

    monkeypatch.setattr("latentrt.export.exporter.export_bundle", stop)
    folder = write_sdxl(tmp_path / "checkpoint", weights=False)
    options = ["--random-weights", "0", "--vae-precision", "fp32", "--samples", str(tmp_path)]
    arguments = [command, str(folder), "-o", str(tmp_path / "bundle"), *options]
    arguments += ["--backend", "onnxruntime"] if command == "build-engine" else []
    with pytest.raises(Reached) as caught:
        CliRunner().invoke(application(), arguments, catch_exceptions=False)
    assert caught.value.args == ("fp32", tmp_path)
