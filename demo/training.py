"""What both training loops share: learning rate, moving average of the weights, state file, loss curve."""

import csv
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Average", "LossLog", "learning_rate", "load_state", "save_state"]


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
        """Take in the parameters after `step`; the average is shorter at the start."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.values, self.parameters, weight)

    def swap(self) -> None:
        """Exchange parameters and averages; twice is nothing."""
        with torch.no_grad():
            for value, parameter in zip(self.values, self.parameters, strict=True):
                kept = value.clone()
                value.copy_(parameter)
                parameter.copy_(kept)


class LossLog:
    """A CSV of step, loss, learning rate and seconds, appended to; a restart goes on in the same file."""

    def __init__(self, path: Path, every: int = 20) -> None:
        self.path, self.every, self.losses, self.started = path, every, list[float](), time.perf_counter()

    def add(self, step: int, loss: float, rate: float) -> float | None:
        """Count one loss; the mean of the last `every`, when a row was written."""
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
    """Write a state file whole or not at all."""
    draft = path.with_suffix(".draft")
    torch.save(state, draft)
    os.replace(draft, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state file, or None where there is none."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
