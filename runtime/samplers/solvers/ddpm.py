"""DDPM: the ancestral sampler of the original diffusion models."""

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS, whole_timesteps
from latentrt.runtime.samplers.schedules.training import alpha_bars
from latentrt.runtime.samplers.solvers.prediction import predicted_x0, rates
from latentrt.runtime.samplers.solvers.timestep_space import preserving_plan

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")
SMALLEST_VARIANCE = 1e-20
"""diffusers' lower bound, which leaves a trace of noise (1e-10) on the last step."""


def ddpm(x: Value, x0: Value, alpha_bar: float, alpha_bar_next: float) -> Value:
    """The mean of the posterior q(x' | x, x0). Ho et al. 2020 (arXiv:2006.11239), equation 7."""
    alpha = alpha_bar / alpha_bar_next
    take: float = np.sqrt(alpha_bar_next) * (1 - alpha) / (1 - alpha_bar)
    keep: float = np.sqrt(alpha) * (1 - alpha_bar_next) / (1 - alpha_bar)
    return take * x0 + keep * x


def variance(alpha_bar: float, alpha_bar_next: float, variance_type: str) -> float:
    """The variance of a step's noise: the posterior's (`fixed_small`) or beta (`fixed_large`). Ho et al., sect. 3.2."""
    beta = 1 - alpha_bar / alpha_bar_next
    if variance_type == "fixed_large":
        return beta
    return max((1 - alpha_bar_next) / (1 - alpha_bar) * beta, SMALLEST_VARIANCE)


def plan_ddpm(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' DDPMScheduler, which draws on every step above timestep zero."""
    kind = config.variance_type or "fixed_small"
    if kind not in VARIANCES:
        raise RequestError(f"ddpm: variance_type {kind!r}: latentrt knows {', '.join(VARIANCES)}")
    timesteps = whole_timesteps("ddpm", config, steps)
    signal = alpha_bars(config).astype(np.float64)[timesteps]
    signal_next = np.append(signal[1:], 1.0)
    draws = timesteps > 0

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        x0 = predicted_x0(x, output, *rates(signal[row]), config.prediction_type)
        mean = ddpm(x, x0, signal[row], signal_next[row])
        if not draws[row]:
            return (mean,)
        spread: float = np.sqrt(variance(signal[row], signal_next[row], kind))
        return (mean + spread * noise,)

    return preserving_plan(timesteps, signal, draws, advance)


DDPM = Sampler(
    scheduler="DDPMScheduler",
    plan=plan_ddpm,
    defaults={**LINEAR_BETAS, "timestep_spacing": "leading", "clip_sample": False},
    reads=SPACING_FIELDS | {"clip_sample", "rescale_betas_zero_snr", "thresholding", "variance_type"},
)
