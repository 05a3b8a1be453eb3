"""TCD: sampling of models made by trajectory consistency distillation."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LATENT_BETAS
from latentrt.runtime.samplers.schedules.timestep_spacing import distilled_timesteps
from latentrt.runtime.samplers.schedules.training import alpha_bars
from latentrt.runtime.samplers.solvers.ddim import ddim
from latentrt.runtime.samplers.solvers.prediction import predicted_noise, predicted_x0, rates
from latentrt.runtime.samplers.solvers.timestep_space import preserving_plan


def noised_again(x: Value, noise: Value, alpha_bar: float, alpha_bar_next: float) -> Value:
    """Add noise to latents, from alpha_bar up to alpha_bar'. Zheng et al. 2024 (arXiv:2402.19159), algorithm 2."""
    signal_rate, noise_rate = rates(alpha_bar_next / alpha_bar)
    return signal_rate * x + noise_rate * noise


def plan_tcd(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' TCDScheduler.

    Each step goes down to (1 - eta) times the next timestep and adds noise up to that one; the last goes to timestep
    zero and adds none. Without an eta nothing is added: diffusers' pipelines pass 0 where TCDScheduler.step has 0.3.
    """
    eta = config.eta or 0.0
    timesteps = distilled_timesteps("tcd", config, steps)
    timesteps_next = np.append(timesteps[1:], 0)
    # diffusers multiplies in float32: a product just below a whole number would be cut to another timestep.
    lower = np.floor(np.float32(1 - eta) * timesteps_next.astype(np.float32)).astype(np.int64)
    training = alpha_bars(config).astype(np.float64)
    signal, signal_next, signal_lower = training[timesteps], training[timesteps_next], training[lower]
    draws = (np.arange(steps) < steps - 1) & (eta > 0)

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        alpha, sigma = rates(signal[row])
        x0 = predicted_x0(x, output, alpha, sigma, config.prediction_type)
        predicted = predicted_noise(x, output, alpha, sigma, config.prediction_type)
        moved = ddim(x0, predicted, signal_lower[row])
        return (noised_again(moved, noise, signal_lower[row], signal_next[row]) if draws[row] else moved,)

    return preserving_plan(timesteps, signal, draws, advance)


TCD = Sampler(
    scheduler="TCDScheduler",
    plan=plan_tcd,
    defaults=LATENT_BETAS,
    reads=frozenset({"eta", "original_inference_steps", "rescale_betas_zero_snr", "timesteps"}),
)
