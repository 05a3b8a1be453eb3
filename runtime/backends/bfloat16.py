"""bfloat16 without a library: the upper half of a float32, held as raw uint16, which is how buffers hold it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RAW = np.dtype("uint16")
"""The dtype of bfloat16's bits. No port has integers of this width, so it means bfloat16 wherever buffers say it."""


def to_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; NaN stays NaN and what is too large becomes infinity.

    Values that are bits already stay as they are.
    """
    if values.dtype == RAW:
        return values
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    # Rounding could carry a NaN's payload into its sign; one bit of the payload keeps it a NaN.
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The same numbers in float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """What a buffer holds, as numbers: float32 for bfloat16, else the values themselves."""
    return from_bits(values) if values.dtype == RAW else values
