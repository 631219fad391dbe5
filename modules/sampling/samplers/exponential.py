"""Weights of exponential multistep methods: what a polynomial through earlier guesses adds over a step in -log sigma.

Hochbruck and Ostermann 2010, "Exponential integrators", Acta Numerica 19, section 2.5; with noise Xue et al. 2023, arXiv:2309.05019.
"""
import math
from collections.abc import Sequence

import numpy as np


def weights(nodes: Sequence[float], h: float, decay: float = 1.0) -> list[float]:
    """One weight a node, so that their sum over p(node) is the integral of decay * exp(-decay * (h - s)) * p(s) over s = 0..h.

    Exact for polynomials of degree len(nodes) - 1. nodes: distances in -log sigma from the step's beginning (0, earlier ones negative),
    all different. h: the step's length, above 0. decay: 1 + eta^2 (or 1 + eta), by which the linear part shrinks; not 0.
    """
    moments = _moments(decay * h, len(nodes))               # everything in units of h
    powers = np.vander(np.asarray(nodes, dtype=np.float64) / h, increasing=True).T
    return [float(weight) for weight in np.linalg.solve(powers, moments)]


def _moments(rate: float, count: int) -> list[float]:
    """The integral of rate * exp(-rate * (1 - u)) * u^k over u = 0..1, for k = 0 .. count - 1."""
    if abs(rate) < 1:                                       # the series; by parts it would cancel
        return [rate * sum((-rate) ** j * math.factorial(k) / math.factorial(k + j + 1) for j in range(18)) for k in range(count)]
    moments = [-math.expm1(-rate)]
    for k in range(1, count):
        moments.append(1 - k / rate * moments[-1])
    return moments
