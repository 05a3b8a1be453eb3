"""Joint training of the U-Net and both text encoders on precomputed latents: epsilon prediction, min-SNR weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.distributed as dist
from rich.progress import Progress
from torch import nn

from latentrt.demo.conditioning import Conditioner, draw_captions, time_ids
from latentrt.demo.networks import SCHEDULER, build
from latentrt.demo.pool import Pool, load_pool, random_size
from latentrt.demo.scenes import Scene, View
from latentrt.demo.training import Average, LossLog, learning_rate, load_state, save_state

__all__ = ["NAMES", "UnetRecipe", "alphas_cumprod", "loss_weight", "train_unet"]

NAMES = ("unet", "text_encoder", "text_encoder_2")
SAVE_SECONDS = 180


@dataclass(frozen=True, slots=True)
class UnetRecipe:
    """Length and pace; `batch` pictures per worker and step. `min_snr` is gamma of Hang et al. 2023 (2303.09556).

    The first `short_share` of the steps pads captions to `short_tokens`, which is a quarter faster, the others to 77.
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
    """Share of signal variance per training timestep, (1000,): scaled-linear betas."""
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
        """One update, on data that depends on seed, step and worker alone; the loss."""
        # One size for all workers, so that none waits for a larger picture.
        size = random_size(Random(f"size {self.recipe.seed} {step}"))
        rng = Random(f"unet {self.recipe.seed} {step} {self.worker}")
        torch.manual_seed(rng.randrange(2**40))
        tokens = self.recipe.short_tokens if step < self.recipe.short_share * self.recipe.steps else 77
        loss = self.loss(*pool.batch(rng, self.recipe.batch, size), rng, tokens)
        rate = learning_rate(step, self.recipe.steps, self.recipe.peak_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        if self.workers > 1:
            share_gradients(self.parameters, self.workers)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
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
        """Everything that a restart needs."""
        weights = {name: network.state_dict() for name, network in self.networks.items()}
        return weights | {"optimizer": self.optimizer.state_dict(), "average": self.average.values, "step": step}

    def restore(self, state: dict[str, Any]) -> int:
        """Take over a state; the step to go on with."""
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.values = state["average"]
        step: int = state["step"]
        return step


def loss_weight(snr: torch.Tensor, min_snr: float) -> torch.Tensor:
    """Weight of the squared error in epsilon: min-SNR where noise is low, 1 / sqrt(snr) where it hides the picture.

    The second part is not in the paper. Colour and place are decided while snr is far below 1, where a plain error in
    epsilon hardly notices a wrong picture.
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
    """Train, or go on from `work/unet.pt`; worker 0 writes states, the loss curve and, if asked, snapshots."""
    trainer, pool = Trainer(work, recipe, worker, workers), load_pool(work, parts)
    state = load_state(work / "unet.pt")
    first = trainer.restore(state) if state else 0
    log, saved = LossLog(work / "unet_loss.csv"), time.monotonic()
    with Progress(disable=worker > 0) as progress:
        task = progress.add_task("unet", total=recipe.steps, completed=first)
        for step in range(first, recipe.steps):
            loss = trainer.step(pool, step)
            if worker:
                continue
            shown = log.add(step + 1, loss, trainer.optimizer.param_groups[0]["lr"])
            progress.update(task, advance=1, description=f"unet {shown:.4f}" if shown else None)
            if time.monotonic() - saved > SAVE_SECONDS or step + 1 == recipe.steps:
                save_state(work / "unet.pt", trainer.state(step + 1))
                saved = time.monotonic()
                if snapshot:
                    snapshot(trainer, step + 1)
    return trainer
