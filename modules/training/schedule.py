"""The noise schedule of training, and the walk in both directions. Ho et al. 2020, arXiv:2006.11239; its equation numbers stand beside."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from modules.core.errors import ScheduleError
from modules.sampling import prediction

Kind = Literal["eps", "x0", "v"]
KINDS: tuple[Kind, ...] = ("eps", "x0", "v")
BETAS = ("scaled_linear", "linear", "cosine", "sqrt")
NOT_PUBLISHED = ("lvlb_weights",)                           # made again at load by every trainer; files do not carry it


@dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """Tables over the training index, each (T,) float32; named as published checkpoints name their buffers.

    posterior_*: of q(x_{t-1} | x_t, x_0), eq. 6 and 7; the log variance is that of max(variance, 1e-20).
    lvlb_weights: weight of the squared error in the variational bound (eq. 12); element 0 repeats element 1.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    lvlb_weights: Tensor

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def snr(self) -> Tensor:
        """(T,) signal to noise: alpha / (1 - alpha) of the cumulative products."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def to(self, device: torch.device | str) -> Schedule:
        """The same tables on another device."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def buffers(self) -> dict[str, Tensor]:
        """The tables that a published checkpoint carries, by their names."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in NOT_PUBLISHED}


def register_schedule(kind: Kind = "eps", betas: str | Tensor = "scaled_linear", *, steps: int = 1000, first: float = 0.00085,
                      last: float = 0.012, v_posterior: float = 0.0, zero_terminal_snr: bool = False) -> Schedule:
    """All tables, on the CPU, computed in float64.

    kind: what the network predicts; it only changes lvlb_weights. betas: a name of BETAS, or (T,) given ones, which override steps, first
    and last. v_posterior: 0 = the posterior's own variance, 1 = beta. zero_terminal_snr: the last index is pure noise (Lin et al. 2023,
    arXiv:2305.08891). Raises ScheduleError where no falling schedule comes of it.
    """
    if zero_terminal_snr and kind == "eps":
        raise ScheduleError("A schedule that ends in pure noise cannot be learned by predicting the noise; choose the prediction v.")
    if not 0 <= v_posterior <= 1:
        raise ScheduleError(f"v_posterior is {v_posterior:g}; it must be from 0 to 1.")
    beta = betas.double() if isinstance(betas, Tensor) else _betas(betas, steps, first, last)
    if beta.dim() != 1 or len(beta) < 2 or not bool(((beta > 0) & (beta < 1)).all()):
        raise ScheduleError("A noise schedule needs two betas or more, each between 0 and 1.")
    if zero_terminal_snr:
        cumulative = prediction.zero_terminal_snr((1 - beta).cumprod(0)).double()
        beta = 1 - cumulative / torch.cat((cumulative.new_ones(1), cumulative[:-1]))
    return _tables(beta, kind, v_posterior)


def _betas(name: str, steps: int, first: float, last: float) -> Tensor:
    """Named beta schedules, (steps,) float64. "cosine" is that of Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17."""
    if name not in BETAS or steps < 2 or not 0 < first <= last < 1:
        raise ScheduleError(f"The beta schedule {name!r} with {steps} steps from {first:g} to {last:g} cannot be built; "
                            f"use one of {', '.join(BETAS)}, 2 steps or more, and 0 < first <= last < 1.")
    line = torch.linspace(first, last, steps, dtype=torch.float64)
    if name == "cosine":
        angles = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * (math.pi / 2)
        left = angles.cos() ** 2
        return (1 - left[1:] / left[:-1]).clamp(max=0.999)
    if name == "scaled_linear":
        return torch.linspace(first ** 0.5, last ** 0.5, steps, dtype=torch.float64) ** 2
    return line.sqrt() if name == "sqrt" else line


def _tables(beta: Tensor, kind: Kind, v: float) -> Schedule:
    alpha, one = 1 - beta, beta.new_ones(1)
    bar = alpha.cumprod(0)
    before = torch.cat((one, bar[:-1]))
    variance = (1 - v) * beta * (1 - before) / (1 - bar) + v * beta
    if kind == "eps":
        bound = beta ** 2 / (2 * variance * alpha * (1 - bar))
    elif kind == "x0":
        bound = 0.5 * bar.sqrt() / (2 - bar)                # "2 * 1 - bar" of the published trainer, kept as it was trained with
    else:
        bound = torch.ones_like(bar)
    bound = torch.cat((bound[1:2], bound[1:]))              # the first is infinite: the posterior of index 0 has no variance
    tables = {
        "betas": beta, "alphas_cumprod": bar, "alphas_cumprod_prev": before, "sqrt_alphas_cumprod": bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - bar).sqrt(), "log_one_minus_alphas_cumprod": (1 - bar).log(),
        "sqrt_recip_alphas_cumprod": (1 / bar).sqrt(), "sqrt_recipm1_alphas_cumprod": (1 / bar - 1).sqrt(),
        "posterior_variance": variance, "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": beta * before.sqrt() / (1 - bar), "posterior_mean_coef2": (1 - before) * alpha.sqrt() / (1 - bar),
        "lvlb_weights": bound,
    }
    return Schedule(**{name: table.float() for name, table in tables.items()})


def at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table (T,) at t (B,) int64, shaped (B, 1, 1, ...) to multiply `like` (B, ...)."""
    return table[t].reshape(-1, *[1] * (like.dim() - 1))


def q_sample(schedule: Schedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x0 (B, ...) with the noise of index t (B,), eq. 4."""
    return at(schedule.sqrt_alphas_cumprod, t, x0) * x0 + at(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * noise


def predict_start_from_noise(schedule: Schedule, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The clean latent in x (B, ...), if this was its noise: the inverse of q_sample."""
    return at(schedule.sqrt_recip_alphas_cumprod, t, x) * x - at(schedule.sqrt_recipm1_alphas_cumprod, t, x) * noise


def predict_start_from_v(schedule: Schedule, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """The clean latent from the velocity. Salimans and Ho 2022, arXiv:2202.00512."""
    return at(schedule.sqrt_alphas_cumprod, t, x) * x - at(schedule.sqrt_one_minus_alphas_cumprod, t, x) * v


def predict_noise_from_v(schedule: Schedule, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """The noise from the velocity."""
    return at(schedule.sqrt_alphas_cumprod, t, x) * v + at(schedule.sqrt_one_minus_alphas_cumprod, t, x) * x


def predict_start(schedule: Schedule, kind: Kind, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
    """The clean latent that an output of this kind means at x (B, ...) of index t (B,)."""
    if kind == "x0":
        return output
    return (predict_start_from_noise if kind == "eps" else predict_start_from_v)(schedule, x, t, output)


def q_posterior(schedule: Schedule, x0: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and clipped log variance of q(x_{t-1} | x_t = x, x_0), eq. 6 and 7; the last two (B, 1, ...)."""
    mean = at(schedule.posterior_mean_coef1, t, x) * x0 + at(schedule.posterior_mean_coef2, t, x) * x
    return mean, at(schedule.posterior_variance, t, x), at(schedule.posterior_log_variance_clipped, t, x)


def p_sample(schedule: Schedule, kind: Kind, network: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, noise: Tensor, *,
             clip: bool = False) -> Tensor:
    """One step of ancestral sampling, Algorithm 2: x (B, ...) of index t (B,) -> index t - 1; at t = 0 without noise.

    network(x, t) gives what `kind` says. noise: normal draws like x. clip: the clean guess is held to -1..1 (for pixels, not latents).
    """
    x0 = predict_start(schedule, kind, x, t, network(x, t))
    mean, _, log_variance = q_posterior(schedule, x0.clamp(-1, 1) if clip else x0, x, t)
    return mean + at((t > 0).to(x.dtype), torch.arange(len(t), device=t.device), x) * (0.5 * log_variance).exp() * noise
