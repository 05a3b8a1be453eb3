"""Training of the KL-f8 VAE on rendered scenes: L1 + squared error + a little KL divergence."""

import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from rich.progress import Progress

from latentrt.demo.networks import build
from latentrt.demo.scenes import BUCKETS, random_scene, random_view, render
from latentrt.demo.training import Average, LossLog, learning_rate, load_state, save_state

__all__ = ["VaeRecipe", "pictures", "train_vae"]

SAVE_SECONDS = 180


@dataclass(frozen=True, slots=True)
class VaeRecipe:
    """Length and pace of the VAE's training; the last `whole_steps` see whole pictures, the rest crops of 48 by 48."""

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
    """Train, or go on from `work/vae.pt`, and return the averaged network with its scaling factor set."""
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
    log, saved = LossLog(work / "vae_loss.csv"), time.monotonic()
    with Progress() as progress:
        task = progress.add_task("vae", total=recipe.steps, completed=first)
        for step in range(first, recipe.steps):
            loss = vae_step(vae, optimizer, recipe, step)
            average.update(step)
            shown = log.add(step + 1, loss, optimizer.param_groups[0]["lr"])
            progress.update(task, advance=1, description=f"vae {shown:.4f}" if shown else None)
            if time.monotonic() - saved > SAVE_SECONDS or step + 1 == recipe.steps:
                save_state(work / "vae.pt", vae_state(vae, optimizer, average, step + 1))
                saved = time.monotonic()
    average.swap()
    vae.eval().register_to_config(scaling_factor=scaling_factor(vae))
    return vae


def vae_step(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, recipe: VaeRecipe, step: int) -> float:
    """One update on pictures that depend on the seed and step alone; the reconstruction loss."""
    rng = Random(f"vae {recipe.seed} {step}")
    if step < recipe.steps - recipe.whole_steps:
        target = pictures(rng, recipe.batch, (96, 96), crop=48)
    else:
        size = rng.choices(list(BUCKETS), list(BUCKETS.values()))[0]
        target = pictures(rng, recipe.batch // 2, size)
    torch.manual_seed(recipe.seed * 1_000_003 + step)
    posterior = vae.encode(target).latent_dist
    error = vae.decode(posterior.sample()).sample - target
    reconstruction = error.abs().mean() + error.square().mean()
    loss = reconstruction + recipe.kl_weight * posterior.kl().mean() / posterior.mean[0].numel()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe.steps, recipe.peak_rate)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return float(reconstruction)


def vae_state(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, average: Average, step: int) -> dict[str, object]:
    """Everything that a restart needs."""
    weights = vae.state_dict()
    return {"vae": weights, "optimizer": optimizer.state_dict(), "average": average.values, "step": step}


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL) -> float:
    """1 / standard deviation of the latents of 256 pictures."""
    rng = Random("scaling factor")
    latents = [vae.encode(pictures(rng, 16, (96, 96))).latent_dist.mean for _ in range(16)]
    return round(1 / float(torch.cat(latents).std()), 5)
