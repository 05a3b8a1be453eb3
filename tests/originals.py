"""Tiny checkpoints in the original layouts, as one file: written from the tensors of networks in diffusers' names.

The names are those of `latentrt.export.sources.places`; that these are right, tests/unit/test_places.py asks diffusers.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.sources.places import Place, clip_place, open_clip_place, unet_place, vae_place


def original_state(network: nn.Module, naming: Callable[[str], Place], prefix: str) -> dict[str, Tensor]:
    """A network's tensors as the original layout keeps them."""
    state: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for name, tensor in network.state_dict().items():
        place = naming(name)
        key = prefix + place.key
        if place.third is not None:
            thirds.setdefault(key, {})[place.third] = tensor
        elif ".mid.attn_1." in key and tensor.ndim == 2:
            state[key] = tensor[:, :, None, None]
        else:
            state[key] = tensor.T if place.transposed else tensor
    joined = {key: torch.cat([parts[index] for index in range(3)]) for key, parts in thirds.items()}
    return {key: tensor.clone().contiguous() for key, tensor in (state | joined).items()}


TEXT_PREFIXES = {
    "sd15": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "sdxl-refiner": {"text_encoder_2": "conditioner.embedders.0.model."},
}
"""Family, folder, and what its keys begin with."""


def family_state(networks: Mapping[str, nn.Module], configs: Mapping[str, Any], family: str) -> dict[str, Tensor]:
    """A checkpoint's networks as one state dict."""
    prefixes = {"unet": "model.diffusion_model.", "vae": "first_stage_model."} | TEXT_PREFIXES[family]
    namings = {"unet": partial(unet_place, config=configs["unet"]), "vae": partial(vae_place, config=configs["vae"])}
    state: dict[str, Tensor] = {}
    for folder, network in networks.items():
        naming = namings.get(folder, open_clip_place if prefixes[folder].endswith("model.") else clip_place)
        state |= original_state(network, naming, prefixes[folder])
    return state


def unused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What published files hold beside the weights: counters, schedules, and of SD 2.x a last layer of text."""
    found = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "denoiser.sigmas": torch.rand(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "alphas_cumprod": torch.rand(1000),
        "sqrt_recipm1_alphas_cumprod": torch.rand(1000),
    }
    last = "cond_stage_model.model.transformer.resblocks.2."
    found |= {
        key.replace("positional_embedding", "logit_scale"): torch.tensor(4.6)
        for key in state
        if key.endswith(".positional_embedding")
    }
    found |= {key.replace(".2.", ".3."): value + 1 for key, value in state.items() if key.startswith(last)}
    return found | (
        {"cond_stage_model.model.text_projection": torch.rand(40, 8)} if f"{last}ln_1.bias" in state else {}
    )


def write_single_file(source: Path, target: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write a folder in diffusers format as one file."""
    checkpoint = Checkpoint.open(source)
    networks = {folder: checkpoint.network(folder, torch.float32) for folder in checkpoint.folders}
    configs = {folder: checkpoint.config(folder) for folder in networks}
    state = family_state(networks, configs, checkpoint.model.family)
    state |= unused(state)
    save_file(
        {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()},
        target,
        metadata={"format": "pt"},
    )
    return target
