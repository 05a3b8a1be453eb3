"""What the solvers in log-SNR share (DPM-Solver++, DEIS, UniPC): their fields, orders and predictions."""

from collections.abc import Callable

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Value
from latentrt.runtime.samplers.schedules.spacing import SigmaSchedule
from latentrt.runtime.samplers.solvers.prediction import predicted_noise, predicted_x0

SOLVER_FIELDS = frozenset({"lower_order_final", "solver_order", "solver_type", "thresholding", "use_flow_sigmas"})
"""Config fields that all of them read."""


FOREIGN_SOLVER_TYPES = ("bh1", "bh2", "heun", "logrho", "midpoint", None)
"""The solver types of all these classes: a config carried from another class means the own default, as in diffusers."""


LARGEST_ORDER = 3


FEW_STEPS = 15
"""Below this many steps, `lower_order_final` lowers the order of the last steps."""


Convert = Callable[[Value, Value, int], Value]
"""(latents, model output, step) -> the quantity that the solver extrapolates: clean latents or noise."""


def preserving_conversion(schedule: SigmaSchedule, prediction_type: str, *, to_x0: bool) -> Convert:
    """The model's output as clean latents, or as noise."""
    predicted = predicted_x0 if to_x0 else predicted_noise

    def convert(x: Value, output: Value, step: int) -> Value:
        alpha = schedule.alphas[step]
        return predicted(x, output, alpha, alpha * schedule.sigmas[step], prediction_type)

    return convert


def check_order(name: str, config: ScheduleConfig, largest: int = LARGEST_ORDER) -> None:
    """Raise `RequestError` for an order that the solver does not have."""
    if not 1 <= config.solver_order <= largest:
        raise RequestError(f"{name}: solver_order {config.solver_order}: latentrt knows 1 to {largest}")


def check_solver_type(name: str, config: ScheduleConfig, own: tuple[str, ...]) -> None:
    """Raise `RequestError` for a solver type that no class of the family knows."""
    if config.solver_type not in FOREIGN_SOLVER_TYPES:
        raise RequestError(f"{name}: solver_type {config.solver_type!r}: latentrt knows {' and '.join(own)}")
