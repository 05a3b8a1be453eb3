"""Every sampler by name."""

from collections.abc import Mapping

from latentrt.runtime.samplers.plan import Sampler
from latentrt.runtime.samplers.solvers.ddim import DDIM
from latentrt.runtime.samplers.solvers.ddpm import DDPM
from latentrt.runtime.samplers.solvers.deis import DEIS
from latentrt.runtime.samplers.solvers.dpmpp_2s_ancestral import DPMPP_2S_ANCESTRAL
from latentrt.runtime.samplers.solvers.dpmpp_3m_sde import DPMPP_3M_SDE
from latentrt.runtime.samplers.solvers.dpmpp_multistep import DPMPP_2M, DPMPP_2M_SDE
from latentrt.runtime.samplers.solvers.dpmpp_sde import DPMPP_SDE
from latentrt.runtime.samplers.solvers.dpmpp_singlestep import DPMPP_2S, DPMPP_2S_SDE
from latentrt.runtime.samplers.solvers.edm import EDM_DPMPP_2M, EDM_DPMPP_2M_SDE, EDM_EULER
from latentrt.runtime.samplers.solvers.euler import EULER, EULER_ANCESTRAL
from latentrt.runtime.samplers.solvers.heun import HEUN
from latentrt.runtime.samplers.solvers.kdpm2 import KDPM2, KDPM2_ANCESTRAL
from latentrt.runtime.samplers.solvers.lcm import LCM
from latentrt.runtime.samplers.solvers.lms import LMS
from latentrt.runtime.samplers.solvers.pndm import PNDM
from latentrt.runtime.samplers.solvers.restart import RESTART
from latentrt.runtime.samplers.solvers.tcd import TCD
from latentrt.runtime.samplers.solvers.unipc import UNIPC

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "deis": DEIS,
    "dpmpp_2m": DPMPP_2M,
    "dpmpp_2m_sde": DPMPP_2M_SDE,
    "dpmpp_2s": DPMPP_2S,
    "dpmpp_2s_a": DPMPP_2S_ANCESTRAL,
    "dpmpp_2s_sde": DPMPP_2S_SDE,
    "dpmpp_3m_sde": DPMPP_3M_SDE,
    "dpmpp_sde": DPMPP_SDE,
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
    "restart": RESTART,
    "tcd": TCD,
    "unipc": UNIPC,
}
"""Named as in k-diffusion and the web interfaces; `edm_` ones are for models with EDM preconditioning."""
