"""DPM++ SDE: the stochastic DPM-Solver++ of second order with two evaluations per step."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_LATENT_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule, initial_scale
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.schedules.training import timesteps_of, training_sigmas
from latentrt.runtime.samplers.solvers.dpmpp_2s_ancestral import exponential_step
from latentrt.runtime.samplers.solvers.euler import ancestral
from latentrt.runtime.samplers.solvers.sigma_space import alternate, denoised, twice


def plan_dpmpp_sde(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' DPMSolverSDEScheduler and k-diffusion's `sample_dpmpp_sde`, r = 1/2, with its `eta`.

    Even rows step to the geometric mean of sigma and sigma', odd rows from the start over the whole step; both land
    lower and add noise. That noise is one Brownian path over sigma, so the noise of the whole step is the sum of its
    two parts; both parts are drawn afresh, where k-diffusion reads them off a tree (torchsde). The last step is of
    first order. State: the latents; those before the step; the noise of its first part.
    """
    schedule = euler_schedule(config, steps)
    eta = 1.0 if config.eta is None else config.eta
    sigma, sigma_next = schedule.sigmas[:-1], schedule.sigmas[1:]
    middle = np.sqrt(sigma * sigma_next)
    sigma_read = alternate(sigma, middle[:-1])

    def move(x: Value, x0: Value, noise: Value, step: int, end: float) -> Value:
        down, up = ancestral(sigma[step], end, eta)
        return exponential_step(x, x0, sigma[step], down) + config.s_noise * up * noise

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, start, earlier = state
        step = row // 2
        x0 = denoised(x, output, sigma_read[row], config)
        if row == 2 * (steps - 1):
            return move(x, x0, noise, step, sigma_next[step]), 0 * x, 0 * x
        if row % 2 == 0:
            return move(x, x0, noise, step, middle[step]), x, noise
        share = (sigma[step] - middle[step]) / (sigma[step] - sigma_next[step])
        path = np.sqrt(share) * earlier + np.sqrt(1 - share) * noise
        return move(start, x0, path, step, sigma_next[step]), 0 * x, 0 * x

    level = twice(sigma)
    draws = np.full(len(level), eta > 0)
    draws[-1] &= sigma_next[-1] > 0
    return Plan(
        timesteps=alternate(schedule.timesteps, timesteps_of(middle[:-1], training_sigmas(config))),
        input_scale=preserving_alphas(sigma_read),
        levels=np.stack([np.ones_like(level), level], axis=1),
        draws=draws,
        advance=advance,
        state_count=3,
        initial_scale=initial_scale(config, schedule),
        evaluations=2,
    )


DPMPP_SDE = Sampler(
    scheduler="DPMSolverSDEScheduler",
    plan=plan_dpmpp_sde,
    defaults={**LINEAR_LATENT_BETAS, "timestep_spacing": "linspace"},
    reads=SPACING_FIELDS | (SIGMA_FIELDS - {"sigma_max", "sigma_min"}) | {"eta", "s_noise"},
)
