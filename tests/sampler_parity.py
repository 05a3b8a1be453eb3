"""How far a sampler's table and diffusers' scheduler drift apart on the same latents, model outputs and noise."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from sampler_cases import Case, Config

from latentrt.runtime.noise import TorchGenerator
from latentrt.runtime.samplers import SAMPLERS, SamplerTable, ScheduleConfig, compile_sampler

TOLERANCE = 1e-5
"""Largest difference relative to the largest value, at every step: float32 rounding of schedule and steps."""

TIMESTEP_TOLERANCE = 1e-3
"""Of one training timestep: respaced sigmas give fractional ones, interpolated in float32. All others agree exactly."""

SHAPE = (1, 4, 3, 5)


def precise(case: Case) -> bool:
    """Whether diffusers needs float64 sigmas and latents, as its own float32 steps lose digits. Its config stays float32.

    Zero terminal signal: sigma starts at 4096. Third order: it divides by small differences of logarithms. Cosine betas:
    sigma starts at 20,000 and it takes roots of differences.
    """
    changes = case.changes
    return bool(
        changes.get("rescale_betas_zero_snr")
        or changes.get("solver_order") == 3
        or changes.get("beta_schedule") in ("squaredcos_cap_v2", "laplace")
    )


def reference(name: str, config: Config, steps: int, dtype: torch.dtype, first: int = 0) -> Any:
    """The diffusers scheduler with its timesteps set, to begin at a row; it guesses wrong where timesteps repeat."""
    settings = {key: value for key, value in config.items() if key != "eta"}
    if SAMPLERS[name].sde:
        base = settings.get("algorithm_type", "dpmsolver++")
        settings["algorithm_type"] = base if base.startswith("sde-") else f"sde-{base}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dpmsolver is deprecated
        scheduler = getattr(diffusers, SAMPLERS[name].scheduler).from_config(settings)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    for field in ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down"):
        if hasattr(scheduler, field):
            setattr(scheduler, field, getattr(scheduler, field).to(dtype))
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


def step_options(scheduler: Any, config: Config, generator: torch.Generator) -> dict[str, Any]:
    """What the scheduler's step takes beyond output, timestep and latents."""
    wanted = inspect.signature(scheduler.step).parameters
    options = {"generator": generator, "eta": config.get("eta")}
    return {key: value for key, value in options.items() if key in wanted and value is not None}


def trajectory_difference(scheduler: Any, table: SamplerTable, config: Config, dtype: torch.dtype) -> float:
    """Step diffusers and the table with the same model outputs and seeds; the largest difference of any step."""
    random, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    # This class draws float32 whatever the latents are.
    float32_noise = "DPMSolverMultistepScheduler" == type(scheduler).__name__
    draw = noise_source(2, torch.float32 if float32_noise else dtype)
    latents = torch.randn(SHAPE, generator=random, dtype=dtype) * scheduler.init_noise_sigma
    state = np.zeros((table.state_count, *SHAPE))
    state[0] = latents.numpy()
    options = step_options(scheduler, config, generator)
    worst = 0.0
    for step, timestep in enumerate(scheduler.timesteps[table.first : table.first + table.step_count]):
        unet_input = scheduler.scale_model_input(latents, timestep)
        worst = max(worst, difference(np.tensordot(table.readout[step], state, 1), unet_input))
        output = torch.randn(SHAPE, generator=random, dtype=dtype)
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
        noise = draw() if table.draws[step] else np.full(SHAPE, 1e3)
        state = np.tensordot(table.weights[step], np.stack([*state, output.numpy(), noise]), 1)
        worst = max(worst, difference(state[0], latents))
    assert np.array_equal(np.tensordot(table.readout[-1], state, 1), state[0])
    return worst


def case_difference(case: Case, steps: int, first: int = 0, last: int | None = None) -> float:
    """The largest difference of a case, after its timesteps, first latents and number of rows have been compared."""
    dtype = torch.float64 if precise(case) else torch.float32
    scheduler = reference(case.sampler, case.config, steps, dtype, first)
    table = compile_sampler(case.sampler, ScheduleConfig.from_diffusers(case.config), steps, first, last)
    timesteps = scheduler.timesteps.numpy()[first:last]
    # Timesteps that diffusers cuts off may lie on the edge between two integers: the last bit of a logarithm decides.
    whole = np.issubdtype(timesteps.dtype, np.integer)
    slack = 1 if whole and any(case.config.get(key) for key in CUT_OFF) else 0
    np.testing.assert_allclose(table.timesteps[:-1], timesteps, rtol=0, atol=TIMESTEP_TOLERANCE + slack)
    np.testing.assert_allclose(table.initial_scale, float(scheduler.init_noise_sigma), rtol=1e-6)
    return trajectory_difference(scheduler, table, case.config, dtype)


CUT_OFF = ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
