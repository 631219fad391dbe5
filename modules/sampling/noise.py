"""Noise that depends on a picture's own seed and on nothing else: not on the device, the batch, or torch's global generator."""
from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modules.core.errors import RequestError

SOURCES = ("NV", "CPU", "GPU")                              # GPU is read as NV: what an NVIDIA card would draw, on any machine
SEED_BITS = 0xFFFF_FFFF_FFFF_FFFF

Shape = tuple[int, ...]


def philox_words(seed: int, draw: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four uint32 words of Philox4x32-10 for elements 0..count-1 of one draw. Salmon et al. 2011, "Parallel random numbers", SC11.

    Key: the seed's 64 bits. Counter of element i: (draw, 0, i, 0), which is how CUDA numbers the threads of one kernel.
    """
    multiplier0, multiplier1, low, word = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57), np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1 = np.full(count, draw, np.uint64), np.zeros(count, np.uint64)
    c2, c3 = np.arange(count, dtype=np.uint64), np.zeros(count, np.uint64)
    key0, key1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product0, product1 = c0 * multiplier0, c2 * multiplier1
        c0, c1 = (product1 >> word) ^ c1 ^ np.uint64(key0), product1 & low
        c2, c3 = (product0 >> word) ^ c3 ^ np.uint64(key1), product0 & low
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def philox(seed: int, draw: int, count: int) -> np.ndarray:
    """(count,) float32 normal noise: draw number `draw` (0-based) of the seed, equal to torch.randn on an NVIDIA card for ordinary latents.

    seed: its low 64 bits count. Box and Muller 1958, the sine branch alone, in float64.
    """
    word0, word1, _, _ = philox_words(seed & SEED_BITS, draw, count)
    turn = float(np.float32(2.3283064e-10 * 6.2831855))     # 2 pi / 2^32 as the card's single precision holds it
    u = word0 * 2.0 ** -32 + 2.0 ** -33
    v = word1 * turn + turn / 2
    return (np.sqrt(-2.0 * np.log(u)) * np.sin(v)).astype(np.float32)


class Generator:
    """The stream of draws of one seed: each `randn` is the next one, float32 on the CPU."""

    def __init__(self, seed: int, source: str = "NV") -> None:
        """Raises RequestError for a source that is not one of SOURCES."""
        if source not in SOURCES:
            raise RequestError(f"Noise source “{source}” is not known; it is one of {', '.join(SOURCES)}.", field="randn_source")
        self.seed = seed & SEED_BITS
        self.draw = 0                                       # draws made so far
        self._torch = torch.Generator("cpu").manual_seed(self.seed) if source == "CPU" else None

    def randn(self, shape: Shape) -> Tensor:
        number, self.draw = self.draw, self.draw + 1
        if self._torch is not None:
            return torch.randn(shape, generator=self._torch, dtype=torch.float32)
        return torch.from_numpy(philox(self.seed, number, math.prod(shape)).reshape(shape))


def slerp(strength: float, base: Tensor, other: Tensor) -> Tensor:
    """Noise (C, h, w) turned from `base` (strength 0) towards `other` (strength 1). Shoemake 1985, here along axis 1, for each column.

    Nearly parallel noise is mixed straight, with the weights exchanged: that is how published seeds were made.
    """
    cosine = (base / base.norm(dim=1, keepdim=True) * (other / other.norm(dim=1, keepdim=True))).sum(1, keepdim=True)
    if cosine.mean() > 0.9995:
        return base * strength + other * (1 - strength)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    turned = ((1 - strength) * angle).sin() / sine * base + (strength * angle).sin() / sine * other
    return torch.where(sine > 0, turned, base * (1 - strength) + other * strength)     # a column of one cell has no angle


def pasted(small: Tensor, big: Tensor) -> Tensor:
    """`small` (C, h, w) in the middle of a copy of `big` (C, H, W); where it is larger, its own middle is taken."""
    out = big.clone()
    spans = []
    for inner, outer in zip(small.shape[1:], big.shape[1:], strict=True):
        offset = (outer - inner) // 2
        length = inner if offset >= 0 else inner + 2 * offset
        spans.append((slice(max(offset, 0), max(offset, 0) + length), slice(max(-offset, 0), max(-offset, 0) + length)))
    (to_y, from_y), (to_x, from_x) = spans
    out[:, to_y, to_x] = small[:, from_y, from_x]
    return out


class Draws:
    """The noise of a batch, (B, C, h, w) float32 on the CPU: each picture from its own generator, so that its neighbours change nothing.

    seeds, subseeds: one a picture; subseed_strength 0..1 turns the first draw towards that of the subseed.
    shape: (C, h, w) in latent cells. resize_from: (width, height) in pixels of a picture whose composition is wanted; (0, 0) = off.
    ensd: after the first draw the generators start anew at seed + ensd (0 = they go on).
    A `Draws` is a `Noise` of the samplers' law: called with two levels it gives the next draw.
    """

    def __init__(self, seeds: Sequence[int], subseeds: Sequence[int], subseed_strength: float, shape: Shape, source: str = "NV",
                 ensd: int = 0, resize_from: tuple[int, int] = (0, 0), downscale: int = 8) -> None:
        self.seeds, self.subseeds, self.subseed_strength = tuple(seeds), tuple(subseeds), subseed_strength
        self.shape, self.source, self.ensd = tuple(shape), source, ensd
        width, height = resize_from
        resized = (shape[0], height // downscale, width // downscale)
        self._first_shape = resized if width > 0 and height > 0 and min(resized) > 0 else self.shape
        self._generators = [Generator(seed, source) for seed in self.seeds]

    def first(self) -> Tensor:
        """The noise the pictures begin with; asked for once, before any other draw."""
        noise = torch.stack([self._first_of(picture) for picture in range(len(self.seeds))])
        if self.ensd:
            self._generators = [Generator(seed + self.ensd, self.source) for seed in self.seeds]
        return noise

    def next(self) -> Tensor:
        """The next draw of every picture's generator."""
        return torch.stack([generator.randn(self.shape) for generator in self._generators])

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return self.next()

    def _first_of(self, picture: int) -> Tensor:
        own, shape = self._generators[picture], self._first_shape
        noise = own.randn(shape) if shape == self.shape else Generator(self.seeds[picture], self.source).randn(shape)
        if self.subseed_strength:
            noise = slerp(self.subseed_strength, noise, Generator(self.subseeds[picture], self.source).randn(shape))
        return noise if shape == self.shape else pasted(noise, own.randn(self.shape))


@dataclass(frozen=True, eq=False)
class _Span:
    """A piece [start, end] of a Brownian path and its increment over that piece."""

    start: float
    end: float
    key: int
    depth: int
    increment: Tensor


class BrownianPath:
    """One Brownian motion over [start, end], fixed by its seed alone: any question about it has one answer, in whatever order asked.

    A binary tree of Brownian bridges as in Li et al. 2020, arXiv:2001.01328, appendix; the same values as torchsde's BrownianTree
    (entropy = seed, tolerance 1e-6, pool of 24 words) given the same normal noise.
    """

    REMEMBERED = 48                                         # halved spans kept; a question walks some 25 deep

    def __init__(self, seed: int, shape: Shape, start: float, end: float, source: str = "NV") -> None:
        self.seed, self.shape, self.source = seed & SEED_BITS, tuple(shape), source
        self._halved: OrderedDict[tuple[int, int], tuple[_Span, _Span]] = OrderedDict()
        whole = self._randn(()) * math.sqrt(end - start)
        self._root = _Span(round(start, 6), round(end, 6), 0, 0, whole)

    def between(self, start: float, end: float) -> Tensor:
        """W(end) - W(start), shape as given, for start <= end; both are brought into the path's range and rounded to 6 digits."""
        low, high = (round(min(max(at, self._root.start), self._root.end), 6) for at in (start, end))
        if low >= high:
            return torch.zeros(self.shape)
        pieces = self._pieces(self._root, low, high)
        total = next(pieces)
        for piece in pieces:
            total = total + piece
        return total

    def _pieces(self, span: _Span, low: float, high: float) -> Iterator[Tensor]:
        """Increments of the spans that together cover [low, high], from left to right."""
        if low == span.start and high == span.end:
            yield span.increment
            return
        left, right = self._halves(span)
        if low < left.end:
            yield from self._pieces(left, low, min(high, left.end))
        if high > right.start:
            yield from self._pieces(right, max(low, right.start), high)

    def _halves(self, span: _Span) -> tuple[_Span, _Span]:
        """The bridge: given the increment over a span, that of its left half is normal with the mean in proportion to its length."""
        if (span.key, span.depth) not in self._halved:
            middle = round(0.5 * (span.end + span.start), 6)
            before, after, inverse = middle - span.start, span.end - middle, 1 / (span.end - span.start)
            noise = self._randn((span.key, span.depth))
            left = before * span.increment * inverse + math.sqrt(before * after * inverse) * noise
            self._halved[span.key, span.depth] = (
                _Span(span.start, middle, 2 * span.key, span.depth + 1, left),
                _Span(middle, span.end, 2 * span.key + 1, span.depth + 1, span.increment - left))
            if len(self._halved) > self.REMEMBERED:
                self._halved.popitem(last=False)
        self._halved.move_to_end((span.key, span.depth))
        return self._halved[span.key, span.depth]

    def _randn(self, spawn_key: tuple[int, ...]) -> Tensor:
        word = np.random.SeedSequence(entropy=self.seed, spawn_key=spawn_key, pool_size=24).generate_state(1)[0]
        return Generator(int(word), self.source).randn(self.shape)


class Brownian:
    """Unit-variance noise (B, C, h, w) for stochastic samplers, from one Brownian path a picture over the noise levels.

    Steps of different lengths see the same path, so more steps refine a picture rather than make another one.
    seeds: the pictures' own. shape: (C, h, w). sigma_min, sigma_max: smallest level above 0 and largest of the whole ladder.
    """

    def __init__(self, seeds: Sequence[int], shape: Shape, sigma_min: float, sigma_max: float, source: str = "NV") -> None:
        self._paths = [BrownianPath(seed, shape, float(sigma_min), float(sigma_max), source) for seed in seeds]

    def __call__(self, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
        """(W(sigma_next) - W(sigma)) / sqrt(|sigma - sigma_next|): walked downwards, as sigma falls."""
        start, end = float(sigma), float(sigma_next)
        low, high = min(start, end), max(start, end)
        increments = torch.stack([path.between(low, high) for path in self._paths])
        return increments * ((1 if start < end else -1) / math.sqrt(high - low))
