"""Betas: the noise variances of the training schedule that a scheduler config describes."""

from collections.abc import Callable, Mapping

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.torch_float32 import cumprod32, linspace32

LARGEST_BETA = 0.999

LINEAR_BETAS: Mapping[str, object] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
"""The default of most of diffusers' classes."""

LATENT_BETAS: Mapping[str, object] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""The default of the classes made for distilled latent diffusion models."""

LINEAR_LATENT_BETAS: Mapping[str, object] = {**LATENT_BETAS, "beta_schedule": "linear"}
"""The default of diffusers' Heun and KDPM2 classes: the bounds of latent diffusion, spaced linearly."""


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
"""Beta schedules that are defined by alpha_bar as a function of time, 0 to 1."""


def betas(config: ScheduleConfig) -> Float32s:
    """Betas (T,) of all training timesteps, named as in Ho et al. 2020 (arXiv:2006.11239)."""
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


def _zero_terminal_snr(values: Float32s) -> Float32s:
    """Shift and scale betas so that the last timestep holds no signal. Lin et al. 2023 (arXiv:2305.08891), alg. 1."""
    roots = np.sqrt(cumprod32(np.float32(1) - values))
    first, final = roots[0], roots[-1]
    roots = (roots - final) * (first / (first - final))
    signal = roots**2
    return np.float32(1) - np.concatenate([signal[:1], signal[1:] / signal[:-1]])
