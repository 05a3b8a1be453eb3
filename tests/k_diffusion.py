"""k-diffusion's samplers in float64, written from their formulas, and a table that is stepped with the same model.

Source: k_diffusion/sampling.py and external.py in crowsonkb/k-diffusion (sample_euler, sample_heun,
sample_euler_ancestral, sample_dpm_2_ancestral with the geometric mean of AUTOMATIC1111's version,
sample_dpmpp_2s_ancestral, sample_dpmpp_sde, sample_dpmpp_2m_sde, sample_dpmpp_3m_sde).
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from latentrt.runtime.samplers import SamplerTable

Array = np.ndarray
Denoise = Callable[[Array, float], Array]
Draws = Iterator[Array]

Options = dict[str, float]


class Model:
    """A model of latents and timestep that is anything but linear, and k-diffusion's wrapper of it (epsilon)."""

    def __init__(self, sigmas: Array):
        self._logs = np.log(sigmas)

    def output(self, sample: Array, timestep: float) -> Array:
        """What the U-Net would return."""
        return np.tanh(sample * (1.2 - timestep / 2000)) + 0.1 * np.cos(3 * sample + timestep / 100)

    def denoise(self, x: Array, sigma: float) -> Array:
        """Clean latents, by DiscreteEpsDDPMDenoiser: the input scaled, the timestep found in log sigma."""
        timestep = np.interp(np.log(sigma), self._logs, np.arange(len(self._logs)))
        return x - sigma * self.output(x / np.sqrt(sigma**2 + 1), float(timestep))


def ancestral_step(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """sigma_down and sigma_up, by get_ancestral_step."""
    up = min(following, eta * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
    return (following**2 - up**2) ** 0.5, up


def churned(x: Array, sigma: float, steps: int, draws: Draws, options: Options) -> tuple[Array, float]:
    """Latents with the step's churn, and their sigma."""
    inside = options.get("s_tmin", 0) <= sigma <= options.get("s_tmax", np.inf)
    gamma = min(options.get("s_churn", 0) / steps, 2**0.5 - 1) if inside else 0
    raised = sigma * (gamma + 1)
    if gamma > 0:
        x = x + next(draws) * options.get("s_noise", 1) * (raised**2 - sigma**2) ** 0.5
    return x, raised


def euler(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    for sigma, following in pairwise(sigmas):
        x, raised = churned(x, sigma, len(sigmas) - 1, draws, options)
        x = x + (x - denoise(x, raised)) / raised * (following - raised)
    return x


def heun(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    for sigma, following in pairwise(sigmas):
        x, raised = churned(x, sigma, len(sigmas) - 1, draws, options)
        slope, width = (x - denoise(x, raised)) / raised, following - raised
        if following == 0:
            return x + slope * width
        guess = x + slope * width
        x = x + (slope + (guess - denoise(guess, following)) / following) / 2 * width
    return x


def euler_a(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    for sigma, following in pairwise(sigmas):
        down, up = ancestral_step(sigma, following, options.get("eta", 1))
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma)
        if following > 0 and up > 0:
            x = x + next(draws) * options.get("s_noise", 1) * up
    return x


def kdpm2_a(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    for sigma, following in pairwise(sigmas):
        down, up = ancestral_step(sigma, following, options.get("eta", 1))
        slope = (x - denoise(x, sigma)) / sigma
        if down == 0:
            return x + slope * (down - sigma)
        middle = np.exp((np.log(sigma) + np.log(down)) / 2)
        guess = x + slope * (middle - sigma)
        x = x + (guess - denoise(guess, middle)) / middle * (down - sigma)
        if up > 0:
            x = x + next(draws) * options.get("s_noise", 1) * up
    return x


def dpmpp_2s_a(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, sigma)
        down, up = ancestral_step(sigma, following, options.get("eta", 1))
        if down == 0:
            return x + (x - clean) / sigma * (down - sigma)
        t, t_next = -np.log(sigma), -np.log(down)
        h, r = t_next - t, 1 / 2
        s = t + r * h
        guess = np.exp(-s) / np.exp(-t) * x - np.expm1(-h * r) * clean
        x = np.exp(-t_next) / np.exp(-t) * x - np.expm1(-h) * denoise(guess, np.exp(-s))
        if up > 0:
            x = x + next(draws) * options.get("s_noise", 1) * up
    return x


def dpmpp_sde(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    """The noise sampler reads one Brownian path, whose pieces between neighbouring points are drawn one by one."""
    eta, s_noise, r = options.get("eta", 1), options.get("s_noise", 1), 1 / 2
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, sigma)
        if following == 0:
            return x + (x - clean) / sigma * (following - sigma)
        t, t_next = -np.log(sigma), -np.log(following)
        s = t + (t_next - t) * r
        middle = np.exp(-s)
        pieces = [next(draws) * (sigma - middle) ** 0.5, next(draws) * (middle - following) ** 0.5] if eta else [0, 0]
        down, up = ancestral_step(sigma, middle, eta)
        s_down = -np.log(down)
        guess = np.exp(-s_down) / np.exp(-t) * x - np.expm1(t - s_down) * clean
        guess = guess + pieces[0] / (sigma - middle) ** 0.5 * s_noise * up
        down, up = ancestral_step(sigma, following, eta)
        t_down, factor = -np.log(down), 1 / (2 * r)
        mixed = (1 - factor) * clean + factor * denoise(guess, middle)
        x = np.exp(-t_down) / np.exp(-t) * x - np.expm1(t - t_down) * mixed
        x = x + (pieces[0] + pieces[1]) / (sigma - following) ** 0.5 * s_noise * up
    return x


def dpmpp_2m_sde(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    """solver_type midpoint."""
    eta, s_noise = options.get("eta", 1), options.get("s_noise", 1)
    before: tuple[Array, float] | None = None
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, sigma)
        if following == 0:
            return clean
        h = np.log(sigma) - np.log(following)
        x = following / sigma * np.exp(-eta * h) * x + -np.expm1(-h - eta * h) * clean
        if before is not None:
            x = x + 0.5 * -np.expm1(-h - eta * h) * (h / before[1]) * (clean - before[0])
        if eta:
            x = x + next(draws) * following * np.sqrt(-np.expm1(-2 * eta * h)) * s_noise
        before = clean, h
    return x


def dpmpp_3m_sde(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    eta, s_noise = options.get("eta", 1), options.get("s_noise", 1)
    before: list[tuple[Array, float]] = []  # clean latents and h of earlier steps, newest first
    for sigma, following in pairwise(sigmas):
        clean = denoise(x, sigma)
        if following == 0:
            return clean
        h = np.log(sigma) - np.log(following)
        rise = h * (eta + 1)
        x = np.exp(-rise) * x + -np.expm1(-rise) * clean
        phi_2 = np.expm1(-rise) / rise + 1
        if len(before) == 1:
            (clean_1, h_1) = before[0]
            x = x + phi_2 * (clean - clean_1) / (h_1 / h)
        elif before:
            (clean_1, h_1), (clean_2, h_2) = before[:2]
            r0, r1 = h_1 / h, h_2 / h
            first, second = (clean - clean_1) / r0, (clean_1 - clean_2) / r1
            d1, d2 = first + (first - second) * r0 / (r0 + r1), (first - second) / (r0 + r1)
            x = x + phi_2 * d1 - (phi_2 / rise - 0.5) * d2
        if eta:
            x = x + next(draws) * following * np.sqrt(-np.expm1(-2 * h * eta)) * s_noise
        before = [(clean, h), *before]
    return x


def karras(count: int, low: float, high: float) -> Array:
    """get_sigmas_karras."""
    ramp = np.linspace(0, 1, count)
    return np.append((high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7, 0.0)


def restart(denoise: Denoise, x: Array, sigmas: Array, draws: Draws, options: Options) -> Array:
    """restart_sampler in modules/sd_samplers_extra.py of AUTOMATIC1111/stable-diffusion-webui, without a list given."""
    steps, restarts = len(sigmas) - 1, {}
    if steps >= 20:
        length, times = 9, 1
        if steps >= 36:
            length, times = steps // 4, 2
        sigmas = karras(steps - length * times, sigmas[-2], sigmas[0])
        restarts = {int(abs(sigmas - 0.1).argmin()): (length + 1, times, 2)}
    taken = []
    for place in range(len(sigmas) - 1):
        taken.append((sigmas[place], sigmas[place + 1]))
        if place + 1 in restarts:
            length, times, highest = restarts[place + 1]
            top = int(abs(sigmas - highest).argmin())
            if top < place + 1:
                back = karras(length, sigmas[place + 1], sigmas[top])[:-1]
                taken += list(pairwise(back)) * times
    last = taken[0][0]
    for sigma, following in taken:
        if last < sigma - 1e-6:
            x = x + next(draws) * options.get("s_noise", 1) * (sigma**2 - last**2) ** 0.5
        x = heun(denoise, x, np.array([sigma, following]), draws, {})
        last = following
    return x


SAMPLERS: dict[str, Callable[[Denoise, Array, Array, Draws, Options], Array]] = {
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2s_a": dpmpp_2s_a,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_sde": dpmpp_sde,
    "euler": euler,
    "euler_a": euler_a,
    "heun": heun,
    "kdpm2_a": kdpm2_a,
    "restart": restart,
}


def walk(table: SamplerTable, model: Model, first: Array, draws: Draws) -> Array:
    """The finished latents of the table from these first latents, with the same model."""
    state = np.zeros((table.state_count, *first.shape))
    state[0] = first
    for step in range(table.step_count):
        output = model.output(np.tensordot(table.readout[step], state, 1), float(table.timesteps[step]))
        drawn = table.draws[step] and table.weights[step][:, -1].any()
        noise = next(draws) if drawn else np.full(first.shape, 1e3 * (1 - table.draws[step]))
        state = np.tensordot(table.weights[step], np.stack([*state, output, noise]), 1)
    return state[0]
