"""From the scheduler class that a config names to a sampler's name."""

from collections.abc import Mapping

from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.samplers.registry import SAMPLERS

NOT_SERVED: Mapping[str, str] = {
    "CosineDPMSolverMultistepScheduler": "its noise comes from a Brownian tree; dpmpp_2m_sde is the nearest",
    "FlowMatchEulerDiscreteScheduler": "flow matching is not diffusion; no Stable Diffusion 1, 2 or XL model needs it",
    "FlowMatchHeunDiscreteScheduler": "flow matching is not diffusion; no Stable Diffusion 1, 2 or XL model needs it",
}
"""Classes that a config may well name, and why no sampler equals them."""


def sampler_for(scheduler_config: Mapping[str, object]) -> str:
    """The name of the sampler that equals the `_class_name` and `algorithm_type` of a `scheduler_config.json`.

    Raises:
        CheckpointError: the config names no class, or one that no sampler equals.
    """
    scheduler = scheduler_config.get("_class_name")
    sde = str(scheduler_config.get("algorithm_type")).startswith("sde-")
    names = [
        name for name, sampler in SAMPLERS.items() if sampler.scheduler is not None and sampler.scheduler == scheduler
    ]
    if names:
        return next((name for name in names if SAMPLERS[name].sde == sde), names[0])
    served = {name: sampler for name, sampler in SAMPLERS.items() if sampler.scheduler and not sampler.sde}
    known = ", ".join(f"{sampler.scheduler} ({name})" for name, sampler in served.items())
    reason = NOT_SERVED.get(str(scheduler))
    raise CheckpointError(
        f"scheduler config: _class_name {scheduler!r}: {f'{reason}. L' if reason else 'l'}atentrt knows {known}. "
        "Name one of these samplers instead"
    )
