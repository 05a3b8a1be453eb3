"""DPM++ 3M SDE: the stochastic DPM-Solver++ multistep of third order, as k-diffusion has it."""

import numpy as np

from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value
from latentrt.runtime.samplers.schedules.betas import LATENT_BETAS
from latentrt.runtime.samplers.schedules.euler import euler_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.exponential_integrator import log_snr_rise
from latentrt.runtime.samplers.solvers.sigma_space import denoised, one_row_per_step


def dpmpp_3m_sde(x: Value, outputs: State, schedule: SigmaSchedule, step: int, eta: float) -> Value:
    """The step without its noise: exact for clean latents that are a polynomial in lambda = -log sigma.

    `outputs`: up to three clean latents, newest first, which give the order. With e = (1 + eta) h: x' = exp(-e) x + (1
    - exp(-e)) D0 + phi_2 D1 - phi_3 D2, where D1 and D2 are the slope and bend of the outputs in units of h. Lu et al.
    2022 (arXiv:2211.01095), appendix A, in k-diffusion's form.
    """
    h = log_snr_rise(schedule, step, step + 1)
    rise = (1 + eta) * h
    moved = np.exp(-rise) * x - np.expm1(-rise) * outputs[0]
    if len(outputs) == 1:
        return np.asarray(moved)
    phi_2 = np.expm1(-rise) / rise + 1
    reach = [log_snr_rise(schedule, step - i - 1, step - i) / h for i in range(len(outputs) - 1)]
    slopes = [(outputs[i] - outputs[i + 1]) / width for i, width in enumerate(reach)]
    if len(outputs) == 2:
        return np.asarray(moved + phi_2 * slopes[0])
    bend = (slopes[0] - slopes[1]) / (reach[0] + reach[1])
    phi_3 = phi_2 / rise - 0.5
    return np.asarray(moved + phi_2 * (slopes[0] + reach[0] * bend) - phi_3 * bend)


def plan_dpmpp_3m_sde(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of k-diffusion's `sample_dpmpp_3m_sde`, with its `eta` and `s_noise`.

    A last sigma of zero returns the clean latents. State: the latents and the two latest clean ones.
    """
    schedule = euler_schedule(config, steps)
    eta = 1.0 if config.eta is None else config.eta
    sigmas = schedule.sigmas

    def advance(state: State, output: Value, noise: Value, row: int) -> State:
        x, *history = state
        outputs = (denoised(x, output, sigmas[row], config), *history)
        if sigmas[row + 1] == 0:
            return outputs
        moved = dpmpp_3m_sde(x, outputs[: row - first + 1], schedule, row, eta)
        spread = sigmas[row + 1] * np.sqrt(1 - (sigmas[row + 1] / sigmas[row]) ** (2 * eta))
        return moved + config.s_noise * spread * noise, *outputs[:2]

    return one_row_per_step(config, schedule, advance, np.full(steps, eta > 0) & (sigmas[1:] > 0), state_count=3)


DPMPP_3M_SDE = Sampler(
    scheduler=None,
    plan=plan_dpmpp_3m_sde,
    defaults={**LATENT_BETAS, "timestep_spacing": "linspace"},
    reads=SPACING_FIELDS | SIGMA_FIELDS | {"eta", "s_noise"},
)
