"""How far a picture, or a component's output, is from the reference."""

from pathlib import Path

import numpy as np
from PIL import Image

from latentrt.benchmarks.results import Difference
from latentrt.runtime.errors import BenchmarkError

LEVELS = 255


def compare_files(found: Path, reference: Path) -> Difference:
    """Two PNG files, or two `.npy` files of one output.

    Raises:
        BenchmarkError: they have different sizes, or one is not there.
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
    """Largest and root mean square error over the reference's root mean square."""
    one, other = (np.load(file, allow_pickle=False).astype(np.float64) for file in (found, reference))
    _check_shapes(found, one.shape, other.shape)
    scale = float(np.sqrt(np.mean(other**2))) or 1.0
    error = np.abs(one - other)
    return Difference(float(error.max()) / scale, float(np.sqrt(np.mean(error**2))) / scale, None, "relative")


def _check_shapes(found: Path, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        raise BenchmarkError(f"{found}: its shape is {list(one)}, the reference has {list(other)}. The requests differ")
