"""Euler's method, plain and ancestral. Karras et al. 2022, arXiv:2206.00364, Algorithm 2; Song et al. 2020, arXiv:2011.13456, F."""
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
          s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0) -> Tensor:
    """Follow the probability-flow ODE in straight lines, one model call and one draw of noise a step.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1].
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        gamma = churn(sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x, sigma_hat = churned(x, sigma, gamma, s_noise * noise(sigma, sigma_next))
        denoised = denoise(x, sigma_hat).value
        on_step(i, denoised)
        slope = (x - denoised) / sigma_hat                  # dx / dsigma
        x = x + slope * (sigma_next - sigma_hat)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, eta: float = 1.0) -> Tensor:
    """Step further down than asked, then add noise up to the level asked for; one model call a step, a draw in all but a step to 0.

    eta: 0 = Euler's method, 1 = as much new noise as leaves the distribution right.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).value
        on_step(i, denoised)
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        x = x + (x - denoised) * (sigma_down / float(sigma) - 1)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_up
    return x


def churn(sigma: Tensor, steps: int, s_churn: float, s_tmin: float, s_tmax: float) -> float:
    """By what share the noise level is raised before a step: gamma of Karras et al., Algorithm 2. 0 outside s_tmin..s_tmax."""
    return min(s_churn / steps, math.sqrt(2) - 1) if s_tmin <= float(sigma) <= s_tmax else 0.0


def churned(x: Tensor, sigma: Tensor, gamma: float, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """x with noise `fresh` (B, C, H, W) added, and its level (1 + gamma) * sigma. gamma 0 leaves both as they are."""
    if gamma <= 0:
        return x, sigma
    sigma_hat = sigma * (1 + gamma)
    return x + fresh * (sigma_hat ** 2 - sigma ** 2).sqrt(), sigma_hat


def ancestral(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(sigma_down, sigma_up): the level to step down to and the noise to add, with sigma_down^2 + sigma_up^2 = sigma_next^2."""
    if not eta:
        return sigma_next, 0.0
    sigma_up = min(sigma_next, eta * sigma_next * math.sqrt(max(sigma ** 2 - sigma_next ** 2, 0.0)) / sigma)
    return math.sqrt(max(sigma_next ** 2 - sigma_up ** 2, 0.0)), sigma_up
