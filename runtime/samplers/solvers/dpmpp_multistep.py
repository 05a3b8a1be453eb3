"""DPM-Solver and DPM-Solver++ multistep (DPM++ 2M) and their stochastic forms (DPM++ 2M SDE), orders 1 to 3."""

from dataclasses import replace
from functools import partial

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.dpm_solver import dpm_solver_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.exponential_integrator import Interval, interval, log_snr_rise
from latentrt.runtime.samplers.solvers.prediction import Convert, conversion
from latentrt.runtime.samplers.solvers.solver_options import (
    FEW_STEPS,
    SOLVER_FIELDS,
    algorithm_of,
    check_order,
    check_solver_type,
    midpoint_or_heun,
)


def dpmpp_multistep(
    x: Value, outputs: State, noise: Value, schedule: SigmaSchedule, step: int, span: Interval, solver_type: str
) -> Value:
    """The DPM++ 2M step, or that of another order: 1 to 3, as many as there are outputs, newest first.

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2.
    """
    if len(outputs) == 1:
        return span.first(x, outputs[0], noise)
    if len(outputs) == 2:
        (slope,) = differences(schedule, step, outputs)
        return span.second(x, outputs[0], slope, noise, solver_type)
    slope, slope_before = differences(schedule, step, outputs)
    reach = log_snr_rise(schedule, step - 2, step) / log_snr_rise(schedule, step, step + 1)
    share = log_snr_rise(schedule, step - 1, step) / log_snr_rise(schedule, step - 2, step)
    bend = slope - slope_before
    return span.third(x, outputs[0], slope + share * bend, bend / reach, noise)


def solver_plan(
    config: ScheduleConfig,
    schedule: SigmaSchedule,
    first: int,
    algorithm: str,
    convert: Convert,
    input_scale: Float64s,
    initial_scale: float = 1.0,
) -> Plan:
    """The plan of the multistep solver on any schedule.

    State at order p: the latents and the p - 1 latest converted outputs. The stochastic forms draw on every step,
    unless `eta` is 0.
    """
    count, solver_type = len(schedule.timesteps), midpoint_or_heun(config)
    eta = 1.0 if config.eta is None else config.eta

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        x, *history = state
        outputs = (convert(x, output, step), *history)
        order = solver_order(config, step, first, count)
        span = interval(schedule, step, step + 1, algorithm, eta, config.s_noise)
        moved = dpmpp_multistep(x, outputs[:order], noise, schedule, step, span, solver_type)
        return moved, *outputs[: config.solver_order - 1]

    return Plan(
        timesteps=schedule.timesteps,
        input_scale=input_scale,
        levels=schedule.levels,
        draws=np.full(count, algorithm.startswith("sde-") and eta > 0),
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
    """Slopes in lambda between successive outputs, newest first, scaled by this step's h."""
    h = log_snr_rise(schedule, step, step + 1)
    rises = [log_snr_rise(schedule, step - i - 1, step - i) for i in range(len(outputs) - 1)]
    return [(outputs[i] - outputs[i + 1]) * (h / rise) for i, rise in enumerate(rises)]


def plan_dpmpp_multistep(config: ScheduleConfig, steps: int, first: int, *, sde: bool) -> Plan:
    """The plan of diffusers' DPMSolverMultistepScheduler."""
    name = "dpmpp_2m_sde" if sde else "dpmpp_2m"
    algorithm = algorithm_of(name, config, sde=sde)
    check_order(name, config)
    check_solver_type(name, config, ("midpoint", "heun"))
    if algorithm == "sde-dpmsolver" and (config.eta is not None or config.s_noise != 1):
        raise RequestError(
            f"{name}: eta, s_noise: algorithm_type sde-dpmsolver has none; latentrt knows sde-dpmsolver++"
        )
    if algorithm == "sde-dpmsolver" and config.solver_order == 3:
        raise RequestError(f"{name}: solver_order 3 with algorithm_type sde-dpmsolver: latentrt knows 1 and 2")
    schedule = _schedule(config, steps)
    convert = conversion(schedule, config.prediction_type, to_x0=algorithm.endswith("++"))
    return solver_plan(config, schedule, first, algorithm, convert, np.ones(len(schedule.timesteps)))


def _schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    rounded = (config.use_karras_sigmas or config.use_lu_lambdas) and config.beta_schedule != "squaredcos_cap_v2"
    if config.use_lu_lambdas and not config.use_karras_sigmas:
        # Uniform in log-SNR between the ends of the training schedule: exponential sigmas under another name.
        config = replace(config, use_exponential_sigmas=True, use_beta_sigmas=False, sigma_min=None, sigma_max=None)
    return dpm_solver_schedule(config, steps, round_respaced=rounded)


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
    reads=_READS | {"eta", "s_noise"},
    sde=True,
)
