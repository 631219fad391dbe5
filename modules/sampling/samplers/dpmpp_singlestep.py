"""DPM-Solver++ with a look at the middle of each step, two model calls a step. Lu et al. 2022, arXiv:2211.01095, Algorithm 1 ("2S")."""
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.euler import ancestral


def dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
                       eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """A step further down than asked, to second order, then noise up to the level asked for: a draw in all but a step to 0.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. The middle is that of log sigma; eta: 0 = no
    new noise, 1 = as much as leaves the distribution right. A step down to 0 is of first order, with one call.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).value
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        if sigma_down > 0:
            middle = math.sqrt(float(sigma) * sigma_down)
            ratio = middle / float(sigma)
            denoised = denoise(ratio * x + (1 - ratio) * denoised, sigmas.new_tensor(middle)).value
        on_step(i, denoised)
        ratio = sigma_down / float(sigma)                   # exp(-h)
        x = ratio * x + (1 - ratio) * denoised
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
              eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """The same for the reverse-time stochastic equation: noise on the way to the middle, and over the whole step.

    The noise of the two is meant to be one Brownian path (catalogue: brownian). Two draws a step; none in a step to 0, and one call.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).value
        if sigma_next == 0:
            on_step(i, denoised)
            return denoised
        level = float(sigma)
        middle = sigmas.new_tensor(math.sqrt(level * float(sigma_next)))
        sigma_down, sigma_up = ancestral(level, float(middle), eta)
        ratio = sigma_down / level
        ahead = ratio * x + (1 - ratio) * denoised + noise(sigma, middle) * (s_noise * sigma_up)
        denoised = denoise(ahead, middle).value
        on_step(i, denoised)
        sigma_down, sigma_up = ancestral(level, float(sigma_next), eta)
        ratio = sigma_down / level
        x = ratio * x + (1 - ratio) * denoised + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x
