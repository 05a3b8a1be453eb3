"""A loss curve as a small PNG."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["draw_curve"]

WIDTH, HEIGHT, MARGIN = 720, 360, 44


def draw_curve(source: Path, target: Path) -> None:
    """Draw the loss in a CSV over the steps on a logarithmic axis: rows in grey, their moving mean in blue."""
    with source.open(newline="", encoding="utf-8") as stream:
        # After a restart, the steps since the last saved state appear twice.
        rows = sorted({int(row["step"]): float(row["loss"]) for row in csv.DictReader(stream)}.items())
    if len(rows) < 2:
        return
    steps, losses = np.array(rows).T
    span = max(1, min(25, len(losses) // 10))
    smooth = np.convolve(losses, np.ones(span) / span, mode="valid")
    low, high = np.log(losses.min() * 0.95), np.log(losses.max() * 1.05)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    canvas = ImageDraw.Draw(picture)

    def line(x: np.ndarray, y: np.ndarray, colour: str, width: int) -> None:
        across = MARGIN + x / steps.max() * (WIDTH - 2 * MARGIN)
        down = HEIGHT - MARGIN - (np.log(y) - low) / (high - low) * (HEIGHT - 2 * MARGIN)
        canvas.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=colour, width=width)

    for value in np.exp(np.linspace(low, high, 5)):
        line(np.array([0, steps.max()]), np.array([value, value]), "#dddddd", 1)
        height = HEIGHT - MARGIN - (np.log(value) - low) / (high - low) * (HEIGHT - 2 * MARGIN)
        canvas.text((4, height - 6), f"{value:.3f}", fill="black")
    line(steps, losses, "#bbbbbb", 1)
    line(steps[len(steps) - len(smooth) :], smooth, "#1f4fa0", 2)
    canvas.text((MARGIN, HEIGHT - 24), f"loss over {int(steps.max())} steps", fill="black")
    picture.save(target)
