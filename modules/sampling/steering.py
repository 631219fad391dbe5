"""Beside plain guidance: wraps of the guided result, and rows that are asked once more of a network made worse.

Each is a `wrap` or a `wrap_model` (see guidance.py). The prompt's own answer is read back from the guided one: uncond + (value - uncond) /
cfg_scale; where the negative prompt was not asked there is no guidance to change, and the answer goes through as it is.
"""
from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.networks.changes import Change, watched
from modules.sampling.conditioning import Conditioning, cat
from modules.sampling.guidance import Rows, RowsDenoise
from modules.sampling.samplers import Denoise, Denoised

ALL = (1, 2, 3)                                             # of a picture's latent

Formula = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]     # (x, sigma, cond, uncond, value) -> value


def _guided_by(denoise: Denoise, cfg_scale: float, formula: Formula) -> Denoise:
    """Another formula in the place of plain guidance."""
    def steered(x: Tensor, sigma: Tensor) -> Denoised:
        found = denoise(x, sigma)
        if found.uncond is None or cfg_scale == 0:
            return found
        cond = found.uncond + (found.value - found.uncond) / cfg_scale
        return Denoised(formula(x, sigma, cond, found.uncond, found.value), found.uncond)
    return steered


def rescaled(denoise: Denoise, cfg_scale: float, share: float) -> Denoise:
    """Guidance whose velocity has the spread that the prompt's own has, by a share of 0..1. Lin et al. 2023, arXiv:2305.08891, eq. 15."""
    def formula(x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor, value: Tensor) -> Tensor:
        level = float(sigma)
        keep, turn = 1 / (1 + level ** 2), -level / math.sqrt(1 + level ** 2)           # denoised = keep * x + turn * velocity
        own, guided = ((guess - keep * x) / turn for guess in (cond, value))
        factor = own.std(dim=ALL, keepdim=True) / guided.std(dim=ALL, keepdim=True).clamp(min=1e-12)
        return keep * x + turn * (share * guided * factor + (1 - share) * guided)
    return _guided_by(denoise, cfg_scale, formula)


def projected(denoise: Denoise, cfg_scale: float, parallel: float = 0.0, longest: float = 15.0, momentum: float = -0.5) -> Denoise:
    """Adaptive projected guidance: the part of the guidance that only makes colours stronger is left out. Sadat et al. 2024,
    arXiv:2410.02416, algorithm 1. parallel: eta, how much of it stays; longest: r, the guidance's greatest length, 0 = any;
    momentum: beta, below 0: away from where the last calls went.
    """
    moved: list[Tensor] = []

    def formula(x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor, value: Tensor) -> Tensor:
        guidance = cond - uncond
        if momentum:
            guidance = guidance + momentum * moved[0] if moved else guidance
            moved[:] = [guidance]
        if longest > 0:
            length = torch.linalg.vector_norm(guidance, dim=ALL, keepdim=True).clamp(min=1e-12)
            guidance = guidance * (longest / length).clamp(max=1.0)
        unit = cond.double() / torch.linalg.vector_norm(cond.double(), dim=ALL, keepdim=True).clamp(min=1e-12)
        along = ((guidance.double() * unit).sum(dim=ALL, keepdim=True) * unit).to(guidance)
        return cond + (cfg_scale - 1) * (guidance - along + parallel * along)
    return _guided_by(denoise, cfg_scale, formula)


def thresholded(x: Tensor, percentile: float, least: Tensor | float) -> Tensor:
    """Clipped at the percentile of its absolute values, which then becomes `least`. Saharia et al. 2022, arXiv:2205.11487, section 2.3.

    x (B, C, h, w) around 0, every channel of a picture by itself; percentile 0..1; least: what is not reached stays as it is.
    """
    reach = torch.quantile(x.abs().flatten(2).float(), percentile, dim=2)[..., None, None].to(x)
    reach = torch.maximum(reach, torch.as_tensor(least).to(x))
    return x.clamp(-reach, reach) * (torch.as_tensor(least).to(x) / reach.clamp(min=1e-12))


def mimicking(denoise: Denoise, cfg_scale: float, mimic_scale: float, percentile: float) -> Denoise:
    """Dynamic thresholding of latents: guided by cfg_scale, spread like guidance by mimic_scale.

    Each channel is clipped around its mean at the percentile, and brought to where its values would end at mimic_scale.
    """
    def formula(x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor, value: Tensor) -> Tensor:
        mimic = uncond + mimic_scale * (cond - uncond)
        ends = (mimic - mimic.mean(dim=(2, 3), keepdim=True)).abs().amax(dim=(2, 3), keepdim=True)
        mean = value.mean(dim=(2, 3), keepdim=True)
        return mean + thresholded(value - mean, percentile, ends)
    return _guided_by(denoise, cfg_scale, formula)


# ---- rows

def chosen(rows: Rows, indices: Sequence[int]) -> Rows:
    """Some of the rows."""
    def some(values: tuple) -> tuple:
        return tuple(values[index] for index in indices)
    told: Conditioning = cat([rows.conditioning[slice(index, index + 1)] for index in indices])
    return dataclasses.replace(rows, x=rows.x[list(indices)], conditioning=told, which=some(rows.which), picture=some(rows.picture),
                               part=some(rows.part), weights=some(rows.weights),
                               shares=some(rows.shares))


def changed(rows_denoise: RowsDenoise, change: Change) -> RowsDenoise:
    """Every row by the network with this change."""
    return lambda rows: rows_denoise(dataclasses.replace(rows, changes=(*rows.changes, change)))


def led_away(rows_denoise: RowsDenoise, change: Change, strength: float, since: float = math.inf, until: float = 0.0) -> RowsDenoise:
    """guided + strength * (cond - cond by the changed network): perturbed-attention and skip-layer guidance. Ahn et al. 2024, eq. 17.

    since, until: highest and lowest noise level at which it is done. One more network call for the rows of the prompts.
    """
    def steered(rows: Rows) -> Tensor:
        answers = rows_denoise(rows)
        prompts = [index for index, which in enumerate(rows.which) if which == "cond" and rows.shares[index]]
        if not prompts or not until <= float(rows.sigma) <= since:
            return answers
        asked = chosen(rows, prompts)
        worse = rows_denoise(dataclasses.replace(asked, changes=(*asked.changes, change)))
        answers = answers.clone()
        weights = answers.new_tensor([strength * rows.weights[index] / rows.shares[index] for index in prompts])
        answers[prompts] += (answers[prompts] - worse) * weights[:, None, None, None]
        return answers
    return steered


def self_attentive(rows_denoise: RowsDenoise, strength: float = 0.75, threshold: float = 1.0, blur: float = 1.0) -> RowsDenoise:
    """Self-attention guidance: away from a guess that is blurred where the model looks most. Hong et al. 2022, arXiv:2210.00939.

    threshold: cells that are looked at more than this many times the mean are blurred; blur: standard deviation in latent cells.
    One more network call for one row of each picture, the one without the prompt where that is asked; not for AND at scale 1.
    """
    def steered(rows: Rows) -> Tensor:
        maps: list[Tensor] = []
        answers = rows_denoise(dataclasses.replace(rows, changes=(*rows.changes, partial(_watched, maps))))
        if not maps:                                        # a network without a transformer in its middle
            return answers
        indices = [index for index in range(len(rows.which)) if _speaks(rows, index)]
        if not indices:
            return answers
        guess = answers[indices]
        mask = F.interpolate((maps[-1][indices] > threshold).to(guess)[:, None], size=guess.shape[-2:])
        blurred = blurry(guess, blur) * mask + guess * (1 - mask)
        asked = chosen(rows, indices)
        worse = rows_denoise(dataclasses.replace(asked, x=blurred + (asked.x - guess)))
        shares = answers.new_tensor([rows.shares[index] for index in indices])
        answers = answers.clone()
        answers[indices] += (blurred - worse) * (strength / shares)[:, None, None, None]
        return answers
    return steered


def _speaks(rows: Rows, index: int) -> bool:
    """Whether this row is the one of its picture by which the result is moved: the one without the prompt, where it counts, else a prompt
    that is all there is. Texts of different length come in different calls, so a row must know this of itself."""
    if rows.which[index] == "uncond":
        return abs(rows.shares[index]) > 1e-6
    return rows.which[index] == "cond" and math.isclose(rows.shares[index], 1.0, rel_tol=1e-6)


def _watched(maps: list[Tensor], unet: torch.nn.Module, size: torch.Size) -> contextlib.AbstractContextManager[None]:
    return watched(unet, size, maps)


def blurry(x: Tensor, deviation: float, reach: int = 4) -> Tensor:
    """A Gaussian over (B, C, h, w), 2 * reach + 1 cells wide, edges mirrored where they are long enough and else repeated."""
    steps = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (steps / deviation) ** 2)
    weights = weights / weights.sum()
    mode = "reflect" if min(x.shape[-2:]) > reach else "replicate"
    channels = x.shape[1]
    padded = F.pad(x, (reach, reach, reach, reach), mode=mode)
    across = F.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
