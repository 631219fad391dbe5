"""Painting only a part anew: outside the mask the model's guess, or its input, is replaced by the latent that is kept.

paint (B or 1, 1, h, w) in 0..1, 1 = painted anew; it may depend on the noise level. Two ways, since published seeds were made with both:
`kept` replaces in the guess, so that the noise left there is just what the ladder says (the way of Lugmayr et al. 2022, arXiv:2201.09865,
without going back); `held` replaces in what goes in, without noise, for methods that walk latents of unit variance.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from modules.sampling.prediction import Prediction
from modules.sampling.samplers import Denoise, Denoised

PaintAt = Callable[[Tensor], Tensor]                        # noise level (0-d) -> paint


@dataclass(frozen=True, eq=False)
class Mask:
    """latent (B, C, h, w): what is kept; paint_at: where it is not. wrap: `kept` or `held` around a denoiser."""

    latent: Tensor
    paint_at: PaintAt
    unit: bool = False                                      # the sampler walks latents of unit variance

    def wrap(self, denoise: Denoise) -> Denoise:
        return (held if self.unit else kept)(denoise, self.latent, self.paint_at)

    def ended(self, latent: Tensor) -> Tensor:
        """What a sampler gave (B, C, h, w), with what is kept put back."""
        return blended(latent, self.latent, self.paint_at(latent.new_zeros(())))


def blended(new: Tensor, old: Tensor, paint: Tensor) -> Tensor:
    """new where paint is 1, old where it is 0."""
    return new * paint + old * (1 - paint)


def kept(denoise: Denoise, latent: Tensor, paint_at: PaintAt) -> Denoise:
    """A denoiser that guesses the kept latent outside the mask, with and without the prompt."""
    def denoise_(x: Tensor, sigma: Tensor) -> Denoised:
        found, paint = denoise(x, sigma), paint_at(sigma)
        return Denoised(blended(found.value, latent, paint), None if found.uncond is None else blended(found.uncond, latent, paint))
    return denoise_


def held(denoise: Denoise, latent: Tensor, paint_at: PaintAt) -> Denoise:
    """A denoiser that sees the kept latent outside the mask, free of noise: z = x / sqrt(1 + sigma^2) is the latent itself there."""
    def denoise_(x: Tensor, sigma: Tensor) -> Denoised:
        return denoise(blended(x, latent * math.hypot(1.0, float(sigma)), paint_at(sigma)), sigma)
    return denoise_


def hard(paint: Tensor) -> PaintAt:
    """The same at every level."""
    return lambda sigma: paint


def soft(grey: Tensor, prediction: Prediction, first: Tensor) -> PaintAt:
    """A place of grey g may change in the last share g of the way. Levin and Fried 2023, arXiv:2306.00950, Algorithm 1.

    The way is measured in training indices, from that of the level `first` down to 0; at the end all that is not black is painted anew.
    """
    start = max(float(prediction.t_of(first)), 1e-6)

    def paint_at(sigma: Tensor) -> Tensor:
        left = float(prediction.t_of(sigma)) / start if float(sigma) > 0 else 0.0
        return ((grey >= min(left, 1.0)) & (grey > 0)).to(grey.dtype)

    return paint_at
