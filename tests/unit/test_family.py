"""Families: the facts that each one's configs state, and the defaults they imply."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from diffusers import UNet2DConditionModel
from families import FAMILIES
from hollow_bundles import SDXL as FULL_SDXL
from json_files import edit_json

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.family import TIME_IDS
from latentrt.runtime.bundle.manifest import Defaults
from latentrt.runtime.bundle.model import Model, TextEncoder

CONFIGS = Path(__file__).parents[2] / "benchmarks" / "configs"


def read(folder: Path, family: str, **overrides: dict) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(folder / family, family, weights=False, **overrides), random_seed=0)


def encoder(name: str, width: int, skipped: int, pooled: int = 0) -> TextEncoder:
    return TextEncoder(
        component=name,
        tokenizer=name.replace("text_encoder", "tokenizer"),
        width=width,
        pooled=pooled,
        layers=3,
        skipped=skipped,
        final_norm=not skipped,
    )


CLIP_L, CLIP_H = encoder("text_encoder", 32, 0), encoder("text_encoder", 40, 0)
PENULTIMATE_L, PENULTIMATE_G = encoder("text_encoder", 32, 1), encoder("text_encoder_2", 48, 1, pooled=40)

# family's name, text encoders, U-Net channels, time ids, embedded guidance, zero negative
FACTS = {
    "sd15": ("sd15", (CLIP_L,), 4, (), 0, False),
    "sd15-inpaint": ("sd15", (CLIP_L,), 9, (), 0, False),
    "sd15-lcm": ("sd15", (CLIP_L,), 4, (), 24, False),
    "sd2": ("sd2", (CLIP_H,), 4, (), 0, False),
    "sd2-v": ("sd2", (CLIP_H,), 4, (), 0, False),
    "sdxl": ("sdxl", (PENULTIMATE_L, PENULTIMATE_G), 4, TIME_IDS[6], 0, True),
    "sdxl-inpaint": ("sdxl", (PENULTIMATE_L, PENULTIMATE_G), 9, TIME_IDS[6], 0, True),
    "sdxl-refiner": ("sdxl-refiner", (PENULTIMATE_G,), 4, TIME_IDS[5], 0, False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_of_a_family(tmp_path: Path, family: str) -> None:
    model = read(tmp_path, family).model
    found = (model.family, model.text_encoders, model.unet_channels, model.time_ids)
    assert (*found, model.guidance_embedding, model.zero_negative) == FACTS[family]
    assert model.is_inpainting == (model.unet_channels == 9)
    assert model.native_size == 16 * model.latent_scale


@pytest.mark.parametrize(("key", "family"), [(True, "sdxl"), (False, "sdxl"), (None, "sdxl"), (None, "sd15")])
def test_zeros_for_an_empty_negative(tmp_path: Path, key: bool | None, family: str) -> None:
    """Where the index has no word on it, diffusers' default: true in SDXL's pipelines, unknown to the others."""
    folder = read(tmp_path, family).path
    name = "force_zeros_for_empty_prompt"
    edit_json(folder / "model_index.json", lambda index: index.pop(name, None))
    if key is not None:
        edit_json(folder / "model_index.json", lambda index: index.update({name: key}))
    assert Checkpoint.open(folder, 0).model.zero_negative == (family == "sdxl" if key is None else key)


def test_first_vae_configs_have_no_scaling_factor(tmp_path: Path) -> None:
    folder = read(tmp_path, "sd15").path
    edit_json(folder / "vae" / "config.json", lambda config: config.pop("scaling_factor"))
    assert Checkpoint.open(folder, 0).model.scaling_factor == 0.18215


def test_heads_and_widths_may_be_lists(tmp_path: Path) -> None:
    lists = {"cross_attention_dim": [40, 40], "attention_head_dim": [1, 2], "sample_size": [16, 16]}
    model = read(tmp_path, "sd2", unet=lists).model
    assert (model.context_width, model.native_size) == (40, 64)


def test_unknown_folders_are_not_read(tmp_path: Path) -> None:
    folder = read(tmp_path, "sd15").path
    entry = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit_json(folder / "model_index.json", lambda index: index.update(safety_checker=entry))
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"not read")
    assert Checkpoint.open(folder, 0).folders == ["text_encoder", "unet", "vae"]


TRAILING = {"timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("family", "scheduler", "wanted"),
    [
        ("sd15", {}, ("euler", 30, 7.5)),
        ("sd2-v", {}, ("ddim", 30, 7.5)),
        ("sdxl", {}, ("euler", 30, 5.0)),
        ("sdxl-refiner", {}, ("euler", 30, 5.0)),
        ("sd15-lcm", {}, ("lcm", 4, 8.5)),
        ("sdxl", {"_class_name": "LCMScheduler"}, ("lcm", 4, 1.0)),
        ("sdxl", {"_class_name": "EulerAncestralDiscreteScheduler"} | TRAILING, ("euler_a", 4, 1.0)),
        ("sdxl", TRAILING, ("euler", 4, 1.0)),
        ("sdxl", TRAILING | {"rescale_betas_zero_snr": True}, ("euler", 30, 5.0)),
        ("sdxl", TRAILING | {"_class_name": "DDIMScheduler"}, ("ddim", 30, 5.0)),
    ],
    ids=str,
)
def test_defaults(tmp_path: Path, family: str, scheduler: dict, wanted: tuple[str, int, float]) -> None:
    sampler, steps, guidance = wanted
    found = read(tmp_path, family, scheduler=scheduler).defaults
    assert found == Defaults(sampler=sampler, steps=steps, guidance=guidance)


def test_latents_with_a_mean_and_a_spread_go_to_the_vae_and_back(tmp_path: Path) -> None:
    moments = {"latents_mean": [0.5, -1.0, 0.0, 2.0], "latents_std": [1.0, 2.0, 0.5, 4.0], "scaling_factor": 0.5}
    model = read(tmp_path, "sdxl", vae=moments).model
    latents = np.random.default_rng(0).standard_normal((2, 4, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(model.to_vae(latents)[:, 1], latents[:, 1] * 2 / 0.5 - 1, rtol=1e-6)
    np.testing.assert_allclose(model.from_vae(model.to_vae(latents)), latents, atol=1e-6)
    plain = FULL_SDXL.to_vae(latents)
    np.testing.assert_array_equal(plain, latents / np.float32(0.13025))
    np.testing.assert_allclose(FULL_SDXL.from_vae(plain), latents, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_models_survive_the_manifest(tmp_path: Path, family: str) -> None:
    model = read(tmp_path, family).model
    assert Model.model_validate(json.loads(model.model_dump_json())) == model


@pytest.mark.parametrize(
    ("name", "family", "native_size", "parameters"),
    [
        ("sd15", "sd15", 512, 859.5e6),
        ("sdxl-base", "sdxl", 1024, 2567.5e6),
        ("sdxl-refiner", "sdxl-refiner", 1024, 2259.5e6),
    ],
)
def test_full_size_configs(name: str, family: str, native_size: int, parameters: float) -> None:
    """Parameters of the U-Nets as they are published, counted without allocating them."""
    checkpoint = Checkpoint.open(CONFIGS / name, random_seed=0)
    assert (checkpoint.model.family, checkpoint.model.native_size) == (family, native_size)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(checkpoint.config("unet")))
    assert sum(parameter.numel() for parameter in unet.parameters()) == pytest.approx(parameters, rel=1e-3)
