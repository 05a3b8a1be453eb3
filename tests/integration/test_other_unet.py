"""Another U-Net: the same weights from every form in which distilled ones are published, and what is refused."""

import shutil
from functools import partial

import pytest
import torch
from checkpoints import tensors, write_checkpoint
from json_files import edit_json
from loras import LINEAR, write_lora
from originals import original_state
from safetensors.torch import load_file, save_file

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.sources.places import unet_place
from latentrt.runtime.errors import CheckpointError, RequestError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """A checkpoint whose U-Net alone is taken."""
    return write_checkpoint(tmp_path_factory.mktemp("distilled") / "sdxl", "sdxl", seed=7)


def write_form(distilled, folder, form):
    """The U-Net as it is published: a path for `unet`."""
    file = distilled / "unet" / WEIGHTS
    if form == "checkpoint":
        return distilled
    if form == "folder":
        return distilled / "unet"
    state, target = load_file(file), folder / f"{form.replace(' ', '-') or 'bare'}.safetensors"
    prefix, original = form.split(" ")[-1] if " " in form else "", form.startswith("original")
    if original:
        checkpoint = Checkpoint.open(distilled)
        naming = partial(unet_place, config=checkpoint.config("unet"))
        state = original_state(checkpoint.network("unet", torch.float32), naming, prefix)
    else:
        state = {prefix + key: value for key, value in state.items()}
    save_file(state, target)
    return target


ORIGINAL = ("original", "original model.diffusion_model.", "original diffusion_model.")
FORMS = ("checkpoint", "folder", "diffusers", "diffusers unet.", *ORIGINAL)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_u_net(sdxl_checkpoint, distilled, tmp_path, form):
    path = write_form(distilled, tmp_path, form)
    base, source = tensors(Checkpoint.open(sdxl_checkpoint)), tensors(Checkpoint.open(distilled))
    checkpoint = Checkpoint.open(sdxl_checkpoint, unet=path)
    found = tensors(checkpoint)
    for folder, wanted in base.items():
        wanted = source["unet"] if folder == "unet" else wanted
        assert all(torch.equal(found[folder][name], value) for name, value in wanted.items()), folder
    assert checkpoint.provenance()["unet"] == f"UNet2DConditionModel of {path.name}"
    assert checkpoint.weights_sha256() != Checkpoint.open(sdxl_checkpoint).weights_sha256()


def test_a_base_needs_no_weights_of_its_own_u_net(sdxl_checkpoint, distilled, tmp_path):
    base = shutil.copytree(sdxl_checkpoint, tmp_path / "base")
    (base / "unet" / WEIGHTS).unlink()
    assert Checkpoint.open(base, unet=distilled / "unet").network("unet", torch.float32) is not None


def test_a_guidance_embedding_and_input_channels_show_in_the_weights(tmp_path):
    lcm, plain = (write_checkpoint(tmp_path / family, family) for family in ("sd15-lcm", "sd15"))
    model = Checkpoint.open(plain, unet=copied(lcm, tmp_path / "lcm.safetensors")).model
    assert model.guidance_embedding == 24
    assert Checkpoint.open(lcm, unet=copied(plain, tmp_path / "plain.safetensors")).model.guidance_embedding == 0
    inpaint = write_checkpoint(tmp_path / "inpaint", "sd15-inpaint")
    assert Checkpoint.open(plain, unet=copied(inpaint, tmp_path / "inpaint.safetensors")).model.is_inpainting


def copied(checkpoint, target):
    target.write_bytes((checkpoint / "unet" / WEIGHTS).read_bytes())
    return target


def test_what_it_predicts_may_be_said(sdxl_checkpoint, distilled):
    """One-step Lightning predicts the sample itself."""
    checkpoint = Checkpoint.open(sdxl_checkpoint, unet=distilled / "unet", prediction_type="sample")
    assert checkpoint.model.scheduler["prediction_type"] == "sample"
    with pytest.raises(RequestError, match="--prediction-type: for single files; this folder has its own configs"):
        Checkpoint.open(sdxl_checkpoint, prediction_type="sample")


def test_a_config_beside_the_file_is_its_own(sdxl_checkpoint, distilled, tmp_path):
    file = copied(distilled, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text((distilled / "unet" / "config.json").read_text())
    edit_json(tmp_path / "config.json", lambda config: config.update(sample_size=24))
    assert Checkpoint.open(sdxl_checkpoint, unet=file).model.native_size == 24 * 8
    (tmp_path / "config.json").write_text((distilled / "text_encoder" / "config.json").read_text())
    assert Checkpoint.open(sdxl_checkpoint, unet=file).model.native_size == 16 * 8


def test_what_is_no_u_net_of_this_model(sdxl_checkpoint, distilled, tmp_path):
    def refused(path, message):
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.open(sdxl_checkpoint, unet=path)

    refused(write_lora(tmp_path / "l.safetensors", "kohya", LINEAR[:1], alpha=1.0), r"^--unet .*: a LoRA, no U-Net\.")
    refused(distilled / "vae" / WEIGHTS, r"^--unet .*: no U-Net: it has no conv_in\.weight")
    refused(distilled / "text_encoder" / "model.safetensors", r"^--unet .*: a text encoder \(CLIP\), no U-Net")
    refused(distilled / "vae", r"^--unet .*: a AutoencoderKL; latentrt serves UNet2DConditionModel")
    refused(tmp_path / "none", "^--unet .*none: no such file or folder")
    other = write_checkpoint(tmp_path / "sd15", "sd15")
    refused(
        copied(other, tmp_path / "sd15.safetensors"), "keys in the weights, .* The U-Net was made for another model"
    )
    state = load_file(distilled / "unet" / WEIGHTS) | {"another.weight": torch.zeros(2)}
    save_file(state, tmp_path / "more.safetensors")
    refused(tmp_path / "more.safetensors", "1 keys belong to no part of this U-Net: another.weight")
