"""Latent consistency models' multistep sampling."""

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedule import alpha_bars, predicted_x0

SIGMA_DATA = 0.5


def lcm(denoised: Value, noise: Value, alpha_bar_next: float) -> Value:
    """Noise the clean latents again: x' = sqrt(alpha_bar') denoised + sqrt(1 - alpha_bar') noise.

    Luo et al. 2023 (arXiv:2310.04378), algorithm 3; Song et al. 2023 (arXiv:2303.01469), algorithm 1.
    """
    signal_rate: float = np.sqrt(alpha_bar_next)
    noise_rate: float = np.sqrt(1 - alpha_bar_next)
    return signal_rate * denoised + noise_rate * noise


def consistency(x: Value, x0: Value, timestep: float, scaling: float) -> Value:
    """The consistency function c_skip x + c_out x0, which is the identity at t = 0. Song et al. 2023, equation 5."""
    scaled = timestep * scaling
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out: float = scaled / np.sqrt(scaled**2 + SIGMA_DATA**2)
    return c_skip * x + c_out * x0


def plan_lcm(config: ScheduleConfig, steps: int) -> Plan:
    """The plan of diffusers' LCMScheduler: noise on every step but the last, which returns the denoised latents."""
    signal = alpha_bars(config).astype(np.float64)
    timesteps = _timesteps(config, steps)

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        (x,) = state
        timestep = timesteps[step]
        alpha_bar = signal[timestep]
        x0 = predicted_x0(x, output, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), config.prediction_type)
        denoised = consistency(x, x0, timestep, config.timestep_scaling)
        if step == steps - 1:
            return (denoised,)
        return (lcm(denoised, noise, signal[timesteps[step + 1]]),)

    return Plan(
        timesteps=timesteps.astype(np.float64),
        input_scale=np.ones(steps),
        draws=np.arange(steps) < steps - 1,
        advance=advance,
    )


def _timesteps(config: ScheduleConfig, steps: int) -> NDArray[np.int64]:
    """S of the timesteps that the model was distilled on, evenly spaced, from the highest down."""
    distilled = config.original_inference_steps
    if not 1 <= distilled <= config.num_train_timesteps:
        raise CheckpointError(
            f"scheduler config: original_inference_steps {distilled}: it must lie between 1 and num_train_timesteps "
            f"({config.num_train_timesteps})"
        )
    if steps > distilled:
        raise RequestError(f"steps {steps}: lcm takes 1 to {distilled}, the timesteps that the model was distilled on")
    origin = np.arange(distilled, 0, -1) * (config.num_train_timesteps // distilled) - 1
    return origin[np.floor(np.linspace(0, distilled, steps, endpoint=False)).astype(np.int64)]


LCM = Sampler(
    scheduler="LCMScheduler",
    plan=plan_lcm,
    defaults={
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "clip_sample": False,
    },
    reads=frozenset({"clip_sample", "original_inference_steps", "thresholding", "timestep_scaling"}),
)
