"""PNDM's linear multistep form (PLMS), the sampler that SD 1.x checkpoints name."""

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.ddim import ddim
from latentrt.runtime.samplers.discrete import preserving_levels, signal_at, whole_timesteps
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.prediction import predicted_noise, predicted_x0, rates
from latentrt.runtime.samplers.schedule import SPACING_FIELDS
from latentrt.runtime.samplers.training import LINEAR_BETAS, alpha_bars

ADAMS_BASHFORTH = ((3, -1), (23, -16, 5), (55, -59, 37, -9))
"""Numerators for the newest outputs first; each row's sum is the denominator. Liu et al. 2022, equation 9."""

MEMORY = 3


def plms(outputs: State) -> Value:
    """The Adams-Bashforth mean of two to four outputs. Liu et al. 2022 (arXiv:2202.09778), section 3.3."""
    weights = ADAMS_BASHFORTH[len(outputs) - 2]
    return np.asarray(sum(weight * output for weight, output in zip(weights, outputs, strict=True)) / sum(weights))


def plan_pndm(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' PNDMScheduler with skip_prk_steps: S + 1 evaluations.

    The first step is evaluated twice, as Heun does it: rows 0 and 1 both go from the first timestep to the second, and
    row 1's timestep stands in the schedule twice. A loop that starts later skips that double, as in diffusers: its own
    second row repeats its first step, and the row after it reads latents that are one step noisier than its timestep.

    State: the latents; then the latest outputs, or between the first two rows one output and the latents they start at.
    """
    if config.prediction_type == "sample":
        raise RequestError("pndm: prediction_type 'sample': the method averages predicted noise; use another sampler")
    training = alpha_bars(config).astype(np.float64)
    once = whole_timesteps("pndm", config, steps)
    timesteps = np.insert(once, 1, once[1]) if steps > 1 else once
    stride = config.num_train_timesteps // steps
    final = 1.0 if config.set_alpha_to_one else training[0]
    second = first + 1

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, *memory = state
        from_timestep = timesteps[row] + (stride if row == second else 0)
        signal, signal_next = signal_at(training, from_timestep - np.array([0, stride]), final)
        blank = 0 * x
        if row == first:
            mean, kept = output, (output, x, blank)
        elif row == second:
            mean, kept = (output + memory[0]) / 2, (memory[0], blank, blank)
            x = memory[1]
        else:
            outputs = (output, *memory)[: min(row - first, MEMORY + 1)]
            mean, kept = plms(outputs), (output, memory[0], memory[1])
        alpha, sigma = rates(signal)
        x0 = predicted_x0(x, mean, alpha, sigma, config.prediction_type)
        predicted = predicted_noise(x, mean, alpha, sigma, config.prediction_type)
        return ddim(x0, predicted, signal_next), *kept

    return Plan(
        timesteps=timesteps.astype(np.float64),
        input_scale=np.ones(len(timesteps)),
        levels=preserving_levels(training[timesteps]),
        draws=no_draws(len(timesteps)),
        advance=advance,
        state_count=1 + MEMORY,
    )


PNDM = Sampler(
    scheduler="PNDMScheduler",
    plan=plan_pndm,
    defaults={**LINEAR_BETAS, "timestep_spacing": "leading", "set_alpha_to_one": False},
    reads=SPACING_FIELDS | {"set_alpha_to_one", "skip_prk_steps"},
)
