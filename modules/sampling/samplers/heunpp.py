"""Heun++: slopes at up to three levels of the ladder, weighed by how far down each is. A community method without a paper."""
from itertools import pairwise

from torch import Tensor

from modules.sampling.samplers import Denoise, Noise, OnStep


def heunpp2(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep, *, noise: Noise) -> Tensor:
    """Euler's steps to the next two levels, and one step with the mean of the three slopes: three model calls, no noise.

    x: (B, C, H, W) at noise level sigmas[0]. Returns (B, C, H, W) at noise level sigmas[-1]. The weight of a slope ahead is its level over
    that of the ladder's first and over their number, so that far down it becomes Euler's method; of first order. The step before the last
    takes two calls, the last is Euler's.
    """
    levels = sigmas.tolist()
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        denoised = denoise(x, sigmas[i]).value
        slopes, ahead = [(x - denoised) / sigma], x
        looks = range(i + 1, min(i + 3, len(levels) - 1))
        for at in looks:
            ahead = ahead + slopes[-1] * (levels[at] - levels[at - 1])
            denoised = denoise(ahead, sigmas[at]).value
            slopes.append((ahead - denoised) / levels[at])
        on_step(i, denoised)
        slope = slopes[0]
        for at, further in zip(looks, slopes[1:], strict=True):
            slope = slope + (further - slopes[0]) * (levels[at] / (levels[0] * len(slopes)))
        x = x + slope * (sigma_next - sigma)
    return x
