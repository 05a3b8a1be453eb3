"""The sampler cases that are compared with diffusers: every sampler with every schedule option that its class has."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from latentrt.runtime.samplers import SAMPLERS

Config = Mapping[str, Any]

PEERED = tuple(name for name, sampler in SAMPLERS.items() if sampler.scheduler and name != "dpmpp_sde")
"""Samplers with a diffusers class that runs here: dpmpp_sde's needs torchsde. `test_k_diffusion` has the others."""

HAS_SCIPY = importlib.util.find_spec("scipy") is not None
"""diffusers needs scipy for LMSDiscreteScheduler and for beta sigmas."""

SDXL: Config = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}
"""The scheduler config that SDXL is published with; every sampler is made from it, as `from_config` does."""

SPACINGS: Mapping[str, Config] = {name: {"timestep_spacing": name} for name in ("leading", "trailing", "linspace")}
PREDICTIONS: Mapping[str, Config] = {name: {"prediction_type": name} for name in ("epsilon", "v_prediction", "sample")}
SIGMAS: Mapping[str, Config] = {name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")}
ZERO_SNR: Config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}

COMMON: Mapping[str, Config] = {**SPACINGS, **PREDICTIONS, **SIGMAS, "zero SNR": ZERO_SNR}
"""Options that many samplers have, by a short name."""

NEEDS: Mapping[str, str] = {
    **dict.fromkeys(SPACINGS, "timestep_spacing"),
    **{name: f"use_{name}_sigmas" for name in SIGMAS},
    "zero SNR": "rescale_betas_zero_snr",
}
"""The config field that a class must read to have the option."""

NO_SAMPLE_PREDICTION = frozenset(
    {"euler_a", "kdpm2", "kdpm2_a", "pndm", "edm_euler", "edm_dpmpp_2m", "edm_dpmpp_2m_sde"}
)
"""Where diffusers has no prediction type `sample`."""

NO_EPSILON_AT_ZERO_SNR = frozenset({"ddim", "ddpm", "lcm", "tcd"})

_RUNGE_KUTTA: Config = {"skip_prk_steps": False}
_SIGMA_MIN: Config = {"final_sigmas_type": "sigma_min"}
_SOLVER: tuple[Config, ...] = (
    {"solver_type": "heun"},
    {"solver_type": "bh2"},
    {"solver_order": 1},
    {"solver_order": 3},
    {"solver_order": 3, **_SIGMA_MIN},
    _SIGMA_MIN,
    {"use_karras_sigmas": True, **_SIGMA_MIN},
    {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},
    {"lambda_min_clipped": -2.0},
)
_MULTISTEP: tuple[Config, ...] = (
    *_SOLVER,
    {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
    {"lower_order_final": False, **_SIGMA_MIN},
    {"lower_order_final": False, "euler_at_final": True, **_SIGMA_MIN},
    {"use_lu_lambdas": True, "sigma_min": 0.1},
    {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
)
_EDM: tuple[Config, ...] = (
    {"sigma_schedule": "exponential"},
    {"sigma_data": 1.0, "sigma_max": 14.6, "sigma_min": 0.03},
    {"rho": 5.0},
)
OWN: Mapping[str, tuple[Config, ...]] = {
    "ddim": ({"eta": 0.5}, {"eta": 1.0, "prediction_type": "v_prediction"}, {"set_alpha_to_one": True}),
    "ddpm": (
        {"variance_type": "fixed_small_log"},
        {"variance_type": "fixed_large"},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "laplace"},
    ),
    "deis": (
        {"solver_order": 1},
        {"solver_order": 3},
        {"lower_order_final": False},
        {"solver_order": 3, "lower_order_final": False},
        {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"},
    ),
    "dpmpp_2m": (
        *_MULTISTEP,
        {"algorithm_type": "dpmsolver", **_SIGMA_MIN},
        {"algorithm_type": "dpmsolver", "solver_type": "heun", **_SIGMA_MIN},
        {"algorithm_type": "dpmsolver", "solver_order": 3, **_SIGMA_MIN},
        {"algorithm_type": "dpmsolver", "prediction_type": "v_prediction", **_SIGMA_MIN},
    ),
    "dpmpp_2m_sde": (
        *_MULTISTEP,
        {"algorithm_type": "sde-dpmsolver", **_SIGMA_MIN},
        {"algorithm_type": "sde-dpmsolver", "solver_type": "heun", **_SIGMA_MIN},
    ),
    "dpmpp_2s": (
        *_SOLVER,
        {"lower_order_final": True, **_SIGMA_MIN},
        {"solver_order": 3, "solver_type": "heun"},
        {"solver_order": 3, "solver_type": "heun", **_SIGMA_MIN},
        {"algorithm_type": "dpmsolver", **_SIGMA_MIN},
        {"algorithm_type": "dpmsolver", "solver_order": 3, **_SIGMA_MIN},
        {"algorithm_type": "dpmsolver", "solver_order": 3, "solver_type": "heun", **_SIGMA_MIN},
    ),
    "dpmpp_2s_sde": (*_SOLVER, {"solver_order": 3, "solver_type": "heun"}),
    "edm_dpmpp_2m": (
        *_EDM,
        {"solver_type": "heun"},
        {"solver_order": 3},
        {"solver_order": 1},
        {"euler_at_final": True},
    ),
    "edm_dpmpp_2m_sde": (*_EDM, {"solver_type": "heun"}, {"solver_order": 1}),
    "edm_euler": (*_EDM, _SIGMA_MIN),
    "euler": (
        _SIGMA_MIN,
        {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},
        {"interpolation_type": "log_linear"},
        {"interpolation_type": "log_linear", "use_karras_sigmas": True},
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
    ),
    "euler_a": ({"use_karras_sigmas": True, **_SIGMA_MIN},),
    "heun": ({"beta_schedule": "exp"}, {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0}),
    "kdpm2": ({"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},),
    "kdpm2_a": ({"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},),
    "lcm": ({"original_inference_steps": 100}, {"original_inference_steps": 30, "timestep_scaling": 3.0}),
    "lms": ({"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.0},),
    "pndm": (
        {"set_alpha_to_one": True},
        _RUNGE_KUTTA,
        {**_RUNGE_KUTTA, "set_alpha_to_one": True, "steps_offset": 0},
        {**_RUNGE_KUTTA, "timestep_spacing": "trailing"},
        {**_RUNGE_KUTTA, "timestep_spacing": "linspace"},
        {**_RUNGE_KUTTA, "prediction_type": "v_prediction"},
        {**_RUNGE_KUTTA, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {**_RUNGE_KUTTA, "prediction_type": "v_prediction", "timestep_spacing": "linspace"},
        {**_RUNGE_KUTTA, "beta_schedule": "squaredcos_cap_v2"},
    ),
    "tcd": ({"eta": 0.3}, {"eta": 1.0}, {"original_inference_steps": 100}),
    "unipc": (
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "midpoint"},
        _SIGMA_MIN,
        {"solver_type": "bh1", **_SIGMA_MIN},
        {"solver_type": "bh1", "solver_order": 3, **_SIGMA_MIN},
        {"predict_x0": False, **_SIGMA_MIN},
        {"predict_x0": False, "prediction_type": "v_prediction", **_SIGMA_MIN},
        {"disable_corrector": [0, 2]},
        {"lower_order_final": False, **_SIGMA_MIN},
        {"use_karras_sigmas": True, **_SIGMA_MIN},
        {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
    ),
}
"""Options of single samplers."""

TRAINING: Mapping[str, Config] = {
    "linear betas": {"beta_schedule": "linear"},
    "cosine betas": {"beta_schedule": "squaredcos_cap_v2"},
    "trained betas": {"trained_betas": np.linspace(1e-3, 0.02, 1000).tolist()},
    "100 training timesteps": {"num_train_timesteps": 100},
    "no offset": {"steps_offset": 0},
}


@dataclass(frozen=True)
class Case:
    """One sampler under one set of config changes."""

    sampler: str
    option: str
    changes: Config

    def __str__(self) -> str:
        return f"{self.sampler}-{self.option}"

    @property
    def config(self) -> dict[str, Any]:
        return {**SDXL, **self.changes}

    @property
    def runs(self) -> bool:
        """Whether diffusers can be asked here."""
        return HAS_SCIPY or not (self.sampler == "lms" or self.changes.get("use_beta_sigmas"))

    def served(self, counts: Iterable[int]) -> list[int]:
        """Those of the step counts that diffusers takes: the Runge-Kutta warm-up needs four steps."""
        least = 1 if self.config["skip_prk_steps"] else 4
        return [steps for steps in counts if steps >= least]


def has(name: str, option: str) -> bool:
    """Whether the sampler's diffusers class has this common option."""
    needed = NEEDS.get(option)
    return (needed is None or needed in SAMPLERS[name].reads) and not (
        option == "sample" and name in NO_SAMPLE_PREDICTION
    )


def common_cases() -> list[Case]:
    """Every sampler with every common option that its diffusers class has."""
    return [Case(name, option, changes) for name in PEERED for option, changes in COMMON.items() if has(name, option)]


def own_cases() -> list[Case]:
    """The options of single samplers."""
    return [Case(name, describe(changes), changes) for name in PEERED for changes in OWN.get(name, ())]


def training_cases() -> Iterator[Case]:
    """Every sampler on other training schedules; an `edm_` sampler has none."""
    for name in PEERED:
        for option, changes in TRAINING.items():
            if not name.startswith("edm_"):
                yield Case(name, option, changes)


def crossed_cases() -> Iterator[Case]:
    """Every combination of spacing, prediction type, sigma spacing and zero SNR that a sampler has."""
    for name in PEERED:
        for spacing, prediction, sigmas, snr in product(SPACINGS, PREDICTIONS, (None, *SIGMAS), (False, True)):
            options = [option for option in (spacing, prediction, sigmas, "zero SNR" if snr else None) if option]
            # epsilon divides by a signal of zero there: diffusers returns infinities, latentrt refuses
            endless = snr and prediction == "epsilon" and name in NO_EPSILON_AT_ZERO_SNR
            if all(has(name, option) for option in options) and not endless:
                changes = {**SPACINGS[spacing], **PREDICTIONS[prediction], **SIGMAS.get(sigmas, {})}
                if snr:
                    changes["rescale_betas_zero_snr"] = True
                yield Case(name, ", ".join(options), changes)


def describe(changes: Config) -> str:
    """The changes in words, as a table shows them."""
    return ", ".join(f"{key} {str(value).lower()}" for key, value in changes.items())
