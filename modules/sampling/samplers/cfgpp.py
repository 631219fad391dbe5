"""CFG++: guidance moves the guess, and the way back to the noise is the one without the prompt. Chung et al. 2024, arXiv:2406.08070.

Algorithm 2 of the paper puts the noise that the model sees without a prompt on the guided guess: in x = clean + sigma * noise that is
x_next = guided + sigma_next * (x - uncond) / sigma, which is Euler's step begun from x + guided - uncond; the other methods likewise.
The paper's scale lies in 0..1; cfg_scale is divided by SCALE, so that the usual 7 means 0.56. Where the model cannot
be asked without a prompt, each is its plain method.
"""
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Denoised, Noise, OnStep
from modules.sampling.samplers.euler import ancestral

SCALE = 12.5


def ddim_cfgpp(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, eta: float = 0.0) -> Tensor:
    """DDIM so guided: one model call and one draw of noise a step, whatever eta (0 = no new noise, 1 = as in DDPM).

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1].
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        guided, begin = _guided(denoise(x, sigma), x)
        on_step(i, guided)
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        x = guided + (sigma_down / float(sigma)) * (begin - guided) + sigma_up * noise(sigma, sigma_next)
    return x


def euler_cfgpp(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """Euler's method so guided: one model call a step, no noise."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        guided, begin = _guided(denoise(x, sigma), x)
        on_step(i, guided)
        x = guided + (begin - guided) * (float(sigma_next) / float(sigma))
    return x


def euler_ancestral_cfgpp(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
                          eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """Euler a so guided: one model call a step, a draw in all but a step to 0."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        guided, begin = _guided(denoise(x, sigma), x)
        on_step(i, guided)
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        x = guided + (begin - guided) * (sigma_down / float(sigma))
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def dpmpp_2s_ancestral_cfgpp(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
                             eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """DPM++ 2S a so guided: two model calls a step, one where it goes down to 0; a draw in all but a step to 0."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        guided, begin = _guided(denoise(x, sigma), x)
        sigma_down, sigma_up = ancestral(float(sigma), float(sigma_next), eta)
        if sigma_down > 0:
            middle = math.sqrt(float(sigma) * sigma_down)
            ratio = middle / float(sigma)
            ahead = ratio * begin + (1 - ratio) * guided
            guided, _ = _guided(denoise(ahead, sigmas.new_tensor(middle)), ahead)
        on_step(i, guided)
        ratio = sigma_down / float(sigma)
        x = ratio * begin + (1 - ratio) * guided
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * (s_noise * sigma_up)
    return x


def dpmpp_2m_cfgpp(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """DPM++ 2M so guided: one model call a step, no noise. A first step, and one to 0, is of first order."""
    earlier, h_before = None, 0.0
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        guided, begin = _guided(denoise(x, sigmas[i]), x)
        on_step(i, guided)
        ratio = sigma_next / sigma
        h = -math.log(ratio) if ratio > 0 else math.inf
        guess = guided
        if earlier is not None and sigma_next > 0:
            guess = guided + (guided - earlier) * (h / (2 * h_before))
        x = ratio * begin + (1 - ratio) * guess
        earlier, h_before = guided, h
    return x


def _guided(denoised: Denoised, x: Tensor) -> tuple[Tensor, Tensor]:
    """The guess with a SCALE-th of the guidance, and the latent from which a plain step gives the step of CFG++."""
    if denoised.uncond is None:
        return denoised.value, x
    guidance = (denoised.value - denoised.uncond) / SCALE
    return denoised.uncond + guidance, x + guidance
