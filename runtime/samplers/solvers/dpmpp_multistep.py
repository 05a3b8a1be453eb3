"""DPM-Solver and DPM-Solver++ multistep (DPM++ 2M) and their stochastic forms (DPM++ 2M SDE), orders 1 to 3."""

from dataclasses import replace
from functools import partial

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.log_snr import clipped_end, closed, respaced, spaced_sigmas
from latentrt.runtime.samplers.schedules.spacing import SIGMA_FIELDS, SPACING_FIELDS, SigmaSchedule
from latentrt.runtime.samplers.schedules.training import LINEAR_BETAS, training_sigmas
from latentrt.runtime.samplers.solvers.exponential_integrator import (
    algorithm_of,
    interval,
    log_snr_rise,
    midpoint_or_heun,
)
from latentrt.runtime.samplers.solvers.multistep import (
    FEW_STEPS,
    SOLVER_FIELDS,
    Convert,
    check_order,
    check_solver_type,
    preserving_conversion,
)


def solver_plan(
    config: ScheduleConfig,
    schedule: SigmaSchedule,
    first: int,
    algorithm: str,
    convert: Convert,
    input_scale: Float64s,
    initial_scale: float = 1.0,
) -> Plan:
    """The multistep solver on any schedule: Lu et al. 2022 (arXiv:2211.01095), algorithm 2.

    State of order p: the latents and the p - 1 latest outputs, converted. The stochastic forms draw on every step.
    """
    count, solver_type = len(schedule.timesteps), midpoint_or_heun(config)

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        x, *history = state
        outputs = (convert(x, output, step), *history)
        span = interval(schedule, step, step + 1, algorithm)
        order = solver_order(config, step, first, count)
        if order == 1:
            moved = span.first(x, outputs[0], noise)
        elif order == 2:
            (slope,) = differences(schedule, step, outputs[:2])
            moved = span.second(x, outputs[0], slope, noise, solver_type)
        else:
            slope, slope_before = differences(schedule, step, outputs)
            reach = log_snr_rise(schedule, step - 2, step) / log_snr_rise(schedule, step, step + 1)
            share = log_snr_rise(schedule, step - 1, step) / log_snr_rise(schedule, step - 2, step)
            bend = slope - slope_before
            moved = span.third(x, outputs[0], slope + share * bend, bend / reach, noise)
        return moved, *outputs[: config.solver_order - 1]

    return Plan(
        timesteps=schedule.timesteps,
        input_scale=input_scale,
        levels=schedule.levels,
        draws=np.full(count, algorithm.startswith("sde-")),
        advance=advance,
        state_count=config.solver_order,
        initial_scale=initial_scale,
    )


def solver_order(config: ScheduleConfig, step: int, first: int, count: int) -> int:
    """The order of a step: lower while outputs are missing and, as the config says, towards the end."""
    order = min(config.solver_order, step - first + 1)
    lower = config.lower_order_final and count < FEW_STEPS
    if step == count - 1 and (lower or config.euler_at_final or config.final_sigmas_type == "zero"):
        return 1
    return min(order, 2) if step == count - 2 and lower else order


def differences(schedule: SigmaSchedule, step: int, outputs: State) -> list[Value]:
    """Slopes in lambda between successive outputs, newest first, in units of this step's h."""
    h = log_snr_rise(schedule, step, step + 1)
    rises = [log_snr_rise(schedule, step - i - 1, step - i) for i in range(len(outputs) - 1)]
    return [(outputs[i] - outputs[i + 1]) * (h / rise) for i, rise in enumerate(rises)]


def plan_dpmpp_multistep(config: ScheduleConfig, steps: int, first: int, *, sde: bool) -> Plan:
    """The plan of diffusers' DPMSolverMultistepScheduler."""
    name = "dpmpp_2m_sde" if sde else "dpmpp_2m"
    algorithm = algorithm_of(name, config, sde=sde)
    check_order(name, config)
    check_solver_type(name, config, ("midpoint", "heun"))
    if algorithm == "sde-dpmsolver" and config.solver_order == 3:
        raise RequestError(f"{name}: solver_order 3 with algorithm_type sde-dpmsolver: latentrt knows 1 and 2")
    schedule = _schedule(config, steps)
    convert = preserving_conversion(schedule, config.prediction_type, to_x0=algorithm.endswith("++"))
    return solver_plan(config, schedule, first, algorithm, convert, np.ones(len(schedule.timesteps)))


def _schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    training = training_sigmas(config)
    whole = (config.use_karras_sigmas or config.use_lu_lambdas) and config.beta_schedule != "squaredcos_cap_v2"
    if config.use_lu_lambdas and not config.use_karras_sigmas:
        # Uniform in log-SNR between the training schedule's own ends: the exponential spacing under another name.
        config = replace(config, use_exponential_sigmas=True, use_beta_sigmas=False, sigma_min=None, sigma_max=None)
    named = respaced(config, steps, training, whole=whole)
    sigmas, timesteps = named or spaced_sigmas(config, steps, training, clipped_end(config, training))
    return closed(sigmas, timesteps, training[0] if config.final_sigmas_type == "sigma_min" else 0.0)


_DEFAULTS = {**LINEAR_BETAS, "timestep_spacing": "linspace", "lower_order_final": True}
_READS = (
    SPACING_FIELDS
    | SOLVER_FIELDS
    | SIGMA_FIELDS
    | {
        "algorithm_type",
        "euler_at_final",
        "final_sigmas_type",
        "lambda_min_clipped",
        "rescale_betas_zero_snr",
        "use_lu_lambdas",
        "variance_type",
    }
)

DPMPP_2M = Sampler(
    scheduler="DPMSolverMultistepScheduler",
    plan=partial(plan_dpmpp_multistep, sde=False),
    defaults=_DEFAULTS,
    reads=_READS,
)

DPMPP_2M_SDE = Sampler(
    scheduler="DPMSolverMultistepScheduler",
    plan=partial(plan_dpmpp_multistep, sde=True),
    defaults=_DEFAULTS,
    reads=_READS,
    sde=True,
)
