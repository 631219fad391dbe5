"""DPM-Solver++ over three guesses, stochastic. Lu et al. 2022, arXiv:2211.01095, multistep of third order, with noise as in 2M SDE."""
import math

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep


def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
                 eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """A parabola in log sigma through the guess and the two before it; one model call a step, a draw of noise in all but a step to 0.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. eta: 0 = no new noise, 1 = the reverse-time
    equation. Its curvature has half the weight that third order would ask for: so it was published, and so pictures are reproduced.
    """
    guesses: list[tuple[Tensor, float]] = []                # the last guesses and the step in -log sigma that followed each, newest first
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        denoised = denoise(x, sigmas[i]).value
        on_step(i, denoised)
        if sigma_next == 0:
            return denoised
        h = math.log(sigma / sigma_next)
        decay = (1 + eta) * h
        gain = -math.expm1(-decay)
        x = math.exp(-decay) * x + gain * denoised
        linear = 1 - gain / decay
        if guesses:
            slope = (denoised - guesses[0][0]) * (h / guesses[0][1])
            if len(guesses) == 2:
                before = (guesses[0][0] - guesses[1][0]) * (h / guesses[1][1])
                curve = (slope - before) * (h / (guesses[0][1] + guesses[1][1]))
                slope = slope + curve * (guesses[0][1] / h)
                x = x + curve * (0.5 - linear / decay)
            x = x + slope * linear
        if eta:
            x = x + noise(sigmas[i], sigmas[i + 1]) * (s_noise * sigma_next * math.sqrt(-math.expm1(-2 * eta * h)))
        guesses = [(denoised, h), *guesses[:1]]
    return x
