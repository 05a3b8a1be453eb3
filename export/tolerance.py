"""How far an export's numbers may lie from torch's, and the measure of that distance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

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
    """Root mean square of the difference divided by that of the reference, in float64; 0 for identical bits.

    Against a reference that is all zeros, the root mean square of `values` itself.
    """
    difference_squares = reference_squares = 0.0
    elements = 0
    for one, other in zip(_float64(values), _float64(reference), strict=True):
        difference_squares += float(np.sum((one - other) ** 2))
        reference_squares += float(np.sum(other**2))
        elements += other.size
    return float(np.sqrt(difference_squares / (reference_squares or max(elements, 1))))


def _float64(values: Values) -> list[NDArray[np.float64]]:
    arrays = [values] if isinstance(values, np.ndarray | Tensor) else values
    return [np.asarray(array, dtype=np.float64) for array in arrays]
