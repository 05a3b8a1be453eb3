"""bfloat16 without a library: the upper half of a float32, held as raw uint16, which is how buffers hold it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

RAW = np.dtype("uint16")
"""The dtype of bfloat16's bits. No port has integers of this width, so a buffer of this dtype holds bfloat16."""


def to_bits(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; NaN stays NaN, and values that are too large become infinity.

    Values that already are bits are returned unchanged.
    """
    if values.dtype == RAW:
        return values
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    # Rounding could carry a NaN's payload into its sign; one bit of the payload keeps it a NaN.
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype(np.uint16)


def from_bits(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Convert to float32, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_numbers(values: NDArray[Any]) -> NDArray[Any]:
    """Convert the bits of bfloat16 to float32; other values are returned unchanged."""
    return from_bits(values) if values.dtype == RAW else values
