"""What a network's output means: noise ("eps"), velocity ("v"), the picture ("x0") or a mix of them ("edm") -> the clean latent;
noise level <-> training index."""
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


Kind = Literal["eps", "v", "x0", "edm"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """How one network was trained: what it predicts, and how much of the picture was left at each training index.

    alphas_cumprod: (T,) float32 (float64 where they are close to 1) on the CPU, falling; T = 1000 for every model of this line.
    continuous: the network is told 0.25 ln(sigma) and not an index (Karras et al. 2022, arXiv:2206.00364, table 1).
    data_std: of the latents that "edm" was trained on.
    """

    kind: Kind
    alphas_cumprod: Tensor
    continuous: bool = False
    data_std: float = 0.5

    @cached_property
    def sigmas(self) -> Tensor:
        """(T,) float32 on the CPU, rising: sqrt((1 - alpha) / alpha) of each training index."""
        alphas = self.alphas_cumprod.detach().cpu().double()
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

    def told(self, sigma: Tensor | float) -> Tensor:
        """What the network is told of a noise level: its training index, or 0.25 ln(sigma); float32 on the CPU."""
        return 0.25 * torch.as_tensor(sigma, device="cpu", dtype=torch.float32).log() if self.continuous else self.t_of(sigma)

    def denoised(self, network: Network, x: Tensor, sigma: Tensor) -> Tensor:
        """The clean latent (B, C, h, w) that the network sees in x (B, C, h, w) = latent + sigma * noise; sigma is one level for all rows.

        eps: x - sigma * F. v (Salimans and Ho 2022, arXiv:2202.00512): x / (sigma^2 + 1) - F * sigma / sqrt(sigma^2 + 1). x0: F.
        F is the network at x / sqrt(sigma^2 + 1), which has unit variance, and at what it is told of sigma.
        edm (Karras et al. 2022, table 1), d = data_std: x * d^2 / (sigma^2 + d^2) + F * sigma * d / sqrt(sigma^2 + d^2), F at
        x / sqrt(sigma^2 + d^2).
        """
        level = float(sigma)
        scale = math.hypot(level, self.data_std if self.kind == "edm" else 1.0)
        output = network(x / scale, self.told(sigma).reshape(1).to(x.device).expand(len(x)))
        if self.kind == "eps":
            return x - level * output
        if self.kind == "x0":
            return output
        if self.kind == "edm":
            return x * (self.data_std / scale) ** 2 + output * (level * self.data_std / scale)
        return x / scale ** 2 - output * (level / scale)


def scaled_linear_alphas(first: float = 0.00085, last: float = 0.012, count: int = 1000) -> Tensor:
    """alphas_cumprod (count,) float32 of betas evenly spaced in their square root; the schedule of SD1, SD2 and SDXL.

    Rombach et al. 2022, arXiv:2112.10752. Computed in float64, stored in float32 as the checkpoints do.
    """
    betas = torch.linspace(first ** 0.5, last ** 0.5, count, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


def linear_alphas(first: float, last: float, count: int = 1000) -> Tensor:
    """alphas_cumprod (count,) float32 of betas evenly spaced themselves. Ho et al. 2020, arXiv:2006.11239."""
    return (1 - torch.linspace(first, last, count, dtype=torch.float64)).cumprod(0).float()


def continuous_alphas(sigma_min: float, sigma_max: float, count: int = 1000) -> Tensor:
    """1 / (1 + sigma^2) (count,) float64 of levels evenly spaced in their logarithm: the table of a model that knows no indices."""
    sigmas = torch.linspace(math.log(sigma_min), math.log(sigma_max), count, dtype=torch.float64).exp()
    return 1 / (1 + sigmas ** 2)


def zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The same schedule moved so that its last index is pure noise and its first is unchanged.

    Lin et al. 2023, arXiv:2305.08891, Algorithm 1. (T,) float32; the last is TERMINAL_ALPHA rather than 0, so that its level is a number.
    """
    roots = alphas_cumprod.double().sqrt()
    moved = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    moved[-1] = TERMINAL_ALPHA
    return moved.float()
