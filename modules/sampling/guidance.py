"""Classifier-free guidance: the network is asked with and without the prompt, and the difference is exaggerated.

Ho and Salimans 2022, arXiv:2207.12598; several prompts at once after Liu et al. 2022, arXiv:2206.01714; a picture that is followed
beside the words after Brooks et al. 2023, arXiv:2211.09800, eq. 3. There are two doors:

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

from modules.networks.changes import Change
from modules.sampling.conditioning import Conditioning, cat
from modules.sampling.samplers import Denoise, Denoised

PictureTexts = (tuple[Sequence[tuple[float, Conditioning]], Conditioning] |
                tuple[Sequence[tuple[float, Conditioning]], Conditioning, Conditioning])
"""What one picture is told at one call: ((weight, cond) of each part of AND, uncond), every Conditioning of one row. Models that edit a
picture have a third: neither the words nor the picture; their cond and uncond both know the picture."""

Which = Literal["cond", "uncond", "blank"]                  # blank: neither words nor picture

ConditioningAt = Callable[[int], Sequence[PictureTexts]]
"""(call, counted from 0 in every pass) -> the texts of each picture of the batch. Prompt editing happens here."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Rows that go through the network in one call.

    x: (R, C, h, w) noisy latents, all at the level `sigma` (0-d). conditioning: R rows. call: number of the denoiser call in this pass.
    shares: what each row counts in the guided result, all rows of a picture 1 together. changes: of the network, for this call alone.
    For each row: `which` prompt it is told, `picture` (its index in the batch), `part` (of AND; 0 for others), `weights` of that part.
    """

    x: Tensor
    sigma: Tensor
    conditioning: Conditioning
    which: tuple[Which, ...]
    picture: tuple[int, ...]
    part: tuple[int, ...]
    weights: tuple[float, ...]
    call: int = 0
    shares: tuple[float, ...] = ()
    changes: tuple[Change, ...] = ()


RowsDenoise = Callable[[Rows], Tensor]                      # -> clean latents (R, C, h, w), row by row
Skip = Callable[[int, float], bool]                         # (call, sigma) -> whether this call goes without the negative prompt


@dataclass(frozen=True, eq=False)
class _Row:
    which: Which
    picture: int
    part: int
    weight: float
    share: float
    conditioning: Conditioning


def cfg(rows_denoise: RowsDenoise, conditioning_at: ConditioningAt, cfg_scale: float, *, image_cfg_scale: float | None = None,
        skip: Skip | None = None, always_uncond: bool = False, batch_rows_limit: int | None = None,
        calls: Iterator[int] | None = None) -> Denoise:
    """The guided denoiser of a batch of pictures: uncond + sum of weight * cfg_scale * (cond - uncond) over the parts of each prompt.

    image_cfg_scale: for pictures that have a third text, blank + image_cfg_scale * (uncond - blank) stands in the place of that first
    uncond; at None and 1 the third text is not asked.
    skip: at calls where it says so, every picture's scale is 1, the negative prompt is not asked; it does not reach pictures being edited.
    always_uncond: the negative prompt is asked even where it has no share, for samplers that take their direction from it.
    All rows of all pictures go through the network in one call, cond and uncond together; only rows of different token counts, or more
    than batch_rows_limit, are asked separately, which changes nothing beyond rounding. Where the negative prompt would be given no share
    at all (cfg_scale 1 with one part), it is not asked, and `Denoised.uncond` is None.
    Calls are counted here, so a denoiser serves one pass; calls: the count of a denoiser in whose place this one steps.
    """
    calls = itertools.count() if calls is None else calls
    kept: list[tuple[list[_Row], list[_Group]]] = []        # the last rows and their groups: most calls ask with the same texts

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        call = next(calls)
        texts = conditioning_at(call)
        edits = image_cfg_scale is not None and image_cfg_scale != 1 and all(len(told) == 3 for told in texts)
        image_scale = image_cfg_scale if edits and image_cfg_scale is not None else 1.0
        scale = 1.0 if skip is not None and not edits and skip(call, float(sigma)) else cfg_scale
        rows = _rows_of(texts, scale, image_scale, always_uncond)
        if not kept or not _same(kept[0][0], rows):
            kept[:] = [(rows, _groups(rows, batch_rows_limit))]
        answers: list[Tensor | None] = [None] * len(rows)
        for group in kept[0][1]:
            for index, answer in zip(group.indices, rows_denoise(group.rows(x, sigma, call)), strict=True):
                answers[index] = answer
        return _combined(rows, answers, len(x), scale, image_scale)

    return denoise


def skips(below: float = 0.0, every_call: bool = False, until: float = 0.0, calls: int = 1) -> Skip | None:
    """When to leave the negative prompt out; None = never.

    below: at noise levels under this one, at every second call, or at every_call (A1111's NGMS). until: in the first calls, up to this
    share 0..1 of the pass's `calls` (A1111's Skip Early CFG).
    """
    if not below and not until:
        return None

    def skip(call: int, sigma: float) -> bool:
        return bool(sigma < below and (every_call or call % 2)) or bool(until and call / calls <= until)

    return skip


@dataclass(frozen=True, eq=False)
class _Group:
    """Rows of one network call: where they stand among all rows, and their conditioning put together."""

    indices: tuple[int, ...]
    members: tuple[_Row, ...]
    conditioning: Conditioning

    def rows(self, x: Tensor, sigma: Tensor, call: int) -> Rows:
        pictures = tuple(row.picture for row in self.members)
        return Rows(x=x[list(pictures)], sigma=sigma, conditioning=self.conditioning, call=call, picture=pictures,
                    shares=tuple(row.share for row in self.members),
                    which=tuple(row.which for row in self.members), part=tuple(row.part for row in self.members),
                    weights=tuple(row.weight for row in self.members))


def _rows_of(texts: Sequence[PictureTexts], cfg_scale: float, image_scale: float, always_uncond: bool) -> list[_Row]:
    """The rows to ask: the prompts of all pictures, then their negative prompts and what is left without a picture, where these have a
    share in the result: 1 - image_scale for the latter, image_scale - cfg_scale for the former."""
    rows = [_Row("cond", picture, part, weight, weight * cfg_scale, cond) for picture, told in enumerate(texts)
            for part, (weight, cond) in enumerate(told[0])]
    prompts = [cfg_scale * sum(weight for weight, _ in told[0]) for told in texts]
    negatives = [_Row("uncond", picture, 0, 1.0, image_scale - prompts[picture], told[1]) for picture, told in enumerate(texts)
                 if always_uncond or not math.isclose(prompts[picture], image_scale, rel_tol=1e-9)]
    blanks = [_Row("blank", picture, 0, 1.0, 1 - image_scale, told[2]) for picture, told in enumerate(texts)
              if len(told) == 3 and image_scale != 1]
    return rows + negatives + blanks


def _same(before: list[_Row], now: list[_Row]) -> bool:
    return len(before) == len(now) and all(
        a.conditioning is b.conditioning
        and (a.which, a.picture, a.part, a.weight, a.share) == (b.which, b.picture, b.part, b.weight, b.share)
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


def _combined(rows: list[_Row], answers: Sequence[Tensor | None], pictures: int, cfg_scale: float, image_scale: float) -> Denoised:
    """Row by row answers -> guided and unguided latents (B, C, h, w), and the prompts' own."""
    guided: list[Tensor] = []
    unguided: list[Tensor] = []
    for picture in range(pictures):
        own = [(row, answer) for row, answer in zip(rows, answers, strict=True) if row.picture == picture and answer is not None]
        uncond = next((answer for row, answer in own if row.which == "uncond"), None)
        blank = next((answer for row, answer in own if row.which == "blank"), None)
        parts = [(row.weight * cfg_scale, answer) for row, answer in own if row.which == "cond"]
        without = blank if uncond is None else uncond
        if without is None:
            guided.append(parts[0][1] if len(parts) == 1 else torch.stack([weight * answer for weight, answer in parts]).sum(0))
            continue
        value = without if uncond is None or blank is None else blank + (uncond - blank) * image_scale
        for weight, answer in parts:
            value = value + (answer - without) * weight
        guided.append(value)
        unguided.append(without)
    return Denoised(torch.stack(guided), torch.stack(unguided) if len(unguided) == pictures else None)
