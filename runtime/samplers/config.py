"""The fields of diffusers' `scheduler_config.json` that decide a schedule or a sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
}
"""Allowed values of the text fields. Solver types are checked by the samplers that read them."""

SIGMA_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """A scheduler's settings, with diffusers' names and meaning; None where the default differs between its classes.

    One config serves every sampler, as diffusers' `from_config` carries it from class to class. `eta`, the share of
    fresh noise in ddim and tcd, is an argument of diffusers' `step` rather than a config field; None means its default.

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
    rho: float = 7.0
    eta: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise CheckpointError(f"scheduler config: {name} {value!r}: latentrt knows {', '.join(allowed)}")
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
        if sum(getattr(self, name) for name in SIGMA_SPACINGS) > 1:
            raise CheckpointError(f"scheduler config: only one of {', '.join(SIGMA_SPACINGS)} may be true")

    @classmethod
    def from_diffusers(cls, config: Mapping[str, object]) -> "ScheduleConfig":
        """Read a parsed `scheduler_config.json`. Absent and null fields take the default; unknown fields are ignored.

        Raises:
            CheckpointError: a field has the wrong type or a value that diffusers does not know either.
        """
        types = get_type_hints(cls)
        names = [field.name for field in fields(cls) if config.get(field.name) is not None]
        stated: dict[str, Any] = {name: _read(name, config[name], types[name]) for name in names}
        return cls(**stated)


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
