"""DPM-Solver and DPM-Solver++ single-step (DPM++ 2S) and the stochastic form, orders 1 to 3."""

from dataclasses import replace
from functools import partial

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.dpm_solver import dpm_solver_schedule
from latentrt.runtime.samplers.schedules.own_schedule import OWN_TIMESTEPS
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.solvers.exponential_integrator import Interval, interval, log_snr_rise
from latentrt.runtime.samplers.solvers.prediction import conversion
from latentrt.runtime.samplers.solvers.solver_options import (
    SOLVER_FIELDS,
    algorithm_of,
    check_order,
    check_solver_type,
    midpoint_or_heun,
)


def block_orders(config: ScheduleConfig, steps: int) -> list[int]:
    """The order of each row: blocks of orders 1, 2, ..., p, whose rows all start at the block's first latents.

    The last row is of first order where the schedule ends at sigma zero, or where `lower_order_final` asks for it and
    the last block is whole. Lu et al. 2022 (arXiv:2206.00927), section 3.4.
    """
    order = config.solver_order
    orders = [row % order + 1 for row in range(steps)]
    if config.final_sigmas_type == "zero" or (config.lower_order_final and steps % order == 0):
        orders[-1] = 1
    return orders


def plan_dpmpp_singlestep(config: ScheduleConfig, steps: int, first: int, *, sde: bool) -> Plan:
    """The plan of diffusers' DPMSolverSinglestepScheduler.

    State at order p > 1: the latents; those at the block's start; the p - 1 latest converted outputs. A loop that
    starts inside a block begins a new one there. The stochastic form draws on every row.
    """
    name = "dpmpp_2s_sde" if sde else "dpmpp_2s"
    algorithm = algorithm_of(name, config, sde=sde)
    check_order(name, config)
    check_solver_type(name, config, ("midpoint", "heun"))
    config = replace(config, timestep_spacing="linspace")  # the only spacing that this class has
    schedule = dpm_solver_schedule(config, steps, round_respaced=config.use_karras_sigmas)
    convert = conversion(schedule, config.prediction_type, to_x0=algorithm.endswith("++"))
    orders, solver_type = block_orders(config, steps), midpoint_or_heun(config)

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, start, *history = (*state, state[0]) if len(state) == 1 else state
        outputs = (convert(x, output, row), *history)
        order = min(orders[row], row - first + 1)
        start = x if order == 1 else start
        span = interval(schedule, row + 1 - order, row + 1, algorithm)
        moved = block_step(schedule, row, span, start, outputs[:order], noise, solver_type)
        return (moved, start, *outputs)[:state_count]

    state_count = config.solver_order + 1 if config.solver_order > 1 else 1
    return Plan(
        timesteps=schedule.timesteps,
        input_scale=np.ones(steps),
        levels=schedule.levels,
        draws=np.full(steps, sde),
        advance=advance,
        state_count=state_count,
    )


def block_step(
    schedule: SigmaSchedule,
    row: int,
    span: Interval,
    start: Value,
    outputs: State,
    noise: Value,
    solver_type: str,
) -> Value:
    """Step from the block's start to the level after this row. Lu et al. 2022 (arXiv:2206.00927), algorithms 1 and 2.

    In third order, `midpoint` uses the newest slope alone and `heun` both.
    """
    *later, oldest = outputs
    begin = row + 1 - len(outputs)
    h = log_snr_rise(schedule, begin, row + 1)
    places = [log_snr_rise(schedule, begin, row - i) / h for i in range(len(later))]
    slopes = [(output - oldest) / place for output, place in zip(later, places, strict=True)]
    if not slopes:
        return span.first(start, oldest, noise)
    if len(slopes) == 1:
        return span.second(start, oldest, slopes[0], noise, solver_type)
    if solver_type == "midpoint":
        return span.second(start, oldest, slopes[0], noise, "heun")
    apart = places[0] - places[1]
    slope = (places[0] * slopes[1] - places[1] * slopes[0]) / apart
    return span.third(start, oldest, slope, 2 * (slopes[0] - slopes[1]) / apart, noise)


_DEFAULTS = {**LINEAR_BETAS, "lower_order_final": False}
_READS = (
    SOLVER_FIELDS
    | SIGMA_FIELDS
    | OWN_TIMESTEPS
    | {"algorithm_type", "final_sigmas_type", "lambda_min_clipped", "variance_type"}
)

DPMPP_2S = Sampler(
    scheduler="DPMSolverSinglestepScheduler",
    plan=partial(plan_dpmpp_singlestep, sde=False),
    defaults=_DEFAULTS,
    reads=_READS,
)

DPMPP_2S_SDE = Sampler(
    scheduler="DPMSolverSinglestepScheduler",
    plan=partial(plan_dpmpp_singlestep, sde=True),
    defaults=_DEFAULTS,
    reads=_READS,
    sde=True,
)
