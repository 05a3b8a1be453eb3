"""How samplers read a config, and every message they refuse one with."""

from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
from schedules import SDXL

from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.request.schedule_kinds import FIELDS
from latentrt.runtime.samplers import SAMPLERS, ScheduleConfig, compile_sampler, sampler_for


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
            "sample_max_value": 1.0,
            "use_karras_sigmas": None,
        }
    )
    assert config == ScheduleConfig(beta_start=1.0, disable_corrector=(0, 1))
    assert isinstance(config.beta_start, float)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if SAMPLERS[name].scheduler])
def test_sampler_for(name: str) -> None:
    algorithm = "sde-dpmsolver++" if SAMPLERS[name].sde else "dpmsolver++"
    assert sampler_for({"_class_name": SAMPLERS[name].scheduler, "algorithm_type": algorithm}) == name


def test_an_algorithm_type_carried_to_another_class_does_nothing() -> None:
    assert sampler_for({"_class_name": "EulerDiscreteScheduler", "algorithm_type": "sde-dpmsolver++"}) == "euler"


def test_the_name_decides_between_ode_and_sde() -> None:
    carried = replace(SDXL, algorithm_type="sde-dpmsolver++")
    for name in ("dpmpp_2m", "dpmpp_2m_sde"):
        tables = [compile_sampler(name, config, 6) for config in (SDXL, carried)]
        assert np.array_equal(tables[0].weights, tables[1].weights)
        assert tables[0].draws.any() == (name == "dpmpp_2m_sde")


def test_unread_fields_do_nothing() -> None:
    """Euler ancestral has no Karras sigmas in diffusers, and only DDIM and LCM clip."""
    carried = replace(SDXL, use_karras_sigmas=True, final_sigmas_type="sigma_min", clip_sample=True, thresholding=True)
    assert np.array_equal(compile_sampler("euler_a", carried, 6).weights, compile_sampler("euler_a", SDXL, 6).weights)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            {"_class_name": "IPNDMScheduler"},
            r"_class_name 'IPNDMScheduler': latentrt knows DDIMScheduler \(ddim\), .*unipc",
        ),
        (
            {"_class_name": "CosineDPMSolverMultistepScheduler"},
            r"Brownian tree; dpmpp_2m_sde is the nearest. Latentrt kn",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching is not diffusion"),
        ({}, r"_class_name None: latentrt knows"),
    ],
)
def test_unknown_scheduler(scheduler: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        sampler_for(scheduler)


def test_unknown_sampler() -> None:
    with pytest.raises(RequestError, match=r"sampler 'dpm_fast': latentrt knows ddim, ddpm, deis, .*, unipc"):
        compile_sampler("dpm_fast", SDXL, 4)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_steps(steps: int) -> None:
    with pytest.raises(RequestError, match=f"steps {steps}: this checkpoint's schedule takes 1 to 1000"):
        compile_sampler("euler", SDXL, steps)


@pytest.mark.parametrize("steps", [1, 3])
def test_too_few_steps_for_runge_kutta(steps: int) -> None:
    with pytest.raises(RequestError, match=f"steps {steps}: pndm with skip_prk_steps false takes 4 or more"):
        compile_sampler("pndm", replace(SDXL, skip_prk_steps=False), steps)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ddim", {"clip_sample": True}, "clip_sample is True: clipping the predicted latents is not linear"),
        ("lcm", {"clip_sample": True}, "sampler 'lcm': clip_sample is True"),
        (
            "unipc",
            {"thresholding": True},
            "thresholding is True: thresholding is not linear; set thresholding to false",
        ),
        ("ddpm", {"clip_sample": True}, "sampler 'ddpm': clip_sample is True"),
        ("heun", {"clip_sample": True}, "sampler 'heun': clip_sample is True"),
        ("pndm", {"prediction_type": "sample"}, "pndm: prediction_type 'sample': the method averages predicted noise"),
        ("edm_euler", {"prediction_type": "sample"}, "edm_euler: prediction_type 'sample': EDM's preconditioning"),
        (
            "ddpm",
            {"variance_type": "fixed_large_log"},
            "ddpm: variance_type 'fixed_large_log': latentrt knows fixed_sm",
        ),
        ("dpmpp_2m", {"use_flow_sigmas": True}, "use_flow_sigmas is True: latentrt has no flow-matching schedules"),
        ("dpmpp_2m", {"variance_type": "learned"}, "variance_type is 'learned': latentrt serves models"),
        (
            "dpmpp_2m",
            {"algorithm_type": "dpmsolver"},
            "predicts noise and cannot end at sigma zero. Set final_sigmas_type",
        ),
        (
            "dpmpp_2s",
            {"algorithm_type": "rk"},
            r"dpmpp_2s: algorithm_type 'rk': latentrt knows dpmsolver\+\+, dpmsolver",
        ),
        ("deis", {"algorithm_type": "sde-dpmsolver"}, "deis: algorithm_type 'sde-dpmsolver': latentrt knows deis"),
        (
            "edm_dpmpp_2m",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            r"edm_dpmpp_2m: algorithm_type 'dpmsolver': latentrt knows dpmsolver\+\+",
        ),
        ("dpmpp_2m", {"solver_order": 4}, "dpmpp_2m: solver_order 4: latentrt knows 1 to 3"),
        ("edm_dpmpp_2m_sde", {"solver_order": 3}, "edm_dpmpp_2m_sde: solver_order 3: latentrt knows 1 to 2"),
        (
            "dpmpp_2m_sde",
            {"solver_order": 3, "algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
            "solver_order 3 with algorithm_type sde-dpmsolver: latentrt knows 1 and 2",
        ),
        (
            "dpmpp_2m_sde",
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min", "eta": 0.5},
            "eta, s_noise: algorithm_type sde-dpmsolver has none",
        ),
        ("deis", {"solver_type": "rk4"}, "deis: solver_type 'rk4': latentrt knows logrho"),
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
        ("tcd", 51, "steps 51: tcd takes 1 to 50"),
        ("pndm", 1000, "steps 1000: pndm with steps_offset 1 would start at timestep 1000"),
        ("ddim", 1000, "steps 1000: ddim with steps_offset 1 would start at timestep 1000, but .* 0 to 999"),
        ("lms", 1000, "with 1000 steps has no finite coefficients"),
        ("deis", 1000, "with 1000 steps has no finite coefficients"),
        ("unipc", 1000, "with 1000 steps has no finite coefficients"),
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
            {"beta_schedule": "cubic"},
            "beta_schedule 'cubic': latentrt knows linear, scaled_linear, squaredcos_cap_v2, sigmoid, exp, laplace",
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
        ({"sigma_schedule": "linear"}, "sigma_schedule 'linear': latentrt knows karras, exponential"),
        ({"eta": 1.5}, "eta 1.5: it is a share, from 0 to 1"),
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


@pytest.mark.parametrize("betas", [[0.1, 0.2], (0.1, 0.2), np.array([0.1, 0.2]), np.array([1, 2], np.float32) / 10])
def test_trained_betas_of_every_kind(betas: Any) -> None:
    found = FIELDS.to_python(
        {"trained_betas": betas, "num_train_timesteps": np.int64(2), "use_karras_sigmas": np.True_}
    )
    assert found["trained_betas"] == pytest.approx((0.1, 0.2))
    assert (found["num_train_timesteps"], found["use_karras_sigmas"]) == (2, True)
    hash(tuple(found.items()))


@pytest.mark.parametrize(
    "value", [True, 3, 2.5, "text", [], [1], ["a"], [[1]], {}, {"a": 1}, np.ones((2, 2)), object()]
)
@pytest.mark.parametrize("name", ["trained_betas", "beta_start", "beta_schedule", "solver_order", "thresholding"])
def test_values_of_any_kind_are_read_or_refused(name: str, value: Any) -> None:
    """What is read can be kept as a key; what is not is refused in our words."""
    message = ""
    try:
        hash(tuple(FIELDS.to_python({name: value}).items()))
    except RequestError as error:
        message = str(error)
    assert not message or message.startswith(f"schedule: {name} ")


def test_more_timesteps_than_memory_holds() -> None:
    with pytest.raises(CheckpointError, match="num_train_timesteps 1000000000000: at most 1000000"):
        ScheduleConfig(num_train_timesteps=10**12)
