"""DPM++ 2S a: DPM-Solver++(2S) down to sigma_down, then fresh noise, as k-diffusion has it."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LATENT_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule, initial_scale
from latentrt.runtime.samplers.schedules.sigma_schedule import preserving_alphas
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.schedules.training import timesteps_of, training_sigmas
from latentrt.runtime.samplers.solvers.euler import ancestral
from latentrt.runtime.samplers.solvers.sigma_space import alternate, denoised, twice


def exponential_step(x: Value, x0: Value, sigma: float, sigma_next: float) -> Value:
    """The first-order step of DPM-Solver++: x' = (sigma' / sigma) x + (1 - sigma' / sigma) x0.

    Lu et al. 2022 (arXiv:2211.01095), equation 8, on latents x0 + sigma * noise.
    """
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * x0


def plan_dpmpp_2s_ancestral(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of k-diffusion's `sample_dpmpp_2s_ancestral`, with its `eta` and `s_noise`.

    Even rows step to the geometric mean of sigma and sigma_down, odd rows step from the start with the clean latents
    found there. The last step is of first order. State: the latents, and those before the step.
    """
    schedule = euler_schedule(config, steps)
    eta = 1.0 if config.eta is None else config.eta
    sigma = schedule.sigmas[:-1]
    down, up = np.transpose([ancestral(*pair, eta) for pair in zip(sigma, schedule.sigmas[1:], strict=True)])
    middle = np.sqrt(sigma * down)
    sigma_read = alternate(sigma, middle[:-1])

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, start = state
        step = row // 2
        x0 = denoised(x, output, sigma_read[row], config)
        if row == 2 * (steps - 1):
            return exponential_step(x, x0, sigma[step], down[step]) + config.s_noise * up[step] * noise, 0 * x
        if row % 2 == 0:
            return exponential_step(x, x0, sigma[step], middle[step]), x
        return exponential_step(start, x0, sigma[step], down[step]) + config.s_noise * up[step] * noise, 0 * x

    level = twice(sigma)
    return Plan(
        timesteps=alternate(schedule.timesteps, timesteps_of(middle[:-1], training_sigmas(config))),
        input_scale=preserving_alphas(sigma_read),
        levels=np.stack([np.ones_like(level), level], axis=1),
        draws=(np.arange(len(level)) % 2 == 1) & (eta > 0),
        advance=advance,
        state_count=2,
        initial_scale=initial_scale(config, schedule),
        evaluations=2,
    )


DPMPP_2S_ANCESTRAL = Sampler(
    scheduler=None,
    plan=plan_dpmpp_2s_ancestral,
    defaults={**LATENT_BETAS, "timestep_spacing": "linspace"},
    reads=SPACING_FIELDS | SIGMA_FIELDS | {"eta", "s_noise"},
)
