"""Lagrange polynomials and their integrals, which the linear multistep samplers take their weights from."""

from math import exp

import numpy as np
from numpy.polynomial import Polynomial

from latentrt.runtime.samplers.plan import Floats


def lagrange(nodes: Floats) -> list[Polynomial]:
    """For each node the polynomial that is 1 there and 0 at the others."""
    return [_product(nodes[place], np.delete(nodes, place)) for place in range(len(nodes))]


def _product(node: float, others: Floats) -> Polynomial:
    product = Polynomial([1.0])
    for other in others:
        product = product * Polynomial([-other, 1.0]) / (node - other)
    return product


def integral(polynomial: Polynomial, end: float) -> float:
    """The integral of p(u) from 0 to end."""
    return float(polynomial.integ()(end))


def exponential_integral(polynomial: Polynomial, end: float) -> float:
    """The integral of exp(u) p(u) from 0 to end: exp(u) (p - p' + p'' - ...) at both ends."""
    primitive, derivative, sign = Polynomial([0.0]), polynomial, 1
    for _ in range(polynomial.degree() + 1):
        primitive, derivative, sign = primitive + sign * derivative, derivative.deriv(), -sign
    return float(exp(end) * primitive(end) - primitive(0.0))
