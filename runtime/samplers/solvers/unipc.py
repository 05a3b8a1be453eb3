"""UniPC: a multistep predictor and a corrector that reuses the same model outputs."""

from dataclasses import dataclass, replace
from math import factorial

import numpy as np

from latentrt.runtime.arrays import Float64s
from latentrt.runtime.samplers.config import ScheduleConfig
from latentrt.runtime.samplers.plan import Plan, Sampler, State, Value, no_draws
from latentrt.runtime.samplers.schedules.betas import LINEAR_BETAS
from latentrt.runtime.samplers.schedules.dpm_solver import deis_schedule
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule
from latentrt.runtime.samplers.schedules.sigma_spacing import SIGMA_FIELDS
from latentrt.runtime.samplers.schedules.timestep_spacing import SPACING_FIELDS
from latentrt.runtime.samplers.solvers.prediction import conversion
from latentrt.runtime.samplers.solvers.solver_options import SOLVER_FIELDS, check_order, check_solver_type


@dataclass(frozen=True, slots=True)
class Interval:
    """Coefficients of one step of order p: ratios r (p - 1,), predictor rho (p - 1,), corrector rho (p,).

    Zhao et al. 2023 (arXiv:2302.04867), section 3: x' = keep x - phi m0 - weight sum(rho D), D_i = (m_i - m0) / r_i,
    where m0, m1, ... are the model's outputs so far, newest first, and the corrector adds m' - m0 with r = 1.
    """

    keep: float
    phi: float
    weight: float
    ratios: Float64s
    predictor: Float64s
    corrector: Float64s

    def predict(self, x: Value, outputs: State) -> Value:
        """UniP-p, algorithm 2: the latents of the next step."""
        return self._step(x, outputs, self.predictor)

    def correct(self, x: Value, outputs: State) -> Value:
        """UniC-p, algorithm 1, without its last term: `gain` times the next output is still to be subtracted."""
        return self._step(x, outputs, self.corrector[:-1]) + self.gain * outputs[0]

    @property
    def gain(self) -> float:
        """The factor of the next step's output in the corrector."""
        return float(self.weight * self.corrector[-1])

    def _step(self, x: Value, outputs: State, rho: Float64s) -> Value:
        moved = self.keep * x - self.phi * outputs[0]
        for factor, ratio, output in zip(rho, self.ratios, outputs[1:], strict=False):
            moved = moved - self.weight * factor * (output - outputs[0]) / ratio
        return moved


def interval(schedule: SigmaSchedule, step: int, order: int, config: ScheduleConfig) -> Interval:
    """The coefficients of one step, with B(h) of `bh1` or `bh2` and rho from R(r) rho = b; theorem 3.1 of the paper."""
    sigmas, alphas = schedule.sigmas, schedule.alphas
    rates = alphas * sigmas
    log_snr = -np.log(sigmas)
    h = log_snr[step + 1] - log_snr[step]
    ratios = np.array([(log_snr[step - i] - log_snr[step]) / h for i in range(1, order)])
    signed = -h if config.predict_x0 else h
    kept, moved = (rates, alphas) if config.predict_x0 else (alphas, rates)
    scale = signed if config.solver_type == "bh1" else np.expm1(signed)
    matrix = np.vander(np.append(ratios, 1.0), order, increasing=True).T
    right = _right_side(signed, order) / scale
    return Interval(
        keep=kept[step + 1] / kept[step],
        phi=moved[step + 1] * np.expm1(signed),
        weight=moved[step + 1] * scale,
        ratios=ratios,
        predictor=np.array([0.5]) if order == 2 else np.linalg.solve(matrix[:-1, :-1], right[:-1]),
        corrector=np.array([0.5]) if order == 1 else np.linalg.solve(matrix, right),
    )


def _right_side(h: float, order: int) -> Float64s:
    """The terms h phi_(k+1)(h) k! for k = 1 to order; phi_1(h) = (exp(h) - 1) / h and h phi_(k+1) = phi_k - 1 / k!."""
    terms = []
    phi = np.expm1(h) / h
    for k in range(1, order + 1):
        rest = phi - 1 / factorial(k)
        terms.append(rest * factorial(k))
        phi = rest / h
    return np.array(terms)


def plan_unipc(config: ScheduleConfig, steps: int, first: int) -> Plan:
    """The plan of diffusers' UniPCMultistepScheduler.

    State at order p, p + 1 values: the predicted latents; the corrected latents, as far as they are known before the
    next output; the p - 1 latest outputs, as x0 or noise.
    """
    check_order("unipc", config)
    check_solver_type("unipc", config, ("bh1", "bh2"))
    config = replace(config, solver_type="bh1" if config.solver_type == "bh1" else "bh2")
    schedule = deis_schedule(config, steps, to_zero=config.final_sigmas_type == "zero")
    count = len(schedule.timesteps)
    orders = [min(config.solver_order, max(step - first, 0) + 1) for step in range(count)]
    if config.lower_order_final:
        orders = [min(order, count - step) for step, order in enumerate(orders)]
    intervals = [interval(schedule, step, order, config) for step, order in enumerate(orders)]
    convert = conversion(schedule, config.prediction_type, to_x0=config.predict_x0)

    def advance(state: State, output: Value, noise: Value, step: int) -> State:
        x, correction, *history = state
        latest = convert(x, output, step)
        if step > first and step - 1 not in config.disable_corrector:
            x = correction - intervals[step - 1].gain * latest
        outputs = (latest, *history)
        predicted = intervals[step].predict(x, outputs)
        corrected = intervals[step].correct(x, outputs) if step < count - 1 else 0 * x
        return predicted, corrected, *outputs[: config.solver_order - 1]

    return Plan(
        timesteps=schedule.timesteps,
        input_scale=np.ones(count),
        levels=schedule.levels,
        draws=no_draws(count),
        advance=advance,
        state_count=config.solver_order + 1,
    )


UNIPC = Sampler(
    scheduler="UniPCMultistepScheduler",
    plan=plan_unipc,
    defaults={**LINEAR_BETAS, "timestep_spacing": "linspace", "lower_order_final": True},
    reads=SPACING_FIELDS
    | SOLVER_FIELDS
    | SIGMA_FIELDS
    | {"disable_corrector", "final_sigmas_type", "predict_x0", "rescale_betas_zero_snr"},
)
