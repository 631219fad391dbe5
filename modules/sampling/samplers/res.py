"""Refined exponential solver in its multistep form. Zhang et al. 2023, arXiv:2308.02157, with the order conditions of its section 4."""
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.euler import ancestral
from modules.sampling.samplers.exponential import weights


def res_multistep(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """A line in log sigma through the last two guesses, integrated exactly: one model call a step, no noise.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. A first step, and one to 0, is of first order.
    """
    return res_multistep_ancestral(denoise, x, sigmas, on_step, noise=noise, eta=0.0)


def res_multistep_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
                            eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """The same to a lower level than asked, then noise up to the level asked for; a draw in all but a step to 0 (none with eta 0).

    eta: 1 = as much new noise as leaves the distribution right.
    """
    earlier, h_before = None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).value
        on_step(i, denoised)
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        if sigma_down == 0 and sigma_next == 0:
            return denoised
        ratio = sigma_down / float(sigma)
        x = ratio * x + (1 - ratio) * denoised
        if earlier is not None and ratio > 0:
            x = x + (earlier - denoised) * weights((0.0, -h_before), -math.log(ratio))[1]
        if eta:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
        earlier, h_before = denoised, math.log(float(sigma) / float(sigma_next))
    return x
