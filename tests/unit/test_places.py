"""The names in the original layouts, against diffusers' own converters, at full size and without weights."""

import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from originals import original_state
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from latentrt.export.random_weights import meta_network
from latentrt.export.sources.families import CONFIGS
from latentrt.export.sources.places import Place, clip_place, open_clip_place, unet_place, vae_place

FAMILIES = ("sd15", "sd2", "sd2-v", "sdxl", "sdxl-refiner")
MILLIONS = {"sd15": 859.5, "sd2": 865.9, "sd2-v": 865.9, "sdxl": 2567.5, "sdxl-refiner": 2259.5}
"""Parameters of each U-Net, as their authors count them."""


def shipped(family: str) -> dict:
    return json.loads((CONFIGS / f"{family}.json").read_text(encoding="utf-8"))


def shapes(state) -> dict:
    return {name.removeprefix("text_model."): tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_unet(family):
    config = shipped(family)["unet"]
    network = meta_network(UNet2DConditionModel, config)
    original = original_state(network, lambda name: unet_place(name, config), "model.diffusion_model.")
    assert len(original) == len(network.state_dict())
    assert shapes(convert_ldm_unet_checkpoint(original, config)) == shapes(network.state_dict())
    assert round(sum(tensor.numel() for tensor in original.values()) / 1e6, 1) == MILLIONS[family]
    assert not any("down_blocks" in key or "up_blocks" in key for key in original)


@pytest.mark.parametrize("family", FAMILIES)
def test_vae(family):
    config = shipped(family)["vae"]
    network = meta_network(AutoencoderKL, config)
    original = original_state(network, lambda name: vae_place(name, config), "first_stage_model.")
    assert shapes(convert_ldm_vae_checkpoint(original, config)) == shapes(network.state_dict())
    assert original["first_stage_model.decoder.up.3.block.0.conv1.weight"].shape == (512, 512, 3, 3)
    assert original["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_clip(family):
    network = meta_network(CLIPTextModel, shipped(family)["text_encoder"])
    original = original_state(network, clip_place, "cond_stage_model.transformer.")
    assert shapes(convert_ldm_clip_checkpoint(original)) == shapes(network.state_dict())
    assert "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight" in original


@pytest.mark.parametrize(
    ("family", "folder", "kind", "prefix"),
    [
        ("sd2", "text_encoder", CLIPTextModel, "cond_stage_model.model."),
        ("sdxl", "text_encoder_2", CLIPTextModelWithProjection, "conditioner.embedders.1.model."),
        ("sdxl-refiner", "text_encoder_2", CLIPTextModelWithProjection, "conditioner.embedders.0.model."),
    ],
)
def test_open_clip(family, folder, kind, prefix):
    config = shipped(family)[folder]
    network = meta_network(kind, config)
    original = original_state(network, open_clip_place, prefix)
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=config["hidden_size"]))
    assert shapes(convert_open_clip_checkpoint(model, original, prefix)) == shapes(network.state_dict())
    assert original[f"{prefix}transformer.resblocks.0.attn.in_proj_weight"].shape[0] == 3 * config["hidden_size"]


def test_values_through_diffusers_converters(sdxl_checkpoint):
    """Thirds in the order queries, keys, values; the projection transposed; the attention's matrices unfolded."""
    from latentrt.export.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(sdxl_checkpoint)
    text, vae = checkpoint.network("text_encoder_2", torch.float32), checkpoint.network("vae", torch.float32)
    original = original_state(text, open_clip_place, "x.")
    found = convert_open_clip_checkpoint(SimpleNamespace(config=text.config), original, "x.")
    torch.testing.assert_close(found, dict(text.state_dict()), rtol=0, atol=0)
    config = checkpoint.config("vae")
    original = original_state(vae, lambda name: vae_place(name, config), "first_stage_model.")
    torch.testing.assert_close(convert_ldm_vae_checkpoint(original, config), dict(vae.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("place", "stored", "shape", "fits"),
    [
        (Place("a"), (4, 3), (4, 3), True),
        (Place("a"), (4, 3, 1, 1), (4, 3), True),
        (Place("a"), (4, 3), (4, 3, 1, 1), True),
        (Place("a"), (4, 3, 3, 3), (4, 3), False),
        (Place("a"), (3, 4), (4, 3), False),
        (Place("a", transposed=True), (3, 4), (4, 3), True),
        (Place("a", third=1), (12, 3), (4, 3), True),
        (Place("a", third=1), (4, 3), (4, 3), False),
    ],
)
def test_what_fits(place, stored, shape, fits):
    assert place.fits(stored, shape) is fits
    if fits:
        tensor = torch.arange(float(torch.Size(stored).numel())).reshape(stored)
        assert place.read(tensor, shape).shape == shape
