"""Every sampler's table against the diffusers scheduler it equals, on random latents, model outputs and noise.

Two regimes, one tolerance:

- ordinary schedules: diffusers exactly as it is, float32 in and out;
- schedules with zero terminal signal, where latents reach 4096 and float32 steps lose four digits: diffusers' sigmas
  and the latents in float64, still its own arithmetic. Its training schedule stays float32 and is compared up to 25
  steps: torch's float32 square root is off by a last bit here and there, which the rescaling turns into 1e-5 of sigma.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from latentrt.runtime.noise import TorchGenerator
from latentrt.runtime.samplers import SAMPLERS, SamplerTable, ScheduleConfig, compile_sampler, sampler_for

TOLERANCE = 1e-5
"""Largest difference relative to the largest value, at every step: float32 rounding of schedule and steps."""

TIMESTEP_TOLERANCE = 1e-3
"""Of one training timestep: Karras sigmas give fractional ones, interpolated in float32. All others agree exactly."""

SHAPE = (1, 4, 3, 5)
STEPS = (1, 2, 4, 10, 25)

SDXL: Mapping[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
"""The scheduler config that SDXL is published with; every sampler is made from it, as `from_config` does."""


@pytest.fixture(autouse=True)
def quiet_diffusers() -> Iterator[None]:
    """Silence diffusers' log about config fields that a class does not take, which is what is tested here."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


def reference(name: str, config: Mapping[str, Any], steps: int, dtype: torch.dtype) -> Any:
    """The diffusers scheduler with its timesteps set; begin index 0, as it guesses wrong where timesteps repeat."""
    scheduler = getattr(diffusers, SAMPLERS[name].scheduler).from_config(dict(config))
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.to(dtype)
    return scheduler


def difference(received: np.ndarray, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest expected value; not a number counts as infinite."""
    largest = float(np.abs(received - expected.numpy()).max() / expected.abs().max())
    return largest if np.isfinite(largest) else np.inf


def noise_source(seed: int, dtype: torch.dtype) -> Callable[[], np.ndarray]:
    """The runtime's own noise where latents are float32; torch draws float64 from another stream."""
    if dtype == torch.float32:
        return partial(TorchGenerator(seed).randn, SHAPE)
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=dtype).numpy()


def trajectory_difference(scheduler: Any, table: SamplerTable, dtype: torch.dtype) -> float:
    """Step diffusers and the table with the same model outputs and seeds; the largest difference of any step."""
    random = torch.Generator().manual_seed(1)
    theirs, draw = torch.Generator().manual_seed(2), noise_source(2, dtype)
    latents = torch.randn(SHAPE, generator=random, dtype=dtype) * scheduler.init_noise_sigma
    state = np.zeros((table.state_count, *SHAPE))
    state[0] = latents.numpy()
    worst = 0.0
    for step, timestep in enumerate(scheduler.timesteps):
        unet_input = scheduler.scale_model_input(latents, timestep)
        worst = max(worst, difference(np.tensordot(table.readout[step], state, 1), unet_input))
        output = torch.randn(SHAPE, generator=random, dtype=dtype)
        options = {"generator": theirs} if table.stochastic else {}
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
        noise = draw() if table.draws[step] else np.full(SHAPE, 1e3)
        state = np.tensordot(table.weights[step], np.stack([*state, output.numpy(), noise]), 1)
        worst = max(worst, difference(state[0], latents))
    assert np.array_equal(np.tensordot(table.readout[-1], state, 1), state[0])
    return worst


def assert_parity(name: str, config: Mapping[str, Any], steps: int, dtype: torch.dtype = torch.float32) -> None:
    scheduler = reference(name, config, steps, dtype)
    table = compile_sampler(name, ScheduleConfig.from_diffusers(config), steps)
    assert table.step_count == len(scheduler.timesteps)
    # Exponential sigmas put timesteps on the edge between two integers: the last bit of a logarithm decides.
    slack = 1 if config.get("use_exponential_sigmas") or config.get("use_lu_lambdas") else 0
    timesteps = scheduler.timesteps.numpy()
    np.testing.assert_allclose(table.timesteps[:-1], timesteps, rtol=0, atol=TIMESTEP_TOLERANCE + slack)
    assert table.initial_scale == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-6)
    assert trajectory_difference(scheduler, table, dtype) <= TOLERANCE


def schedules() -> Iterator[tuple[str, dict[str, Any]]]:
    """Sampler x spacing x prediction type x karras, as far as diffusers has them."""
    for name, spacing, prediction in product(
        SAMPLERS, ("leading", "trailing", "linspace"), ("epsilon", "v_prediction", "sample")
    ):
        if name == "euler_a" and prediction == "sample":
            continue  # diffusers: not implemented
        for karras in (False, True) if "use_karras_sigmas" in SAMPLERS[name].reads else (False,):
            yield name, {"timestep_spacing": spacing, "prediction_type": prediction, "use_karras_sigmas": karras}


def label(value: object) -> str | None:
    return "-".join(f"{item}" for item in value.values()) if isinstance(value, dict) else None


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("name", "changes"), list(schedules()), ids=label)
def test_schedules(name: str, changes: dict[str, Any], steps: int) -> None:
    assert_parity(name, {**SDXL, **changes}, steps)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (name, changes)
        for name, changes in schedules()
        # epsilon divides by a signal of zero in these two; diffusers returns infinities, latentrt refuses
        if not (name in ("ddim", "lcm") and changes["prediction_type"] == "epsilon")
    ],
    ids=label,
)
def test_zero_terminal_snr(name: str, changes: dict[str, Any], steps: int) -> None:
    assert_parity(name, {**SDXL, **changes, "rescale_betas_zero_snr": True}, steps, torch.float64)


TRAINING_SCHEDULES: tuple[dict[str, Any], ...] = (
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(1e-3, 0.02, 1000).tolist()},
    {"num_train_timesteps": 100},
    {"steps_offset": 0},
    {"set_alpha_to_one": True},
)


@pytest.mark.parametrize("changes", TRAINING_SCHEDULES, ids=lambda changes: next(iter(changes)))
@pytest.mark.parametrize("name", SAMPLERS)
def test_training_schedules(name: str, changes: dict[str, Any]) -> None:
    # Euler a on the cosine schedule needs float64: in float32 diffusers takes the square root of a negative number
    dtype = torch.float64 if changes.get("beta_schedule") == "squaredcos_cap_v2" else torch.float32
    for steps in (3, 16):
        assert_parity(name, {**SDXL, **changes}, steps, dtype)


OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("euler", {"interpolation_type": "log_linear"}),
    ("euler", {"interpolation_type": "log_linear", "use_karras_sigmas": True}),
    ("euler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0}),
    ("euler", {"use_exponential_sigmas": True}),
    ("euler", {"final_sigmas_type": "sigma_min"}),
    ("euler_a", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("ddim", {"use_karras_sigmas": True, "use_beta_sigmas": False}),
    ("dpmpp_2m", {"solver_type": "heun"}),
    ("dpmpp_2m", {"solver_type": "bh2"}),
    ("dpmpp_2m", {"solver_order": 1}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min"}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True}),
    ("dpmpp_2m", {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True}),
    ("dpmpp_2m", {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0}),
    ("dpmpp_2m", {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}),
    ("dpmpp_2m", {"use_exponential_sigmas": True}),
    ("dpmpp_2m", {"use_lu_lambdas": True, "sigma_min": 0.1}),
    ("dpmpp_2m", {"lambda_min_clipped": -2.0}),
    ("dpmpp_2m", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    ("unipc", {"solver_type": "midpoint"}),
    ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("unipc", {"solver_type": "bh1", "solver_order": 3, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"}),
    ("unipc", {"disable_corrector": [0, 2]}),
    ("unipc", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}),
    ("unipc", {"use_exponential_sigmas": True}),
    ("lcm", {"original_inference_steps": 100}),
    ("lcm", {"original_inference_steps": 30, "timestep_scaling": 3.0}),
)


@pytest.mark.parametrize(("name", "changes"), OPTIONS, ids=label)
def test_options(name: str, changes: dict[str, Any]) -> None:
    # Third order: diffusers solves for its coefficients in float32 and loses digits.
    dtype = torch.float64 if changes.get("solver_order") == 3 else torch.float32
    for steps in (1, 3, 7, 16):
        assert_parity(name, {**SDXL, **changes}, steps, dtype)


@pytest.mark.parametrize("name", SAMPLERS)
def test_class_defaults(name: str) -> None:
    """A config that states nothing but `clip_sample`: each class fills in its own schedule, spacing and offset."""
    assert_parity(name, {"clip_sample": False}, 10)


@pytest.mark.parametrize("name", SAMPLERS)
def test_saved_config(name: str) -> None:
    """The config that diffusers itself writes for the class leads back to the sampler and to the same table."""
    scheduler = getattr(diffusers, SAMPLERS[name].scheduler)(clip_sample=False) if name == "ddim" else None
    scheduler = scheduler or getattr(diffusers, SAMPLERS[name].scheduler)()
    saved = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    saved["_class_name"] = type(scheduler).__name__
    assert sampler_for(saved) == name
    assert_parity(name, saved, 10)


def test_a_wrong_table_is_noticed() -> None:
    """One weight off by 1e-4 breaks the tolerance, so the comparison can fail."""
    scheduler = reference("unipc", SDXL, 10, torch.float32)
    table = compile_sampler("unipc", ScheduleConfig.from_diffusers(SDXL), 10)
    table.weights[6, 0, 1] += 1e-4
    assert trajectory_difference(scheduler, table, torch.float32) > TOLERANCE
