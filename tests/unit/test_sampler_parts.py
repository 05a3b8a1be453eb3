"""Late starts, early ends, noised originals, and the numerical helpers, without diffusers."""

from dataclasses import replace

import numpy as np
import pytest
from schedules import SDXL

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers import SAMPLERS, compile_part, compile_sampler, kept_rows
from latentrt.runtime.samplers.schedules.beta_sigmas import inverse_beta, lower_share
from latentrt.runtime.samplers.solvers.lagrange import interpolation_weights

TWO_ROWS = {"dpmpp_2s_a", "dpmpp_sde", "heun", "kdpm2", "kdpm2_a", "restart"}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_part_has_the_schedule_of_the_whole(name: str) -> None:
    whole, part = compile_sampler(name, SDXL, 10), compile_sampler(name, SDXL, 10, 4, 7)
    assert (part.step_count, part.first, part.initial_scale) == (3, 4, whole.initial_scale)
    assert part.timesteps.tolist() == [*whole.timesteps[4:7], whole.timesteps[6]]
    assert np.array_equal(part.readout[:-1], whole.readout[4:7])
    assert np.array_equal(part.draws, whole.draws[4:7])
    assert np.array_equal(part.original_levels, [*whole.original_levels[4:7], (1, 0)])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_first_row_of_a_part_reads_no_history(name: str) -> None:
    table = compile_sampler(name, SDXL, 10, 4)
    assert np.count_nonzero(table.weights[0, 0, 1 : table.state_count]) == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_follow_the_noise(name: str) -> None:
    """Signal and noise rates from the noisiest to the clean original: sigma falls, and exploding signal stays whole."""
    levels = compile_sampler(name, SDXL, 8).original_levels
    sigmas = levels[:, 1] / levels[:, 0]
    assert (np.diff(sigmas) <= 0).all()
    assert levels[-1].tolist() == [1, 0]
    exploding = name in TWO_ROWS | {"dpmpp_3m_sde", "euler", "euler_a", "lms"} or name.startswith("edm_")
    np.testing.assert_allclose(levels[:, 0] ** 2 + (0 if exploding else levels[:, 1] ** 2), 1, rtol=1e-7)


@pytest.mark.parametrize("name", ["lms", "deis"])
def test_a_late_start_moves_a_constant_output_by_the_whole_step(name: str) -> None:
    """However many outputs there are, their weights add up to what one output alone would move."""
    table = compile_sampler(name, replace(SDXL, solver_order=3), 20, 8)
    first = compile_sampler(name, replace(SDXL, solver_order=1), 20, 8)
    latents, output = np.array([0.3, 1.7])
    states = [np.array([latents, *[0.0] * (t.state_count - 1)]) for t in (table, first)]
    for step in range(3):
        states = [t.weights[step] @ [*z, output, 0.0] for t, z in zip((table, first), states, strict=True)]
        if name == "lms":  # it has no solver_order: its slope is the output itself
            widths = [1.0, *(np.append(table.original_levels[:-1, 1], 0)[1 : step + 2])]
            expected = latents + (widths[-1] - table.original_levels[0, 1]) * output
            assert states[0][0] == pytest.approx(expected, rel=1e-12)
        else:
            assert states[0][0] == pytest.approx(states[1][0], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("euler", {}, (0, 30)),
        ("euler", {"strength": 0.6}, (12, 30)),
        ("euler", {"strength": 0.99}, (1, 30)),
        ("heun", {"strength": 0.6}, (24, 59)),
        ("pndm", {"strength": 0.6}, (12, 31)),
        ("euler", {"denoising_end": 0.8}, (0, 23)),
        ("euler", {"denoising_start": 0.8}, (23, 30)),
        ("euler", {"denoising_start": 0.5, "denoising_end": 0.8, "strength": 0.1}, (14, 23)),
        ("heun", {"denoising_end": 0.8}, (0, 45)),
        ("heun", {"denoising_start": 0.8}, (44, 59)),
        ("euler", {"denoising_start": 0.0, "denoising_end": 1.0}, (0, 30)),
        ("edm_euler", {"strength": 0.5}, (15, 30)),
    ],
)
def test_kept_rows(name: str, options: dict[str, float], expected: tuple[int, int]) -> None:
    assert kept_rows(name, SDXL, 30, **options) == expected
    part, rows = compile_part(name, SDXL, 30, **options), compile_sampler(name, SDXL, 30, *expected)
    assert (part.first, part.step_count) == (rows.first, rows.step_count)
    np.testing.assert_array_equal(part.weights, rows.weights)
    np.testing.assert_array_equal(part.timesteps, rows.timesteps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.2}, "strength 1.2: it is a share, from 0 to 1"),
        ({"denoising_start": -0.1}, "denoising_start -0.1: it is a share"),
        ({"denoising_end": 80}, "denoising_end 80: it is a share"),
        (
            {"denoising_start": 0.8, "denoising_end": 0.8},
            r"denoising_start 0.8: it must be less than denoising_end",
        ),
        ({"strength": 0.01}, "strength 0.01: none of 30 steps is left to run, .* The least is 0.034, one step"),
        (
            {"strength": 0.1, "denoising_end": 0.5},
            "strength 0.1, denoising_end 0.5: none of 30 steps lies between. Ask",
        ),
        ({"denoising_start": 0.999}, "^denoising_start 0.999: none of 30 steps lies between. Ask for more steps"),
    ],
)
def test_impossible_shares(options: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        kept_rows("dpmpp_2m", SDXL, 30, **options)


@pytest.mark.parametrize("name", ["edm_euler", "edm_dpmpp_2m", "euler"])
def test_schedules_without_training_timesteps_to_divide(name: str) -> None:
    continuous = replace(SDXL, timestep_type="continuous", prediction_type="v_prediction")
    with pytest.raises(RequestError, match=rf"{name} tells the model log\(sigma\) / 4 here, so there are no training"):
        kept_rows(name, continuous, 30, denoising_end=0.8)


@pytest.mark.parametrize(
    ("name", "first", "last", "message"),
    [
        ("euler", 10, None, "rows 10 to 10: euler with 10 steps has rows 0 to 10"),
        ("euler", -1, None, "rows -1 to 10: euler"),
        ("euler", 4, 4, "rows 4 to 4: euler"),
        ("euler", 4, 11, "rows 4 to 11: euler"),
        ("heun", 3, None, "first row 3: heun evaluates the model 2 times per step; start at an even row"),
    ],
)
def test_impossible_rows(name: str, first: int, last: int | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        compile_sampler(name, SDXL, 10, first, last)


def test_beta_quantiles_of_known_distributions() -> None:
    """Beta(1, 1) is uniform, Beta(1/2, 1/2) the arcsine law, Beta(2, 2) has 3 x² - 2 x³ for its distribution."""
    shares = np.linspace(0, 1, 101)
    np.testing.assert_allclose(inverse_beta(shares, 1.0), shares, rtol=0, atol=1e-14)
    np.testing.assert_allclose(inverse_beta(shares, 0.5), np.sin(np.pi * shares / 2) ** 2, rtol=1e-12, atol=1e-15)
    x = inverse_beta(shares, 2.0)
    np.testing.assert_allclose(3 * x**2 - 2 * x**3, shares, rtol=1e-12, atol=1e-15)


def test_beta_quantiles_of_the_sigma_spacing() -> None:
    """Beta(0.6, 0.6): the distribution function leads back, far into the tails too; both halves mirror each other."""
    shares = np.logspace(-12, np.log10(0.5), 50)
    x = inverse_beta(shares, 0.6)
    np.testing.assert_allclose(lower_share(x, 0.6), shares, rtol=1e-12)
    np.testing.assert_allclose(inverse_beta(1 - shares[20:], 0.6), 1 - x[20:], rtol=1e-9)


@pytest.mark.parametrize("end", [-0.4, -6.0, 0.01])
def test_interpolation_weights(end: float) -> None:
    """They integrate a cubic p exactly, and exp(u) p, whose primitive is exp(u) times p - p' + p'' minus its third."""
    nodes = np.array([0.0, 0.3, 0.7, 1.2])
    cubic = np.polynomial.Polynomial([1.0, -2.0, 0.5, 3.0])
    assert interpolation_weights(nodes, end) @ cubic(nodes) == pytest.approx(cubic.integ()(end), rel=1e-11)
    primitive = cubic - cubic.deriv() + cubic.deriv(2) - cubic.deriv(3)
    weights = interpolation_weights(nodes, end, exponential=True)
    expected = np.exp(end) * primitive(end) - primitive(0.0)
    assert weights @ cubic(nodes) == pytest.approx(expected, rel=1e-9)
