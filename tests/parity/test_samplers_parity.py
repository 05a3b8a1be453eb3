"""Every sampler's table against the diffusers scheduler it equals: whole schedules, parts of them, noised originals."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import sampler_table
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from sampler_cases import (
    HAS_SCIPY,
    PEERED,
    SDXL,
    SIGMAS,
    SPACINGS,
    Case,
    Config,
    common_cases,
    crossed_cases,
    own_cases,
    training_cases,
)
from sampler_parity import TOLERANCE, case_difference, levels_difference, reference, trajectory_difference

from latentrt.runtime.samplers import SAMPLERS, ScheduleConfig, compile_sampler, kept_rows, sampler_for

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
"""diffusers hands torch tensors to numpy."""

PARTS = ((10, 2, None), (10, 4, 7), (7, 6, None))
"""Steps, first row, end: late starts, one at the last row but for two-row samplers, and an end that leaves noise."""

FIGURE = re.compile(r"\d\.\de-\d\d")

LATE_OPTIONS: Mapping[str, Config] = {
    "": {},
    "third order": {"solver_order": 3},
    "karras": SIGMAS["karras"],
    "Runge-Kutta": {"skip_prk_steps": False},
}
LATE = tuple(
    Case(name, option, changes)
    for name in PEERED
    for option, changes in LATE_OPTIONS.items()
    if not changes or (set(changes) <= SAMPLERS[name].reads and (name, option) != ("edm_dpmpp_2m_sde", "third order"))
)


def runnable(cases: Iterable[Case]) -> list[object]:
    """The cases as pytest parameters; those that diffusers needs scipy for are skipped without it."""
    needs_scipy = pytest.mark.skipif(not HAS_SCIPY, reason="diffusers needs scipy here")
    return [pytest.param(case, marks=[] if case.runs else needs_scipy, id=str(case)) for case in cases]


@pytest.mark.parametrize("case", runnable(common_cases()))
def test_common_options(case: Case) -> None:
    for steps in (1, 3, 16):
        assert case_difference(case, steps) <= TOLERANCE


@pytest.mark.parametrize("case", runnable(own_cases()))
def test_own_options(case: Case) -> None:
    for steps in case.served((1, 3, 4, 16)):
        assert case_difference(case, steps) <= TOLERANCE


@pytest.mark.parametrize("case", runnable(case for case in training_cases() if "kdpm2" not in case.sampler))
def test_training_schedules(case: Case) -> None:
    assert case_difference(case, 7) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", runnable([*crossed_cases(), *training_cases()]))
def test_every_combination(case: Case) -> None:
    # diffusers' kdpm2_a finds sigma_down as a float32 difference of squares, of which two linspace steps leave nothing.
    cancels = (case.sampler, case.changes.get("timestep_spacing")) == ("kdpm2_a", "linspace")
    for steps in (1, 4, 10, 25) if cancels else (1, 2, 4, 10, 25):
        assert case_difference(case, steps) <= TOLERANCE


@pytest.mark.parametrize("case", runnable(LATE))
def test_parts_of_a_schedule(case: Case) -> None:
    """A loop that starts late warms up there, and an original mixed in has diffusers' level at every row."""
    for steps, first, last in PARTS:
        assert levels_difference(case, steps, first, last) <= TOLERANCE
        if case.sampler != "lms":  # diffusers keeps the weights of the outputs it has not seen (docs/samplers.md)
            assert case_difference(case, steps, first, last) <= TOLERANCE


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", [name for name in PEERED if HAS_SCIPY or name != "lms"])
def test_kept_rows(name: str, spacing: str) -> None:
    """The rows that diffusers' image-to-image pipelines keep; its own method on its own schedule."""
    changes = SPACINGS[spacing]
    config = ScheduleConfig.from_diffusers({**SDXL, **changes})
    for steps in (6, 30):
        scheduler = reference(name, {**SDXL, **changes}, steps, torch.float32)
        pipeline = SimpleNamespace(scheduler=scheduler)
        for strength in (0.31, 0.5, 0.99, 1.0):
            rows, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, steps, strength, "cpu")
            first, end = kept_rows(name, config, steps, strength=strength)
            np.testing.assert_allclose(compile_sampler(name, config, steps, first, end).timesteps[:-1], rows, atol=1e-3)
        for share in () if name.startswith("edm_") else (0.2, 0.5, 0.8):
            rows, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, steps, 0.5, "cpu", denoising_start=share)
            assert kept_rows(name, config, steps, denoising_start=share) == (
                len(scheduler.timesteps) - len(rows),
                len(scheduler.timesteps),
            )
            left = int((scheduler.timesteps >= round(1000 - share * 1000)).sum())
            assert kept_rows(name, config, steps, denoising_end=share) == (0, left)


@pytest.mark.parametrize("name", [name for name in PEERED if HAS_SCIPY or name != "lms"])
def test_saved_config(name: str) -> None:
    """The config that diffusers itself writes for the class leads back to the sampler and to the same table."""
    needed = {"algorithm_type": "sde-dpmsolver++"} if SAMPLERS[name].sde else {}
    needed |= {"clip_sample": False} if "clip_sample" in SAMPLERS[name].reads else {}
    scheduler = getattr(diffusers, SAMPLERS[name].scheduler)(**needed)
    saved = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
    saved["_class_name"] = type(scheduler).__name__
    assert sampler_for(saved) == name
    absent = {key: None for key in SDXL if key not in saved}
    assert case_difference(Case(name, "saved", {**absent, **saved}), 10) <= TOLERANCE


def test_a_wrong_table_is_noticed() -> None:
    """One weight off by 1e-4 breaks the tolerance, so the comparison can fail."""
    scheduler = reference("unipc", SDXL, 10, torch.float32)
    table = compile_sampler("unipc", ScheduleConfig.from_diffusers(SDXL), 10)
    assert trajectory_difference(scheduler, table, SDXL, torch.float32) <= TOLERANCE
    wrong = table.weights.copy()
    wrong[6, 0, 1] += 1e-4
    scheduler = reference("unipc", SDXL, 10, torch.float32)
    assert trajectory_difference(scheduler, replace(table, weights=wrong), SDXL, torch.float32) > TOLERANCE


def test_the_page_shows_every_case() -> None:
    """The tables of docs/samplers.md have the rows and columns that the command would write, and no larger figures."""
    shown = sampler_table.between_markers(sampler_table.PAGE.read_text(encoding="utf-8"))
    cells = [cell for line in shown.splitlines() for cell in line.split(" | ")]
    figures = [float(cell.strip(" |")) for cell in cells if FIGURE.fullmatch(cell.strip(" |"))]
    assert FIGURE.sub("0", shown) == sampler_table.tables(lambda case: "0")
    assert max(figures) <= TOLERANCE
