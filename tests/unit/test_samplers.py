"""Facts about sampler tables that hold without diffusers, and every error message."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.samplers import SAMPLERS, SamplerTable, ScheduleConfig, compile_sampler, sampler_for
from latentrt.runtime.samplers.compile import resolve
from latentrt.runtime.samplers.schedule import predicted_noise, predicted_x0, spaced_timesteps, training_sigmas

SDXL = ScheduleConfig(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    timestep_spacing="leading",
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)
STATES = {"ddim": 1, "dpmpp_2m": 2, "euler": 1, "euler_a": 1, "lcm": 1, "unipc": 3}


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
    k = STATES[name]
    assert (table.sampler, table.step_count, table.state_count) == (name, steps, k)
    assert table.weights.shape == (steps + 1, k, k + 2)
    assert table.readout.shape == (steps + 1, k)
    assert table.timesteps.shape == (steps + 1,)
    assert table.draws.shape == (steps,)
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


def test_dpmpp_first_order_keeps_no_history() -> None:
    assert compile_sampler("dpmpp_2m", replace(SDXL, solver_order=1), 5).state_count == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddim", [False] * 4),
        ("dpmpp_2m", [False] * 4),
        ("euler", [False] * 4),
        ("euler_a", [True] * 4),
        ("lcm", [True, True, True, False]),
        ("unipc", [False] * 4),
    ],
)
def test_draws(name: str, expected: list[bool]) -> None:
    table = compile_sampler(name, SDXL, 4)
    assert table.draws.tolist() == expected
    assert table.stochastic == any(expected)
    assert np.count_nonzero(table.weights[:-1][~table.draws][:, :, -1]) == 0


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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler", "euler_a", "unipc"])
def test_a_perfect_model_returns_the_image(name: str, prediction_type: str) -> None:
    """A model that knows the clean latents ends on them, whatever it predicts: the last step removes all noise."""
    config = replace(SDXL, prediction_type=prediction_type, set_alpha_to_one=True, steps_offset=0)
    table = compile_sampler(name, config, 12)
    random = np.random.default_rng(0)
    clean, latents = random.standard_normal((2, 8))
    state = np.zeros((table.state_count, 8))
    state[0] = table.initial_scale * latents
    for step in range(12):
        sample = table.readout[step] @ state
        sigma = training_sigmas(SDXL)[int(table.timesteps[step])].astype(np.float64)
        alpha = 1 / np.sqrt(1 + sigma**2)
        noise = (sample - alpha * clean) / (alpha * sigma)
        output = {"epsilon": noise, "v_prediction": alpha * noise - alpha * sigma * clean, "sample": clean}
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
    with np.errstate(divide="ignore"):  # the log-SNR of a last sigma of zero
        plan = SAMPLERS[name].plan(resolve(name, SAMPLERS[name], SDXL), steps)
    latents, *outputs = np.random.default_rng(2).standard_normal((2 * steps + 1, *shape))
    noises = outputs[steps:]
    zeros = (np.zeros(shape),) * (plan.state_count - 1)
    state: tuple[np.ndarray, ...] = (plan.initial_scale * latents, *zeros)
    for step in range(steps):
        state = plan.advance(state, outputs[step], noises[step], step)
    expected = walk(compile_sampler(name, SDXL, steps), latents, np.array(outputs), np.array(noises))
    np.testing.assert_allclose(state[0], expected, rtol=1e-9, atol=1e-9)


def test_trailing_gives_the_steps_asked_for() -> None:
    """A plain arange is one element too long for 61 steps of 1000, among others, and would end at timestep -1."""
    for steps in range(1, 1001):
        timesteps = spaced_timesteps(replace(SDXL, timestep_spacing="trailing"), steps)
        assert len(timesteps) == steps
        assert timesteps[0] == 999
        assert timesteps[-1] >= 0


def test_table_and_config_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        compile_sampler("euler", SDXL, 2).sampler = "ddim"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        SDXL.steps_offset = 0  # type: ignore[misc]


def test_from_diffusers_reads_types_and_ignores_the_rest() -> None:
    config = ScheduleConfig.from_diffusers(
        {
            "_class_name": "EulerDiscreteScheduler",
            "beta_start": 1,
            "trained_betas": None,
            "disable_corrector": [0, 1],
            "skip_prk_steps": True,
            "use_karras_sigmas": None,
        }
    )
    assert config == ScheduleConfig(beta_start=1.0, disable_corrector=(0, 1))
    assert isinstance(config.beta_start, float)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_for(name: str) -> None:
    assert sampler_for({"_class_name": SAMPLERS[name].scheduler}) == name


def test_unread_fields_do_nothing() -> None:
    """Euler ancestral has no Karras sigmas in diffusers, and only DDIM and LCM clip."""
    carried = replace(SDXL, use_karras_sigmas=True, final_sigmas_type="sigma_min", clip_sample=True, thresholding=True)
    assert np.array_equal(compile_sampler("euler_a", carried, 6).weights, compile_sampler("euler_a", SDXL, 6).weights)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            {"_class_name": "PNDMScheduler"},
            r"_class_name 'PNDMScheduler': latentrt knows DDIMScheduler \(ddim\), .*unipc",
        ),
        ({}, r"_class_name None: latentrt knows"),
    ],
)
def test_unknown_scheduler(scheduler: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        sampler_for(scheduler)


def test_unknown_sampler() -> None:
    with pytest.raises(RequestError, match="sampler 'heun': latentrt knows ddim, dpmpp_2m, euler, euler_a, lcm, unipc"):
        compile_sampler("heun", SDXL, 4)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_steps(steps: int) -> None:
    with pytest.raises(RequestError, match=f"steps {steps}: this checkpoint's schedule takes 1 to 1000"):
        compile_sampler("euler", SDXL, steps)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ddim", {"clip_sample": None}, r"clip_sample is True \(the default of DDIMScheduler\): .*set clip_sample to"),
        ("ddim", {"clip_sample": True}, "clip_sample is True: clipping the predicted latents is not linear"),
        ("lcm", {"clip_sample": True}, "sampler 'lcm': clip_sample is True"),
        (
            "unipc",
            {"thresholding": True},
            "thresholding is True: thresholding is not linear; set thresholding to false",
        ),
        ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas is True: latentrt has no beta spacing"),
        ("dpmpp_2m", {"use_flow_sigmas": True}, "use_flow_sigmas is True: latentrt has no flow-matching schedules"),
        ("dpmpp_2m", {"variance_type": "learned"}, "variance_type is 'learned': latentrt serves models"),
        ("dpmpp_2m", {"algorithm_type": "dpmsolver"}, "algorithm_type 'dpmsolver': latentrt knows dpmsolver"),
        ("dpmpp_2m", {"solver_order": 3}, "dpmpp_2m: solver_order 3: latentrt knows 1 and 2"),
        ("dpmpp_2m", {"solver_type": "rk4"}, "dpmpp_2m: solver_type 'rk4': latentrt knows midpoint and heun"),
        ("unipc", {"solver_order": 4}, "unipc: solver_order 4: latentrt knows 1 to 3"),
        ("unipc", {"solver_type": "rk4"}, "unipc: solver_type 'rk4': latentrt knows bh1 and bh2"),
        ("unipc", {"predict_x0": False}, "no finite coefficients on this schedule"),
        ("unipc", {"lower_order_final": False}, r"no finite coefficients on this schedule \(beta_start 0.00085.*False"),
        (
            "ddim",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "prediction_type epsilon cannot start from zero terminal signal",
        ),
    ],
)
def test_refused_options(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        compile_sampler(name, replace(SDXL, **changes), 6)


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("lcm", 51, "steps 51: lcm takes 1 to 50, the timesteps that the model was distilled on"),
        ("ddim", 1000, "steps 1000: ddim with steps_offset 1 would start at timestep 1000, but .* 0 to 999"),
        ("dpmpp_2m", 1000, "with 1000 steps has no finite coefficients"),
    ],
)
def test_too_many_steps_for_the_sampler(name: str, steps: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        compile_sampler(name, SDXL, steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule 'sigmoid': latentrt knows linear, scaled_linear, squaredcos_cap_v2",
        ),
        ({"prediction_type": "flow_prediction"}, "prediction_type 'flow_prediction': latentrt knows epsilon"),
        ({"timestep_spacing": "even"}, "timestep_spacing 'even': latentrt knows leading, trailing, linspace"),
        ({"final_sigmas_type": "one"}, "final_sigmas_type 'one': latentrt knows zero, sigma_min"),
        ({"steps_offset": "1"}, "steps_offset '1': expected an integer"),
        ({"steps_offset": True}, "steps_offset True: expected an integer"),
        ({"beta_start": "small"}, "beta_start 'small': expected a number"),
        ({"use_karras_sigmas": 1}, "use_karras_sigmas 1: expected true or false"),
        ({"trained_betas": 0.1}, "trained_betas 0.1: expected a list"),
        ({"trained_betas": ["x"]}, "trained_betas 'x': expected a number"),
        ({"trained_betas": [0.1]}, "trained_betas holds 1 values, but num_train_timesteps is 1000"),
        ({"num_train_timesteps": 1}, "num_train_timesteps 1: at least 2 are needed"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of use_karras_sigmas, .* may be true"),
    ],
)
def test_broken_config(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"scheduler config: {message}"):
        ScheduleConfig.from_diffusers(changes)


def test_broken_lcm_config() -> None:
    with pytest.raises(CheckpointError, match="original_inference_steps 2000: it must lie between 1 and num_train"):
        compile_sampler("lcm", replace(SDXL, original_inference_steps=2000), 4)
