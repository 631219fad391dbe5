"""The law of this room: a sampler is

    (denoise, x, sigmas, on_step, *, noise, **knobs) -> x

denoise(x, sigma)          x (B, C, H, W) at noise level sigma -> Denoised; already guided, masked and wrapped
sigmas                     the ladder: (n + 1,) float32 on the CPU, falling; its last value is the schedule's own
on_step(i, denoised)       once a step after its last model call; raises Cancelled to stop
noise(sigma, sigma_next)   unit-variance noise (B, C, H, W) for the step between the two levels; each call is a new draw
knobs                      eta, s_churn, ... as declared in sampling/catalogue.py
"""
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor


class Denoised(NamedTuple):
    """The model's guess of the clean latent (B, C, H, W), and the same without the prompt (None where it was not computed)."""

    value: Tensor
    uncond: Tensor | None = None


Denoise = Callable[[Tensor, Tensor], Denoised]
OnStep = Callable[[int, Tensor], None]


class Noise(Protocol):
    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor: ...
