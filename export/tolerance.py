"""How far an export's numbers may lie from torch's, and the measure of that distance."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.bundle.specs import Precision

TOLERANCE: Mapping[Precision, float] = {
    "fp32": 1e-4,  # rounding differs by summation order alone: 1e-6 per layer at most, some hundred layers
    "fp16": 3e-2,  # 11 bits of significand, 5e-4 per operation; the reference is float32
    "bf16": 1e-1,  # 8 bits
}
"""Largest allowed error of one output: root mean square of the difference over that of the reference."""


def relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Root mean square of the difference over that of what is wanted."""
    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
    scale = float(np.sqrt(np.mean(wanted**2))) or 1.0
    return float(np.sqrt(np.mean((found - wanted) ** 2))) / scale
