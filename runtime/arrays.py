"""Names for the arrays that cross module borders."""

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
"""Values that are, or are about to be, on the device: pixels, latents, noise."""

Float64s = NDArray[np.float64]
"""Values of a schedule or a sampler's table, computed on the host before they are rounded for the device."""
