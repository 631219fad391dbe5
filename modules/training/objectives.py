"""What is asked of a network, and how much each index of the schedule counts. Pure functions of tensors, one loss for each row."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.training.schedule import Kind, Schedule, at

Distance = Literal["l1", "l2", "huber"]
DISTANCES: tuple[Distance, ...] = ("l1", "l2", "huber")
MOST_SNR = 1000.0                                           # where a weight would vanish or explode


def velocity(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """sqrt(alpha) noise - sqrt(1 - alpha) x0. Salimans and Ho 2022, arXiv:2202.00512, appendix D."""
    return at(schedule.sqrt_alphas_cumprod, t, x0) * noise - at(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * x0


def target(kind: Kind, schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network shall give for q_sample(x0, t, noise): the noise, the clean latent or the velocity, (B, ...)."""
    if kind == "eps":
        return noise
    return x0 if kind == "x0" else velocity(schedule, x0, noise, t)


def distance(output: Tensor, wanted: Tensor, kind: Distance = "l2", delta: float = 0.1) -> Tensor:
    """Mean over all but the first axis of |d|, d^2, or Huber's 2 delta (sqrt(d^2 + delta^2) - delta), in float32 -> (B,)."""
    output, wanted = output.float(), wanted.float()
    if kind == "l2":
        each = F.mse_loss(output, wanted, reduction="none")
    elif kind == "l1":
        each = F.l1_loss(output, wanted, reduction="none")
    else:
        each = 2 * delta * (((output - wanted) ** 2 + delta ** 2).sqrt() - delta)
    return each.flatten(1).mean(1)


def min_snr_weight(kind: Kind, snr: Tensor, gamma: float = 5.0) -> Tensor:
    """Hang et al. 2023, arXiv:2303.09556: the easy indices do not drown the others. snr (B,) -> (B,).

    The weight of x0's error is min(snr, gamma); the same for the error of eps is divided by snr, that of v by snr + 1.
    """
    held = snr.clamp(max=gamma)
    if kind == "x0":
        return held
    return held / snr if kind == "eps" else held / (snr + 1)


def debiased_weight(kind: Kind, snr: Tensor) -> Tensor:
    """Yu et al. 2023, arXiv:2310.08442: 1 / sqrt(snr) for eps, 1 / (snr + 1) for v, with snr held at 1000. snr (B,) -> (B,)."""
    held = snr.clamp(max=MOST_SNR)
    if kind == "v":
        return 1 / (held + 1)
    return 1 / held.sqrt() if kind == "eps" else held.sqrt()


def total(each: Tensor, t: Tensor, schedule: Schedule, *, weight: Tensor | None = None, simple: float = 1.0, elbo: float = 0.0,
          logvar: Tensor | None = None) -> Tensor:
    """The loss of a batch: simple * mean(w L / exp(logvar_t) + logvar_t) + elbo * mean(lvlb_t w L). 0-d.

    each (B,): L. t (B,). weight (B,): w, or None for 1. logvar: (T,), learned or not, or None for 0. With the defaults the plain mean.
    """
    if weight is not None:
        each = each * weight
    first = each
    if logvar is not None:
        uncertain = logvar[t]
        first = each / uncertain.exp() + uncertain
    loss = simple * first.mean()
    return loss + elbo * (schedule.lvlb_weights[t] * each).mean() if elbo else loss


def offset_noise(noise: Tensor, offsets: Tensor, amount: float) -> Tensor:
    """Noise whose mean also varies, so that dark and bright pictures are learned: noise (B, C, h, w) + amount * offsets (B, C, 1, 1)."""
    return noise + amount * offsets


def perturbed(noise: Tensor, more: Tensor, gamma: float) -> Tensor:
    """The noise that is put in while the plain noise stays the target. Ning et al. 2023, arXiv:2301.11706: noise + gamma * more."""
    return noise + gamma * more


def without_captions(captions: Sequence[str], draws: Tensor, p: float) -> list[str]:
    """Captions, with "" where the draw (B,) from 0..1 lies below p; guidance needs to know what no words look like."""
    return ["" if draw < p else caption for caption, draw in zip(captions, draws.tolist(), strict=True)]


def posterior_sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """A draw from the latent's normal distribution: mean + exp(logvar / 2) noise."""
    return mean + (0.5 * logvar).exp() * noise


def scale_by_std(latents: Tensor) -> float:
    """The factor that gives these unscaled latents a standard deviation of 1. Rombach et al. 2022, arXiv:2112.10752, appendix G."""
    return 1.0 / float(latents.float().flatten().std().clamp(min=torch.finfo(torch.float32).tiny))
