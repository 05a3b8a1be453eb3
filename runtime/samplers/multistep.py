"""What the solvers in log-SNR share (DPM-Solver++, DEIS, UniPC): S + 1 points without the lowest, order, prediction."""

from collections.abc import Callable

import numpy as np

from latentrt.runtime.errors import RequestError
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Floats, Value
from latentrt.runtime.samplers.prediction import predicted_noise, predicted_x0
from latentrt.runtime.samplers.schedule import SigmaSchedule, respaced_sigmas, spaced_timesteps, timesteps_of
from latentrt.runtime.samplers.training import Float32s, training_sigmas

SOLVER_FIELDS = frozenset({"lower_order_final", "solver_order", "solver_type", "thresholding", "use_flow_sigmas"})
"""Config fields that all of them read."""

FOREIGN_SOLVER_TYPES = ("bh1", "bh2", "heun", "logrho", "midpoint", None)
"""The solver types of all these classes: a config carried from another class means the own default, as in diffusers."""

LARGEST_ORDER = 3

FEW_STEPS = 15
"""Below this many steps, `lower_order_final` lowers the order of the last steps."""

Convert = Callable[[Value, Value, int], Value]
"""(latents, model output, step) -> the quantity that the solver extrapolates: clean latents or noise."""


def spaced_sigmas(
    config: ScheduleConfig, steps: int, training: Float32s, last: int | None = None
) -> tuple[Floats, Floats]:
    """Sigmas (S,) and whole timesteps (S,) in the config's spacing, the final sigma not yet appended."""
    timesteps = np.round(spaced_timesteps(config, steps, skip_zero=True, last=last))
    return np.interp(timesteps, np.arange(len(training)), training), timesteps


def respaced(config: ScheduleConfig, steps: int, training: Float32s, *, whole: bool) -> tuple[Floats, Floats] | None:
    """Sigmas (S,) over the whole training range and their timesteps, where the config names a spacing of sigmas."""
    sigmas = respaced_sigmas(config, training[-1], training[0], steps)
    if sigmas is None:
        return None
    fractional = timesteps_of(sigmas, training)
    return sigmas, np.round(fractional) if whole else fractional


def closed(sigmas: Floats, timesteps: Floats, sigma_last: float) -> SigmaSchedule:
    """The finished schedule: the last sigma appended, sigmas rounded to float32 and timesteps cut to integers."""
    rounded = np.append(sigmas, sigma_last).astype(np.float32).astype(np.float64)
    return SigmaSchedule(rounded, np.trunc(timesteps))


def clipped_end(config: ScheduleConfig, training: Float32s) -> int:
    """One past the highest timestep whose lambda = log(alpha / sigma) is not below `lambda_min_clipped`."""
    return int(np.count_nonzero(-np.log(training) >= config.lambda_min_clipped))


def standard_schedule(config: ScheduleConfig, steps: int) -> SigmaSchedule:
    """The schedule of DPMSolverSinglestepScheduler, and of the multistep form but for its rounding of timesteps."""
    training = training_sigmas(config)
    named = respaced(config, steps, training, whole=config.use_karras_sigmas)
    sigmas, timesteps = named or spaced_sigmas(config, steps, training, clipped_end(config, training))
    return closed(sigmas, timesteps, training[0] if config.final_sigmas_type == "sigma_min" else 0.0)


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
