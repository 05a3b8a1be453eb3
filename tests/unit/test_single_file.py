"""Checkpoints in one file: the same networks as the folder's, and what is refused, before a weight is read."""

import gzip
import re
import sys

import pytest
import torch
from checkpoints import tokenizer_vocabulary, write_sdxl, write_tokenizer
from diffusers import AutoencoderKL, UNet2DConditionModel
from originals import original_state, write_single_file
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from latentrt.export.checkpoint import CLASSES, Checkpoint
from latentrt.export.random_weights import random_network
from latentrt.export.sources import open_source
from latentrt.export.sources.places import clip_place, open_clip_place, unet_place, vae_place
from latentrt.export.sources.single_file import SingleFile
from latentrt.export.sources.weight_file import WeightFile
from latentrt.runtime.errors import CheckpointError, RequestError

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def single(sdxl_checkpoint, tmp_path_factory):
    return write_single_file(sdxl_checkpoint, tmp_path_factory.mktemp("single") / "tiny.safetensors")


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Configs and tokenizers alone, for --config."""
    return write_sdxl(tmp_path_factory.mktemp("configs") / "sdxl", weights=False)


def changed(single, target, change, **header):
    """A copy with other tensors."""
    state = load_file(single)
    change(state)
    save_file(state, target, metadata={"format": "pt"} | header)
    return target


def refused(path, error=CheckpointError, **options):
    with pytest.raises(error) as caught:
        Checkpoint.open(path, **options)
    return str(caught.value)


def tensors(checkpoint, dtype=torch.float32):
    return {folder: checkpoint.network(folder, dtype).state_dict() for folder in CLASSES}


# The same as the folder


def test_networks_equal_those_of_the_folder_to_the_bit(single, configs, sdxl_checkpoint):
    file, folder = Checkpoint.open(single, config=configs), Checkpoint.open(sdxl_checkpoint)
    assert file.model == folder.model
    torch.testing.assert_close(tensors(file), {k: dict(v) for k, v in tensors(folder).items()}, rtol=0, atol=0)
    assert file.source.tokenizer("tokenizer_2") == folder.source.tokenizer("tokenizer_2")
    assert not any(file.network(name, torch.float32).training for name in CLASSES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_read_as_float32(sdxl_checkpoint, configs, tmp_path, dtype):
    file = write_single_file(sdxl_checkpoint, tmp_path / "half.safetensors", dtype)
    found = Checkpoint.open(file, config=configs).network("unet", torch.float32).state_dict()
    wanted = Checkpoint.open(sdxl_checkpoint).network("unet", torch.float32).state_dict()
    assert {value.dtype for value in found.values()} == {torch.float32}
    rounded = {name: value.to(dtype).float() for name, value in wanted.items()}
    torch.testing.assert_close(dict(found), rounded, rtol=0, atol=0)


def test_the_hash_follows_the_file(single, configs, tmp_path):
    def one_bit(state):
        state[f"{UNET}out.2.bias"][0] += 1

    first = Checkpoint.open(single, config=configs)
    other = Checkpoint.open(changed(single, tmp_path / "other.safetensors", one_bit), config=configs)
    assert first.weights_sha256() == Checkpoint.open(single, config=configs).weights_sha256()
    assert first.weights_sha256() != other.weights_sha256()
    assert first.provenance()["checkpoint"] == "tiny.safetensors"


# Families


def write_sd(folder, *, width, text, linear=False, extra=()):
    """A U-Net, VAE and text encoder with the structure of SD 1.x or 2.x, as one file, with their configs."""
    unet = {
        "sample_size": 8,
        "in_channels": 9 if "inpaint" in extra else 4,
        "block_out_channels": [16, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": width,
        "use_linear_projection": linear,
        "norm_num_groups": 8,
    }
    vae = {"block_out_channels": [16, 16], "norm_num_groups": 8, "latent_channels": 4, "layers_per_block": 2}
    vae |= {f"{way}_block_types": [f"{way.title()}{kind}Block2D"] * 2 for way, kind in (("down", "Encoder"), ("up", "Decoder"))}
    clip = {"vocab_size": 768, "hidden_size": width, "intermediate_size": 32, "num_attention_heads": 2}
    clip |= {"num_hidden_layers": 3 if text == "open" else 2, "projection_dim": 16, "hidden_act": "gelu"}
    networks = {
        "unet": random_network(UNet2DConditionModel, unet, torch.float32, 1),
        "vae": random_network(AutoencoderKL, vae, torch.float32, 2),
        "text_encoder": random_network(CLIPTextModel, clip, torch.float32, 3),
    }
    state = original_state(networks["unet"], lambda name: unet_place(name, unet), UNET)
    state |= original_state(networks["vae"], lambda name: vae_place(name, vae), "first_stage_model.")
    naming, prefix = (open_clip_place, "cond_stage_model.model.") if text == "open" else (clip_place, "cond_stage_model.transformer.")
    state |= original_state(networks["text_encoder"], naming, prefix)
    return networks, state, {"unet": unet, "vae": vae, "text_encoder": clip}
