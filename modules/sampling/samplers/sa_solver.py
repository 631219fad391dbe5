"""SA-Solver: Adams' predictor and corrector for a stochastic equation, both on the same noise. Xue et al. 2023, arXiv:2309.05019."""
import math

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.samplers.exponential import weights


def sa_solver(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, eta: float = 1.0, s_noise: float = 1.0,
              predictor: int = 3, corrector: int = 4) -> Tensor:
    """Algorithm 1 with data prediction: one model call a step, a draw of noise in all but a step to 0.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. eta: the paper's tau, how much noise is
    renewed; 0 = none, 1 = as in the reverse-time equation. predictor, corrector: over how many guesses, the new one among them for the
    corrector. The first steps and the last ones use fewer.
    """
    levels, steps = sigmas.tolist(), len(sigmas) - 1
    guesses: list[Tensor] = []                              # newest first
    before, fresh = x, x
    decay = 1 + eta ** 2
    for i in range(steps):
        denoised = denoise(x, sigmas[i]).value
        on_step(i, denoised)
        guesses = [denoised, *guesses[:max(predictor, corrector) - 1]]
        if levels[i + 1] == 0:
            return denoised
        if i:
            used = min(corrector, i + 1)
            h = math.log(levels[i - 1] / levels[i])
            nodes = [math.log(levels[i - 1] / level) for level in levels[i::-1][:used]]
            x = _moved(before, guesses, weights(nodes, h, decay), decay * h) + fresh
        h = math.log(levels[i] / levels[i + 1])
        used = min(predictor, i + 1, steps - i)
        nodes = [math.log(levels[i] / level) for level in levels[i::-1][:used]]
        fresh = 0 * x
        if eta:
            fresh = noise(sigmas[i], sigmas[i + 1]) * (s_noise * levels[i + 1] * math.sqrt(-math.expm1(-2 * eta ** 2 * h)))
        before, x = x, _moved(x, guesses, weights(nodes, h, decay), decay * h) + fresh
    return x


def _moved(x: Tensor, guesses: list[Tensor], shares: list[float], decay: float) -> Tensor:
    """The linear part, shrunk by exp(-decay), and the guesses by their shares (fewer shares than guesses leave the oldest out)."""
    x = math.exp(-decay) * x
    for guess, share in zip(guesses, shares, strict=False):
        x = x + guess * share
    return x
