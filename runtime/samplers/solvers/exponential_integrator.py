"""The exponential integrators of DPM-Solver and DPM-Solver++, deterministic and stochastic, orders 1 to 3.

With lambda = log(alpha / sigma), which rises by h over an interval, both solve the diffusion equation exactly for an
output that is polynomial in lambda. DPM-Solver++ extrapolates clean latents (Lu et al. 2022, arXiv:2211.01095),
DPM-Solver noise (Lu et al. 2022, arXiv:2206.00927): the same formula with signal and noise exchanged and h negated. The
stochastic forms remove more noise and add as much anew: section 3.4 and appendix A of the DPM-Solver++ paper.
"""

from dataclasses import dataclass

import numpy as np

from latentrt.runtime.samplers.plan import Value
from latentrt.runtime.samplers.schedules.sigma_schedule import SigmaSchedule


@dataclass(frozen=True, slots=True)
class Interval:
    """Coefficients of one interval: x' = keep x - take (phi_1 D0 + weight D1 + phi_3 D2) + fresh noise.

    D0, D1 and D2 are the output and its first two differences in lambda. The phis are functions of `exponent`: minus h
    in DPM-Solver++, twice that in its stochastic form, plus h in DPM-Solver. `shift` is 1/2 with diffusers' sign.
    """

    keep: float
    take: float
    exponent: float
    fresh: float
    shift: float = 0.5

    @property
    def phi_1(self) -> float:
        """exp(e) - 1."""
        return float(np.expm1(self.exponent))

    @property
    def phi_2(self) -> float:
        """(exp(e) - 1) / e - 1, 0 at e = 0."""
        return float(np.expm1(self.exponent) / self.exponent - 1) if self.exponent else 0.0

    @property
    def phi_3(self) -> float:
        """(exp(e) - 1 - e) / e² - 1/2, 0 at e = 0."""
        return float((np.expm1(self.exponent) - self.exponent) / self.exponent**2 - self.shift) if self.exponent else 0

    def first(self, x: Value, d0: Value, noise: Value) -> Value:
        """The first-order step, which is DDIM's where there is no noise."""
        moved = self.keep * x - self.take * self.phi_1 * d0
        return moved + self.fresh * noise if self.fresh else moved

    def second(self, x: Value, d0: Value, d1: Value, noise: Value, solver_type: str) -> Value:
        """The second-order step; D1's weight is phi_1 / 2 with `midpoint`, the exact phi_2 with `heun`."""
        weight = 0.5 * self.phi_1 if solver_type == "midpoint" else self.phi_2
        return self.first(x, d0, noise) - self.take * weight * d1

    def third(self, x: Value, d0: Value, d1: Value, d2: Value, noise: Value) -> Value:
        """The third-order step, always with exact weights."""
        return self.first(x, d0, noise) - self.take * (self.phi_2 * d1 + self.phi_3 * d2)


def interval(
    schedule: SigmaSchedule, start: int, end: int, algorithm: str, eta: float = 1.0, s_noise: float = 1.0
) -> Interval:
    """The coefficients from one point of the schedule to another.

    `eta`: share of the stochastic form of DPM-Solver++, where 0 is the deterministic one, as k-diffusion has it;
    `s_noise`: factor of its noise.
    """
    sigma, sigma_next = schedule.sigmas[[start, end]]
    alpha, alpha_next = schedule.alphas[[start, end]]
    h, decay = np.log(sigma / sigma_next), sigma_next / sigma  # h is infinite where sigma' is zero; decay = exp(-h)
    ratio = alpha_next / alpha
    rate_next = alpha_next * sigma_next
    if algorithm == "dpmsolver++":
        return Interval(ratio * decay, alpha_next, -h, 0.0)
    if algorithm == "sde-dpmsolver++":
        fresh = s_noise * rate_next * np.sqrt(1 - decay ** (2 * eta))
        return Interval(ratio * decay ** (1 + eta), alpha_next, -(1 + eta) * h, fresh, shift=-0.5)
    if algorithm == "dpmsolver":
        return Interval(ratio, rate_next, h, 0.0)
    return Interval(ratio, 2 * rate_next, h, rate_next * np.sqrt(np.expm1(2 * h)))


def log_snr_rise(schedule: SigmaSchedule, start: int, end: int) -> float:
    """The rise h of lambda between two points of the schedule."""
    h: float = np.log(schedule.sigmas[start] / schedule.sigmas[end])
    return h
