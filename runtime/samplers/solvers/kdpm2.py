"""KDPM2 ("DPM2", DPM-Solver-2 in Karras' notation) and its ancestral form."""

from functools import partial

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LINEAR_LATENT_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule, initial_scale
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.schedules.training import timesteps_of, training_sigmas
from latentrt.runtime.samplers.solvers.euler import ancestral
from latentrt.runtime.samplers.solvers.sigma_space import alternate, denoised, twice


def plan_kdpm2(config: ScheduleConfig, steps: int, first: int, *, fresh_noise: bool) -> Plan:
    """The plan of diffusers' KDPM2DiscreteScheduler or, with `fresh_noise`, KDPM2AncestralDiscreteScheduler.

    The latter with `eta` and `s_noise`, which k-diffusion has.
    Even rows step to the geometric mean of sigma and sigma_down, odd rows take the slope there over the whole step. The
    last step is Euler's. State: the latents, and those before the step. Lu et al. 2022 (arXiv:2206.00927), algorithm 1
    with r = 1/2, as k-diffusion writes it.
    """
    schedule = euler_schedule(config, steps)
    sigma = schedule.sigmas[:-1]
    sigma_down, sigma_up = schedule.sigmas[1:], np.zeros(steps)
    if fresh_noise:
        eta = 1.0 if config.eta is None else config.eta
        sigma_down, sigma_up = np.transpose([ancestral(*pair, eta) for pair in zip(sigma, sigma_down, strict=True)])
        sigma_up = config.s_noise * sigma_up
        fresh_noise = eta > 0
    middle = np.sqrt(sigma * sigma_down)
    sigma_read = alternate(sigma, middle[:-1])

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, start = state
        step = row // 2
        slope = (x - denoised(x, output, sigma_read[row], config)) / sigma_read[row]
        if row % 2 == 0:
            return x + (middle[step] - sigma[step]) * slope, x
        return start + (sigma_down[step] - sigma[step]) * slope + sigma_up[step] * noise, 0 * x

    rounded = config.use_karras_sigmas and config.sigma_spacing is None and config.own_steps is None
    timesteps = np.round(schedule.timesteps) if rounded else schedule.timesteps
    between = timesteps_of(middle[:-1].astype(np.float32).astype(np.float64), training_sigmas(config))
    level = twice(sigma)
    return Plan(
        timesteps=alternate(timesteps, between),
        input_scale=preserving_alphas(sigma_read),
        levels=np.stack([np.ones_like(level), level], axis=1),
        draws=(np.arange(len(level)) % 2 == 1) & fresh_noise,
        advance=advance,
        state_count=2,
        initial_scale=initial_scale(config, schedule),
        evaluations=2,
    )


_DEFAULTS = {**LINEAR_LATENT_BETAS, "timestep_spacing": "linspace"}

KDPM2 = Sampler(
    scheduler="KDPM2DiscreteScheduler",
    plan=partial(plan_kdpm2, fresh_noise=False),
    defaults=_DEFAULTS,
    reads=SPACING_FIELDS | SIGMA_FIELDS,
)

KDPM2_ANCESTRAL = Sampler(
    scheduler="KDPM2AncestralDiscreteScheduler",
    plan=partial(plan_kdpm2, fresh_noise=True),
    defaults=_DEFAULTS,
    reads=SPACING_FIELDS | SIGMA_FIELDS | {"eta", "s_noise"},
)
