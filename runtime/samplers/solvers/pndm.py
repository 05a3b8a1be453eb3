"""PNDM: linear multistep (PLMS), which SD 1.x checkpoints name, with or without a Runge-Kutta warm-up (PRK)."""

from collections.abc import Callable

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Advance, Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.own_schedule import OWN_TIMESTEPS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS, Timesteps, whole_timesteps
from latentrt.runtime.samplers.schedules.training import alpha_bars
from latentrt.runtime.samplers.solvers.ddim import ddim
from latentrt.runtime.samplers.solvers.prediction import predicted_noise, predicted_x0, rates
from latentrt.runtime.samplers.solvers.timestep_space import preserving_plan, signal_at

ADAMS_BASHFORTH = ((3, -1), (23, -16, 5), (55, -59, 37, -9))
"""Numerators, newest output first; the sum of each row is its denominator. Liu et al. 2022, equation 9."""

RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
"""Weights of the four evaluations of a classical Runge-Kutta step: at its start, twice in its middle, at its end."""

MEMORY = 3
"""Number of outputs kept for the multistep rows, and of the Runge-Kutta steps that fill them."""

Transfer = Callable[[Value, Value, int, int], Value]
"""(latents, output, timestep, next timestep) -> the latents there."""


def plms(outputs: State) -> Value:
    """The Adams-Bashforth mean of two to four outputs. Liu et al. 2022 (arXiv:2202.09778), section 3.3."""
    weights = ADAMS_BASHFORTH[len(outputs) - 2]
    return np.asarray(sum(weight * output for weight, output in zip(weights, outputs, strict=True)) / sum(weights))


def plan_pndm(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' PNDMScheduler: S + 1 evaluations with skip_prk_steps, else S + 9.

    Raises:
        RequestError: the model predicts clean latents, or there are too few steps for the Runge-Kutta warm-up.
    """
    if config.prediction_type == "sample":
        raise RequestError("pndm: prediction_type 'sample': the method averages predicted noise; use another sampler")
    if not config.skip_prk_steps and steps <= MEMORY:
        raise RequestError(
            f"steps {steps}: pndm with skip_prk_steps false takes {MEMORY + 1} or more, as its Runge-Kutta warm-up "
            f"spans {MEMORY}. Ask for more steps or set skip_prk_steps to true"
        )
    once = whole_timesteps("pndm", config, steps)
    stride = config.num_train_timesteps // steps
    training = alpha_bars(config).astype(np.float64)
    transfer = _transfer(config, training)
    if config.skip_prk_steps:
        timesteps = np.insert(once, 1, once[1]) if steps > 1 else once
        advance, state_count = _multistep(timesteps, stride, first, transfer), 1 + MEMORY
    else:
        timesteps = _warm_up_timesteps(once, stride)
        advance, state_count = _runge_kutta(timesteps, stride, first, transfer), 3 + MEMORY
    return preserving_plan(timesteps, training[timesteps], no_draws(len(timesteps)), advance, state_count)


def _transfer(config: ScheduleConfig, training: Float64s) -> Transfer:
    """The DDIM step between two timesteps, which the paper calls the transfer part."""
    final = 1.0 if config.set_alpha_to_one else training[0]

    def transfer(x: Value, output: Value, timestep: int, timestep_next: int) -> Value:
        signal, signal_next = signal_at(training, np.array([timestep, timestep_next]), final)
        alpha, sigma = rates(signal)
        x0 = predicted_x0(x, output, alpha, sigma, config.prediction_type)
        predicted = predicted_noise(x, output, alpha, sigma, config.prediction_type)
        return ddim(x0, predicted, signal_next)

    return transfer


def _multistep(timesteps: Timesteps, stride: int, first: int, transfer: Transfer) -> Advance:
    """The step with `skip_prk_steps`: multistep rows that warm up without Runge-Kutta.

    The first step is evaluated twice, as in Heun's method: rows 0 and 1 both go from the first timestep to the second,
    and row 1's timestep stands in the schedule twice. A loop that starts later skips that duplicate, as in diffusers:
    its own second row repeats its first step, and the row after it reads latents one step noisier than its timestep.

    State: the latents, then the latest outputs; between the first two rows, one output and the latents before the step.
    """
    second = first + 1

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, *memory = state
        timestep = timesteps[row] + (stride if row == second else 0)
        blank = 0 * x
        if row == first:
            mean, kept = output, (output, x, blank)
        elif row == second:
            mean, kept = (output + memory[0]) / 2, (memory[0], blank, blank)
            x = memory[1]
        else:
            outputs = (output, *memory)[: min(row - first, MEMORY + 1)]
            mean, kept = plms(outputs), (output, memory[0], memory[1])
        return transfer(x, mean, timestep, timestep - stride), *kept

    return advance


def _warm_up_timesteps(once: Timesteps, stride: int) -> Timesteps:
    """Timesteps (S + 9,): start, middle, middle and end of each of the first three steps, then one per step."""
    middles = once[1 : 1 + MEMORY] + stride // 2
    steps = zip(once[:MEMORY], middles, once[1 : 1 + MEMORY], strict=True)
    warm_up = [(start, middle, middle, end) for start, middle, end in steps]
    return np.append(np.array(warm_up), once[MEMORY:])


def _runge_kutta(timesteps: Timesteps, stride: int, first: int, transfer: Transfer) -> Advance:
    """The step without `skip_prk_steps`: three Runge-Kutta steps of four evaluations each, then multistep rows.

    Liu et al. 2022, section 3.3: pseudo Runge-Kutta. A loop that starts later takes its own first twelve rows for these
    steps, as in diffusers, which still starts them at the levels of the schedule's first three timesteps.

    State: the latents; the latest outputs at whole steps; the latents before the step; the weighted sum of its outputs.
    """

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, *memory, start, weighted = state
        step, stage = divmod(row - first, len(RUNGE_KUTTA))
        if step >= MEMORY:
            mean = plms((output, *memory))
            return transfer(x, mean, timesteps[row], timesteps[row] - stride), output, *memory[:-1], 0 * x, 0 * x
        if stage == 0:
            memory, start, weighted = [output, *memory[:-1]], x, 0 * x
        weighted = weighted + RUNGE_KUTTA[stage] * output
        mean = weighted if stage == len(RUNGE_KUTTA) - 1 else output
        timestep_next = timesteps[row] - (stride // 2 if stage % 2 == 0 else 0)
        x = transfer(start, mean, timesteps[step * len(RUNGE_KUTTA)], timestep_next)
        return x, *memory, start, weighted

    return advance


PNDM = Sampler(
    scheduler="PNDMScheduler",
    plan=plan_pndm,
    defaults={**LINEAR_BETAS, "timestep_spacing": "leading", "set_alpha_to_one": False},
    reads=(SPACING_FIELDS - OWN_TIMESTEPS) | {"set_alpha_to_one", "skip_prk_steps"},
)
