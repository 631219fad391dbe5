"""Heun's method: Euler's step, then its slope averaged with the slope at its end. Karras et al. 2022, arXiv:2206.00364, Algorithm 2."""
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.euler import churn, churned


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
         s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0) -> Tensor:
    """Follow the probability-flow ODE to second order: two model calls a step (one where it ends at 0) and one draw of noise.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1].
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        gamma = churn(sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x, sigma_hat = churned(x, sigma, gamma, s_noise * noise(sigma, sigma_next))
        denoised = denoise(x, sigma_hat).value
        slope = (x - denoised) / sigma_hat
        if sigma_next > 0:
            ahead = x + slope * (sigma_next - sigma_hat)
            denoised = denoise(ahead, sigma_next).value
            slope = (slope + (ahead - denoised) / sigma_next) / 2
        on_step(i, denoised)
        x = x + slope * (sigma_next - sigma_hat)
    return x
