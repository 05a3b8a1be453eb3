"""The training schedule of a config: betas, signal and noise of every training timestep.

Rounded to float32 wherever diffusers holds them in float32: near t = 0, where 1 - alpha_bar is about 1e-3, that
rounding moves sigma by 1e-5 and more, so exact arithmetic would sample another trajectory.
"""

from collections.abc import Callable, Mapping

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig

SMALLEST_ALPHA_BAR = np.float32(2**-24)
"""Stands in for a terminal alpha_bar of zero where sigma must stay finite, as in diffusers: sigma is then 4096."""

LARGEST_BETA = 0.999

LINEAR_BETAS: Mapping[str, object] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""The training schedule of a config that names none, in most of diffusers' classes."""

LATENT_BETAS: Mapping[str, object] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The same in the classes made for distilled latent diffusion models."""


def _cosine(times: Float64s) -> Float64s:
    """Nichol & Dhariwal 2021 (arXiv:2102.09672), equation 17."""
    return np.asarray(np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2)


def _exponential(times: Float64s) -> Float64s:
    return np.exp(-12.0 * times)


def _laplace(times: Float64s) -> Float64s:
    """Hang et al. 2024 (arXiv:2407.03297), with diffusers' constants."""
    centred = 0.5 - times
    log_snr = -0.5 * np.copysign(1, centred) * np.log(1 - 2 * np.abs(centred) + 1e-6)
    return np.asarray(np.sqrt(1 / (1 + np.exp(-log_snr))))


ALPHA_BARS: Mapping[str, Callable[[Float64s], Float64s]] = {
    "squaredcos_cap_v2": _cosine,
    "exp": _exponential,
    "laplace": _laplace,
}
"""The beta schedules that are given by alpha_bar as a function of time, 0 to 1."""


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
    elif config.beta_schedule == "sigmoid":
        logistic = np.float32(1) / (np.float32(1) + np.exp(-linspace32(-6, 6, count)))
        values = logistic * np.float32(end - start) + np.float32(start)
    else:
        edges = ALPHA_BARS[str(config.beta_schedule)](np.arange(count + 1) / count)
        values = np.minimum(1 - edges[1:] / edges[:-1], LARGEST_BETA).astype(np.float32)
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


def linspace32(start: float, end: float, count: int) -> Float32s:
    """torch.linspace in float32: each half counted from its own end, one rounding per element (fused multiply-add)."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(count - 1))
    places = np.arange(count)
    values = np.where(places < count // 2, first + step * places, last - step * (count - 1 - places))
    return values.astype(np.float32)


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
