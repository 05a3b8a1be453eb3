"""Further training of the VAE's decoder alone: the latents do not change, so the U-Net can be trained meanwhile."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch

from latentrt.demo.pool import random_size
from latentrt.demo.train_vae import pictures
from latentrt.demo.training import Average, learning_rate, load_state, run_steps, save_state, update_weights

__all__ = ["DecoderRecipe", "train_decoder"]


@dataclass(frozen=True, slots=True)
class DecoderRecipe:
    """Hyperparameters. `noise`: added to the scaled latents, because those of the U-Net are not exact either."""

    steps: int = 1600
    batch: int = 8
    peak_rate: float = 5e-4
    noise: float = 0.03
    seed: int = 1


def train_decoder(work: Path, vae: Any, recipe: DecoderRecipe | None = None) -> Any:
    """Train the decoder of `vae`, from `work/decoder.pt` if there is one. Returns `vae` with averaged weights."""
    recipe = recipe or DecoderRecipe()
    vae.requires_grad_(False)
    parameters = list(chain(vae.decoder.parameters(), vae.post_quant_conv.parameters()))
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.peak_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    average, first = Average(parameters, 0.995), 0
    if state := load_state(work / "decoder.pt"):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, first = state["average"], state["step"]

    def update(step: int) -> float:
        loss = decoder_step(vae, optimizer, recipe, step)
        average.update(step + 1000)
        return loss

    def save(step: int) -> None:
        values = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(work / "decoder.pt", values | {"average": average.values, "step": step})

    run_steps(work, "decoder", first, recipe.steps, optimizer, update, save, save_seconds=60)
    average.swap()
    return vae


def decoder_step(vae: Any, optimizer: torch.optim.Optimizer, recipe: DecoderRecipe, step: int) -> float:
    """One update on pictures determined by seed and step. Returns its loss, L1 + squared error."""
    rng = Random(f"decoder {recipe.seed} {step}")
    torch.manual_seed(rng.randrange(2**40))
    target = pictures(rng, recipe.batch, random_size(rng))
    with torch.no_grad():
        latents = vae.encode(target).latent_dist.mean
    latents += torch.randn_like(latents) * recipe.noise / vae.config.scaling_factor
    error = vae.decode(latents).sample - target
    loss = error.abs().mean() + error.square().mean()
    update_weights(optimizer, loss, learning_rate(step, recipe.steps, recipe.peak_rate, warm_up=50))
    return float(loss.detach())
