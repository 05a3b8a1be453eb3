"""The `solver_*` and `algorithm_type` options of the DPM-Solver family (DPM-Solver, DPM-Solver++, DEIS, UniPC, EDM)."""

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig

SOLVER_FIELDS = frozenset({"lower_order_final", "solver_order", "solver_type", "thresholding", "use_flow_sigmas"})
"""Config fields that the whole family reads."""

ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")

KNOWN_SOLVER_TYPES = ("bh1", "bh2", "heun", "logrho", "midpoint", None)
"""The solver types of the whole family: one that another class brought along means the own default, as in diffusers."""

LARGEST_ORDER = 3

FEW_STEPS = 15
"""Below this many steps, `lower_order_final` lowers the order of the last steps."""


def check_order(name: str, config: ScheduleConfig, largest: int = LARGEST_ORDER) -> None:
    """Raise `RequestError` for an order that the solver does not have."""
    if not 1 <= config.solver_order <= largest:
        raise RequestError(f"{name}: solver_order {config.solver_order}: latentrt knows 1 to {largest}")


def check_solver_type(name: str, config: ScheduleConfig, own: tuple[str, ...]) -> None:
    """Raise `RequestError` for a solver type that no class of the family knows; `own` are those of this solver."""
    if config.solver_type not in KNOWN_SOLVER_TYPES:
        raise RequestError(f"{name}: solver_type {config.solver_type!r}: latentrt knows {' and '.join(own)}")


def midpoint_or_heun(config: ScheduleConfig) -> str:
    """The solver type of DPM-Solver; the names of other solvers' types mean midpoint, as in diffusers."""
    return "heun" if config.solver_type == "heun" else "midpoint"


def algorithm_of(name: str, config: ScheduleConfig, *, sde: bool) -> str:
    """The config's algorithm type, with the prefix `sde-` if and only if the sampler is stochastic.

    `deis`, which a config may bring along from another class, means `dpmsolver++`.

    Raises:
        RequestError: no such algorithm, or one that predicts noise with a schedule that ends without any.
    """
    base = "dpmsolver++" if config.algorithm_type == "deis" else config.algorithm_type.removeprefix("sde-")
    if base not in ALGORITHMS:
        raise RequestError(f"{name}: algorithm_type {config.algorithm_type!r}: latentrt knows {', '.join(ALGORITHMS)}")
    if base == "dpmsolver" and config.final_sigmas_type == "zero":
        raise RequestError(
            f"{name}: algorithm_type {config.algorithm_type!r} predicts noise and cannot end at sigma zero. "
            "Set final_sigmas_type to sigma_min, or algorithm_type to dpmsolver++"
        )
    return f"sde-{base}" if sde else base
