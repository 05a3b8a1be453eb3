"""Facts about sampler tables that hold without diffusers."""

from dataclasses import replace

import numpy as np
import pytest
from schedules import SDXL

from latentrt.runtime.samplers import SAMPLERS, SamplerTable, compile_sampler
from latentrt.runtime.samplers.resolve import resolve
from latentrt.runtime.samplers.schedules.timestep_spacing import spaced_timesteps
from latentrt.runtime.samplers.schedules.training import training_sigmas
from latentrt.runtime.samplers.solvers.prediction import predicted_noise, predicted_x0

STATES = {
    "ddim": 1,
    "ddpm": 1,
    "deis": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_2s": 3,
    "dpmpp_2s_a": 2,
    "dpmpp_2s_sde": 3,
    "dpmpp_3m_sde": 3,
    "dpmpp_sde": 3,
    "edm_dpmpp_2m": 2,
    "edm_dpmpp_2m_sde": 2,
    "edm_euler": 1,
    "euler": 1,
    "euler_a": 1,
    "heun": 3,
    "kdpm2": 2,
    "kdpm2_a": 2,
    "lcm": 1,
    "lms": 4,
    "pndm": 4,
    "restart": 3,
    "tcd": 1,
    "unipc": 3,
}
STOCHASTIC = {"ddpm", "dpmpp_2s_a", "dpmpp_3m_sde", "dpmpp_sde", "euler_a", "kdpm2_a", "lcm"}
DETERMINISTIC = set(SAMPLERS) - STOCHASTIC - {n for n in SAMPLERS if SAMPLERS[n].sde}


def rows(name: str, steps: int) -> int:
    """U-Net evaluations of so many steps."""
    if name in ("dpmpp_2s_a", "dpmpp_sde", "heun", "kdpm2", "kdpm2_a", "restart"):
        return 2 * steps - 1
    return steps + (name == "pndm" and steps > 1)


def walk(table: SamplerTable, latents: np.ndarray, outputs: np.ndarray, noises: np.ndarray) -> np.ndarray:
    """The finished latents, by the recurrence of the table."""
    state = np.zeros((table.state_count, *latents.shape))
    state[0] = table.initial_scale * latents
    for weights, output, noise in zip(table.weights, outputs, noises, strict=False):
        state = np.tensordot(weights, np.stack([*state, output, noise]), 1)
    return np.asarray(np.tensordot(table.readout[-1], state, 1))


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("name", SAMPLERS)
def test_shapes(name: str, steps: int) -> None:
    table = compile_sampler(name, SDXL, steps)
    k, count = STATES[name], rows(name, steps)
    assert (table.sampler, table.step_count, table.state_count, table.first) == (name, count, k, 0)
    assert table.weights.shape == (count + 1, k, k + 2)
    assert table.readout.shape == (count + 1, k)
    assert table.timesteps.shape == (count + 1,)
    assert table.original_levels.shape == (count + 1, 2)
    assert table.draws.shape == (count,)
    assert table.draws.dtype == np.bool_
    assert {table.weights.dtype, table.readout.dtype, table.timesteps.dtype} == {np.dtype(np.float64)}
    assert all(np.isfinite(values).all() for values in (table.weights, table.readout, table.timesteps))


@pytest.mark.parametrize("name", SAMPLERS)
def test_row_after_the_last_step(name: str) -> None:
    table = compile_sampler(name, SDXL, 5)
    k = table.state_count
    assert np.array_equal(table.weights[-1], np.eye(k, k + 2))
    assert np.array_equal(table.readout[-1], np.eye(k)[0])
    assert table.timesteps[-1] == table.timesteps[-2]


@pytest.mark.parametrize("name", SAMPLERS)
def test_only_the_latents_are_read(name: str) -> None:
    assert np.count_nonzero(compile_sampler(name, SDXL, 5).readout[:, 1:]) == 0


@pytest.mark.parametrize(("order", "k"), [(1, 2), (2, 3), (3, 4)])
def test_unipc_state_grows_with_its_order(order: int, k: int) -> None:
    assert compile_sampler("unipc", replace(SDXL, solver_order=order), 5).state_count == k


def test_unipc_last_step_is_first_order() -> None:
    """With a last sigma of zero it returns the predicted x0, (x - sigma output) / alpha, whatever B(h) is."""
    tables = [compile_sampler("unipc", replace(SDXL, solver_type=kind), 6) for kind in ("bh1", "bh2")]
    sigma = training_sigmas(SDXL)[int(tables[0].timesteps[5])].astype(np.float64)
    without_corrector = replace(SDXL, disable_corrector=(4,))
    last = compile_sampler("unipc", without_corrector, 6).weights[5, 0]
    np.testing.assert_allclose(last, [np.sqrt(1 + sigma**2), 0, 0, -sigma, 0], rtol=1e-6)
    np.testing.assert_allclose(tables[0].weights[5, 0], tables[1].weights[5, 0], rtol=1e-12)


@pytest.mark.parametrize("steps", [4, 7, 30])
def test_runge_kutta_warm_up(steps: int) -> None:
    """Twelve rows for three steps, two of them in each step's middle; six state tensors."""
    table = compile_sampler("pndm", replace(SDXL, skip_prk_steps=False), steps)
    once = compile_sampler("ddim", SDXL, steps).timesteps[:-1]
    middle = once[1:4] + 1000 // steps // 2
    warm_up = np.stack([once[:3], middle, middle, once[1:4]], axis=1).ravel()
    assert table.timesteps[:-1].tolist() == [*warm_up, *once[3:]]
    assert (table.step_count, table.state_count) == (steps + 9, 6)


@pytest.mark.parametrize("skip_prk_steps", [True, False])
def test_pndm_of_a_constant_output_is_ddim(skip_prk_steps: bool) -> None:
    """Every mean of equal outputs is that output, and what is left of PNDM is DDIM's step."""
    config = replace(SDXL, skip_prk_steps=skip_prk_steps)
    latents, output = np.random.default_rng(3).standard_normal((2, 8))
    ends = [
        walk(table, latents, np.tile(output, (table.step_count, 1)), np.zeros((table.step_count, 8)))
        for table in (compile_sampler(name, config, 10) for name in ("pndm", "ddim"))
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9)


def test_dpmpp_first_order_keeps_no_history() -> None:
    assert compile_sampler("dpmpp_2m", replace(SDXL, solver_order=1), 5).state_count == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, [False] * rows(name, 4)) for name in sorted(DETERMINISTIC)),
        ("ddpm", [True] * 4),
        ("dpmpp_2m_sde", [True] * 4),
        ("dpmpp_2s_sde", [True] * 4),
        ("edm_dpmpp_2m_sde", [True] * 4),
        ("euler_a", [True] * 4),
        ("dpmpp_2s_a", [False, True, False, True, False, True, False]),
        ("dpmpp_3m_sde", [True, True, True, False]),
        ("dpmpp_sde", [True] * 6 + [False]),
        ("kdpm2_a", [False, True, False, True, False, True, False]),
        ("lcm", [True, True, True, False]),
    ],
)
def test_draws(name: str, expected: list[bool]) -> None:
    table = compile_sampler(name, SDXL, 4)
    assert table.draws.tolist() == expected
    assert np.count_nonzero(table.weights[:-1][~table.draws][:, :, -1]) == 0


@pytest.mark.parametrize("name", ["ddim", "tcd"])
def test_without_an_eta_it_is_zero_as_in_the_pipelines(name: str) -> None:
    table, zero = compile_sampler(name, SDXL, 4), compile_sampler(name, replace(SDXL, eta=0.0), 4)
    np.testing.assert_array_equal(table.weights, zero.weights)
    assert not table.draws.any()
    assert compile_sampler(name, replace(SDXL, eta=0.3), 4).draws.tolist()[:3] == [True] * 3


def test_last_ancestral_step_adds_no_noise() -> None:
    table = compile_sampler("euler_a", SDXL, 4)
    assert table.weights[:4, 0, -1].tolist()[3] == 0
    assert (table.weights[:3, 0, -1] > 0).all()


def test_euler_by_hand() -> None:
    """Two steps at timesteps 501 and 1 of SDXL's schedule, epsilon: rows (1, sigma' - sigma, 0)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.cumprod(1 - betas)
    high, low = np.sqrt(1 / signal[[501, 1]] - 1)
    table = compile_sampler("euler", SDXL, 2)
    np.testing.assert_allclose(table.weights[0], [[1, low - high, 0]], rtol=1e-4)
    np.testing.assert_allclose(table.weights[1], [[1, -low, 0]], rtol=1e-4)
    np.testing.assert_allclose(table.readout[:, 0], [(high**2 + 1) ** -0.5, (low**2 + 1) ** -0.5, 1], rtol=1e-6)
    assert table.timesteps.tolist() == [501, 1, 1]
    assert table.initial_scale == pytest.approx((high**2 + 1) ** 0.5, rel=1e-5)


EXACT_AT_THE_END = ["ddim", "ddpm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_sde", "unipc"]
EXACT_AT_THE_END_EXPLODING = [
    "dpmpp_2s_a",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "euler",
    "euler_a",
    "heun",
    "kdpm2",
    "kdpm2_a",
    "restart",
]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", [*EXACT_AT_THE_END, *EXACT_AT_THE_END_EXPLODING])
def test_a_perfect_model_returns_the_image(name: str, prediction_type: str) -> None:
    """A model that knows the clean latents ends on them, whatever it predicts: the last step removes all noise."""
    config = replace(SDXL, prediction_type=prediction_type, set_alpha_to_one=True, steps_offset=0)
    table = compile_sampler(name, config, 12)
    random = np.random.default_rng(0)
    clean, latents = random.standard_normal((2, 8))
    state = np.zeros((table.state_count, 8))
    state[0] = table.initial_scale * latents
    for step in range(table.step_count):
        sample = table.readout[step] @ state
        sigma = training_sigmas(SDXL)[int(table.timesteps[step])].astype(np.float64)
        alpha = table.readout[step, 0] if name in EXACT_AT_THE_END_EXPLODING else 1 / np.sqrt(1 + sigma**2)
        spread = np.sqrt(1 - alpha**2)
        noise = (sample - alpha * clean) / spread
        output = {"epsilon": noise, "v_prediction": alpha * noise - spread * clean, "sample": clean}
        drawn = random.standard_normal(8)
        state = table.weights[step] @ np.stack([*state, output[prediction_type], drawn])
    np.testing.assert_allclose(table.readout[-1] @ state, clean, atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_predictions_agree(prediction_type: str) -> None:
    """Clean latents and noise recovered from any kind of output put the sample together again."""
    sample, output = np.random.default_rng(1).standard_normal((2, 16))
    x0 = predicted_x0(sample, output, 0.6, 0.8, prediction_type)
    noise = predicted_noise(sample, output, 0.6, 0.8, prediction_type)
    np.testing.assert_allclose(0.6 * x0 + 0.8 * noise, sample)


@pytest.mark.parametrize("name", SAMPLERS)
def test_textbook_code_is_linear(name: str) -> None:
    """The plan run on real tensors equals the table run on them: nothing but a linear map was compiled away."""
    steps, shape = 6, (2, 3)
    with np.errstate(all="ignore"):  # the log-SNR of a last sigma of zero
        plan = SAMPLERS[name].plan(resolve(name, SAMPLERS[name], SDXL), steps, 0)
        latents, *values = np.random.default_rng(2).standard_normal((2 * plan.row_count + 1, *shape))
        outputs, noises = values[: plan.row_count], values[plan.row_count :]
        zeros = (np.zeros(shape),) * (plan.state_count - 1)
        state: tuple[np.ndarray, ...] = (plan.initial_scale * latents, *zeros)
        for row in range(plan.row_count):
            state = plan.advance(state, outputs[row], noises[row], row)
    expected = walk(compile_sampler(name, SDXL, steps), latents, np.array(outputs), np.array(noises))
    np.testing.assert_allclose(state[0], expected, rtol=1e-9, atol=1e-9)


def test_trailing_gives_the_steps_asked_for() -> None:
    """A plain arange is one element too long for 61 steps of 1000, among others, and would end at timestep -1."""
    for steps in range(1, 1001):
        timesteps = spaced_timesteps(replace(SDXL, timestep_spacing="trailing"), steps)
        assert len(timesteps) == steps
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0
