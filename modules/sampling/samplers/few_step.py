"""Samplers for models distilled to few steps, and the chain that the models were first trained with: each step guesses and noises anew."""
import functools
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.prediction import Prediction, scaled_linear_alphas
from modules.sampling.samplers import Denoise, Noise, OnStep


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """The guess, noised up to the next level: one model call a step, a draw in all but a step to 0. Luo et al. 2023, arXiv:2310.04378.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. Song et al. 2023,
    arXiv:2303.01469, Algorithm 1. Its boundary weights differ from 0 and 1 by less than 1e-4 from training index 1 on.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x = denoise(x, sigma).value
        on_step(i, x)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_next
    return x


def tcd(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, eta: float = 0.3) -> Tensor:
    """Further down than asked without noise, then up again with it. Zheng et al. 2024, arXiv:2402.19159, Algorithm 4.

    One model call a step, a draw in all but a step to 0. eta: the paper's gamma, by what share of the training index it goes lower; 0 = no
    new noise (Euler's method), 1 = all of it (lcm). Training indices are those of SD1, SD2 and SDXL, for which TCD models exist.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).value
        on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        down = _lower(float(sigma_next), eta)
        x = denoised + (x - denoised) * (down / float(sigma))
        x = x + noise(sigma, sigma_next) * math.sqrt(max(float(sigma_next) ** 2 - down ** 2, 0.0))
    return x


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """The chain of Ho et al. 2020, arXiv:2006.11239, eq. 7, between the ladder's levels: one model call a step, a draw in all but one to 0.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. The mean and variance are those of the level
    below, given x and the guess.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).value
        on_step(i, denoised)
        share = (float(sigma_next) / float(sigma)) ** 2
        x = share * x + (1 - share) * denoised
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * (float(sigma_next) * math.sqrt(1 - share))
    return x


def _lower(sigma: float, share: float) -> float:
    """The level of the training index (1 - share) * that of sigma, rounded down as the paper does; 0 where nothing is left of it."""
    if not share:
        return sigma
    table = _training_levels()
    if share >= 1:
        return 0.0
    return min(sigma, float(table.sigma_of(math.floor((1 - share) * float(table.t_of(sigma)) + 1e-3))))


@functools.cache
def _training_levels() -> Prediction:
    return Prediction("eps", scaled_linear_alphas())
