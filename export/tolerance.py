"""Tolerances for the difference between an export's numbers and torch's, and the measure of that difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentrt.runtime import arrays
from latentrt.runtime.bundle.specs import Precision

TOLERANCE: Mapping[Precision, float] = {
    "fp32": 1e-4,  # rounding differs by summation order alone: 1e-6 per layer at most, some hundred layers
    "fp16": 3e-2,  # 11 bits of significand, 5e-4 per operation; the reference is float32
    "bf16": 1e-1,  # 8 bits
}
"""Largest allowed `relative_error` of one output."""

Values = NDArray[Any] | Tensor | Sequence[NDArray[Any] | Tensor]
"""One array, or several that count as one."""


def relative_error(values: Values, reference: Values) -> float:
    """Root mean square of the difference divided by that of the reference, over all arrays together."""
    return arrays.relative_error(_as_one(values), _as_one(reference))


def _as_one(values: Values) -> NDArray[Any]:
    if isinstance(values, np.ndarray | Tensor):
        return np.asarray(values)
    return np.concatenate([np.asarray(array).ravel() for array in values])
