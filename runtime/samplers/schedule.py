"""Noise levels and timesteps: from a scheduler's config to the steps of one request.

Two conventions for the same noisy latents, tied by sigma: `x0 + sigma * noise` (variance exploding, Karras et al. 2022,
arXiv:2206.00364) and `alpha * x0 + sqrt(1 - alpha**2) * noise` (variance preserving), alpha = 1 / sqrt(1 + sigma**2).

Training schedules are rounded to float32 wherever diffusers holds them in float32: near t = 0, where 1 - alpha**2 is
about 1e-3, that rounding moves sigma by 1e-5 and more, so exact arithmetic would sample another trajectory.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Floats, Value

Float32s = NDArray[np.float32]

SMALLEST_ALPHA_BAR = np.float32(2**-24)
"""Stands in for a terminal alpha_bar of zero where sigma must stay finite, as in diffusers: sigma is then 4096."""

KARRAS_RHO = 7.0

LINEAR_BETAS: Mapping[str, object] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""The training schedule of a config that names none, in most of diffusers' classes."""

SIGMA_FIELDS = frozenset(
    {"final_sigmas_type", "sigma_max", "sigma_min", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"}
)
"""Config fields that shape a schedule of sigmas."""


@dataclass(frozen=True, slots=True)
class SigmaSchedule:
    """Noise levels of S steps: sigmas (S + 1,), falling, the last one reached at the end; timesteps (S,)."""

    sigmas: Floats
    timesteps: Floats

    @property
    def alphas(self) -> Floats:
        """Signal rates (S + 1,) of the variance-preserving convention."""
        return np.asarray(1 / np.sqrt(1 + self.sigmas**2))


def betas(config: ScheduleConfig) -> Float32s:
    """Noise variances of the forward process, (T,), as Ho et al. 2020 (arXiv:2006.11239) name them."""
    count = config.num_train_timesteps
    start, end = np.float64(config.beta_start), np.float64(config.beta_end)
    values: Float32s
    if config.trained_betas is not None:
        values = np.array(config.trained_betas, np.float32)
    elif config.beta_schedule == "linear":
        values = linspace32(start, end, count)
    elif config.beta_schedule == "scaled_linear":
        roots = linspace32(np.sqrt(start), np.sqrt(end), count)
        values = roots * roots
    else:
        edges = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        values = np.minimum(1 - edges[1:] / edges[:-1], 0.999).astype(np.float32)
    return _zero_terminal_snr(values) if config.rescale_betas_zero_snr else values


def alpha_bars(config: ScheduleConfig) -> Float32s:
    """Cumulative products of 1 - beta, (T,): the squared signal rates."""
    return _cumprod32(np.float32(1) - betas(config))


def training_sigmas(config: ScheduleConfig) -> Float32s:
    """Sigma of every training timestep, (T,), rising; finite also with zero terminal signal."""
    signal = alpha_bars(config)
    if config.rescale_betas_zero_snr:
        signal[-1] = SMALLEST_ALPHA_BAR
    sigmas: Float32s = np.sqrt((np.float32(1) - signal) / signal)
    return sigmas


def spaced_timesteps(config: ScheduleConfig, steps: int, *, skip_zero: bool = False, last: int | None = None) -> Floats:
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


def respaced_sigmas(config: ScheduleConfig, first: float, last: float, steps: int) -> Floats | None:
    """S noise levels from first to last in the spacing that the config asks for by name; None where it names none.

    Karras: evenly spaced in sigma ** (1 / 7), Karras et al. 2022 (arXiv:2206.00364), equation 5. Exponential: evenly
    spaced in log sigma, which is uniform in log-SNR. The config's sigma_max and sigma_min go before first and last.
    """
    high = np.float64(first if config.sigma_max is None else config.sigma_max)
    low = np.float64(last if config.sigma_min is None else config.sigma_min)
    if config.use_karras_sigmas:
        return np.asarray(np.linspace(high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO), steps) ** KARRAS_RHO)
    if config.use_exponential_sigmas:
        return np.exp(np.linspace(np.log(high), np.log(low), steps))
    return None


def timesteps_of(sigmas: Floats, training: Float32s) -> Floats:
    """Fractional training timesteps of noise levels, by interpolation in log sigma.

    Steps of the table are subtracted in float32, as in diffusers, whose multistep solvers then cut off the fraction:
    another rounding at the table's ends would give another integer.
    """
    logs = np.log(training)
    wanted = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    return np.asarray((1 - share) * low + share * (low + 1))


def linspace32(start: float, end: float, count: int) -> Float32s:
    """torch.linspace in float32: each half counted from its own end, one rounding per element (fused multiply-add)."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    places = np.arange(count)
    values = np.where(places < count // 2, first + step * places, last - step * (count - 1 - places))
    return values.astype(np.float32)


def predicted_x0(sample: Value, output: Value, alpha: float, sigma: float, prediction_type: str) -> Value:
    """Clean latents that the model's output implies, for sample = alpha * x0 + sigma * noise, alpha² + sigma² = 1.

    v = alpha * noise - sigma * x0: Salimans & Ho 2022 (arXiv:2202.00512), appendix D.
    """
    if prediction_type == "epsilon":
        return (sample - sigma * output) / alpha
    if prediction_type == "v_prediction":
        return alpha * sample - sigma * output
    return output


def predicted_noise(sample: Value, output: Value, alpha: float, sigma: float, prediction_type: str) -> Value:
    """Noise that the model's output implies; the counterpart of `predicted_x0`."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return alpha * output + sigma * sample
    return (sample - alpha * output) / sigma


def _cumprod32(values: Float32s) -> Float32s:
    """torch.cumprod of float32 values: accumulated in float64, every result rounded."""
    return np.cumprod(values.astype(np.float64)).astype(np.float32)


def _zero_terminal_snr(values: Float32s) -> Float32s:
    """Betas shifted and scaled to end without signal. Lin et al. 2023 (arXiv:2305.08891), algorithm 1."""
    roots = np.sqrt(_cumprod32(np.float32(1) - values))
    first, final = roots[0], roots[-1]
    roots = (roots - final) * (first / (first - final))
    signal = roots**2
    return np.float32(1) - np.concatenate([signal[:1], signal[1:] / signal[:-1]])
