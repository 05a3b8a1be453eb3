"""The difference of a picture, or a component's output, from the reference."""

from pathlib import Path

import numpy as np
from PIL import Image

from latentrt.benchmarks.results import Difference
from latentrt.runtime.arrays import relative_error, root_mean_square
from latentrt.runtime.errors import BenchmarkError

LEVELS = 255
"""Largest value of a pixel's channel."""


def compare_files(found: Path, reference: Path) -> Difference:
    """Compare two PNG files, or two `.npy` files of one output.

    Raises:
        BenchmarkError: the shapes differ, or a file cannot be read.
    """
    try:
        return compare_tensors(found, reference) if found.suffix == ".npy" else compare_pictures(found, reference)
    except OSError as error:
        raise BenchmarkError(f"{found} against {reference}: cannot be compared ({error}). See the logs") from error


def compare_pictures(found: Path, reference: Path) -> Difference:
    """Largest and mean difference in levels, and the peak signal-to-noise ratio in dB."""
    one, other = (np.asarray(Image.open(file).convert("RGB"), np.float64) for file in (found, reference))
    _check_shapes(found, one.shape, other.shape)
    error = np.abs(one - other)
    square = float(np.mean(error**2))
    psnr = 10 * np.log10(LEVELS**2 / square) if square else None
    return Difference(float(error.max()), float(error.mean()), None if psnr is None else float(psnr))


def compare_tensors(found: Path, reference: Path) -> Difference:
    """Largest and root mean square error, divided by the root mean square of the reference."""
    one, other = (np.load(file, allow_pickle=False).astype(np.float64) for file in (found, reference))
    _check_shapes(found, one.shape, other.shape)
    largest = float(np.abs(one - other).max()) / (root_mean_square(other) or 1.0)
    return Difference(largest, relative_error(one, other), None, "relative")


def _check_shapes(found: Path, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        raise BenchmarkError(f"{found}: its shape is {list(one)}, the reference has {list(other)}. The requests differ")
