"""SEEDS: exponential integrators of the reverse-time stochastic equation with looks ahead. Gonzalez et al. 2023, arXiv:2305.14267.

The linear part and the noise are exact: over a step of h in -log sigma, x shrinks by exp(-(1 + eta) h) and noise of variance
sigma_next^2 (1 - exp(-2 eta h)) comes in. The looks ahead see the noise of their own part of the step.
"""
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep


def seeds_2(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
            eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """SEEDS-2 with data prediction: the guess at the middle of each step, two model calls and two draws; one call and none to 0.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. eta: 0 = no new noise, 1 = the reverse-time
    equation.
    """
    return _seeds(denoise, x, sigmas, on_step, noise, eta, s_noise, (1 / 2,))


def seeds_3(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise,
            eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """SEEDS-3: guesses at the thirds of each step, three model calls and three draws; one call and none to 0."""
    return _seeds(denoise, x, sigmas, on_step, noise, eta, s_noise, (1 / 3, 2 / 3))


def _seeds(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, noise: Noise, eta: float, s_noise: float,
           looks: Sequence[float]) -> Tensor:
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True)):
        denoised = denoise(x, sigmas[i]).value
        if sigma_next == 0:
            on_step(i, denoised)
            return denoised
        h = math.log(sigma / sigma_next)
        fresh, change, level = torch.zeros_like(x), torch.zeros_like(x), sigmas[i]
        latest = denoised
        for share, share_before in zip((*looks, 1.0), (0.0, *looks), strict=True):
            decay = (1 + eta) * h * share
            gain = -math.expm1(-decay)
            bend = gain / 2 if len(looks) == 1 else (1 - gain / decay) * share      # SEEDS-2 takes the middle's guess for the whole step
            ahead = math.exp(-decay) * x + gain * denoised + change * bend
            next_level = sigmas.new_tensor(sigma * math.exp(-h * share)) if share < 1 else sigmas[i + 1]
            if eta:
                part = (share - share_before) * h
                fresh = fresh * math.exp(-(1 + eta) * part) + noise(level, next_level) * (
                    s_noise * float(next_level) * math.sqrt(-math.expm1(-2 * eta * part)))
                ahead = ahead + fresh
            if share < 1:
                latest = denoise(ahead, next_level).value
                change, level = (latest - denoised) / share, next_level
        on_step(i, latest)
        x = ahead
    return x
