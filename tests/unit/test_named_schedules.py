"""The schedules of the web interfaces against their formulas, and a schedule of the request's own."""

from dataclasses import replace

import numpy as np
import pytest
from schedules import SDXL

from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.samplers import SAMPLERS, ScheduleConfig, compile_sampler, fields_read, kept_rows
from latentrt.runtime.samplers.schedules.named_sigmas import SPACINGS, named_sigmas
from latentrt.runtime.samplers.schedules.training import training_sigmas

TRAINING = training_sigmas(SDXL)
T = TRAINING.astype(np.float64)
HIGH, LOW = T[-1], T[0]


def at(timestep: float) -> float:
    """DiscreteSchedule.t_to_sigma of k-diffusion: the logarithm is interpolated."""
    low, high, share = int(np.floor(timestep)), int(np.ceil(timestep)), timestep % 1
    return float(np.exp((1 - share) * np.log(T[low]) + share * np.log(T[high])))


def simple(n: int) -> list[float]:
    return [T[-(1 + int(x * len(T) / n))] for x in range(n)]


def ddim(n: int) -> list[float]:
    found, x = [], 1
    while x < len(T):
        found.append(T[x])
        x += max(len(T) // n, 1)
    return found[:n][::-1]  # the interfaces keep a longer list


def log_linear(levels: list[float], n: int) -> np.ndarray:
    """NVIDIA's loglinear_interp."""
    places, wanted = np.linspace(0, 1, len(levels)), np.linspace(0, 1, n)
    return np.exp(np.interp(wanted, places, np.log(levels[::-1])))[::-1]


AYS_XL = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]
AYS_15 = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]

FORMULAS = {
    "align_your_steps_15": lambda n: log_linear(AYS_15, n + 1)[:-1],
    "align_your_steps_xl": lambda n: log_linear(AYS_XL, n + 1)[:-1],
    "ddim": ddim,
    "exponential": lambda n: np.exp(np.linspace(np.log(HIGH), np.log(LOW), n)),
    "karras": lambda n: (HIGH ** (1 / 7) + np.linspace(0, 1, n) * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7,
    "kl_optimal": lambda n: np.tan(
        np.linspace(0, 1, n) * np.arctan(LOW) + (1 - np.linspace(0, 1, n)) * np.arctan(HIGH)
    ),
    "normal": lambda n: [at(t) for t in np.linspace(999, 0, n)],
    "polyexponential": lambda n: np.exp(np.linspace(1, 0, n) * (np.log(HIGH) - np.log(LOW)) + np.log(LOW)),
    "sgm_uniform": lambda n: [at(t) for t in np.linspace(999, 0, n + 1)[:-1]],
    "simple": simple,
}


@pytest.mark.parametrize("steps", [2, 7, 10, 30, 49])
@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_named_sigmas(name: str, steps: int) -> None:
    sigmas = named_sigmas(replace(SDXL, sigma_spacing=name), TRAINING, steps)
    np.testing.assert_allclose(sigmas, FORMULAS[name](steps), rtol=1e-9)


def test_every_name_has_a_formula_here() -> None:
    assert set(FORMULAS) | {"beta"} == set(SPACINGS)


def test_beta_is_that_of_the_config_field() -> None:
    """Over the training range; `use_beta_sigmas` is compared with diffusers."""
    wide = replace(SDXL, timestep_spacing="linspace", use_beta_sigmas=True)
    tables = [compile_sampler("euler", config, 9) for config in (wide, replace(wide, sigma_spacing="beta"))]
    np.testing.assert_allclose(tables[0].weights, tables[1].weights, rtol=1e-5)


def test_a_rho_of_ones_own() -> None:
    poly = named_sigmas(replace(SDXL, sigma_spacing="polyexponential", rho=2.0), TRAINING, 5)
    np.testing.assert_allclose(poly[2], np.exp(np.log(LOW) + 0.25 * np.log(HIGH / LOW)))
    karras = named_sigmas(replace(SDXL, sigma_spacing="karras", rho=3.0), TRAINING, 3)
    np.testing.assert_allclose(karras[1], ((HIGH ** (1 / 3) + LOW ** (1 / 3)) / 2) ** 3)


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("name", [name for name in SAMPLERS if "sigma_spacing" in fields_read(SAMPLERS[name])])
def test_every_sampler_of_sigmas_takes_every_name(name: str, spacing: str) -> None:
    table = compile_sampler(name, replace(SDXL, sigma_spacing=spacing), 6)
    sigmas = FORMULAS[spacing](6) if spacing in FORMULAS else [HIGH]
    if name == "restart":
        assert np.isfinite(compile_sampler(name, replace(SDXL, sigma_spacing=spacing), 24).weights).all()
    expected = np.interp(np.log(sigmas[0]), np.log(T), np.arange(1000))
    assert table.timesteps[0] == pytest.approx(expected, abs=1e-2)
    assert np.isfinite(table.weights).all()


def test_a_name_goes_before_the_fields_of_diffusers() -> None:
    named = replace(SDXL, sigma_spacing="simple")
    both = replace(named, use_karras_sigmas=True, timestep_spacing="leading")
    for name in ("euler", "kdpm2", "dpmpp_2m", "unipc"):
        np.testing.assert_array_equal(compile_sampler(name, named, 6).weights, compile_sampler(name, both, 6).weights)


def test_one_step_at_399() -> None:
    """DMD2's one-step model: the clean latents of pure noise at timestep 399."""
    table = compile_sampler("lcm", replace(SDXL, timesteps=(399,)), 1)
    alpha = 1 / np.sqrt(1 + T[399] ** 2)
    assert table.timesteps.tolist() == [399, 399]
    np.testing.assert_allclose(table.weights[0], [[1 / alpha, -T[399], 0]], rtol=1e-4)


def test_ddim_steps_to_the_next_timestep_given() -> None:
    table = compile_sampler("ddim", replace(SDXL, timesteps=(999, 500, 20), set_alpha_to_one=True), 3)
    alphas = 1 / np.sqrt(1 + T[[999, 500, 20]] ** 2)
    np.testing.assert_allclose(table.weights[:2, 0, 0], alphas[1:] / alphas[:2], rtol=1e-4)
    np.testing.assert_allclose(table.weights[2, 0, 0], 1 / alphas[2], rtol=1e-6)


def test_a_zero_behind_the_sigmas_changes_nothing() -> None:
    given = [replace(SDXL, sigmas=sigmas) for sigmas in ((10.0, 2.0, 0.3), (10.0, 2.0, 0.3, 0.0))]
    for name in ("euler", "dpmpp_2m", "dpmpp_sde", "edm_euler"):
        tables = [compile_sampler(name, config, 3) for config in given]
        np.testing.assert_array_equal(tables[0].weights, tables[1].weights)
    np.testing.assert_allclose(compile_sampler("euler", given[0], 3).weights[:-1, 0, 1], [-8, -1.7, -0.3], rtol=1e-6)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "heun"])
def test_a_part_of_ones_own_schedule(name: str) -> None:
    config = replace(SDXL, timesteps=(901.0, 601.0, 301.0, 51.0))
    first, _ = kept_rows(name, config, 4, strength=0.5)
    assert compile_sampler(name, config, 4, first).timesteps[0] == 301


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"timesteps": [1, 2]}, "timesteps 1, 2: give at least one, each below the one before"),
        ({"timesteps": []}, r"timesteps \(none\): give at least one"),
        ({"timesteps": [500, 500]}, "each below the one before"),
        ({"timesteps": [1000, 1]}, "timesteps 1000, 1: this model was trained on 0 to 999"),
        ({"timesteps": [10, -1]}, "this model was trained on 0 to 999"),
        ({"sigmas": [3.0, 0.0, -1.0]}, "sigmas 3, 0, -1: they must be above 0; only the last may be 0"),
        ({"sigmas": [0.0]}, "they must be above 0"),
        ({"sigmas": [float("nan")]}, "give at least one"),
        ({"timesteps": [9], "sigmas": [1.0]}, "timesteps, sigmas: both given; a schedule is one of them"),
        ({"sigma_spacing": "steep"}, "sigma_spacing 'steep': latentrt knows align_your_steps_15, .*simple"),
        ({"s_churn": -1.0}, "s_churn -1.0: it must be at least 0"),
    ],
)
def test_broken_schedules(fields: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"scheduler config: .*{message}"):
        ScheduleConfig.from_diffusers(fields)


def test_steps_that_differ_from_the_schedule() -> None:
    with pytest.raises(RequestError, match="steps 4: the timesteps or sigmas given are 3 steps"):
        compile_sampler("euler", replace(SDXL, timesteps=(900, 500, 100)), 4)


def test_a_fraction_where_whole_timesteps_are_needed() -> None:
    with pytest.raises(RequestError, match="timesteps: ddim stands on whole training timesteps; give whole numbers"):
        compile_sampler("ddim", replace(SDXL, timesteps=(900.5, 500)), 2)
