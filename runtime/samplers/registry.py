"""The samplers by name, and the one that a scheduler config means."""

from collections.abc import Mapping

from latentrt.runtime.errors import CheckpointError
from latentrt.runtime.samplers.plan import Sampler
from latentrt.runtime.samplers.solvers.ddim import DDIM
from latentrt.runtime.samplers.solvers.ddpm import DDPM
from latentrt.runtime.samplers.solvers.deis import DEIS
from latentrt.runtime.samplers.solvers.dpmpp_multistep import DPMPP_2M, DPMPP_2M_SDE
from latentrt.runtime.samplers.solvers.dpmpp_singlestep import DPMPP_2S, DPMPP_2S_SDE
from latentrt.runtime.samplers.solvers.edm import EDM_DPMPP_2M, EDM_DPMPP_2M_SDE, EDM_EULER
from latentrt.runtime.samplers.solvers.euler import EULER, EULER_ANCESTRAL
from latentrt.runtime.samplers.solvers.heun import HEUN
from latentrt.runtime.samplers.solvers.kdpm2 import KDPM2, KDPM2_ANCESTRAL
from latentrt.runtime.samplers.solvers.lcm import LCM
from latentrt.runtime.samplers.solvers.lms import LMS
from latentrt.runtime.samplers.solvers.pndm import PNDM
from latentrt.runtime.samplers.solvers.tcd import TCD
from latentrt.runtime.samplers.solvers.unipc import UNIPC

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "deis": DEIS,
    "dpmpp_2m": DPMPP_2M,
    "dpmpp_2m_sde": DPMPP_2M_SDE,
    "dpmpp_2s": DPMPP_2S,
    "dpmpp_2s_sde": DPMPP_2S_SDE,
    "edm_dpmpp_2m": EDM_DPMPP_2M,
    "edm_dpmpp_2m_sde": EDM_DPMPP_2M_SDE,
    "edm_euler": EDM_EULER,
    "euler": EULER,
    "euler_a": EULER_ANCESTRAL,
    "heun": HEUN,
    "kdpm2": KDPM2,
    "kdpm2_a": KDPM2_ANCESTRAL,
    "lcm": LCM,
    "lms": LMS,
    "pndm": PNDM,
    "tcd": TCD,
    "unipc": UNIPC,
}
"""By the names that k-diffusion and the web interfaces use; `edm_` ones are for models with EDM preconditioning."""

NOT_SERVED: Mapping[str, str] = {
    "CosineDPMSolverMultistepScheduler": "its noise comes from a Brownian tree; dpmpp_2m_sde is the nearest",
    "DPMSolverSDEScheduler": "its noise comes from a Brownian tree (torchsde); dpmpp_2m_sde is the nearest",
    "FlowMatchEulerDiscreteScheduler": "flow matching is not diffusion; no Stable Diffusion 1, 2 or XL model needs it",
    "FlowMatchHeunDiscreteScheduler": "flow matching is not diffusion; no Stable Diffusion 1, 2 or XL model needs it",
}
"""Classes that people may well have in a config, and why no sampler equals them."""


def sampler_for(scheduler_config: Mapping[str, object]) -> str:
    """Name of the sampler that equals the class and the algorithm type that a `scheduler_config.json` names.

    Raises:
        CheckpointError: the config names no class, or one that no sampler equals.
    """
    scheduler = scheduler_config.get("_class_name")
    sde = str(scheduler_config.get("algorithm_type")).startswith("sde-")
    names = [name for name, sampler in SAMPLERS.items() if sampler.scheduler == scheduler]
    if names:
        return next((name for name in names if SAMPLERS[name].sde == sde), names[0])
    known = ", ".join(f"{sampler.scheduler} ({name})" for name, sampler in SAMPLERS.items() if not sampler.sde)
    reason = NOT_SERVED.get(str(scheduler))
    raise CheckpointError(
        f"scheduler config: _class_name {scheduler!r}: {f'{reason}. L' if reason else 'l'}atentrt knows {known}. "
        "Name one of these samplers instead"
    )
