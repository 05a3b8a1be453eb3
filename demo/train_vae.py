"""Training of the KL-f8 VAE on rendered scenes: L1 + squared error + a little KL divergence."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL

from latentrt.demo.networks import build
from latentrt.demo.pool import random_size
from latentrt.demo.scenes import random_scene, random_view, render
from latentrt.demo.training import Average, learning_rate, load_state, run_steps, save_state, update_weights

__all__ = ["VaeRecipe", "pictures", "train_vae"]


@dataclass(frozen=True, slots=True)
class VaeRecipe:
    """Hyperparameters. The last `whole_steps` train on whole pictures, all others on crops of 48 by 48."""

    steps: int = 2600
    whole_steps: int = 300
    batch: int = 16
    peak_rate: float = 2e-3
    kl_weight: float = 1e-4
    seed: int = 0


def pictures(rng: Random, count: int, size: tuple[int, int], crop: int | None = None) -> torch.Tensor:
    """Rendered training scenes, (count, 3, height, width) from -1 to 1; `crop` cuts a random square from each."""
    batch = []
    for _ in range(count):
        pixels = render(random_scene(rng, two_shapes=0.4), random_view(rng, size), rng)
        if crop:
            top, left = rng.randrange(0, size[0] - crop + 1, 4), rng.randrange(0, size[1] - crop + 1, 4)
            pixels = pixels[top : top + crop, left : left + crop]
        batch.append(pixels)
    return torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(work: Path, recipe: VaeRecipe | None = None) -> AutoencoderKL:
    """Train the VAE, from `work/vae.pt` if there is one. Returns it with averaged weights and its scaling factor."""
    recipe = recipe or VaeRecipe()
    torch.manual_seed(recipe.seed)
    vae = build("vae")
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.peak_rate, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(vae.parameters(), 0.995)
    first = 0
    if state := load_state(work / "vae.pt"):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, first = state["average"], state["step"]

    def update(step: int) -> float:
        loss = vae_step(vae, optimizer, recipe, step)
        average.update(step)
        return loss

    def save(step: int) -> None:
        values = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
        save_state(work / "vae.pt", values | {"average": average.values, "step": step})

    run_steps(work, "vae", first, recipe.steps, optimizer, update, save)
    average.swap()
    vae.eval().register_to_config(scaling_factor=scaling_factor(vae))
    return vae


def vae_step(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, recipe: VaeRecipe, step: int) -> float:
    """One update on pictures determined by seed and step. Returns the reconstruction loss."""
    rng = Random(f"vae {recipe.seed} {step}")
    if step < recipe.steps - recipe.whole_steps:
        target = pictures(rng, recipe.batch, (96, 96), crop=48)
    else:
        target = pictures(rng, recipe.batch // 2, random_size(rng))
    torch.manual_seed(recipe.seed * 1_000_003 + step)
    posterior = vae.encode(target).latent_dist
    error = vae.decode(posterior.sample()).sample - target
    reconstruction = error.abs().mean() + error.square().mean()
    loss = reconstruction + recipe.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
    update_weights(optimizer, loss, learning_rate(step, recipe.steps, recipe.peak_rate))
    return float(reconstruction)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL) -> float:
    """1 / (standard deviation of the latents of 256 pictures)."""
    rng = Random("scaling factor")
    latents = [vae.encode(pictures(rng, 16, (96, 96))).latent_dist.mean for _ in range(16)]
    return round(1 / float(torch.cat(latents).std()), 5)
