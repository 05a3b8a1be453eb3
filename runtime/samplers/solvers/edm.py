"""EDM Euler and EDM DPM++ 2M, for models with EDM preconditioning instead of a training schedule.

The U-Net reads c_in x at c_noise = log(sigma) / 4, and the clean latents are c_skip x + c_out output. Karras et al.
2022 (arXiv:2206.00364), table 1.
"""

from functools import partial

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.edm import edm_initial_scale, edm_schedule
from latentrt.runtime.samplers.solvers.dpmpp_multistep import solver_plan
from latentrt.runtime.samplers.solvers.euler import euler
from latentrt.runtime.samplers.solvers.solver_options import SOLVER_FIELDS, algorithm_of, check_order, check_solver_type


def c_in(sigmas: Float64s, config: ScheduleConfig) -> Float64s:
    """The factor from the latents to the U-Net's input."""
    return np.asarray(1 / np.sqrt(sigmas**2 + config.sigma_data**2))


def preconditioned(x: Value, output: Value, sigma: float, config: ScheduleConfig) -> Value:
    """Clean latents c_skip x + c_out output; diffusers' v_prediction negates c_out."""
    total = sigma**2 + config.sigma_data**2
    c_out = sigma * config.sigma_data / np.sqrt(total)
    sign = -1 if config.prediction_type == "v_prediction" else 1
    return np.asarray(config.sigma_data**2 / total * x + sign * c_out * output)


def plan_edm_euler(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' EDMEulerScheduler."""
    _check_prediction("edm_euler", config)
    schedule = edm_schedule(config, steps)

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        (x,) = state
        sigma, sigma_next = schedule.sigmas[row : row + 2]
        return (euler(x, preconditioned(x, output, sigma, config), sigma, sigma_next),)

    return Plan(
        timesteps=schedule.timesteps,
        input_scale=c_in(schedule.sigmas[:-1], config),
        levels=schedule.levels,
        draws=no_draws(steps),
        advance=advance,
        initial_scale=edm_initial_scale(config),
    )


def plan_edm_dpmpp(config: ScheduleConfig, steps: int, first: int, *, sde: bool) -> Plan:
    """The plan of diffusers' EDMDPMSolverMultistepScheduler."""
    name = "edm_dpmpp_2m_sde" if sde else "edm_dpmpp_2m"
    algorithm = algorithm_of(name, config, sde=sde)
    if not algorithm.endswith("++"):
        raise RequestError(f"{name}: algorithm_type {config.algorithm_type!r}: latentrt knows dpmsolver++")
    check_order(name, config, largest=2 if sde else 3)
    check_solver_type(name, config, ("midpoint", "heun"))
    _check_prediction(name, config)
    schedule = edm_schedule(config, steps)

    def convert(x: Value, output: Value, step: int) -> Value:
        return preconditioned(x, output, schedule.sigmas[step], config)

    scale = c_in(schedule.sigmas[:-1], config)
    return solver_plan(config, schedule, first, algorithm, convert, scale, edm_initial_scale(config))


def _check_prediction(name: str, config: ScheduleConfig) -> None:
    if config.prediction_type == "sample":
        raise RequestError(f"{name}: prediction_type 'sample': EDM's preconditioning knows epsilon and v_prediction")


_DEFAULTS = {"sigma_min": 0.002, "sigma_max": 80.0, "lower_order_final": True}
_READS = frozenset({"final_sigmas_type", "rho", "sigma_data", "sigma_max", "sigma_min", "sigma_schedule", "sigmas"})
_SOLVER_READS = _READS | (SOLVER_FIELDS - {"use_flow_sigmas"}) | {"algorithm_type", "euler_at_final"}

EDM_EULER = Sampler(scheduler="EDMEulerScheduler", plan=plan_edm_euler, defaults=_DEFAULTS, reads=_READS)

EDM_DPMPP_2M = Sampler(
    scheduler="EDMDPMSolverMultistepScheduler",
    plan=partial(plan_edm_dpmpp, sde=False),
    defaults=_DEFAULTS,
    reads=_SOLVER_READS,
)

EDM_DPMPP_2M_SDE = Sampler(
    scheduler="EDMDPMSolverMultistepScheduler",
    plan=partial(plan_edm_dpmpp, sde=True),
    defaults=_DEFAULTS,
    reads=_SOLVER_READS,
    sde=True,
)
