"""Quantiles of the beta distribution, without scipy."""
from __future__ import annotations

import math

import torch
from torch import Tensor

TERMS = 60                                                  # each is at most half of the one before
HALVINGS = 60                                               # of an interval of 1/2: below the last bit of a float64


def beta_quantile(share: Tensor, alpha: float, beta: float) -> Tensor:
    """x with P(X <= x) = share for X of the beta distribution: (n,) in 0..1 -> (n,) float64 in 0..1, to 1e-14.

    alpha, beta: 0.01 to 1. By halving the interval, in the nearer half of 0..1, where the series of the incomplete beta function
    (NIST Digital Library of Mathematical Functions, 8.17.7) converges like powers of 1/2.
    """
    share = share.double()
    lower = share <= _part(torch.full((1,), 0.5, dtype=torch.float64), _factors(alpha, beta), alpha)
    return torch.where(lower, _solved(share, alpha, beta), 1 - _solved(1 - share, beta, alpha))


def _solved(share: Tensor, alpha: float, beta: float) -> Tensor:
    """x (n,) in 0..1/2; 1/2 where it lies beyond."""
    low, high, factors = torch.zeros_like(share), torch.full_like(share, 0.5), _factors(alpha, beta)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = _part(middle, factors, alpha) < share
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(share > 0, (low + high) / 2, 0.0)


def _part(x: Tensor, factors: Tensor, alpha: float) -> Tensor:
    """P(X <= x) for x (n,) in 0..1/2: x^alpha times the sum over k of factors[k] * x^k."""
    return x ** alpha * (x[:, None] ** torch.arange(TERMS) @ factors)


def _factors(alpha: float, beta: float) -> Tensor:
    """(TERMS,) float64: (1 - beta)_k / k! / (alpha + k) / B(alpha, beta)."""
    rising, factors = math.exp(math.lgamma(alpha + beta) - math.lgamma(alpha) - math.lgamma(beta)), []
    for k in range(TERMS):
        factors.append(rising / (alpha + k))
        rising *= (k + 1 - beta) / (k + 1)
    return torch.tensor(factors, dtype=torch.float64)
