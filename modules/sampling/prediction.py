"""What a network's output means: noise ("eps") or velocity ("v") -> the clean latent; noise level <-> training index."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]                # (x_in (B, C, h, w), timesteps (B,) float32) -> (B, C, h, w)

TERMINAL_ALPHA = 4.8973451890853435e-08                     # alphas_cumprod at the last index after zero_terminal_snr


@dataclass(frozen=True, eq=False)
class Prediction:
    """How one network was trained: what it predicts, and how much of the picture was left at each training index.

    alphas_cumprod: (T,) float32 on the CPU, falling; T = 1000 for every model of the Stable Diffusion line.
    """

    kind: Literal["eps", "v"]
    alphas_cumprod: Tensor

    @cached_property
    def sigmas(self) -> Tensor:
        """(T,) float32 on the CPU, rising: sqrt((1 - alpha) / alpha) of each training index."""
        alphas = self.alphas_cumprod.detach().to("cpu", torch.float32).double()
        return ((1 - alphas) / alphas).sqrt().float()

    @cached_property
    def _log_sigmas(self) -> Tensor:
        return self.sigmas.double().log()

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def t_of(self, sigma: Tensor | float) -> Tensor:
        """The training index of a noise level, float32 on the CPU, 0..T-1, linear in log sigma between the table's entries."""
        log_sigma = torch.as_tensor(sigma, device="cpu", dtype=torch.float64).log()
        low = (torch.searchsorted(self._log_sigmas, log_sigma.contiguous(), right=True) - 1).clamp(0, len(self._log_sigmas) - 2)
        below, above = self._log_sigmas[low], self._log_sigmas[low + 1]
        return (low + ((log_sigma - below) / (above - below)).clamp(0, 1)).float()

    def sigma_of(self, t: Tensor | float) -> Tensor:
        """The noise level of a training index that need not be whole; float32 on the CPU, the inverse of t_of."""
        index = torch.as_tensor(t, device="cpu", dtype=torch.float64).clamp(0, len(self._log_sigmas) - 1)
        low = index.floor().long().clamp(max=len(self._log_sigmas) - 2)
        below, above = self._log_sigmas[low], self._log_sigmas[low + 1]
        return (below + (index - low) * (above - below)).exp().float()

    def denoised(self, network: Network, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean latent (B, C, h, w) that the network sees in x (B, C, h, w) = latent + sigma * noise; sigma is one level for all rows.

        eps: x - sigma * F. v (Salimans and Ho 2022, arXiv:2202.00512): x / (sigma^2 + 1) - F * sigma / sqrt(sigma^2 + 1).
        F is the network at x / sqrt(sigma^2 + 1), which has unit variance, and at the index of sigma.
        """
        level = float(sigma)
        scale = math.hypot(level, 1.0)
        output = network(x / scale, self.t_of(sigma).reshape(1).to(x.device).expand(len(x)))
        if self.kind == "eps":
            return x - level * output
        return x / scale ** 2 - output * (level / scale)


def scaled_linear_alphas(first: float = 0.00085, last: float = 0.012, count: int = 1000) -> Tensor:
    """alphas_cumprod (count,) float32 of betas evenly spaced in their square root; the schedule of SD1, SD2 and SDXL.

    Rombach et al. 2022, arXiv:2112.10752. Computed in float64, stored in float32 as the checkpoints do.
    """
    betas = torch.linspace(first ** 0.5, last ** 0.5, count, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The same schedule moved so that its last index is pure noise and its first is unchanged.

    Lin et al. 2023, arXiv:2305.08891, Algorithm 1. (T,) float32; the last is TERMINAL_ALPHA rather than 0, so that its level is a number.
    """
    roots = alphas_cumprod.double().sqrt()
    moved = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    moved[-1] = TERMINAL_ALPHA
    return moved.float()
