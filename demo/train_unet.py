"""Joint training of the U-Net and both text encoders on precomputed latents: epsilon prediction, min-SNR weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from latentrt.demo.conditioning import Conditioner, draw_captions, time_ids
from latentrt.demo.networks import SCHEDULER, build
from latentrt.demo.pool import Pool, load_pool, random_size
from latentrt.demo.scenes import Scene, View
from latentrt.demo.training import Average, learning_rate, load_state, run_steps, save_state, update_weights

__all__ = ["NAMES", "UnetRecipe", "alphas_cumprod", "loss_weight", "train_unet"]

NAMES = ("unet", "text_encoder", "text_encoder_2")


@dataclass(frozen=True, slots=True)
class UnetRecipe:
    """Hyperparameters. `batch`: pictures per worker and step. `min_snr`: gamma of Hang et al. 2023 (arXiv:2303.09556).

    In the first `short_share` of the steps, captions are padded to `short_tokens`, which is a quarter faster; in the
    others to 77.
    """

    steps: int = 8000
    batch: int = 32
    peak_rate: float = 1.5e-3
    short_share: float = 0.7
    short_tokens: int = 40
    weight_decay: float = 0.01
    average_decay: float = 0.999
    min_snr: float = 5.0
    seed: int = 0


def alphas_cumprod() -> torch.Tensor:
    """Share of the signal in the variance at each training timestep, (1000,), for scaled-linear betas."""
    start, end, steps = (SCHEDULER[key] for key in ("beta_start", "beta_end", "num_train_timesteps"))
    return (1 - torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square()).cumprod(0).float()


class Trainer:
    """Networks, optimiser and moving average of one worker."""

    def __init__(self, work: Path, recipe: UnetRecipe, worker: int = 0, workers: int = 1) -> None:
        torch.manual_seed(recipe.seed)
        self.networks: dict[str, Any] = {name: build(name) for name in NAMES}
        self.networks["unet"].to(memory_format=torch.channels_last)
        self.parameters = list(chain.from_iterable(network.parameters() for network in self.networks.values()))
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.peak_rate, betas=(0.9, 0.99), weight_decay=recipe.weight_decay, fused=True
        )
        self.average = Average(self.parameters, recipe.average_decay)
        self.conditioner = Conditioner(work, [self.networks[name] for name in NAMES[1:]])
        self.alphas, self.recipe, self.worker, self.workers = alphas_cumprod(), recipe, worker, workers

    def step(self, pool: Pool, step: int) -> float:
        """One update on data determined by seed, step and worker. Returns the loss."""
        # One size for all workers, so that none waits for another with larger pictures.
        size = random_size(Random(f"size {self.recipe.seed} {step}"))
        rng = Random(f"unet {self.recipe.seed} {step} {self.worker}")
        torch.manual_seed(rng.randrange(2**40))
        tokens = self.recipe.short_tokens if step < self.recipe.short_share * self.recipe.steps else 77
        loss = self.loss(*pool.batch(rng, self.recipe.batch, size), rng, tokens)
        rate = learning_rate(step, self.recipe.steps, self.recipe.peak_rate)
        share = partial(share_gradients, self.parameters, self.workers) if self.workers > 1 else None
        update_weights(self.optimizer, loss, rate, share)
        self.average.update(step)
        return float(loss.detach())

    def loss(self, latents: torch.Tensor, scenes: list[tuple[Scene, View]], rng: Random, tokens: int) -> torch.Tensor:
        """Weighted squared error of the predicted noise."""
        hidden, pooled = self.conditioner(*draw_captions([scene for scene, _ in scenes], rng), tokens)
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, len(self.alphas), (len(latents),))
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).to(memory_format=torch.channels_last)
        added = {"text_embeds": pooled, "time_ids": time_ids([view for _, view in scenes])}
        prediction = self.networks["unet"](noisy, timesteps, hidden, added_cond_kwargs=added).sample
        weight = loss_weight(alpha / (1 - alpha), self.recipe.min_snr)
        loss: torch.Tensor = (weight * (prediction - noise).square()).mean()
        return loss

    def state(self, step: int) -> dict[str, object]:
        """Everything that is needed to resume after `step` steps."""
        weights = {name: network.state_dict() for name, network in self.networks.items()}
        return weights | {"optimizer": self.optimizer.state_dict(), "average": self.average.values, "step": step}

    def restore(self, state: dict[str, Any]) -> int:
        """Restore a state. Returns the step to resume with."""
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values = state["average"]
        step: int = state["step"]
        return step


def loss_weight(snr: torch.Tensor, min_snr: float) -> torch.Tensor:
    """Weight of the squared error in epsilon: min-SNR where noise is low, 1 / sqrt(snr) where it hides the picture.

    The second part is not in the paper. Colour and place are decided while snr is far below 1, where even a wrong
    picture hardly changes the plain error in epsilon.
    """
    return snr.clamp(max=min_snr) / snr * snr.rsqrt().clamp(min=1.0)


def share_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """Average the gradients over the workers, as one flat tensor."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat / workers, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def train_unet(
    work: Path,
    recipe: UnetRecipe,
    worker: int = 0,
    workers: int = 1,
    parts: int = 1,
    snapshot: Callable[[Trainer, int], None] | None = None,
) -> Trainer:
    """Train, from `work/unet.pt` if there is one. Worker 0 saves states and losses, and calls `snapshot` at each."""
    trainer, pool = Trainer(work, recipe, worker, workers), load_pool(work, parts)
    state = load_state(work / "unet.pt")
    first = trainer.restore(state) if state else 0

    def save(step: int) -> None:
        save_state(work / "unet.pt", trainer.state(step))
        if snapshot:
            snapshot(trainer, step)

    update = partial(trainer.step, pool)
    run_steps(work, "unet", first, recipe.steps, trainer.optimizer, update, save, silent=worker > 0)
    return trainer
