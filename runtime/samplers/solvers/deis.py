"""DEIS: Adams-Bashforth in log rho, applied to the exponential integral of the diffusion equation."""

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.dpm_solver import deis_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.lagrange import interpolation_weights
from latentrt.runtime.samplers.solvers.prediction import conversion
from latentrt.runtime.samplers.solvers.solver_options import FEW_STEPS, SOLVER_FIELDS, check_order, check_solver_type


def deis(x: Value, outputs: State, schedule: SigmaSchedule, step: int) -> Value:
    """The DEIS step: x' / alpha' = x / alpha + the integral over rho of the outputs, interpolated in log rho.

    Zhang & Chen 2022 (arXiv:2204.13902), equation 15 with the log-rho polynomials of section 3.3; rho = sigma / alpha.
    With u = log(rho' / rho), each weight is rho times the integral of exp(u) L(u).
    """
    rho = schedule.sigmas
    alpha, alpha_next = schedule.alphas[step : step + 2]
    nodes = np.log(rho[step - np.arange(len(outputs))] / rho[step])
    weights = rho[step] * interpolation_weights(nodes, np.log(rho[step + 1] / rho[step]), exponential=True)
    moved = x / alpha
    for weight, output in zip(weights, outputs, strict=True):
        moved = moved + weight * output
    return np.asarray(alpha_next * moved)


def plan_deis(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' DEISMultistepScheduler. State at order p: the latents and the p - 1 latest outputs."""
    if config.algorithm_type not in ("deis", "dpmsolver", "dpmsolver++"):
        raise RequestError(f"deis: algorithm_type {config.algorithm_type!r}: latentrt knows deis")
    check_order("deis", config)
    check_solver_type("deis", config, ("logrho",))
    schedule = deis_schedule(config, steps, to_zero=False)
    count = len(schedule.timesteps)
    convert = conversion(schedule, config.prediction_type, to_x0=False)
    few = config.lower_order_final and count < FEW_STEPS

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        x, *history = state
        outputs = (convert(x, output, step), *history)
        order = min(config.solver_order, step - first + 1)
        order = min(order, count - step) if few else order
        return deis(x, outputs[:order], schedule, step), *outputs[: config.solver_order - 1]

    return Plan(
        timesteps=schedule.timesteps,
        input_scale=np.ones(count),
        levels=schedule.levels,
        draws=no_draws(count),
        advance=advance,
        state_count=config.solver_order,
    )


DEIS = Sampler(
    scheduler="DEISMultistepScheduler",
    plan=plan_deis,
    defaults={**LINEAR_BETAS, "timestep_spacing": "linspace", "lower_order_final": True},
    reads=SPACING_FIELDS | SOLVER_FIELDS | SIGMA_FIELDS | {"algorithm_type"},
)
