"""LCM: multistep sampling of latent consistency models."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LATENT_BETAS
from latentrt.runtime.samplers.schedules.timestep_spacing import distilled_timesteps
from latentrt.runtime.samplers.schedules.training import alpha_bars
from latentrt.runtime.samplers.solvers.prediction import predicted_x0, rates
from latentrt.runtime.samplers.solvers.timestep_space import preserving_plan

SIGMA_DATA = 0.5


def lcm(denoised: Value, noise: Value, alpha_bar_next: float) -> Value:
    """Add noise to the clean latents again: x' = sqrt(alpha_bar') denoised + sqrt(1 - alpha_bar') noise.

    Luo et al. 2023 (arXiv:2310.04378), algorithm 3; Song et al. 2023 (arXiv:2303.01469), algorithm 1.
    """
    signal_rate, noise_rate = rates(alpha_bar_next)
    return signal_rate * denoised + noise_rate * noise


def consistency(x: Value, x0: Value, timestep: float, scaling: float) -> Value:
    """The consistency function c_skip x + c_out x0, which is the identity at t = 0. Song et al. 2023, equation 5."""
    scaled = timestep * scaling
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out: float = scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
    return c_skip * x + c_out * x0


def plan_lcm(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' LCMScheduler: noise on every step but the last, which returns the denoised latents."""
    timesteps = distilled_timesteps("lcm", config, steps)
    signal = alpha_bars(config).astype(np.float64)[timesteps]

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        x0 = predicted_x0(x, output, *rates(signal[row]), config.prediction_type)
        denoised = consistency(x, x0, timesteps[row], config.timestep_scaling)
        if row == steps - 1:
            return (denoised,)
        return (lcm(denoised, noise, signal[row + 1]),)

    return preserving_plan(timesteps, signal, np.arange(steps) < steps - 1, advance)


LCM = Sampler(
    scheduler="LCMScheduler",
    plan=plan_lcm,
    defaults={**LATENT_BETAS, "timestep_spacing": "leading", "clip_sample": False},
    reads=frozenset(
        {
            "clip_sample",
            "original_inference_steps",
            "rescale_betas_zero_snr",
            "thresholding",
            "timestep_scaling",
            "timesteps",
        }
    ),
)
