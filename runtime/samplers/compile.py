"""Compile a sampler to its table: run the textbook code on the rows of the identity."""

from dataclasses import fields
from typing import NoReturn

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan
from latentrt.runtime.samplers.registry import SAMPLERS
from latentrt.runtime.samplers.resolve import resolve
from latentrt.runtime.samplers.table import SamplerTable


def compile_sampler(
    name: str, config: ScheduleConfig, steps: int, first: int = 0, last: int | None = None
) -> SamplerTable:
    """The table of a sampler for `steps` steps of the config's schedule, or for its rows `first` to `last`, exclusive.

    Rows are U-Net evaluations; `kept_rows` finds these two for a strength or for shares of the denoising. Multistep
    solvers warm up at `first`; what they do at the schedule's end does not depend on `last`.

    Raises:
        RequestError: the sampler is unknown, cannot take that many steps, does not follow the config, or has no such
            rows.
    """
    return compile_plan(name, config, steps, plan_sampler(name, config, steps, first), first, last)


def compile_plan(
    name: str, config: ScheduleConfig, steps: int, plan: Plan, first: int = 0, last: int | None = None
) -> SamplerTable:
    """The table of a plan that was made with the warm-up at `first`; see `compile_sampler`."""
    rows = range(first, plan.row_count if last is None else last)
    if not 0 <= rows.start < rows.stop <= plan.row_count:
        raise RequestError(f"rows {first} to {rows.stop}: {name} with {steps} steps has rows 0 to {plan.row_count}")
    if first % plan.evaluations:
        raise RequestError(
            f"first row {first}: {name} evaluates the model {plan.evaluations} times per step; start at an even row"
        )
    with np.errstate(all="ignore"):  # infinities are wanted: log-SNR where the last sigma is zero
        table = _tabulate(name, plan, rows)
    return table if _finite(table) else _refuse(name, config, steps)


def plan_sampler(name: str, config: ScheduleConfig, steps: int, first: int = 0) -> Plan:
    """The plan of a sampler: all rows of its schedule, with the warm-up at `first`.

    Raises:
        RequestError: the sampler is unknown, cannot take that many steps, or does not follow the config.
    """
    if name not in SAMPLERS:
        raise RequestError(f"sampler {name!r}: latentrt knows {', '.join(sorted(SAMPLERS))}")
    if not 1 <= steps <= config.num_train_timesteps:
        raise RequestError(f"steps {steps}: this checkpoint's schedule takes 1 to {config.num_train_timesteps}")
    resolved = resolve(name, SAMPLERS[name], config)
    if resolved.own_steps not in (None, steps):
        raise RequestError(f"steps {steps}: the timesteps or sigmas given are {resolved.own_steps} steps")
    with np.errstate(all="ignore"):
        try:
            return SAMPLERS[name].plan(resolved, steps, first)
        except np.linalg.LinAlgError:
            _refuse(name, config, steps)


def _tabulate(name: str, plan: Plan, rows: range) -> SamplerTable:
    """Run every row on the identity, whose rows are the coordinates of [Z; model output; noise] on themselves."""
    count, k = len(rows), plan.state_count
    basis = np.eye(k + 2)
    weights = np.empty((count + 1, k, k + 2))
    for place, row in enumerate(rows):
        weights[place] = plan.advance(tuple(basis[:k]), basis[k], basis[k + 1], row)
    weights[count] = basis[:k]
    kept = slice(rows.start, rows.stop)
    readout = np.zeros((count + 1, k))
    readout[:, 0] = np.append(plan.input_scale[kept], 1.0)
    return SamplerTable(
        sampler=name,
        initial_scale=plan.initial_scale,
        weights=weights,
        readout=readout,
        timesteps=plan.timesteps[[*rows, rows[-1]]],
        draws=plan.draws[kept],
        original_levels=np.append(plan.levels[kept], [[1.0, 0.0]], axis=0),
        first=rows.start,
        whole=plan.row_count,
    )


def _finite(table: SamplerTable) -> bool:
    numbers = (table.weights, table.readout, table.timesteps, np.array(table.initial_scale), table.original_levels)
    return all(np.isfinite(values).all() for values in numbers)


def _refuse(name: str, config: ScheduleConfig, steps: int) -> NoReturn:
    """Raise `RequestError`, naming the settings that differ from the defaults."""
    neutral = ScheduleConfig()
    seen = resolve(name, SAMPLERS[name], config)
    stated = {field.name: getattr(seen, field.name) for field in fields(seen) if field.name != "trained_betas"}
    changed = ", ".join(f"{key} {value}" for key, value in stated.items() if value != getattr(neutral, key))
    raise RequestError(
        f"sampler {name!r} with {steps} steps has no finite coefficients on this schedule ({changed}). "
        f"Ask for fewer steps or another sampler; prediction_type epsilon cannot start from zero terminal signal"
    )
