"""Restart: Heun's method, with noise thrown in at a low level and the way walked again. Xu et al. 2023, arXiv:2306.14878."""
import math
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep
from modules.sampling.schedule import karras

LOW, HIGH = 0.1, 2.0                                        # where it turns back, and to which level


def restart(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """As many steps as the ladder has intervals, two model calls each (one where it ends at 0); a draw of noise at each turn.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. From 20 steps on it turns back once with 9
    steps, from 36 on twice with a quarter of the steps; the ladder is then Karras' over the same range.
    """
    level = float(sigmas[0])
    for i, (sigma, sigma_next) in enumerate(intervals(sigmas)):
        if sigma > level:
            x = x + noise(sigmas.new_tensor(sigma), sigmas.new_tensor(level)) * math.sqrt(sigma ** 2 - level ** 2)
        denoised = denoise(x, sigmas.new_tensor(sigma)).value
        slope = (x - denoised) / sigma
        if sigma_next > 0:
            ahead = x + slope * (sigma_next - sigma)
            denoised = denoise(ahead, sigmas.new_tensor(sigma_next)).value
            slope = (slope + (ahead - denoised) / sigma_next) / 2
        on_step(i, denoised)
        x = x + slope * (sigma_next - sigma)
        level = sigma_next
    return x


def intervals(sigmas: Tensor) -> list[tuple[float, float]]:
    """The steps to take, as many as sigmas (n + 1,) has intervals; one that begins above the end of the last is a turn back."""
    steps = len(sigmas) - 1
    turns, length = (2, steps // 4) if steps >= 36 else (1, 9) if steps >= 20 else (0, 0)
    if not turns:
        return list(pairwise(sigmas.tolist()))
    ends_at_zero = float(sigmas[-1]) == 0
    kept = steps - length * turns
    smallest = float(sigmas[-2] if ends_at_zero else sigmas[-1])
    ladder = karras(kept + (not ends_at_zero), smallest, float(sigmas[0]))
    levels = (ladder if ends_at_zero else ladder[:-1]).tolist()
    low, high = (min(range(len(levels)), key=lambda at: abs(levels[at] - wanted)) for wanted in (LOW, HIGH))
    walked = list(pairwise(levels))
    if high >= low or low == 0 or levels[low] == 0:
        return walked
    again = list(pairwise(karras(length + 1, levels[low], levels[high]).tolist()[:-1]))
    return walked[:low] + again * turns + walked[low:]
