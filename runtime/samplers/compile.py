"""From a sampler's name and a scheduler's config to its table: run the textbook code on the identity."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.ddim import DDIM
from latentrt.runtime.samplers.dpmpp import DPMPP_2M
from latentrt.runtime.samplers.euler import EULER, EULER_ANCESTRAL
from latentrt.runtime.samplers.lcm import LCM
from latentrt.runtime.samplers.plan import Plan, Sampler
from latentrt.runtime.samplers.table import SamplerTable
from latentrt.runtime.samplers.unipc import UNIPC

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": DDIM,
    "dpmpp_2m": DPMPP_2M,
    "euler": EULER,
    "euler_a": EULER_ANCESTRAL,
    "lcm": LCM,
    "unipc": UNIPC,
}

COMMON_FIELDS = frozenset(
    {
        "beta_end",
        "beta_schedule",
        "beta_start",
        "num_train_timesteps",
        "prediction_type",
        "rescale_betas_zero_snr",
        "steps_offset",
        "timestep_spacing",
        "trained_betas",
    }
)
"""Config fields that every sampler reads."""

REFUSED: Mapping[str, str] = {
    "clip_sample": "clipping the predicted latents is not linear; set clip_sample to false in the scheduler config",
    "thresholding": "thresholding is not linear; set thresholding to false in the scheduler config",
    "use_beta_sigmas": "latentrt has no beta spacing; set it to false, or use_karras_sigmas to true",
    "use_flow_sigmas": "latentrt has no flow-matching schedules; set it to false",
    "variance_type": "latentrt serves models that predict no variance; set it to null",
}


def sampler_for(scheduler_config: Mapping[str, object]) -> str:
    """Name of the sampler that equals the class a `scheduler_config.json` names.

    Raises:
        CheckpointError: the config names no class, or one that no sampler equals.
    """
    scheduler = scheduler_config.get("_class_name")
    for name, sampler in SAMPLERS.items():
        if sampler.scheduler == scheduler:
            return name
    known = ", ".join(f"{sampler.scheduler} ({name})" for name, sampler in SAMPLERS.items())
    raise CheckpointError(
        f"scheduler config: _class_name {scheduler!r}: latentrt knows {known}. Name one of these samplers instead"
    )


def compile_sampler(name: str, config: ScheduleConfig, steps: int) -> SamplerTable:
    """The table of a sampler for `steps` steps of the config's schedule.

    Raises:
        RequestError: the sampler is unknown, cannot take that many steps, or does not follow the config.
    """
    if name not in SAMPLERS:
        raise RequestError(f"sampler {name!r}: latentrt knows {', '.join(sorted(SAMPLERS))}")
    if not 1 <= steps <= config.num_train_timesteps:
        raise RequestError(f"steps {steps}: this checkpoint's schedule takes 1 to {config.num_train_timesteps}")
    sampler = SAMPLERS[name]
    resolved = resolve(name, sampler, config)
    with np.errstate(all="ignore"):  # infinities are wanted: log-SNR where the last sigma is zero
        try:
            table = _tabulate(name, sampler.plan(resolved, steps))
        except np.linalg.LinAlgError:
            table = None
    if table is None or not _finite(table):
        raise RequestError(
            f"sampler {name!r} with {steps} steps has no finite coefficients on this schedule ({_describe(resolved)}). "
            f"Ask for fewer steps or another sampler; prediction_type epsilon cannot start from zero terminal signal"
        )
    return table


def resolve(name: str, sampler: Sampler, config: ScheduleConfig) -> ScheduleConfig:
    """The config as this sampler sees it: its own defaults where none is stated, unread fields left at rest.

    Raises:
        RequestError: the config asks for something that is not linear or not there yet.
    """
    stated = {field.name: getattr(config, field.name) for field in fields(config)}
    read = COMMON_FIELDS | sampler.reads
    seen: dict[str, Any] = {key: value for key, value in stated.items() if key in read and value is not None}
    resolved = ScheduleConfig(**{**sampler.defaults, **seen})
    for key, reason in REFUSED.items():
        if getattr(resolved, key):
            origin = "" if stated[key] is not None else f" (the default of {sampler.scheduler})"
            raise RequestError(f"sampler {name!r}: {key} is {getattr(resolved, key)!r}{origin}: {reason}")
    return resolved


def _tabulate(name: str, plan: Plan) -> SamplerTable:
    """Feed each step the coordinates of [Z; model output; noise] on themselves, the rows of the identity."""
    count, k = plan.step_count, plan.state_count
    basis = np.eye(k + 2)
    weights = np.empty((count + 1, k, k + 2))
    for step in range(count):
        weights[step] = plan.advance(tuple(basis[:k]), basis[k], basis[k + 1], step)
    weights[count] = basis[:k]
    readout = np.zeros((count + 1, k))
    readout[:, 0] = np.append(plan.input_scale, 1.0)
    timesteps = np.append(plan.timesteps, plan.timesteps[-1])
    return SamplerTable(name, plan.initial_scale, weights, readout, timesteps, plan.draws)


def _finite(table: SamplerTable) -> bool:
    numbers = (table.weights, table.readout, table.timesteps, np.array(table.initial_scale))
    return all(np.isfinite(values).all() for values in numbers)


def _describe(config: ScheduleConfig) -> str:
    """The settings that differ from a resting config, for an error message."""
    resting = ScheduleConfig()
    changed = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "trained_betas"}
    return ", ".join(f"{name} {value}" for name, value in changed.items() if value != getattr(resting, name))
