"""DEIS: Adams-Bashforth in log rho on the diffusion equation's exponential integral."""

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.log_snr import closed, respaced, spaced_sigmas
from latentrt.runtime.samplers.schedules.spacing import SIGMA_FIELDS, SPACING_FIELDS, SigmaSchedule
from latentrt.runtime.samplers.schedules.training import LINEAR_BETAS, training_sigmas
from latentrt.runtime.samplers.solvers.lagrange import interpolation_weights
from latentrt.runtime.samplers.solvers.multistep import (
    FEW_STEPS,
    SOLVER_FIELDS,
    check_order,
    check_solver_type,
    preserving_conversion,
)


def deis(x: Value, outputs: State, schedule: SigmaSchedule, step: int) -> Value:
    """DEIS's step: x' / alpha' = x / alpha + the integral of the outputs' interpolation in log rho over rho.

    Zhang & Chen 2022 (arXiv:2204.13902), equation 15 with the log-rho polynomials of section 3.3; rho = sigma / alpha.
    In u = log(rho' / rho) a weight is rho times the integral of exp(u) L(u).
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
    """The plan of diffusers' DEISMultistepScheduler. State of order p: the latents and the p - 1 latest outputs."""
    if config.algorithm_type not in ("deis", "dpmsolver", "dpmsolver++"):
        raise RequestError(f"deis: algorithm_type {config.algorithm_type!r}: latentrt knows deis")
    check_order("deis", config)
    check_solver_type("deis", config, ("logrho",))
    schedule = _schedule(config, steps)
    count = len(schedule.timesteps)
    convert = preserving_conversion(schedule, config.prediction_type, to_x0=False)
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


def _schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    """As the other solvers', but it never reaches sigma zero; respaced sigmas end by standing still for a step."""
    training = training_sigmas(config)
    named = respaced(config, steps, training, whole=config.use_karras_sigmas)
    sigmas, timesteps = named or spaced_sigmas(config, steps, training)
    return closed(sigmas, timesteps, sigmas[-1] if named else training[0])


DEIS = Sampler(
    scheduler="DEISMultistepScheduler",
    plan=plan_deis,
    defaults={**LINEAR_BETAS, "timestep_spacing": "linspace", "lower_order_final": True},
    reads=SPACING_FIELDS | SOLVER_FIELDS | SIGMA_FIELDS | {"algorithm_type"},
)
