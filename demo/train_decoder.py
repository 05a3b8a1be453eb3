"""Longer training of the VAE's decoder alone: the latents stay as they are, so the U-Net can be trained meanwhile."""

import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.progress import Progress

from latentrt.demo.pool import random_size
from latentrt.demo.train_vae import pictures
from latentrt.demo.training import Average, LossLog, learning_rate, load_state, save_state

__all__ = ["DecoderRecipe", "train_decoder"]

SAVE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class DecoderRecipe:
    """Length and pace; `noise` is added to the scaled latents, because the U-Net's are not exact either."""

    steps: int = 1600
    batch: int = 8
    peak_rate: float = 5e-4
    noise: float = 0.03
    seed: int = 1


def train_decoder(work: Path, vae: Any, recipe: DecoderRecipe | None = None) -> Any:
    """Train the decoder of `vae`, or go on from `work/decoder.pt`; the same network with averaged weights."""
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
    log, saved = LossLog(work / "decoder_loss.csv"), time.monotonic()
    with Progress() as progress:
        task = progress.add_task("decoder", total=recipe.steps, completed=first)
        for step in range(first, recipe.steps):
            loss = decoder_step(vae, optimizer, parameters, recipe, step)
            average.update(step + 1000)
            log.add(step + 1, loss, optimizer.param_groups[0]["lr"])
            progress.update(task, advance=1)
            if time.monotonic() - saved > SAVE_SECONDS or step + 1 == recipe.steps:
                values = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
                save_state(work / "decoder.pt", values | {"average": average.values, "step": step + 1})
                saved = time.monotonic()
    average.swap()
    return vae


def decoder_step(
    vae: Any, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], recipe: DecoderRecipe, step: int
) -> float:
    """One update on pictures that depend on the seed and step alone; its loss, L1 + squared error."""
    rng = Random(f"decoder {recipe.seed} {step}")
    torch.manual_seed(rng.randrange(2**40))
    target = pictures(rng, recipe.batch, random_size(rng))
    with torch.no_grad():
        latents = vae.encode(target).latent_dist.mean
    latents += torch.randn_like(latents) * recipe.noise / vae.config.scaling_factor
    error = vae.decode(latents).sample - target
    loss = error.abs().mean() + error.square().mean()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe.steps, recipe.peak_rate, warm_up=50)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return float(loss.detach())
