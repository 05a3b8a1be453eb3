"""Samplers as tables: every sampler is one small matrix per step (docs/samplers.md)."""

from latentrt.runtime.samplers.compile import compile_sampler
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.names import over, sampler_named, schedule_named
from latentrt.runtime.samplers.registry import SAMPLERS
from latentrt.runtime.samplers.resolve import fields_read
from latentrt.runtime.samplers.schedule_part import compile_part, kept_rows
from latentrt.runtime.samplers.scheduler_class import sampler_for
from latentrt.runtime.samplers.table import SamplerTable

__all__ = [
    "SAMPLERS",
    "SamplerTable",
    "ScheduleConfig",
    "compile_part",
    "compile_sampler",
    "fields_read",
    "kept_rows",
    "over",
    "sampler_for",
    "sampler_named",
    "schedule_named",
]
