"""Weights of linear multistep samplers (LMS, DEIS): integrals of Lagrange's interpolation polynomials."""

import numpy as np

from latentrt.runtime.arrays import Float64s

POINTS, FACTORS = np.polynomial.legendre.leggauss(16)
"""Gauss-Legendre quadrature on [-1, 1]: exact for polynomials, and to rounding for those times exp(u) on a step."""


def interpolation_weights(nodes: Float64s, end: float, *, exponential: bool = False) -> Float64s:
    """The weight of each node's value in the integral, from 0 to `end`, of the polynomial through all nodes.

    With `exponential`, the integrand is exp(u) times that polynomial. Hairer, Nørsett & Wanner, Solving Ordinary
    Differential Equations I, equation III.1.5.
    """
    places = end * (POINTS + 1) / 2
    density = FACTORS * end / 2 * (np.exp(places) if exponential else 1.0)
    return np.array([density @ _lagrange(nodes, node, places) for node in range(len(nodes))])


def _lagrange(nodes: Float64s, node: int, places: Float64s) -> Float64s:
    """The polynomial that is 1 at one node and 0 at the others."""
    others = np.delete(nodes, node)
    return np.asarray(np.prod((places[:, None] - others) / (nodes[node] - others), axis=1))
