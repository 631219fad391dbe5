"""DPM-Solver++: exact in the linear part, a polynomial in log sigma for the model's guess. Lu et al. 2022, arXiv:2211.01095."""
import math
from typing import Literal

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """Two steps back, one model call a step, no noise. Algorithm 2 ("2M"), with h the step in -log sigma.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. A first step, and one to 0, is of first order.
    """
    earlier, h_before = None, 0.0
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        denoised = denoise(x, sigmas[i]).value
        on_step(i, denoised)
        ratio = sigma_next / sigma                          # exp(-h)
        h = -math.log(ratio) if ratio > 0 else math.inf
        guess = denoised
        if earlier is not None and sigma_next > 0:
            guess = denoised + (denoised - earlier) * (h / (2 * h_before))      # extrapolated to the middle of the step
        x = ratio * x + (1 - ratio) * guess
        earlier, h_before = denoised, h
    return x


def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0,
                 solver_type: Literal["midpoint", "heun"] = "midpoint") -> Tensor:
    """The same for the reverse-time stochastic equation: one model call a step, a draw of noise in all but a step to 0.

    eta: 0 = no new noise ("midpoint" is then dpmpp_2m), 1 = the equation of Song et al. 2020, arXiv:2011.13456; eta scales its noise and
    the extra decay that pays for it. solver_type: how the change of the guess over the step is weighed, to second order both.
    """
    earlier, h_before = None, 0.0
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        denoised = denoise(x, sigmas[i]).value
        on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        decay = (1 + eta) * h                               # the linear part shrinks x by exp(-decay) and a level by exp(-h)
        gain = -math.expm1(-decay)
        x = math.exp(-decay) * x + gain * denoised
        if earlier is not None:
            weight = gain / 2 if solver_type == "midpoint" else 1 - gain / decay
            x = x + (denoised - earlier) * (weight * h / h_before)
        if eta:
            x = x + noise(sigmas[i], sigmas[i + 1]) * (s_noise * sigma_next * math.sqrt(-math.expm1(-2 * eta * h)))
        earlier, h_before = denoised, h
    return x
