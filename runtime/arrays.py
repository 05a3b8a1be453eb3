"""Names for the arrays that cross module borders, and the measure of how far two of them are apart."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
"""Values that are, or are about to be, on the device: pixels, latents, noise."""

Float64s = NDArray[np.float64]
"""Values of a schedule or a sampler's table, computed on the host before they are rounded for the device."""


def root_mean_square(values: NDArray[Any]) -> float:
    """Square root of the mean of the squares, computed in float64."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def relative_error(values: NDArray[Any], reference: NDArray[Any]) -> float:
    """Root mean square of the difference divided by that of the reference, or by 1 where the reference is all zeros."""
    difference = values.astype(np.float64) - reference.astype(np.float64)
    return root_mean_square(difference) / (root_mean_square(reference) or 1.0)
