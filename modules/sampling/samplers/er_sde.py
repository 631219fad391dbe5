"""Extended reverse-time SDE solver: how much noise is renewed is a function of the level. Cui et al. 2023, arXiv:2309.06169."""
import math
from collections.abc import Callable

import numpy as np
from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep

Scaling = Callable[[float], float]


def usual_scaling(sigma: float) -> float:
    """The paper's "ER-SDE 5", its choice for pictures."""
    return sigma * (math.exp(sigma ** 0.3) + 10)


def er_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, s_noise: float = 1.0,
           scaling: Scaling = usual_scaling) -> Tensor:
    """"VE ER-SDE-Solver-3": one model call a step, a draw of noise in all but a step to 0.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. The first and second differences
    of the guess stand, as published, for its derivatives in sigma, which is of second order. scaling: the paper's phi; phi(sigma) = sigma
    renews no noise, faster growing ones more.
    """
    guesses: list[Tensor] = []                              # newest first, with their levels
    levels: list[float] = []
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        denoised = denoise(x, sigmas[i]).value
        on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        guesses, levels = [denoised, *guesses[:2]], [sigma, *levels[:2]]
        ratio = scaling(sigma_next) / scaling(sigma)
        first, second = _integrals(scaling, sigma, sigma_next)
        x = ratio * x + (1 - ratio) * denoised
        if len(guesses) > 1:
            slope = (guesses[0] - guesses[1]) / (levels[0] - levels[1])
            x = x + slope * (sigma_next - sigma + first)
            if len(guesses) > 2:
                bend = (slope - (guesses[1] - guesses[2]) / (levels[1] - levels[2])) / ((levels[0] - levels[2]) / 2)
                x = x + bend * ((sigma_next - sigma) ** 2 / 2 + second)
        renewed = sigma_next ** 2 - (ratio * sigma) ** 2
        if renewed > 0:
            x = x + noise(sigmas[i], sigmas[i + 1]) * (s_noise * math.sqrt(renewed))
    return x


def _integrals(scaling: Scaling, sigma: float, sigma_next: float) -> tuple[float, float]:
    """phi(sigma_next) times the integrals of 1 / phi(u) and of (u - sigma) / phi(u) over u = sigma_next..sigma; in log u, to ten digits."""
    nodes, shares = np.polynomial.legendre.leggauss(12)
    middle, half = math.log(sigma * sigma_next) / 2, math.log(sigma / sigma_next) / 2
    levels = np.exp(middle + half * nodes)
    terms = [share * half * level / scaling(level) for share, level in zip(shares.tolist(), levels.tolist(), strict=True)]
    at_end = scaling(sigma_next)
    return at_end * sum(terms), at_end * sum(term * (level - sigma) for term, level in zip(terms, levels.tolist(), strict=True))
