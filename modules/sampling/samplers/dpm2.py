"""DPM-Solver-2: the slope amid each step. Lu et al. 2022, arXiv:2206.00927; in sigma as Karras et al. 2022, arXiv:2206.00364."""
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.euler import ancestral, churn, churned


def dpm2(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
         s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0) -> Tensor:
    """The midpoint rule, the middle taken in log sigma: two model calls a step (one where it ends at 0) and one draw of noise.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1].
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        gamma = churn(sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x, sigma_hat = churned(x, sigma, gamma, s_noise * noise(sigma, sigma_next))
        slope, denoised = _slope(denoise, x, sigma_hat, float(sigma_next))
        on_step(i, denoised)
        x = x + slope * (sigma_next - sigma_hat)
    return x


def dpm2_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
                   eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """The same to a lower level than asked, then noise up to the level asked for: a draw in all but a step down to 0.

    eta: 0 = dpm2, 1 = as much new noise as leaves the distribution right.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        slope, denoised = _slope(denoise, x, sigma, sigma_down)
        on_step(i, denoised)
        x = x + slope * (sigma_down - sigma)
        if sigma_down > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def _slope(denoise: Denoise, x: Tensor, sigma: Tensor, end: float) -> tuple[Tensor, Tensor]:
    """dx / dsigma at the middle of the way to `end`, and the guess there; where the way ends at 0, both at its beginning."""
    denoised = denoise(x, sigma).value
    slope = (x - denoised) / sigma
    if end == 0:
        return slope, denoised
    middle = sigma.new_tensor(math.sqrt(float(sigma) * end))
    x = x + slope * (middle - sigma)
    denoised = denoise(x, middle).value
    return (x - denoised) / middle, denoised
