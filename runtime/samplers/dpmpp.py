"""DPM-Solver++ multistep of first and second order (DPM++ 2M)."""

from dataclasses import replace

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.multistep import MULTISTEP_FIELDS, closed, spaced_sigmas
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedule import (
    LINEAR_BETAS,
    SIGMA_FIELDS,
    SigmaSchedule,
    predicted_x0,
    respaced_sigmas,
    timesteps_of,
    training_sigmas,
)

FEW_STEPS = 15
"""Below this many steps, `lower_order_final` makes the last step first order."""


def dpmpp_1(x: Value, x0: Value, schedule: SigmaSchedule, step: int) -> Value:
    """First order: x' = (s'/s) x - a' (exp(-h) - 1) x0.

    h = log(sigma / sigma'); a and s are the signal and noise rates. Lu et al. 2022 (arXiv:2211.01095), section 4: the
    first order, which is DDIM.
    """
    sigma, sigma_next = schedule.sigmas[step : step + 2]
    alpha, alpha_next = schedule.alphas[step : step + 2]
    decay = sigma_next / sigma  # exp(-h), finite also where the last sigma is zero
    keep: float = (alpha_next * sigma_next) / (alpha * sigma)
    take: float = alpha_next * (1 - decay)
    return keep * x + take * x0


def dpmpp_2m(x: Value, x0: Value, x0_previous: Value, schedule: SigmaSchedule, step: int, solver_type: str) -> Value:
    """The first-order step plus a term in D1 = (x0 - previous x0) h / h_previous.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2 (`midpoint`); `heun` integrates D1's exponential weight exactly.
    """
    sigma_previous, sigma, sigma_next = schedule.sigmas[step - 1 : step + 2]
    h, h_previous = np.log(sigma / sigma_next), np.log(sigma_previous / sigma)
    decay = sigma_next / sigma
    share: float = 0.5 * (1 - decay) if solver_type == "midpoint" else 1 - (1 - decay) / h
    slope: float = schedule.alphas[step + 1] * share * h / h_previous
    return dpmpp_1(x, x0, schedule, step) + slope * (x0 - x0_previous)


def plan_dpmpp_2m(config: ScheduleConfig, steps: int) -> Plan:
    """The plan of diffusers' DPMSolverMultistepScheduler with algorithm_type dpmsolver++.

    State of order 2: the latents and the previous x0; of order 1: the latents.
    """
    solver_type = _solver_type(config)
    schedule = _schedule(config, steps)
    final = len(schedule.timesteps) - 1
    first_order_final = (
        config.euler_at_final
        or config.final_sigmas_type == "zero"
        or (config.lower_order_final and len(schedule.timesteps) < FEW_STEPS)
    )

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        x, *history = state
        alpha = schedule.alphas[step]
        x0 = predicted_x0(x, output, alpha, alpha * schedule.sigmas[step], config.prediction_type)
        if not history:
            return (dpmpp_1(x, x0, schedule, step),)
        if step == 0 or (step == final and first_order_final):
            return dpmpp_1(x, x0, schedule, step), x0
        return dpmpp_2m(x, x0, history[0], schedule, step, solver_type), x0

    return Plan(
        timesteps=schedule.timesteps,
        input_scale=np.ones(len(schedule.timesteps)),
        draws=no_draws(len(schedule.timesteps)),
        advance=advance,
        state_count=config.solver_order,
    )


def _solver_type(config: ScheduleConfig) -> str:
    """`midpoint` or `heun`; the names of other solver families mean midpoint, as in diffusers."""
    if config.algorithm_type not in ("dpmsolver++", "deis"):
        raise RequestError(f"dpmpp_2m: algorithm_type {config.algorithm_type!r}: latentrt knows dpmsolver++")
    if config.solver_order not in (1, 2):
        raise RequestError(f"dpmpp_2m: solver_order {config.solver_order}: latentrt knows 1 and 2")
    if config.solver_type not in ("midpoint", "heun", "logrho", "bh1", "bh2", None):
        raise RequestError(f"dpmpp_2m: solver_type {config.solver_type!r}: latentrt knows midpoint and heun")
    return "heun" if config.solver_type == "heun" else "midpoint"


def _schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    training = training_sigmas(config)
    # lambda = log(alpha / sigma) rises as the timestep falls; steps below lambda_min_clipped are left out.
    last = int(np.count_nonzero(-np.log(training) >= config.lambda_min_clipped))
    sigmas, timesteps = spaced_sigmas(config, steps, training, last)
    whole = (config.use_karras_sigmas or config.use_lu_lambdas) and config.beta_schedule != "squaredcos_cap_v2"
    if config.use_lu_lambdas and not config.use_karras_sigmas:
        # Uniform in log-SNR between the training schedule's own ends: the exponential spacing under another name.
        config = replace(config, use_exponential_sigmas=True, sigma_min=None, sigma_max=None)
    respaced = respaced_sigmas(config, training[-1], training[0], steps)
    if respaced is not None:
        fractional = timesteps_of(respaced, training)
        sigmas, timesteps = respaced, np.round(fractional) if whole else fractional
    return closed(sigmas, timesteps, training[0] if config.final_sigmas_type == "sigma_min" else 0.0)


DPMPP_2M = Sampler(
    scheduler="DPMSolverMultistepScheduler",
    plan=plan_dpmpp_2m,
    defaults={**LINEAR_BETAS, "timestep_spacing": "linspace"},
    reads=MULTISTEP_FIELDS
    | SIGMA_FIELDS
    | {"algorithm_type", "euler_at_final", "lambda_min_clipped", "use_lu_lambdas", "variance_type"},
)
