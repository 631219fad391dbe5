"""DDIM on the law of noise levels. Song, Meng, Ermon 2020, arXiv:2010.02502, eq. 12 and 16.

The paper walks z = sqrt(a) * clean + sqrt(1 - a) * noise, of unit variance; here x = z / sqrt(a) = clean + sigma * noise with
sigma^2 = (1 - a) / a. Written so, eq. 16 is sigma_up of an ancestral step, and eq. 12 is

    x_next = denoised + sqrt(sigma_next^2 - sigma_up^2) * (x - denoised) / sigma + sigma_up * noise

z starts as plain noise and ends as the picture, hence `start="vp"` in the catalogue; the ladder is schedule.ddim_timesteps.
"""
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.euler import ancestral


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, eta: float = 0.0) -> Tensor:
    """One model call and one draw of noise a step, whatever eta. eta: 0 = no new noise (Euler's method), 1 = as in DDPM.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1].
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma).value
        on_step(i, denoised)
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        x = denoised + (sigma_down / float(sigma)) * (x - denoised) + sigma_up * noise(sigma, sigma_next)
    return x
