"""How far a sampler's table and diffusers' scheduler drift apart on the same latents, model outputs and noise."""

import copy
import functools
import inspect
import json
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import logging
from sampler_cases import Case, Config

from latentrt.runtime.drawing.noise import TorchGenerator
from latentrt.runtime.samplers import SAMPLERS, SamplerTable, ScheduleConfig, compile_sampler

TOLERANCE = 1e-5
"""Largest difference relative to the largest value, at every step: float32 rounding of schedule and steps."""

TIMESTEP_TOLERANCE = 1e-3
"""Of one training timestep: respaced sigmas give fractional ones, interpolated in float32. All others agree exactly."""

CUT_OFF = ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Spacings whose fractional timesteps some classes cut off."""

SHAPE = (1, 4, 3, 5)


def precise(case: Case) -> bool:
    """Whether diffusers needs float64 sigmas and latents, as its own float32 steps lose digits.

    Zero terminal signal: sigma starts at 4096. Cosine and Laplace betas: at 20,000, and it takes roots of differences.
    Third order: it divides by small differences of logarithms, and DEIS and UniPC also where beta sigmas crowd. Heun
    with linspace: it divides latents of 14 by a sigma of 0.03. EDM: latents start at 80, which float32 holds to 5e-6.
    """
    changes = case.changes
    return bool(
        case.sampler.startswith("edm_")
        or changes.get("rescale_betas_zero_snr")
        or changes.get("solver_order") == 3
        or changes.get("beta_schedule") in ("squaredcos_cap_v2", "laplace")
        or (case.sampler in ("deis", "unipc") and changes.get("use_beta_sigmas"))
        or (case.sampler == "heun" and changes.get("timestep_spacing") == "linspace")
    )


def reference(name: str, config: Config, steps: int, dtype: torch.dtype, first: int = 0) -> Any:
    """The diffusers scheduler with its timesteps set, to begin at a row; it guesses wrong where timesteps repeat."""
    settings = {key: value for key, value in config.items() if key != "eta"}
    if SAMPLERS[name].sde:
        base = settings.get("algorithm_type", "dpmsolver++")
        settings["algorithm_type"] = base if base.startswith("sde-") else f"sde-{base}"
    scheduler = copy.deepcopy(_constructed(SAMPLERS[name].scheduler, json.dumps(settings)))
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    for field in ("sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down"):
        if hasattr(scheduler, field):
            setattr(scheduler, field, getattr(scheduler, field).to(dtype))
    return scheduler


@functools.lru_cache(maxsize=1)
def _constructed(scheduler: str, settings: str) -> Any:
    """The scheduler of a config; some take 0.3 s to make, so successive step counts share one."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # fields that a class does not take are what is tested here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dpmsolver is deprecated
        made = getattr(diffusers, scheduler).from_config(json.loads(settings))
    logging.set_verbosity(level)
    return made


def difference(received: np.ndarray, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest expected value; not a number counts as infinite."""
    largest = float(np.abs(received - expected.numpy()).max() / expected.abs().max())
    return largest if np.isfinite(largest) else np.inf


def noise_source(seed: int, dtype: torch.dtype) -> Callable[[], np.ndarray]:
    """The runtime's own noise where latents are float32; torch draws float64 from another stream."""
    if dtype == torch.float32:
        return functools.partial(TorchGenerator(seed).randn, SHAPE)
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=dtype).numpy()


def step_options(scheduler: Any, config: Config, generator: torch.Generator) -> dict[str, Any]:
    """What the scheduler's step takes beyond output, timestep and latents."""
    wanted = inspect.signature(scheduler.step).parameters
    options = {"generator": generator, "eta": config.get("eta", 0.0)}  # the pipelines' own default
    return {key: value for key, value in options.items() if key in wanted and value is not None}


def trajectory_difference(scheduler: Any, table: SamplerTable, config: Config, dtype: torch.dtype) -> float:
    """Step diffusers and the table with the same model outputs and seeds; the largest difference of any step."""
    random, generator = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    # This class draws float32 whatever the latents are.
    float32_noise = type(scheduler).__name__ == "DPMSolverMultistepScheduler"
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


def levels_difference(case: Case, steps: int, first: int, last: int | None = None) -> float:
    """Largest difference between diffusers' `add_noise` and the table's levels, before and between all rows."""
    scheduler = reference(case.sampler, case.config, steps, torch.float32, first)
    table = compile_sampler(case.sampler, ScheduleConfig.from_diffusers(case.config), steps, first, last)
    original, noise, output = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(3))
    latents, worst = torch.zeros(SHAPE), 0.0
    options = step_options(scheduler, case.config, torch.Generator().manual_seed(4))
    for step, timestep in enumerate(scheduler.timesteps[first:last]):
        expected = scheduler.add_noise(original, noise, timestep[None])
        signal_rate, noise_rate = table.original_levels[step]
        worst = max(worst, difference(signal_rate * original.numpy() + noise_rate * noise.numpy(), expected))
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
    return worst
