"""DDIM: deterministic at eta = 0, the default; ancestral at eta = 1."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS, whole_timesteps
from latentrt.runtime.samplers.schedules.training import alpha_bars
from latentrt.runtime.samplers.solvers.prediction import predicted_noise, predicted_x0, rates
from latentrt.runtime.samplers.solvers.timestep_space import preserving_plan, signal_at


def ddim(x0: Value, noise: Value, alpha_bar_next: float, fresh: float = 0.0) -> Value:
    """The DDIM step: x' = sqrt(alpha_bar') x0 + sqrt(1 - alpha_bar' - fresh²) noise.

    x0 and noise are the model's predictions; the caller adds new noise of rate `fresh`. Song, Meng & Ermon 2020
    (arXiv:2010.02502), equation 12.
    """
    signal_rate: float = np.sqrt(alpha_bar_next)
    noise_rate: float = np.sqrt(max(1 - alpha_bar_next - fresh**2, 0.0))
    return signal_rate * x0 + noise_rate * noise


def fresh_rate(alpha_bar: float, alpha_bar_next: float) -> float:
    """The rate of new noise that a step adds at eta = 1. Song, Meng & Ermon 2020, equation 16."""
    rate: float = np.sqrt((1 - alpha_bar_next) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_next))
    return rate


def plan_ddim(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' DDIMScheduler.

    The next timestep is always T // S lower, whatever the spacing; of timesteps that the request gives, it is the next
    one. Below zero, `set_alpha_to_one` decides the level.
    """
    training = alpha_bars(config).astype(np.float64)
    timesteps = whole_timesteps("ddim", config, steps)
    signal = training[timesteps]
    final = 1.0 if config.set_alpha_to_one else training[0]
    below = timesteps - config.num_train_timesteps // steps
    if config.timesteps is not None:
        below = np.append(timesteps[1:], -1)
    signal_next = signal_at(training, below, final)
    eta = config.eta or 0.0

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        alpha, sigma = rates(signal[row])
        x0 = predicted_x0(x, output, alpha, sigma, config.prediction_type)
        predicted = predicted_noise(x, output, alpha, sigma, config.prediction_type)
        fresh = eta * fresh_rate(signal[row], signal_next[row]) if eta else 0.0
        return (ddim(x0, predicted, signal_next[row], fresh) + fresh * noise,)

    return preserving_plan(timesteps, signal, np.full(steps, eta > 0), advance)


DDIM = Sampler(
    scheduler="DDIMScheduler",
    plan=plan_ddim,
    defaults={
        **LINEAR_BETAS,
        "timestep_spacing": "leading",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "eta": 0.0,
    },
    reads=SPACING_FIELDS | {"clip_sample", "eta", "rescale_betas_zero_snr", "set_alpha_to_one", "thresholding"},
)
