"""Shared by the three trainings: the loop, learning rate, moving average of the weights, state file, loss curve."""

import csv
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

__all__ = ["Average", "LossLog", "learning_rate", "load_state", "run_steps", "save_state", "update_weights"]


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 200) -> float:
    """Linear warm-up to `peak`, then half a cosine down to a hundredth of it."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    share = min(1.0, (step - warm_up) / max(1, steps - warm_up))
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


class Average:
    """An exponential moving average of parameters, kept beside them."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters: list[torch.Tensor] = list(parameters)
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        self.decay = decay

    def update(self, step: int) -> None:
        """Update the averages with the parameters after `step`; early averages reach back less far."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.values, self.parameters, weight)

    def swap(self) -> None:
        """Exchange parameters and averages; a second call undoes the first."""
        with torch.no_grad():
            for value, parameter in zip(self.values, self.parameters, strict=True):
                kept = value.clone()
                value.copy_(parameter)
                parameter.copy_(kept)


class LossLog:
    """A CSV of step, loss, learning rate and seconds; a restart appends to the same file."""

    def __init__(self, path: Path, every: int = 20) -> None:
        self.path, self.every, self.losses, self.started = path, every, list[float](), time.perf_counter()

    def add(self, step: int, loss: float, rate: float) -> float | None:
        """Add the loss of a step. Returns the mean of the last `every` losses if a row was written, else None."""
        self.losses.append(loss)
        if step % self.every:
            return None
        mean = sum(self.losses) / len(self.losses)
        self.losses.clear()
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(("step", "loss", "learning_rate", "seconds"))
            writer.writerow((step, f"{mean:.6f}", f"{rate:.3g}", f"{time.perf_counter() - self.started:.1f}"))
        return mean


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state file completely or not at all."""
    draft = path.with_suffix(".draft")
    torch.save(state, draft)
    os.replace(draft, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The contents of a state file, or None if there is no such file."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


def update_weights(
    optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float, share: Callable[[], None] | None = None
) -> None:
    """Step the optimiser at this learning rate, gradients clipped to a norm of 1; `share` is called before that."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    if share:
        share()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def run_steps(
    work: Path,
    name: str,
    first: int,
    steps: int,
    optimizer: torch.optim.Optimizer,
    update: Callable[[int], float],
    save: Callable[[int], None],
    *,
    save_seconds: float = 180,
    silent: bool = False,
) -> None:
    """Call `update` for every step from `first` on, log the losses it returns, and save the state now and then.

    `save` is called with the number of finished steps, every `save_seconds` and at the end. A silent loop only updates.
    """
    log, saved = LossLog(work / f"{name}_loss.csv"), time.monotonic()
    with Progress(disable=silent) as progress:
        task = progress.add_task(name, total=steps, completed=first)
        for step in range(first, steps):
            loss = update(step)
            if silent:
                continue
            shown = log.add(step + 1, loss, optimizer.param_groups[0]["lr"])
            progress.update(task, advance=1, description=f"{name} {shown:.4f}" if shown else None)
            if time.monotonic() - saved > save_seconds or step + 1 == steps:
                save(step + 1)
                saved = time.monotonic()
