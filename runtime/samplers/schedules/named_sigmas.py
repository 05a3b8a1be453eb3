"""The schedules of the web interfaces, by name: sigmas over the whole training range of a model.

Each is what AUTOMATIC1111's interface (modules/sd_schedulers.py) and ComfyUI (comfy/samplers.py) call by that name, as
S sigmas; zero follows them. They differ from diffusers' spacings of the same name in range, and the model is told
timesteps with their fraction, as k-diffusion does.
"""

from collections.abc import Callable, Mapping

import numpy as np

from latentrt.runtime.arrays import Float32s, Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.schedules.beta_sigmas import beta_sigmas
from latentrt.runtime.samplers.schedules.exponential_sigmas import exponential_sigmas
from latentrt.runtime.samplers.schedules.karras_sigmas import KARRAS_RHO, karras_sigmas

ALIGN_YOUR_STEPS_15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGN_YOUR_STEPS_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""Sigmas before and after ten optimised steps, for SD 1.5 and SDXL. Sabour et al. 2024 (arXiv:2404.14507), as published
on research.nvidia.com/labs/toronto-ai/AlignYourSteps/howto.html."""

Spacing = Callable[[Float32s, int, float, float, float | None], Float64s]
"""(training sigmas (T,), S, highest, lowest sigma, rho) -> S sigmas, falling."""


def named_sigmas(config: ScheduleConfig, training: Float32s, steps: int) -> Float64s:
    """S sigmas of the config's `sigma_spacing`; its sigma_max and sigma_min go before the ends of the training."""
    high = float(training[-1] if config.sigma_max is None else config.sigma_max)
    low = float(training[0] if config.sigma_min is None else config.sigma_min)
    return SPACINGS[str(config.sigma_spacing)](training, steps, high, low, config.rho)


def sigmas_at(timesteps: Float64s, training: Float32s) -> Float64s:
    """Sigmas of fractional timesteps, interpolated in log sigma, as k-diffusion does."""
    return np.asarray(np.exp(np.interp(timesteps, np.arange(len(training)), np.log(training.astype(np.float64)))))


def simple(training: Float32s, steps: int, *_: float | None) -> Float64s:
    """The training sigmas at T - 1 - floor(i T / S)."""
    return training[-1 - np.floor(np.arange(steps) * len(training) / steps).astype(np.int64)].astype(np.float64)


def ddim(training: Float32s, steps: int, *_: float | None) -> Float64s:
    """The training sigmas at 1 + i floor(T / S), from the highest down.

    The interfaces go on to the end of the table, which gives some step counts one step more; here there are S.
    """
    places = 1 + np.arange(steps)[::-1] * max(len(training) // steps, 1)
    return training[np.minimum(places, len(training) - 1)].astype(np.float64)


def normal(training: Float32s, steps: int, *_: float | None) -> Float64s:
    """Evenly spaced timesteps from the first to the last; the interfaces' Uniform is the same."""
    return sigmas_at(np.linspace(len(training) - 1, 0, steps), training)


def sgm_uniform(training: Float32s, steps: int, *_: float | None) -> Float64s:
    """Evenly spaced timesteps in S + 1 points, without the last one."""
    return sigmas_at(np.linspace(len(training) - 1, 0, steps + 1)[:-1], training)


def polyexponential(training: Float32s, steps: int, high: float, low: float, rho: float | None) -> Float64s:
    """Sigma's logarithm falls like (1 - i / (S - 1)) ** rho; with 1, the default, evenly."""
    ramp = np.linspace(1, 0, steps) ** (rho or 1.0)
    return np.asarray(np.exp(np.log(low) + ramp * (np.log(high) - np.log(low))))


def kl_optimal(training: Float32s, steps: int, high: float, low: float, rho: float | None) -> Float64s:
    """Sigma's arc tangent falls evenly (the optimum for Gaussian data; Sabour et al. 2024), in S points."""
    return np.asarray(np.tan(np.linspace(np.arctan(high), np.arctan(low), steps)))


def align_your_steps(levels: tuple[float, ...]) -> Spacing:
    """The published sigmas, interpolated log-linearly to S + 1 levels, without the last, which zero replaces."""

    def spacing(training: Float32s, steps: int, *_: float | None) -> Float64s:
        places = np.linspace(0, len(levels) - 1, steps + 1)[:-1]
        return np.asarray(np.exp(np.interp(places, np.arange(len(levels)), np.log(levels))))

    return spacing


SPACINGS: Mapping[str, Spacing] = {
    "align_your_steps_15": align_your_steps(ALIGN_YOUR_STEPS_15),
    "align_your_steps_xl": align_your_steps(ALIGN_YOUR_STEPS_XL),
    "beta": lambda training, steps, high, low, rho: beta_sigmas(high, low, steps),
    "ddim": ddim,
    "exponential": lambda training, steps, high, low, rho: exponential_sigmas(high, low, steps),
    "karras": lambda training, steps, high, low, rho: karras_sigmas(high, low, steps, rho or KARRAS_RHO),
    "kl_optimal": kl_optimal,
    "normal": normal,
    "polyexponential": polyexponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
}
