"""The fields of diffusers' `scheduler_config.json` that decide a schedule or a sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from math import isfinite
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from latentrt.runtime.errors import CheckpointError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""What a U-Net predicts, by diffusers' names."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace"),
    "prediction_type": get_args(PredictionType),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "timestep_type": ("discrete", "continuous"),
    "interpolation_type": ("linear", "log_linear"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "sigma_schedule": ("karras", "exponential"),
    "sigma_spacing": (
        "align_your_steps_15",
        "align_your_steps_xl",
        "beta",
        "ddim",
        "exponential",
        "karras",
        "kl_optimal",
        "normal",
        "polyexponential",
        "sgm_uniform",
        "simple",
    ),
}
"""Allowed values of the text fields. Solver types are checked by the samplers that read them."""

MOST_TIMESTEPS = 1_000_000
"""A thousand times as many as models are trained with; more is a slip, and would fill the memory."""

SIGMA_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """A scheduler's settings, with diffusers' names and meaning; None where the default differs between its classes.

    One config serves every sampler, as diffusers' `from_config` carries it from class to class. These are no config
    fields in diffusers, but arguments, or nothing there:

    eta                             share of fresh noise; None: the sampler's own default
    s_noise                         factor of all fresh noise
    s_churn, s_tmin, s_tmax         noise added before a step, and the sigmas at which it is; Karras et al. 2022
                                    (arXiv:2206.00364), algorithm 2
    timesteps, sigmas               the schedule itself, one per step, falling; a zero may stand behind the sigmas
    sigma_spacing                   a schedule of the web interfaces, over the whole training range; goes before the
                                    spacings that diffusers has

    Raises:
        CheckpointError: a field holds a value that diffusers does not know either.
    """

    num_train_timesteps: int = 1000
    beta_start: float | None = None
    beta_end: float | None = None
    beta_schedule: str | None = None
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    timestep_type: str = "discrete"
    steps_offset: int = 0
    interpolation_type: str = "linear"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    thresholding: bool = False
    variance_type: str | None = None
    solver_order: int = 2
    solver_type: str | None = None
    algorithm_type: str = "dpmsolver++"
    lower_order_final: bool | None = None
    euler_at_final: bool = False
    lambda_min_clipped: float = float("-inf")
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    skip_prk_steps: bool = False
    sigma_data: float = 0.5
    sigma_schedule: str = "karras"
    rho: float | None = None
    eta: float | None = None
    s_noise: float = 1.0
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = float("inf")
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    sigma_spacing: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise CheckpointError(f"scheduler config: {name} {value!r}: latentrt knows {', '.join(allowed)}")
        if self.num_train_timesteps > MOST_TIMESTEPS:
            raise CheckpointError(
                f"scheduler config: num_train_timesteps {self.num_train_timesteps}: at most {MOST_TIMESTEPS}"
            )
        if self.num_train_timesteps < 2:
            raise CheckpointError(
                f"scheduler config: num_train_timesteps {self.num_train_timesteps}: at least 2 are needed"
            )
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise CheckpointError(
                f"scheduler config: trained_betas holds {len(self.trained_betas)} values, but num_train_timesteps "
                f"is {self.num_train_timesteps}: both must agree"
            )
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise CheckpointError(f"scheduler config: eta {self.eta}: it is a share, from 0 to 1")
        for name in ("s_noise", "s_churn", "s_tmin", "s_tmax"):
            if not getattr(self, name) >= 0:
                raise CheckpointError(f"scheduler config: {name} {getattr(self, name)}: it must be at least 0")
        self._check_own_schedule()
        if sum(getattr(self, name) for name in SIGMA_SPACINGS) > 1:
            raise CheckpointError(f"scheduler config: only one of {', '.join(SIGMA_SPACINGS)} may be true")

    @property
    def own_steps(self) -> int | None:
        """Steps of the schedule that `timesteps` or `sigmas` hold; None where neither is there."""
        if self.timesteps is not None:
            return len(self.timesteps)
        return None if self.sigmas is None else sum(sigma > 0 for sigma in self.sigmas)

    def _check_own_schedule(self) -> None:
        """Check the schedule given as `timesteps` or `sigmas`."""
        if self.timesteps is not None and self.sigmas is not None:
            raise CheckpointError("scheduler config: timesteps, sigmas: both given; a schedule is one of them")
        if self.timesteps is not None:
            _check_falling("timesteps", self.timesteps)
            if self.timesteps[0] > self.num_train_timesteps - 1 or self.timesteps[-1] < 0:
                raise CheckpointError(
                    f"scheduler config: timesteps {_brief(self.timesteps)}: this model was trained on 0 to "
                    f"{self.num_train_timesteps - 1}"
                )
        if self.sigmas is not None:
            _check_falling("sigmas", self.sigmas)
            if self.sigmas[-1] < 0 or self.sigmas[0] == 0:
                raise CheckpointError(
                    f"scheduler config: sigmas {_brief(self.sigmas)}: they must be above 0; only the last may be 0, "
                    "the end of the schedule"
                )

    @classmethod
    def from_diffusers(cls, config: Mapping[str, object]) -> "ScheduleConfig":
        """Read a parsed `scheduler_config.json`. Absent and null fields take the default; unknown fields are ignored.

        Raises:
            CheckpointError: a field has the wrong type or a value that diffusers does not know either.
        """
        names = [field.name for field in fields(cls) if config.get(field.name) is not None]
        stated: dict[str, Any] = {name: read_field(name, config[name]) for name in names}
        return cls(**stated)


def _check_falling(name: str, values: tuple[float, ...]) -> None:
    """Raise `CheckpointError` unless each value is below the one before."""
    if not values or not all(one > other for one, other in pairwise(values)) or not all(map(isfinite, values)):
        raise CheckpointError(
            f"scheduler config: {name} {_brief(values)}: give at least one, each below the one before, from noise to "
            "picture"
        )


def _brief(values: tuple[float, ...]) -> str:
    shown = [f"{value:g}" for value in values]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:3], "…", shown[-1]]) or "(none)"


def read_field(name: str, value: object) -> object:
    """Read one field's value, of any kind that JSON or numpy has, as an immutable value of the field's own type.

    Raises:
        CheckpointError: it is of another kind.
    """
    return _read(name, value.tolist() if isinstance(value, np.ndarray | np.generic) else value, _types()[name])


@cache
def _types() -> Mapping[str, Any]:
    return get_type_hints(ScheduleConfig)


def _read(name: str, value: object, hint: object) -> object:
    """Convert a value to the type of its field: JSON may hold integers for floats, and holds lists for tuples."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = kinds[0]
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_read(name, item, get_args(kind)[0]) for item in value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise CheckpointError(f"scheduler config: {name} {value!r}: expected {_spell(kind)}")


def _spell(kind: object) -> str:
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
    if get_origin(kind) is tuple:
        return "a list"
    return words.get(kind, str(kind)) if isinstance(kind, type) else str(kind)
