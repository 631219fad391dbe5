"""Classifier-free guidance: the network is asked with and without the prompt, and the difference is exaggerated.

Ho and Salimans 2022, arXiv:2207.12598; several prompts at once after Liu et al. 2022, arXiv:2206.01714. There are two doors:

    network < each wrap_model < guidance < each wrap < the sampler

wrap_model(RowsDenoise) -> RowsDenoise stands inside and sees every row that goes to the network: which picture it belongs to, which prompt.
wrap(Denoise) -> Denoise stands outside and sees the guided result.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modules.sampling.conditioning import Conditioning, cat
from modules.sampling.samplers import Denoise, Denoised

PictureTexts = tuple[Sequence[tuple[float, Conditioning]], Conditioning]
"""What one picture is told at one call: ((weight, cond) of each part of AND, uncond), every Conditioning of one row."""

ConditioningAt = Callable[[int], Sequence[PictureTexts]]
"""(call, counted from 0 in every pass) -> the texts of each picture of the batch. Prompt editing happens here."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Rows that go through the network in one call.

    x: (R, C, h, w) noisy latents, all at the level `sigma` (0-d). conditioning: R rows. call: number of the denoiser call in this pass.
    For each row: `which` prompt it is told, `picture` (its index in the batch), `part` (of AND; 0 for uncond), `weights` of that part.
    """

    x: Tensor
    sigma: Tensor
    conditioning: Conditioning
    which: tuple[Literal["cond", "uncond"], ...]
    picture: tuple[int, ...]
    part: tuple[int, ...]
    weights: tuple[float, ...]
    call: int = 0


RowsDenoise = Callable[[Rows], Tensor]                      # -> clean latents (R, C, h, w), row by row


@dataclass(frozen=True, eq=False)
class _Row:
    which: Literal["cond", "uncond"]
    picture: int
    part: int
    weight: float
    conditioning: Conditioning


def cfg(rows_denoise: RowsDenoise, conditioning_at: ConditioningAt, cfg_scale: float, *, batch_rows_limit: int | None = None,
        calls: Iterator[int] | None = None) -> Denoise:
    """The guided denoiser of a batch of pictures: uncond + sum of weight * cfg_scale * (cond - uncond) over the parts of each prompt.

    All rows of all pictures go through the network in one call, cond and uncond together; only rows of different token counts, or more
    than batch_rows_limit, are asked separately, which changes nothing beyond rounding. Where the negative prompt would be given no share
    at all (cfg_scale 1 with one part), it is not asked, and `Denoised.uncond` is None.
    Calls are counted here, so a denoiser serves one pass; calls: the count of a denoiser in whose place this one steps.
    """
    calls = itertools.count() if calls is None else calls
    kept: list[tuple[list[_Row], list[_Group]]] = []        # the last rows and their groups: most calls ask with the same texts

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        call = next(calls)
        rows = _rows_of(conditioning_at(call), cfg_scale)
        if not kept or not _same(kept[0][0], rows):
            kept[:] = [(rows, _groups(rows, batch_rows_limit))]
        answers: list[Tensor | None] = [None] * len(rows)
        for group in kept[0][1]:
            for index, answer in zip(group.indices, rows_denoise(group.rows(x, sigma, call)), strict=True):
                answers[index] = answer
        return _combined(rows, answers, len(x), cfg_scale)

    return denoise


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows of one network call: where they stand among all rows, and their conditioning put together."""

    indices: tuple[int, ...]
    members: tuple[_Row, ...]
    conditioning: Conditioning

    def rows(self, x: Tensor, sigma: Tensor, call: int) -> Rows:
        pictures = tuple(row.picture for row in self.members)
        return Rows(x=x[list(pictures)], sigma=sigma, conditioning=self.conditioning, call=call, picture=pictures,
                    which=tuple(row.which for row in self.members), part=tuple(row.part for row in self.members),
                    weights=tuple(row.weight for row in self.members))


def _rows_of(texts: Sequence[PictureTexts], cfg_scale: float) -> list[_Row]:
    """The rows to ask: first the prompts of all pictures, then their negative prompts where these have a share in the result."""
    rows = [_Row("cond", picture, part, weight, cond) for picture, (parts, _) in enumerate(texts)
            for part, (weight, cond) in enumerate(parts)]
    negatives = [_Row("uncond", picture, 0, 1.0, uncond) for picture, (parts, uncond) in enumerate(texts)
                 if not math.isclose(cfg_scale * sum(weight for weight, _ in parts), 1.0, rel_tol=1e-9)]
    return rows + negatives


def _same(before: list[_Row], now: list[_Row]) -> bool:
    return len(before) == len(now) and all(
        a.conditioning is b.conditioning and (a.which, a.picture, a.part, a.weight) == (b.which, b.picture, b.part, b.weight)
        for a, b in zip(before, now, strict=True))


def _groups(rows: list[_Row], limit: int | None) -> list[_Group]:
    """Rows of equal token count together, at most `limit` of them in one group."""
    by_tokens: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        tokens = 0 if row.conditioning.cross is None else row.conditioning.cross.shape[1]
        by_tokens.setdefault(tokens, []).append(index)
    groups = []
    for indices in by_tokens.values():
        size = max(limit or len(indices), 1)
        for first in range(0, len(indices), size):
            some = indices[first:first + size]
            members = tuple(rows[index] for index in some)
            groups.append(_Group(tuple(some), members, cat([row.conditioning for row in members])))
    return groups


def _combined(rows: list[_Row], answers: Sequence[Tensor | None], pictures: int, cfg_scale: float) -> Denoised:
    """Row by row answers -> guided and unguided latents (B, C, h, w)."""
    guided: list[Tensor] = []
    unguided: list[Tensor] = []
    for picture in range(pictures):
        own = [(row, answer) for row, answer in zip(rows, answers, strict=True) if row.picture == picture and answer is not None]
        uncond = next((answer for row, answer in own if row.which == "uncond"), None)
        parts = [(row.weight * cfg_scale, answer) for row, answer in own if row.which == "cond"]
        if uncond is None:
            guided.append(parts[0][1] if len(parts) == 1 else torch.stack([weight * answer for weight, answer in parts]).sum(0))
            continue
        value = uncond
        for weight, answer in parts:
            value = value + (answer - uncond) * weight
        guided.append(value)
        unguided.append(uncond)
    return Denoised(torch.stack(guided), torch.stack(unguided) if len(unguided) == pictures else None)
