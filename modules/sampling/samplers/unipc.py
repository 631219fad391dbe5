"""UniPC: a predictor, and a corrector that uses the next guess without asking the model anew. Zhao et al. 2023, arXiv:2302.04867."""
import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from modules.core.errors import ScheduleError
from modules.sampling.prediction import Prediction
from modules.sampling.samplers import Denoise, Noise, OnStep


def unipc(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise, order: int = 3,
          variant: Literal["bh1", "bh2"] = "bh1", lower_order_final: bool = True) -> Tensor:
    """Algorithms 5 to 8 with data prediction (UniPC-3, B1): one model call a step, no noise.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. The first steps are of lower order, and with
    lower_order_final the last ones too, the very last of first order. Every level but the last is corrected by the guess made there.
    """
    levels, steps = sigmas.tolist(), len(sigmas) - 1
    guesses: list[Tensor] = []                              # at levels[i], levels[i - 1] ...
    before, used = x, 0                                     # the latent and the order of the last step
    for i in range(steps):
        denoised = denoise(x, sigmas[i]).value
        on_step(i, denoised)
        if i:
            x = _step(before, levels[i - 1::-1][:used], levels[i], guesses[:used], variant, denoised)
        guesses = [denoised, *guesses[:order - 1]]
        used = min(order, i + 1, steps - i if lower_order_final else steps)
        if levels[i + 1] == 0:
            return denoised
        before, x = x, _step(x, levels[i::-1][:used], levels[i + 1], guesses[:used], variant)
    return x


def _step(x: Tensor, levels: list[float], end: float, guesses: list[Tensor], variant: str, there: Tensor | None = None) -> Tensor:
    """x from levels[0] to `end` over the guesses made at `levels` (newest first), and over the one made at the end, where it is given.

    Theorem 3.1: the weights solve a Vandermonde system in the distances, in units of the step; with one unknown the paper takes 1/2.
    """
    h = math.log(levels[0] / end)
    ratios = [math.log(levels[0] / level) / h for level in levels[1:]]
    differences = [(guess - guesses[0]) / ratio for guess, ratio in zip(guesses[1:], ratios, strict=True)]
    if there is not None:
        ratios, differences = [*ratios, 1.0], [*differences, there - guesses[0]]
    x = (end / levels[0]) * x - math.expm1(-h) * guesses[0]
    b = -h if variant == "bh1" else math.expm1(-h)
    for weight, difference in zip(_weights(ratios, h, b), differences, strict=True):
        x = x - (b * weight) * difference
    return x


def _weights(ratios: list[float], h: float, b: float) -> list[float]:
    if len(ratios) <= 1:
        return [0.5] * len(ratios)
    phi, factorial, targets = math.expm1(-h) / -h - 1, 1, []
    for k in range(1, len(ratios) + 1):
        targets.append(phi * factorial / b)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    matrix = np.vander(np.asarray(ratios), increasing=True).T
    return [float(weight) for weight in np.linalg.solve(matrix, np.asarray(targets))]


def even_times(steps: int, sigma_min: float, sigma_max: float, prediction: Prediction, skip: str = "time_uniform") -> Tensor:
    """The ladder of UniPC: levels evenly spaced in time from the model's last training index to its first, above 0.

    skip: "time_quadratic" is even in the root of time (1 at the last index, 1 / 1000 at the first), "logSNR" in the log of the level.

    As many intervals as there are indices 1, 1 + k, 1 + 2k ..., k = 1000 // steps: 20 steps give 20, 30 give 31. Between indices log
    alpha is taken to be linear, as the method's authors do. sigma_min and sigma_max have no say. Raises ScheduleError above 1000 steps.
    """
    count = len(prediction.sigmas)
    if steps > count:
        raise ScheduleError(f"UniPC takes 1 to {count} steps, and {steps} were asked for.")
    ramp = np.linspace(1, 0, len(range(0, count, count // steps)) + 1)
    if skip == "logSNR":
        low, high = (float(prediction.sigmas[end].double().log()) for end in (0, -1))
        return torch.from_numpy(np.exp(low + (high - low) * ramp)).float()
    times = ramp * (count - 1)
    if skip == "time_quadratic":
        least = count ** -0.5
        times = (least + (1 - least) * ramp) ** 2 * count - 1
    log_alphas = np.interp(times, np.arange(count), prediction.alphas_cumprod.double().log().numpy())
    return torch.from_numpy(np.sqrt(np.expm1(-log_alphas))).float()
