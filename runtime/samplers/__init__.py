"""Samplers as tables: every sampler is one small matrix per step (docs/samplers.md)."""

from latentrt.runtime.samplers.compile import SAMPLERS, compile_sampler, sampler_for
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.table import SamplerTable

__all__ = ["SAMPLERS", "SamplerTable", "ScheduleConfig", "compile_sampler", "sampler_for"]
