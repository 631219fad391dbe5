"""Linear multistep methods on dx / dsigma: each slope the model gives is used for several steps, one model call a step.

Adams and Bashforth's weights (Hairer, Norsett, Wanner 1993, "Solving Ordinary Differential Equations I", III.1 and III.5), for even steps
or for the ladder's own; Liu et al. 2022, arXiv:2202.09778 (PLMS), Zhang and Chen 2022, arXiv:2204.13902 (iPNDM, DEIS).
"""
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.exponential import weights

EVEN = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))     # Adams-Bashforth, newest first

StepWeights = Callable[[Sequence[float], float], Sequence[float]]
"""(levels of the slopes, newest first; level to go to) -> the distance to go with each of these slopes."""


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, order: int = 4) -> Tensor:
    """A polynomial in sigma through the last `order` slopes, integrated exactly over each step, the one to 0 among them.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. The first steps are of lower order.
    """
    return _walk(denoise, x, sigmas, on_step, lagrange, order)


def ipndm(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, order: int = 4) -> Tensor:
    """The weights of even steps, whatever the ladder. Zhang and Chen 2022, arXiv:2204.13902, appendix: PLMS without its first look ahead.

    Where the steps differ in length, as on most ladders, it is of second order and not of the fourth.
    """
    return _walk(denoise, x, sigmas, on_step, even, order)


def ipndm_v(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, order: int = 4) -> Tensor:
    """iPNDM with weights for steps of different lengths; a step to 0 is Euler's. Above 0 it is `lms`."""
    return _walk(denoise, x, sigmas, on_step, lagrange, order, plain_end=True)


def deis(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, order: int = 3) -> Tensor:
    """A polynomial in log sigma through the last `order` slopes; a step to 0 is Euler's. Zhang and Chen 2022, arXiv:2204.13902, eq. 15.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1].
    """
    return _walk(denoise, x, sigmas, on_step, logarithmic, order, plain_end=True)


def plms(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """The weights of even steps, after a first step that looks ahead: one model call more than steps. Liu et al. 2022, arXiv:2202.09778.

    The paper walks latents of unit variance; in x their transfer of eq. 11 is Euler's step. Its ladder is even in the training index, not
    in sigma, so that it is of second order. The first step averages its slope with that at its end, as Heun's method does.
    """
    slopes: list[Tensor] = []
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        denoised = denoise(x, sigmas[i]).value
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        slope = _sum(EVEN[len(slopes) - 1], slopes)
        if i == 0 and sigma_next > 0:
            ahead = x + slope * (sigma_next - sigma)
            denoised = denoise(ahead, sigmas[1]).value
            slope = (slope + (ahead - denoised) / sigma_next) / 2
        on_step(i, denoised)
        x = x + slope * (sigma_next - sigma)
    return x


def gradient_estimation(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, gamma: float = 2.0) -> Tensor:
    """Euler's step with gamma times the slope and 1 - gamma times the one before. Permenter and Yuan 2023, arXiv:2306.04848, section 5.

    The slope is read as a noisy measure of the direction to the data, which changes little between steps. A step to 0 is Euler's.
    """
    def estimated(levels: Sequence[float], end: float) -> Sequence[float]:
        way = end - levels[0]
        return (gamma * way, (1 - gamma) * way) if len(levels) == 2 else (way,)

    return _walk(denoise, x, sigmas, on_step, estimated, 2, plain_end=True)


def lagrange(levels: Sequence[float], end: float) -> list[float]:
    """The integral from levels[0] to `end` of each Lagrange polynomial in sigma through `levels`."""
    way = end - levels[0]
    nodes = (np.asarray(levels, dtype=np.float64) - levels[0]) / way
    moments = 1 / np.arange(1, len(levels) + 1)             # of 1, s, s^2 ... over 0..1
    return [float(weight) * way for weight in np.linalg.solve(np.vander(nodes, increasing=True).T, moments)]


def even(levels: Sequence[float], end: float) -> list[float]:
    """The distance to `end`, shared as if all steps were equally long."""
    return [weight * (end - levels[0]) for weight in EVEN[len(levels) - 1]]


def logarithmic(levels: Sequence[float], end: float) -> list[float]:
    """The integral from levels[0] to `end` of each Lagrange polynomial in log sigma through `levels`; to 0 Euler's step."""
    if end == 0:
        return [-levels[0]]
    nodes = [math.log(levels[0] / level) for level in levels]
    return [end * weight for weight in weights(nodes, math.log(levels[0] / end), decay=-1.0)]


def _walk(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, step_weights: StepWeights, order: int,
          plain_end: bool = False) -> Tensor:
    """Steps over up to `order` slopes with these weights; with plain_end a step to 0 uses the newest alone."""
    slopes: list[Tensor] = []
    levels = sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas[i]).value
        on_step(i, denoised)
        slopes = [(x - denoised) / sigma, *slopes[:order - 1]]
        used = 1 if plain_end and sigma_next == 0 else len(slopes)
        x = x + _sum(step_weights(levels[i::-1][:used], sigma_next), slopes)
    return x


def _sum(factors: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Of each slope times its factor; slopes beyond the factors are left out."""
    total = slopes[0] * factors[0]
    for factor, slope in zip(factors[1:], slopes[1:], strict=False):
        total = total + slope * factor
    return total
