"""Schedules that a request gives, against the diffusers classes that take them, and DPM++ SDE against its class."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import AysSchedules
from sampler_cases import PREDICTIONS, SDXL, SIGMAS, SPACINGS, Config
from sampler_parity import SHAPE, TOLERANCE, difference, reference, trajectory_difference

from latentrt.runtime.samplers import SAMPLERS, ScheduleConfig, compile_sampler, sampler_for

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
"""diffusers hands torch tensors to numpy."""

TIMESTEPS = AysSchedules["StableDiffusionXLTimesteps"]
LEVELS = AysSchedules["StableDiffusionXLSigmas"]


def compare(name: str, given: Config, config: Config = SDXL) -> float:
    """The largest difference of any step between diffusers and the table."""
    scheduler = reference(name, config, 10, torch.float32)
    scheduler.set_timesteps(**given)
    steps = len(scheduler.timesteps) if name != "heun" else len(next(iter(given.values())))
    table = compile_sampler(name, ScheduleConfig.from_diffusers({**config, **given}), steps)
    np.testing.assert_allclose(table.timesteps[:-1], scheduler.timesteps.numpy(), atol=2e-3)
    np.testing.assert_allclose(table.initial_scale, float(scheduler.init_noise_sigma), rtol=1e-6)
    return trajectory_difference(scheduler, table, config, torch.float32)


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "euler", "heun", "lcm", "tcd"])
@pytest.mark.parametrize("timesteps", [TIMESTEPS, [999, 400, 20]], ids=["AYS", "three"])
def test_own_timesteps(name: str, timesteps: list[int]) -> None:
    assert compare(name, {"timesteps": timesteps}) <= TOLERANCE


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_own_sigmas(prediction: str) -> None:
    assert compare("euler", {"sigmas": LEVELS}, {**SDXL, **PREDICTIONS[prediction]}) <= TOLERANCE


@pytest.mark.parametrize(("spacing", "key"), [("align_your_steps_xl", "XL"), ("align_your_steps_15", "")])
def test_ten_steps_of_align_your_steps_are_the_published_ones(spacing: str, key: str) -> None:
    scheduler = reference("euler", SDXL, 10, torch.float32)
    scheduler.set_timesteps(sigmas=AysSchedules[f"StableDiffusion{key}Sigmas"])
    table = compile_sampler("euler", ScheduleConfig.from_diffusers({**SDXL, "sigma_spacing": spacing}), 10)
    np.testing.assert_allclose(table.timesteps[:-1], scheduler.timesteps.numpy(), atol=2e-3)
    assert trajectory_difference(scheduler, table, SDXL, torch.float32) <= TOLERANCE


@pytest.fixture
def solver_sde(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """diffusers' DPMSolverSDEScheduler without torchsde, of which only its own noise source makes use."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    name = "diffusers.schedulers.scheduling_dpmsolver_sde"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield __import__(name, fromlist=["DPMSolverSDEScheduler"]).DPMSolverSDEScheduler
    sys.modules.pop(name, None)


class Path:
    """A Brownian path over sigma, as diffusers' noise sampler reads it: increments scaled to unit variance."""

    def __init__(self, draws: Iterator[np.ndarray]):
        self._draws = draws
        self._piece: tuple[float, torch.Tensor] | None = None

    def __call__(self, sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        width = float(sigma - sigma_next)
        drawn = torch.from_numpy(next(self._draws))
        if self._piece is None:
            self._piece = width, drawn
            return drawn
        (earlier, piece), self._piece = self._piece, None
        return (earlier**0.5 * piece + (width - earlier) ** 0.5 * drawn) / width**0.5


@pytest.mark.parametrize(
    "changes",
    [*SPACINGS.values(), *(SIGMAS[name] for name in ("karras", "exponential")), PREDICTIONS["v_prediction"]],
    ids=str,
)
def test_dpmpp_sde_equals_its_class(solver_sde: Any, changes: Config) -> None:
    """With the same path: each step's noise is the sum of its two parts."""
    config = {**SDXL, **changes}
    scheduler, steps = solver_sde.from_config(config), 8
    scheduler.set_timesteps(steps)
    scheduler.sigmas = scheduler.sigmas.double()
    table = compile_sampler("dpmpp_sde", ScheduleConfig.from_diffusers(config), steps)
    np.testing.assert_allclose(table.timesteps[:-1], scheduler.timesteps.numpy(), atol=2e-3)
    random = np.random.default_rng(3)
    noises = random.standard_normal((table.step_count, *SHAPE))
    scheduler.noise_sampler = Path(iter(noises))
    latents = torch.from_numpy(random.standard_normal(SHAPE)) * scheduler.init_noise_sigma
    state = np.zeros((table.state_count, *SHAPE))
    state[0] = latents.numpy()
    for step, timestep in enumerate(scheduler.timesteps):
        unet_input = scheduler.scale_model_input(latents, timestep)
        assert difference(np.tensordot(table.readout[step], state, 1), unet_input) <= TOLERANCE
        output = torch.from_numpy(random.standard_normal(SHAPE))
        latents = scheduler.step(output, timestep, latents).prev_sample
        noise = noises[step] if table.draws[step] else np.full(SHAPE, 1e3)
        state = np.tensordot(table.weights[step], np.stack([*state, output.numpy(), noise]), 1)
        assert difference(state[0], latents) <= TOLERANCE


def test_the_class_names_the_sampler() -> None:
    assert sampler_for({"_class_name": "DPMSolverSDEScheduler"}) == "dpmpp_sde"
    assert SAMPLERS["dpmpp_sde"].scheduler == diffusers.DPMSolverSDEScheduler.__name__
