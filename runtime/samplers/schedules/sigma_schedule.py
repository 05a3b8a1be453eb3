"""The sigmas and timesteps of one request.

Two conventions describe the same noisy latents, tied by sigma: `x0 + sigma * noise` (variance exploding, Karras et al.
2022, arXiv:2206.00364) and `alpha * x0 + sqrt(1 - alpha**2) * noise` (variance preserving) with
alpha = 1 / sqrt(1 + sigma**2).
"""

from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float64s


@dataclass(frozen=True, slots=True)
class SigmaSchedule:
    """Noise levels of S steps: sigmas (S + 1,), falling, the last one reached at the end; timesteps (S,).

    `preserving` tells the convention of the latents: variance preserving, else variance exploding.
    """

    sigmas: Float64s
    timesteps: Float64s
    preserving: bool = True

    @property
    def alphas(self) -> Float64s:
        """Signal rates (S + 1,) of the latents."""
        return preserving_alphas(self.sigmas) if self.preserving else np.ones_like(self.sigmas)

    @property
    def levels(self) -> Float64s:
        """Signal and noise rates (S, 2) of the latents before each step."""
        return np.stack([self.alphas, self.alphas * self.sigmas], axis=1)[:-1]


def preserving_alphas(sigmas: Float64s) -> Float64s:
    """Signal rates in the variance-preserving convention; also what scales exploding latents for the U-Net."""
    return np.asarray(1 / np.sqrt(1 + sigmas**2))
