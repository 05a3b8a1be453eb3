"""DDIM, deterministic (eta = 0)."""

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedule import (
    LINEAR_BETAS,
    alpha_bars,
    predicted_noise,
    predicted_x0,
    spaced_timesteps,
)


def ddim(x0: Value, noise: Value, alpha_bar_next: float) -> Value:
    """DDIM's step: x' = sqrt(alpha_bar') x0 + sqrt(1 - alpha_bar') noise, both as the model predicts them.

    Song, Meng & Ermon 2020 (arXiv:2010.02502), equation 12 with sigma_t = 0.
    """
    signal_rate: float = np.sqrt(alpha_bar_next)
    noise_rate: float = np.sqrt(1 - alpha_bar_next)
    return signal_rate * x0 + noise_rate * noise


def plan_ddim(config: ScheduleConfig, steps: int) -> Plan:
    """The plan of diffusers' DDIMScheduler.

    The next timestep is always T // S lower, whatever the spacing; below zero, `set_alpha_to_one` gives the level.
    """
    signal = alpha_bars(config).astype(np.float64)
    timesteps = np.round(spaced_timesteps(config, steps)).astype(np.int64)
    if timesteps.max() >= len(signal):
        raise RequestError(
            f"steps {steps}: ddim with steps_offset {config.steps_offset} would start at timestep {timesteps.max()}, "
            f"but the model was trained on 0 to {len(signal) - 1}. Ask for fewer steps"
        )
    final = 1.0 if config.set_alpha_to_one else signal[0]
    next_timesteps = timesteps - config.num_train_timesteps // steps
    next_signal = np.where(next_timesteps >= 0, signal[np.maximum(next_timesteps, 0)], final)

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        (x,) = state
        alpha_bar = signal[timesteps[step]]
        alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        x0 = predicted_x0(x, output, alpha, sigma, config.prediction_type)
        predicted = predicted_noise(x, output, alpha, sigma, config.prediction_type)
        return (ddim(x0, predicted, next_signal[step]),)

    return Plan(
        timesteps=timesteps.astype(np.float64), input_scale=np.ones(steps), draws=no_draws(steps), advance=advance
    )


DDIM = Sampler(
    scheduler="DDIMScheduler",
    plan=plan_ddim,
    defaults={**LINEAR_BETAS, "timestep_spacing": "leading", "clip_sample": True},
    reads=frozenset({"clip_sample", "set_alpha_to_one", "thresholding"}),
)
