"""Tiny checkpoints in the original layouts, as one file: written from the tensors of networks in diffusers' names.

The names are those of `latentrt.export.sources.places`; that these are right, tests/unit/test_places.py asks diffusers.
"""

from collections.abc import Callable, Iterable, Mapping
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


def sdxl_state(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """An SDXL checkpoint as one state dict, with what published files hold beside the weights."""
    networks = {folder: checkpoint.network(folder, torch.float32) for folder in ("unet", "vae")}
    first, second = (checkpoint.network(name, torch.float32) for name in ("text_encoder", "text_encoder_2"))
    unet, vae = (checkpoint.config(folder) for folder in networks)
    return {
        **original_state(networks["unet"], lambda name: unet_place(name, unet), "model.diffusion_model."),
        **original_state(networks["vae"], lambda name: vae_place(name, vae), "first_stage_model."),
        **original_state(first, clip_place, "conditioner.embedders.0.transformer."),
        **original_state(second, open_clip_place, "conditioner.embedders.1.model."),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "denoiser.sigmas": torch.rand(1000),
        "model_ema.decay": torch.tensor(0.9999),
        "alphas_cumprod": torch.rand(1000),
    }


def write_single_file(
    source: Path,
    target: Path,
    dtype: torch.dtype = torch.float32,
    drop: Iterable[str] = (),
    metadata: Mapping[str, str] | None = None,
    **add: Tensor,
) -> Path:
    """Write an SDXL folder as one file. `drop`: keys or prefixes that are left out; `add`: keys that are added."""
    state: dict[str, Any] = {**sdxl_state(Checkpoint.open(source)), **add}
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(drop))}
    kept = {key: value.to(dtype) if value.is_floating_point() else value for key, value in kept.items()}
    save_file(kept, target, metadata=dict(metadata or {"format": "pt"}))
    return target
