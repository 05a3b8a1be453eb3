"""The rows of a schedule that a request runs: image to image, and models that share the denoising between them."""

from math import ceil
from typing import NoReturn

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.compile import compile_plan, plan_sampler
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan
from latentrt.runtime.samplers.table import SamplerTable


def kept_rows(
    name: str,
    config: ScheduleConfig,
    steps: int,
    *,
    strength: float = 1.0,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> tuple[int, int]:
    """The first row, and the end of the rows, that diffusers' pipelines run; both are for `compile_sampler`.

    `strength` keeps that share of the steps, counted from the last. `denoising_start` and `denoising_end` are shares of
    the training timesteps, whatever the spacing: a base model with `denoising_end` x stops where a refiner with
    `denoising_start` x continues. A start replaces the strength, and a start of 0 runs every step. As in diffusers, a
    sampler with two evaluations per step stops after the first of them and continues with the step that it began.

    Raises:
        RequestError: a share lies outside 0 to 1, the start is not before the end, nothing is left to run, or
            shares of the training timesteps are asked of a schedule without any (`edm_`, continuous Euler) or of one
            that goes back (`restart`).
    """
    return _kept_rows(name, config, steps, plan_sampler(name, config, steps), strength, denoising_start, denoising_end)


def compile_part(
    name: str,
    config: ScheduleConfig,
    steps: int,
    *,
    strength: float = 1.0,
    denoising_start: float | None = None,
    denoising_end: float | None = None,
) -> SamplerTable:
    """The table of the rows that `kept_rows` finds.

    Raises:
        RequestError: as `kept_rows` and `compile_sampler`.
    """
    plan = plan_sampler(name, config, steps)
    first, last = _kept_rows(name, config, steps, plan, strength, denoising_start, denoising_end)
    if first:  # where multistep solvers warm up
        plan = plan_sampler(name, config, steps, first)
    return compile_plan(name, config, steps, plan, first, last)


def _kept_rows(
    name: str,
    config: ScheduleConfig,
    steps: int,
    plan: Plan,
    strength: float,
    denoising_start: float | None,
    denoising_end: float | None,
) -> tuple[int, int]:
    _check_shares(strength, denoising_start, denoising_end)
    starts = denoising_start is not None and denoising_start > 0
    shared = starts or (denoising_end is not None and denoising_end < 1)
    if shared and plan.timesteps.min() < 0:
        raise RequestError(
            f"denoising_start and denoising_end: {name} tells the model log(sigma) / 4 here, so there are no training "
            "timesteps to divide. Use strength, or another sampler"
        )
    if shared and (np.diff(plan.timesteps[:: plan.evaluations]) > 0).any():
        raise RequestError(
            f"denoising_start and denoising_end: {name} goes back to earlier timesteps, so that no share of them is "
            "one part of its steps. Use strength, or another sampler"
        )
    if denoising_start is not None:
        first = _start(plan, _cutoff(config, denoising_start)) if starts else 0
    else:
        first = (steps - int(steps * strength)) * plan.evaluations
    end = plan.row_count
    if denoising_end is not None and denoising_end < 1:
        end = first + int(np.count_nonzero(plan.timesteps[first:] >= _cutoff(config, denoising_end)))
    if first >= end:
        _refuse(steps, strength=strength, denoising_start=denoising_start, denoising_end=denoising_end)
    return first, end


def _refuse(steps: int, **shares: float | None) -> NoReturn:
    """Raise `RequestError`: nothing is left to run; name what would leave something."""
    if shares["denoising_start"] is None and int(steps * (shares["strength"] or 0)) == 0:
        raise RequestError(
            f"strength {shares['strength']}: none of {steps} steps is left to run, the picture would stay as it is. "
            f"The least is {ceil(1000 / steps) / 1000}, one step"
        )
    if shares["denoising_start"] is not None:
        del shares["strength"]  # which the start replaces
    given = ", ".join(f"{name} {share}" for name, share in shares.items() if share is not None)
    raise RequestError(f"{given}: none of {steps} steps lies between. Ask for more steps or a wider part")


def _start(plan: Plan, cutoff: int) -> int:
    """The first row below the cutoff; where that row completes a step, the row before it, which begins the step."""
    rows = int(np.count_nonzero(plan.timesteps < cutoff))
    if plan.evaluations == 2 and rows % 2 == 0:
        rows += 1
    return plan.row_count - rows


def _cutoff(config: ScheduleConfig, share: float) -> int:
    """The timestep down to which this share of the noise is removed."""
    return round(config.num_train_timesteps - share * config.num_train_timesteps)


def _check_shares(strength: float, start: float | None, end: float | None) -> None:
    for label, share in (("strength", strength), ("denoising_start", start), ("denoising_end", end)):
        if share is not None and not 0 <= share <= 1:
            raise RequestError(f"{label} {share}: it is a share, from 0 to 1")
    if start is not None and end is not None and start >= end:
        raise RequestError(f"denoising_start {start}: it must be less than denoising_end ({end})")
