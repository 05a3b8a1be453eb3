"""Samplers as k-diffusion has them, in full: churn, eta and noise, against its formulas in float64."""

from itertools import chain, product

import numpy as np
import pytest
from k_diffusion import SAMPLERS, Model, churned, walk
from schedules import SDXL

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler, kept_rows
from latentrt.runtime.samplers.schedules.training import training_sigmas

CHURN = {"s_churn": 5.0, "s_tmin": 0.3, "s_tmax": 10.0, "s_noise": 1.05}
CHURNED = ("euler", "heun")
ANCESTRAL = ("dpmpp_2m_sde", "dpmpp_2s_a", "dpmpp_3m_sde", "dpmpp_sde", "euler_a", "kdpm2_a")
CASES: list[tuple[str, dict[str, float]]] = [
    *product(CHURNED, ({}, {"s_churn": 3.0}, {"s_churn": 80.0, "s_noise": 0.9}, CHURN)),
    *product(ANCESTRAL, ({}, {"eta": 0.4}, {"s_noise": 1.1}, {"eta": 0.7, "s_noise": 0.8}, {"eta": 0.0})),
]


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("spacing", ["karras", "simple", "normal"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_trajectories_of_k_diffusion(name: str, options: dict[str, float], spacing: str, steps: int) -> None:
    """A model that is not linear, and takes the timestep, ends on k-diffusion's latents."""
    config = ScheduleConfig(**{**_stated(), **options, "sigma_spacing": spacing})
    table = compile_sampler(name, config, steps)
    sigmas = _sigmas(config, steps)
    model, shape = Model(training_sigmas(config).astype(np.float64)), (2, 5)
    latents, first_churn, *noise = np.random.default_rng(5).standard_normal((2 * steps + 2, *shape))
    start = sigmas[0] * latents
    ours = iter(noise)
    theirs = iter(noise)
    begun, raised = churned(start, sigmas[0], steps, iter([first_churn]), options)
    if raised > sigmas[0]:  # the first step's churn is part of the first latents' noise
        theirs = chain([first_churn], noise)
    expected = SAMPLERS[name](model.denoise, start, sigmas, theirs, options)
    scale = 1 / np.hypot(1, sigmas[0]) if name == "dpmpp_2m_sde" else 1  # whose latents preserve variance
    np.testing.assert_allclose(walk(table, model, scale * begun, ours), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 19, 20, 30, 36, 50])
@pytest.mark.parametrize("s_noise", [1.0, 0.9])
def test_restarts(s_noise: float, steps: int) -> None:
    """One restart from 20 steps on, two from 36 on; as many steps as were asked for."""
    config = ScheduleConfig(**{**_stated(), "s_noise": s_noise, "sigma_spacing": "karras"})
    table, sigmas = compile_sampler("restart", config, steps), _sigmas(config, steps)
    assert (table.step_count, int(table.draws.sum())) == (2 * steps - 1, (steps >= 20) + (steps >= 36))
    model = Model(training_sigmas(config).astype(np.float64))
    start, *noise = np.random.default_rng(6).standard_normal((3, 2, 5))
    expected = SAMPLERS["restart"](model.denoise, sigmas[0] * start, sigmas, iter(noise), {"s_noise": s_noise})
    np.testing.assert_allclose(walk(table, model, sigmas[0] * start, iter(noise)), expected, rtol=1e-4, atol=1e-4)


def test_shares_of_a_schedule_that_goes_back() -> None:
    with pytest.raises(RequestError, match="restart goes back to earlier timesteps, so that no share of them is one"):
        kept_rows("restart", SDXL, 30, denoising_end=0.8)
    assert kept_rows("restart", SDXL, 30, strength=0.5) == (30, 59)
    assert kept_rows("restart", SDXL, 10, denoising_end=0.8)[0] == 0


def _stated() -> dict[str, object]:
    return {"beta_start": SDXL.beta_start, "beta_end": SDXL.beta_end, "beta_schedule": SDXL.beta_schedule}


def _sigmas(config: ScheduleConfig, steps: int) -> np.ndarray:
    """The schedule without churn, read off `euler`: the weight of a row's output is sigma' - sigma."""
    plain = ScheduleConfig(**{**_stated(), "sigma_spacing": config.sigma_spacing})
    differences = compile_sampler("euler", plain, steps).weights[:-1, 0, 1]
    return np.append(-np.cumsum(differences[::-1])[::-1], 0.0)


def test_the_first_churn_raises_the_first_noise() -> None:
    """Noise of sigma, and what churn adds, are one draw of the sum of their variances."""
    config = ScheduleConfig(**{**_stated(), "timestep_spacing": "linspace", "s_churn": 3.0, "s_noise": 1.2})
    table, plain = (compile_sampler("euler", one, 10) for one in (config, SDXL_LINSPACE))
    sigma = plain.initial_scale
    added = 1.2 * np.sqrt((1.3 * sigma) ** 2 - sigma**2)
    assert table.initial_scale == pytest.approx(np.hypot(sigma, added))
    np.testing.assert_allclose(table.original_levels[0], [1, np.hypot(sigma, added)])
    assert table.draws.tolist() == [True] * 9 + [False]


SDXL_LINSPACE = ScheduleConfig(**{**_stated(), "timestep_spacing": "linspace"})


def test_a_late_start_keeps_the_churn_of_its_first_row() -> None:
    config = ScheduleConfig(**{**_stated(), "timestep_spacing": "linspace", "s_churn": 3.0})
    whole, late = compile_sampler("heun", config, 8), compile_sampler("heun", config, 8, 4)
    np.testing.assert_array_equal(late.weights, whole.weights[4:])
    np.testing.assert_array_equal(late.original_levels, whole.original_levels[4:])


def test_eta_of_zero_draws_nothing() -> None:
    for name in ANCESTRAL:
        assert not compile_sampler(name, ScheduleConfig(**{**_stated(), "eta": 0.0}), 6).draws.any()
