"""One file, LoRAs and TAESD, through the command line to the picture that diffusers draws with merged weights."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import Run, run_main
from diffusers import StableDiffusionXLPipeline
from hollow_bundles import write_hollow_bundle
from loras import CONVOLUTIONS, LAYERS, TEXTS, expected, write_lora
from originals import write_single_file
from typer.testing import CliRunner
from vaes import tiny_taesd

from latentrt.cli.main import application, build_engine
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.component import ComponentExporter
from latentrt.export.modules import MODULES
from latentrt.export.tolerance import relative_error
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.components import component_specs
from latentrt.runtime.bundle.limits import Limits
from latentrt.runtime.pipeline import Pipeline

CHANGES = (*LAYERS, *CONVOLUTIONS, *TEXTS)
REQUEST = {"steps": 4, "width": 128, "height": 96, "guidance": 4.0, "seed": 3}


@pytest.fixture(scope="module")
def files(sdxl_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the export is given."""
    folder = tmp_path_factory.mktemp("sources")
    write_single_file(sdxl_checkpoint, folder / "model.safetensors")
    write_lora(folder / "style.safetensors", "kohya original", CHANGES, alpha=1.5)
    write_lora(folder / "face.safetensors", "peft", CHANGES, seed=100)
    tiny_taesd().save_pretrained(folder / "taesd")
    return folder


@pytest.fixture(scope="module")
def options(files: Path, sdxl_checkpoint: Path) -> list[str]:
    """The options of the command line."""
    loras = [f"--lora={files / 'style.safetensors'}:0.4", f"--lora={files / 'face.safetensors'}:-0.2"]
    return [f"--config={sdxl_checkpoint}", f"--vae={files / 'taesd'}", *loras]


@pytest.fixture(scope="module")
def bundle(files: Path, options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundle") / "bundle"
    command = ["export", str(files / "model.safetensors"), "-o", str(target), *options]
    done = CliRunner().invoke(application(), [*command, "--precision", "fp32", "--parity", "quick"])
    assert done.exit_code == 0, done.output
    return target


@pytest.fixture(scope="module")
def peer(sdxl_checkpoint: Path) -> StableDiffusionXLPipeline:
    """diffusers' pipeline of the folder, with the LoRAs added by hand and TAESD in place of the VAE."""
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_checkpoint, dtype=torch.float32, local_files_only=True)
    pipe.vae = tiny_taesd().eval()
    for folder in ("unet", "text_encoder", "text_encoder_2"):
        network: Any = getattr(pipe, folder)
        state = network.state_dict()
        for number, change in enumerate(CHANGES):
            if change.folder == folder:
                merged = expected(state, change, number, scale=0.4 * 1.5 / 3)
                merged += expected(state, change, number, scale=-0.2, seed=100) - state[change.key]
                state[change.key] = merged.float()
        network.load_state_dict(state)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(bundle: Path) -> np.ndarray:
    with Pipeline.load(bundle, "onnxruntime", "cpu") as pipeline:
        return np.asarray(pipeline.generate("a red circle", negative="rain", **REQUEST).images[0]).astype(int)


@pytest.mark.slow
def test_the_picture_equals_diffusers_with_merged_weights(
    bundle: Path, peer: StableDiffusionXLPipeline, sdxl_bundle: Path
) -> None:
    theirs = peer(
        "a red circle",
        negative_prompt="rain",
        num_inference_steps=REQUEST["steps"],
        guidance_scale=REQUEST["guidance"],
        width=REQUEST["width"],
        height=REQUEST["height"],
        generator=torch.Generator().manual_seed(REQUEST["seed"]),
    ).images[0]
    ours = draw(bundle)
    assert ours.std() > 10
    assert np.abs(ours - np.asarray(theirs)).max() <= 2
    assert np.abs(ours - draw(sdxl_bundle)).max() > 50


@pytest.mark.slow
def test_the_manifest_says_what_went_in(bundle: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Bundle.open(bundle).manifest.provenance
    assert (made.checkpoint, made.weights, made.vae) == ("model.safetensors", "checkpoint", "AutoencoderTiny of taesd")
    assert {(lora.file, lora.weight) for lora in made.loras} == {("style.safetensors", 0.4), ("face.safetensors", -0.2)}
    shown = run_main(capsys, "inspect", bundle).stderr
    assert "AutoencoderTiny of taesd" in shown
    assert "style.safetensors × 0.4" in shown


@pytest.mark.slow
def test_verify_takes_what_export_took(
    bundle: Path, files: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    reference = ["verify", bundle, "--reference", files / "model.safetensors"]
    assert run_main(capsys, *reference, *options).exit == 0
    assert run_main(capsys, *reference, *options[:-1]).exit == 1  # one LoRA is missing


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.slow), "fp16"])
def test_taesd_in_onnx_equals_diffusers(sdxl_checkpoint: Path, files: Path, tmp_path: Path, precision: Any) -> None:
    checkpoint = Checkpoint.open(sdxl_checkpoint, vae=files / "taesd")
    specs = component_specs(checkpoint.model, Limits.around(128), dict.fromkeys(MODULES, precision))
    exporter = ComponentExporter(checkpoint, tmp_path, precision, "quick")
    network = tiny_taesd().eval()
    generator = torch.Generator().manual_seed(1)
    latent, image = torch.randn(2, 4, 9, 11, generator=generator), torch.rand(2, 3, 72, 88, generator=generator) * 2 - 1
    with torch.no_grad():
        pixels = ((network.decode(latent).sample / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1)
        wanted = {"vae_decoder": (latent, pixels), "vae_encoder": (image, network.encode(image).latents)}
    for name, (given, expected_output) in wanted.items():
        record = exporter.export(specs[name], precision)
        assert record.precision == precision
        assert (record.numerics is not None) == (precision == "fp16")
        session = onnxruntime.InferenceSession(tmp_path / record.files[0], providers=["CPUExecutionProvider"])
        dtype = np.float16 if precision == "fp16" else np.float32
        found = session.run(None, {specs[name].inputs[0].name: given.numpy().astype(dtype)})
        assert relative_error(torch.from_numpy(found[0].astype(np.float32)), expected_output) < 5e-3
        if name == "vae_encoder":
            assert np.unique(found[1]).tolist() == [-30.0]


def test_a_bundle_s_loras_are_chosen_already(
    tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = write_hollow_bundle(tmp_path / "bundle").path
    done: Run = run_main(capsys, bundle, "--backend", "onnxruntime", options[-1], entry=build_engine)
    assert done.exit == 1
    assert f"{bundle} is a bundle already: its U-Net, VAE and LoRAs were chosen by the export." in done.error


def test_a_weight_that_is_not_a_number(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_main(capsys, "export", files / "model.safetensors", "-o", tmp_path / "b", "--lora", "a.safetensors:much")
    assert done.exit == 1
    assert "--lora a.safetensors:much: weight 'much' is not a number." in done.error
