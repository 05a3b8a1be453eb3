"""The scheduler's config as diffusers' pipeline uses it: the class that the index names, and old fields repaired."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrt.export.pipelines import Conventions
from latentrt.export.sources.source import Config, Source
from latentrt.runtime.bundle.manifest import Defaults
from latentrt.runtime.errors import CheckpointError, RequestError
from latentrt.runtime.samplers import ScheduleConfig, compile_sampler

logger = logging.getLogger(__name__)

SCHEDULER_CONFIG = "scheduler_config.json"

CLIPPING = ("DDIMScheduler", "DDPMScheduler")
"""Classes whose own default of `clip_sample` is true; as other checkpoints' samplers they do not clip."""


def read_schedule(source: Source, index: Mapping[str, Any], conventions: Conventions) -> Config:
    """Read the scheduler's config as the checkpoint's pipeline uses it.

    The class is the one that the index names, for diffusers loads that one, whatever the config says. Then the
    pipeline's repairs are made. A checkpoint whose own class clips by default and does not say otherwise clips.
    """
    config = source.config("scheduler", SCHEDULER_CONFIG)
    named, own = (index.get("scheduler") or [None, None])[1], config.get("_class_name")
    changes: dict[str, Any] = {}
    if named and named != own:
        logger.warning(
            "%s: model_index.json names %s, scheduler_config.json %s; the index is followed, as in diffusers",
            source.path,
            named,
            own,
        )
        changes["_class_name"] = named
    if (named or own) in CLIPPING and "clip_sample" not in config:
        changes["clip_sample"] = True
    repairs = {name: value for name, value in conventions.schedule.items() if config.get(name, value) != value}
    if repairs:
        logger.warning(
            "%s: an old config; %s, as in diffusers' %s",
            config.file,
            ", ".join(f"{name} becomes {value}" for name, value in repairs.items()),
            index.get("_class_name"),
        )
    return Config(config.file, {**config, **changes, **conventions.schedule})


def check_schedule(file: Path, scheduler: Mapping[str, Any], defaults: Defaults) -> None:
    """Raise `CheckpointError` if the checkpoint's own sampler cannot follow its scheduler's config."""
    try:
        schedule = ScheduleConfig.from_diffusers(scheduler)
        compile_sampler(defaults.sampler, schedule, min(defaults.steps, schedule.num_train_timesteps))
    except (CheckpointError, RequestError) as error:
        raise CheckpointError(named(file, error)) from error


def named(file: Path, error: Exception) -> str:
    """The message of an error about a scheduler's config, with the file's name in it."""
    return f"{file}: {str(error).removeprefix('scheduler config: ')}"
