"""The names that AUTOMATIC1111's web interface, ComfyUI and diffusers have for samplers and schedules."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.registry import SAMPLERS

WEBUI_SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "kdpm2": "DPM2",
    "kdpm2_a": "DPM2 a",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "restart": "Restart",
    "unipc": "UniPC",
}
"""AUTOMATIC1111's names of samplers; others have none there."""

WEBUI_SCHEDULES: Mapping[str, str] = {
    "align_your_steps": "Align Your Steps",
    "beta": "Beta",
    "ddim": "DDIM",
    "exponential": "Exponential",
    "karras": "Karras",
    "kl_optimal": "KL Optimal",
    "normal": "Normal",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
}
"""AUTOMATIC1111's names of schedule types, by `sigma_spacing`. Which Align Your Steps is meant depends on the model."""

_OTHER_SCHEDULES: Mapping[str, str] = {
    "ays": "align_your_steps",
    "ddim_uniform": "ddim",
    "sgmuniform": "sgm_uniform",
    "uniform": "normal",
}

_OTHER_SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpm2": ("kdpm2", {}),
    "dpm2_a": ("kdpm2_a", {}),
    "dpm2_ancestral": ("kdpm2_a", {}),
    "dpm_2": ("kdpm2", {}),
    "dpm_2_a": ("kdpm2_a", {}),
    "dpm_2_ancestral": ("kdpm2_a", {}),
    "dpmpp_2m_sde_heun": ("dpmpp_2m_sde", {"solver_type": "heun"}),
    "dpmpp_2s_ancestral": ("dpmpp_2s_a", {}),
    "euler_ancestral": ("euler_a", {}),
    "plms": ("pndm", {}),
    "uni_pc": ("unipc", {"solver_type": "bh1"}),
    "uni_pc_bh2": ("unipc", {"solver_type": "bh2"}),
}
"""Names, as `_plain` writes them, that are not ours -> our sampler and the fields that they imply."""

_ADAPTIVE = "it chooses its steps by what the model returns; the nearest is dpmpp_2s"
_NOT_HERE: Mapping[str, str] = {
    "dpm_adaptive": _ADAPTIVE,
    "dpm_fast": "the nearest is dpmpp_2s",
    "er_sde": "the nearest is dpmpp_3m_sde",
    "heunpp2": "the nearest is heun",
    "ipndm": "the nearest is lms",
    "ipndm_v": "the nearest is deis",
    "res_multistep": "the nearest is dpmpp_2m",
    "sa_solver": "the nearest is dpmpp_3m_sde",
}
"""Samplers of others that no table here equals, and what is near."""


@dataclass(frozen=True, slots=True)
class NamedSampler:
    """A sampler of ours, and the fields of the schedule that a name implies beside it."""

    sampler: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def sampler_named(text: str) -> NamedSampler:
    """The sampler that a name means: ours, or one of AUTOMATIC1111 ("DPM++ 2M Karras"), ComfyUI or diffusers.

    Raises:
        RequestError: no sampler of that name; it names the nearest, or all.
    """
    if text in SAMPLERS:
        return NamedSampler(text)
    of_class = next((name for name, sampler in SAMPLERS.items() if sampler.scheduler == text), None)
    if of_class is not None:
        return NamedSampler(of_class)
    plain = _plain(text).removeprefix("sample_").removeprefix("k_").removesuffix("_gpu")
    if (found := _base(plain)) is not None:
        return found
    for ending, spacing in _schedules().items():
        base = _base(plain.removesuffix(f"_{ending}").removesuffix("_gpu")) if plain.endswith(f"_{ending}") else None
        if base is not None:
            return NamedSampler(base.sampler, {**base.fields, "sigma_spacing": spacing})
    raise RequestError(f"sampler {text!r}: {_answer(plain)}")


def schedule_named(text: str) -> dict[str, str]:
    """The fields of the schedule that a name means, such as "Karras" or "sgm_uniform".

    Raises:
        RequestError: no schedule of that name.
    """
    spacing = _schedules().get(_plain(text))
    if spacing is None:
        raise RequestError(
            f"schedule {text!r}: latentrt knows {', '.join(sorted(WEBUI_SCHEDULES))}, or a dict of fields, such as "
            "{'use_karras_sigmas': True}"
        )
    return {"sigma_spacing": spacing}


SPACINGS = frozenset({"sigma_spacing", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas"})
"""Fields of which one takes the place of another."""


def over(fields: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Schedule fields with `others` put over them; a spacing among these replaces whatever spacing was there."""
    dropped = SPACINGS if SPACINGS & others.keys() else frozenset()
    return {**{name: value for name, value in fields.items() if name not in dropped}, **others}


def _schedules() -> dict[str, str]:
    return {**{name: name for name in WEBUI_SCHEDULES}, **_OTHER_SCHEDULES}


def _base(plain: str) -> NamedSampler | None:
    """The sampler of a plain name without a schedule."""
    if plain in SAMPLERS:
        return NamedSampler(plain)
    return NamedSampler(*_OTHER_SAMPLERS[plain]) if plain in _OTHER_SAMPLERS else None


def _plain(text: str) -> str:
    """A name as ours are written: "DPM++ 2S a" is dpmpp_2s_a."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower().replace("++", "pp")).strip("_")


def _answer(plain: str) -> str:
    """What to use instead of a sampler that is not here."""
    if plain in _NOT_HERE:
        return f"latentrt does not have it: {_NOT_HERE[plain]}"
    if plain.endswith("_cfg_pp"):
        return "latentrt does not have CFG++, which mixes guided and unguided outputs in a step; leave _cfg_pp out"
    nearest = get_close_matches(plain, SAMPLERS, n=1, cutoff=0.75)
    known = f"must be one of {', '.join(sorted(SAMPLERS))}"
    return f"no such sampler, the nearest is {nearest[0]}; {known}" if nearest else known
