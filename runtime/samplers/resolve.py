"""A scheduler config as one sampler sees it, and the settings that are refused."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Sampler

COMMON_FIELDS = frozenset(
    {"beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "prediction_type", "trained_betas"}
)
"""Config fields that every sampler reads."""

_NO_VARIANCE = "latentrt serves models that predict no variance; set it to null"

REFUSED: Mapping[tuple[str, object], str] = {
    ("clip_sample", True): "clipping the predicted latents is not linear; set clip_sample to false",
    ("thresholding", True): "thresholding is not linear; set thresholding to false",
    ("use_flow_sigmas", True): "latentrt has no flow-matching schedules; set it to false",
    ("variance_type", "learned"): _NO_VARIANCE,
    ("variance_type", "learned_range"): _NO_VARIANCE,
}
"""(field, value) -> why it is refused, by the samplers that read the field."""


def fields_read(sampler: Sampler) -> frozenset[str]:
    """The config fields that a sampler obeys; it ignores all others, as in diffusers."""
    return COMMON_FIELDS | sampler.reads


def resolve(name: str, sampler: Sampler, config: ScheduleConfig) -> ScheduleConfig:
    """The config as this sampler sees it: its own defaults for unset fields, and neutral values for those it ignores.

    Raises:
        RequestError: the config asks for something that is not linear or not supported.
    """
    stated = {field.name: getattr(config, field.name) for field in fields(config)}
    read = fields_read(sampler)
    seen: dict[str, Any] = {key: value for key, value in stated.items() if key in read and value is not None}
    resolved = ScheduleConfig(**{**sampler.defaults, **seen})
    for (key, value), reason in REFUSED.items():
        if key in read and getattr(resolved, key) == value:
            origin = "" if stated[key] is not None else f" (the default of {sampler.scheduler})"
            raise RequestError(f"sampler {name!r}: {key} is {value!r}{origin}: {reason}")
    return resolved
