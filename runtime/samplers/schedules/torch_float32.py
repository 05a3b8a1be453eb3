"""float32 arithmetic that rounds where torch rounds."""

import numpy as np

from latentrt.runtime.arrays import Float32s


def linspace32(start: float, end: float, count: int) -> Float32s:
    """`torch.linspace` in float32: each half counts from its own end, one rounding per element (fused multiply-add)."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(count - 1))
    places = np.arange(count)
    values = np.where(places < count // 2, first + step * places, last - step * (count - 1 - places))
    return values.astype(np.float32)


def cumprod32(values: Float32s) -> Float32s:
    """`torch.cumprod` of float32 values: accumulated in float64, every result rounded."""
    return np.cumprod(values.astype(np.float64)).astype(np.float32)
