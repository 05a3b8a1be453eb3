"""Noise levels and timesteps: from a scheduler's config to the steps of one request.

Two conventions for the same noisy latents, tied by sigma: `x0 + sigma * noise` (variance exploding, Karras et al. 2022,
arXiv:2206.00364) and `alpha * x0 + sqrt(1 - alpha**2) * noise` (variance preserving), alpha = 1 / sqrt(1 + sigma**2).
"""

from dataclasses import dataclass

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.beta import inverse_beta

KARRAS_RHO = 7.0
BETA_SHAPE = 0.6

SPACING_FIELDS = frozenset({"steps_offset", "timestep_spacing"})
"""Config fields that space the timesteps."""

SIGMA_FIELDS = frozenset({"sigma_max", "sigma_min", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"})
"""Config fields that space the sigmas instead."""


@dataclass(frozen=True, slots=True)
class SigmaSchedule:
    """Noise levels of S steps: sigmas (S + 1,), falling, the last one reached at the end; timesteps (S,).

    The latents' convention is variance preserving, or exploding.
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
    """Signal rates of the variance-preserving convention; also what scales exploding latents for the U-Net."""
    return np.asarray(1 / np.sqrt(1 + sigmas**2))


def spaced_timesteps(
    config: ScheduleConfig, steps: int, *, skip_zero: bool = False, last: int | None = None
) -> Float64s:
    """Timesteps of S steps, falling, not yet rounded; Lin et al. 2023 (arXiv:2305.08891), table 2.

    `skip_zero` divides the range into S + 1 points and drops the lowest, as the multistep solvers do; `last` replaces
    the number of training timesteps as the upper end.
    """
    count = config.num_train_timesteps
    end = count if last is None else last
    points = steps + skip_zero
    if config.timestep_spacing == "linspace":
        return np.linspace(0, end - 1, points)[::-1][:steps]
    if config.timestep_spacing == "leading":
        return np.arange(points, dtype=np.float64)[::-1][:steps] * (end // points) + config.steps_offset
    # Rounding errors make arange one element too long for some S (61 of 1000, for one): S steps were asked for.
    return np.round(np.arange(end, 0, -count / steps)[:steps]) - 1


def respaced_sigmas(config: ScheduleConfig, first: float, last: float, steps: int) -> Float64s | None:
    """S noise levels from first to last in the spacing that the config asks for by name; None where it names none.

    The config's sigma_max and sigma_min go before first and last. Beta: the quantiles of Beta(0.6, 0.6), denser at
    both ends; Lee et al. 2024 (arXiv:2407.12173).
    """
    high = np.float64(first if config.sigma_max is None else config.sigma_max)
    low = np.float64(last if config.sigma_min is None else config.sigma_min)
    if config.use_karras_sigmas:
        return karras_sigmas(high, low, steps)
    if config.use_exponential_sigmas:
        return exponential_sigmas(high, low, steps)
    if config.use_beta_sigmas:
        return low + inverse_beta(1 - np.linspace(0, 1, steps), BETA_SHAPE) * (high - low)
    return None


def karras_sigmas(high: float, low: float, steps: int, rho: float = KARRAS_RHO) -> Float64s:
    """Evenly spaced in sigma ** (1 / rho): Karras et al. 2022 (arXiv:2206.00364), equation 5."""
    return np.asarray(np.linspace(high ** (1 / rho), low ** (1 / rho), steps) ** rho)


def exponential_sigmas(high: float, low: float, steps: int) -> Float64s:
    """Evenly spaced in log sigma, which is uniform in log-SNR."""
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def timesteps_of(sigmas: Float64s, training: Float32s) -> Float64s:
    """Fractional training timesteps of noise levels, by interpolation in log sigma.

    Steps of the table are subtracted in float32, as in diffusers, whose multistep solvers then cut off the fraction:
    another rounding at the table's ends would give another integer.
    """
    logs = np.log(training)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return np.asarray((1 - share) * low + share * (low + 1))
