"""Reads a scene back from pixels alone: sky, ground, and kind, colour and place of each object. No network, no hints.

Backgrounds are recognised by their colours in zones, compared with scenes drawn empty. A pixel belongs to a thing if it is nearer
to the tones of a named colour than to the recognised background. Kinds are found by sliding all silhouettes over those pixels.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from modules.demo import drawing_land as land
from modules.demo.drawing import Colour, Pen, times
from modules.demo.drawing_things import ACCENTS, THINGS, TONES, tones
from modules.demo.scenes import COLOURS, EXTENT, GROUNDS, KINDS, SKIES, WEATHERS, Layout, draw, toned

Floats = NDArray[np.floating]
FINE, COARSE = 128, 64                                      # pixels: where colours are named, where silhouettes are slid
CELLS = 16                                                  # a picture in 16 x 16 mean colours, for sky and ground
SKY_ROWS, GROUND_ROWS = slice(0, 7), slice(7, 16)
CAP = 45.0                                                  # a cell further off than this belongs to a thing and counts no more
TONED = ("plain", "watercolour", "pastel")                  # ink and paper have the colours of plain
BANDS = 16                                                  # rows of the picture that share one list of background colours
SCALES = (0.9, 1.0, 1.1)
MARGIN = 2                                                  # pixels of background around a silhouette that should be free
ALIKE: Mapping[str, str] = MappingProxyType({                # accents that a blur or tint makes one with a named colour
    "cream": "white", "eye": "white", "dark": "black", "wood": "brown", "leaf": "green", "gold": "yellow", "rose": "pink"})
PAD = 4                                                     # a thing may leave the picture a little
GRID = COARSE + 2 * PAD
FOUND = 1.4                                                 # of 2: below this nothing is there
FILLED = 0.4                                                # how much of a thing must have its colour: noise comes to a quarter
KEPT = 40                                                   # silhouettes that are compared in colour too


@dataclass(frozen=True)
class Seen:
    """One thing found in a picture. x: its middle, 0..1; score: overlap of outline and of colour, 0..2."""

    kind: str
    colour: str
    place: str
    x: float
    score: float


@dataclass(frozen=True)
class Reading:
    """What the pixels show."""

    sky: str
    ground: str
    things: tuple[Seen, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether the picture shows what the layout says; colour, place and kind have one answer for each object of the layout."""

    sky: bool
    ground: bool
    colour: tuple[bool, ...]
    place: tuple[bool, ...]
    kind: tuple[bool, ...]


def check(image: Image.Image, layout: Layout) -> Verdict:
    """Read the picture, without the layout but for its number of objects, and compare. Any size; a small blur or tint does no harm."""
    return compare(read(image, len(layout.objects)), layout)


def compare(reading: Reading, layout: Layout) -> Verdict:
    """Each object of the layout takes the seen thing that it has most in common with, no thing twice."""
    def same(order: tuple[Seen | None, ...]) -> list[tuple[bool, bool, bool]]:
        return [(seen is not None and seen.colour == thing.colour, seen is not None and seen.place == thing.place,
                 seen is not None and seen.kind == thing.kind) for seen, thing in zip(order, layout.objects, strict=True)]
    number = len(layout.objects)
    seen: tuple[Seen | None, ...] = (*reading.things, *(None,) * number)
    orders = permutations(seen[:max(number, len(reading.things))], number)
    best = max((same(order) for order in orders), key=lambda answers: sum(map(sum, answers)))
    return Verdict(reading.sky == layout.sky, reading.ground == layout.ground, *(tuple(answer[i] for answer in best) for i in range(3)))


def read(image: Image.Image, number: int = 2) -> Reading:
    """Sky, ground and at most `number` things, the clearest first."""
    picture = image.convert("RGB").resize((FINE, FINE), Image.Resampling.BOX)
    pixels = np.asarray(picture, np.float32)
    cells = pixels.reshape(CELLS, FINE // CELLS, CELLS, FINE // CELLS, 3).mean((1, 3))
    sky, weather, style = _nearest(cells[SKY_ROWS], *_sky_cells())
    ground, *_ = _nearest(cells[GROUND_ROWS], *_ground_cells(), expected=sky)
    shares = _named(pixels, sky, weather, ground, style)
    return Reading(sky, ground, tuple(_things(shares, number)))


def _nearest(cells: Floats, names: tuple[tuple[str, ...], ...], wanted: Floats, expected: str = "") -> tuple[str, ...]:
    """The name whose row colours (N, rows, 3) are closest to the cells (rows, columns, 3); far cells count alike.

    expected: a word that a name should hold; the others must be clearly closer.
    """
    off = np.minimum(np.abs(cells[None] - wanted[:, :, None]).mean(-1), CAP).mean((1, 2))
    strange = np.array([bool(expected) and expected not in name for name in names])
    return names[int((off + 5 * strange).argmin())]


@cache
def _empty(sky: str, weather: str, ground: str, style: str, seed: int) -> Floats:
    """(64, 64, 3): the scene without things."""
    return np.asarray(draw(Layout(sky, weather, ground, (), style, seed), COARSE).image, np.float32)


def _rows(*words: str) -> Floats:
    """(16, 3): the usual colour of each row of cells."""
    step = COARSE // CELLS
    pictures = np.stack([_empty(words[0], words[1], words[2], words[3], seed) for seed in (1, 2)])
    return np.median(pictures.reshape(2, CELLS, step, COARSE, 3).transpose(1, 0, 2, 3, 4).reshape(CELLS, -1, 3), axis=1).astype(np.float32)


@cache
def _sky_cells() -> tuple[tuple[tuple[str, ...], ...], Floats]:
    names = tuple(product(SKIES, WEATHERS, TONED))
    return names, np.stack([_rows(sky, weather, "sea", style)[SKY_ROWS] for sky, weather, style in names])


@cache
def _ground_cells() -> tuple[tuple[tuple[str, ...], ...], Floats]:
    names = tuple(product(GROUNDS, SKIES, ("clear", "fog"), TONED))
    return names, np.stack([_rows(sky, weather, ground, style)[GROUND_ROWS] for ground, sky, weather, style in names])


@cache
def _background(sky: str, weather: str, ground: str, style: str) -> tuple[Floats, ...]:
    """For each band of rows the different colours (N, 3) that the empty scene shows there or just beside."""
    # White clouds may be anywhere and are expected always; flakes would take white away from the things.
    dry = {"snow": "rain", "clear": "rainbow" if sky in ("dawn", "day") else "clear"}.get(weather, weather)
    pictures = np.stack([_empty(sky, either, ground, style, seed) for seed in range(1, 6) for either in (dry, "cloudy")])[:, :, 4:-4]
    height = COARSE // BANDS
    found = []
    for band in range(BANDS):
        rows = pictures[:, max(0, (band - 1) * height):(band + 2) * height].reshape(-1, 3)
        keys = (rows // 20).astype(np.int64) @ np.array([256, 16, 1])
        counts = np.bincount(keys, minlength=4096)
        often = counts > 0.01 * len(rows)
        sums = np.stack([np.bincount(keys, rows[:, channel], minlength=4096) for channel in range(3)], -1)
        found.append((sums[often] / counts[often, None]).astype(np.float32))
    return tuple(found)


@cache
def _paints(sky: str, style: str) -> tuple[Floats, NDArray[np.int64]]:
    """Colours (N, 3) that things may have under this light, and for each the number of its named colour, or -1 for an accent."""
    light = land.LIGHTS[sky].on_things
    found: list[Colour] = []
    owners: list[int] = []
    for number, colour in enumerate(COLOURS.values()):
        for tone in tones(times(colour, light)).values():
            for shading in (1.06, 1.0, 0.92):               # a thing is rounder than its paint: bright above, dark below
                found.append(times(tone, (shading, shading, shading)))
                owners.append(number)
    for accent, colour in ACCENTS.items():
        found.append(times(colour, light))
        owners.append(tuple(COLOURS).index(ALIKE[accent]) if accent in ALIKE else -1)
    return np.array([toned(times(colour, (0.97, 0.97, 0.97)), style) for colour in found], np.float32), np.array(owners)


def _named(pixels: Floats, sky: str, weather: str, ground: str, style: str) -> Floats:
    """(1 + colours, 64, 64): the share of each coarse pixel that is no background, then of each named colour."""
    colours, owners = _paints(sky, style)
    shares = np.zeros((1 + len(COLOURS), FINE, FINE), np.float32)
    height = FINE // BANDS
    for band, behind in enumerate(_background(sky, weather, ground, style)):
        rows = pixels[band * height:(band + 1) * height].reshape(-1, 3)
        to_paint, to_behind = _distances(rows, colours), _distances(rows, behind).min(1)
        nearest = to_paint.argmin(1)
        front = (to_behind > 24 ** 2) & (to_paint.min(1) < to_behind)
        named = np.where(front, owners[nearest], -2)
        part = shares[:, band * height:(band + 1) * height].reshape(1 + len(COLOURS), -1)
        part[0] = front
        part[1:] = named[None] == np.arange(len(COLOURS))[:, None]
        shares[:, band * height:(band + 1) * height] = part.reshape(1 + len(COLOURS), height, FINE)
    step = FINE // COARSE
    return shares.reshape(-1, COARSE, step, COARSE, step).mean((2, 4))


def _distances(rows: Floats, colours: Floats) -> Floats:
    """Squared distances (pixels, colours)."""
    return (rows ** 2).sum(1)[:, None] - 2 * rows @ colours.T + (colours ** 2).sum(1)[None]


@dataclass(frozen=True)
class _Templates:
    """N silhouettes in the corner of an empty picture of GRID pixels, the spectra of all of each and of what has its colour.

    shapes: (N, GRID, GRID); whole: (N, GRID, GRID / 2 + 1), complex; body: the same for each colour; areas: squared lengths;
    boxes: (N, 2) heights and widths.
    """

    kinds: tuple[str, ...]
    shapes: Floats
    whole: NDArray[np.complexfloating]
    body: tuple[NDArray[np.complexfloating], ...]
    areas: Floats
    body_areas: tuple[Floats, ...]
    boxes: NDArray[np.int64]


@cache
def _templates() -> _Templates:
    sizes = [(kind, extent * scale, flip) for kind, extent, scale in product(KINDS, EXTENT.values(), SCALES)
             for flip in ((False, True) if THINGS[kind].turns else (False,))]
    shapes = _stack(sizes, frozenset(ACCENTS))
    alike = [frozenset(accent for accent, colour in ALIKE.items() if colour == name) for name in COLOURS]
    bodies = {accents: _stack(sizes, accents) for accents in set(alike)}
    spectra = {accents: np.conj(np.fft.rfft2(stack)).astype(np.complex64) for accents, stack in bodies.items()}
    boxes = [[min(GRID, round(extent * side * COARSE) + 2 * MARGIN) for side in (THINGS[kind].height, THINGS[kind].width)]
             for kind, extent, _ in sizes]
    return _Templates(tuple(kind for kind, *_ in sizes), shapes, np.conj(np.fft.rfft2(shapes)).astype(np.complex64),
                      tuple(spectra[accents] for accents in alike), (shapes ** 2).sum((1, 2)),
                      tuple((bodies[accents] ** 2).sum((1, 2)) for accents in alike), np.array(boxes))


def _stack(sizes: list[tuple[str, float, bool]], accents: frozenset[str]) -> Floats:
    """(N, GRID, GRID): the things' own tones and these accents, in the upper left corner behind a margin."""
    paints = {**dict.fromkeys(ACCENTS, 0), **dict.fromkeys((*TONES, *accents), 255)}
    layers = []
    for kind, extent, flip in sizes:
        image, thing = Image.new("L", (GRID * 4, GRID * 4)), THINGS[kind]
        box = (MARGIN * 4, MARGIN * 4, extent * thing.width * COARSE * 4, extent * thing.height * COARSE * 4)
        thing.draw(Pen(image, box, paints, flip))
        layers.append(np.asarray(image.reduce(4), np.float32) / 255)
    return np.stack(layers)


def _things(shares: Floats, number: int) -> list[Seen]:
    """The best match of colour, kind and position, then the best in what is left."""
    templates, seen = _templates(), []
    shares = np.pad(shares, ((0, 0), (PAD, PAD), (PAD, PAD)))
    for _ in range(number):
        outlines = _overlap(shares[0], templates.whole, templates.areas, templates, np.arange(len(templates.kinds)))
        kept = np.argsort(-outlines.max((1, 2)))[:KEPT]
        amounts = shares[1:].sum((1, 2))
        best = (0.0, 0, 0, 0)
        for colour in np.flatnonzero((amounts > 12) & (amounts >= 0.08 * amounts.max())):
            score = outlines[kept] + _overlap(shares[1 + colour], templates.body[colour], templates.body_areas[colour], templates, kept)
            place = int(score.argmax())
            if score.flat[place] > best[0]:
                best = (float(score.flat[place]), int(colour), *divmod(place, GRID * GRID))
        template, (y, x) = kept[best[2]], divmod(best[3], GRID)
        gone = np.roll(templates.shapes[template], (y, x), (0, 1))
        filled = float((gone * shares[1 + best[1]]).sum() / templates.body_areas[best[1]][template])
        if best[0] < FOUND or filled < FILLED:
            break
        middle = float((x - PAD + templates.boxes[template, 1] / 2) / COARSE)
        seen.append(Seen(templates.kinds[template], tuple(COLOURS)[best[1]], _place(middle), middle, best[0]))
        near = np.max([np.roll(gone, (dy, dx), (0, 1)) for dy in (-2, 0, 2) for dx in (-2, 0, 2)], axis=0)
        shares = shares * (1 - near)
    return seen


def _overlap(share: Floats, spectra: NDArray[np.complexfloating], areas: Floats, templates: _Templates, which: NDArray[np.int64]) -> Floats:
    """(N, GRID, GRID): for each of these templates at each shift the cosine between it and the pixels in its box."""
    common = np.fft.irfft2(np.fft.rfft2(share) * spectra[which], s=share.shape)
    squares = np.pad((share ** 2).cumsum(0).cumsum(1), ((1, GRID), (1, GRID)), mode="edge")
    squares[0], squares[:, 0] = 0, 0
    overlap = np.zeros_like(common)
    for row, template in enumerate(which):                  # only shifts that keep the box in the picture
        high, wide = templates.boxes[template]
        ys, xs = GRID + 1 - high, GRID + 1 - wide
        inside = squares[high:high + ys, wide:wide + xs] - squares[:ys, wide:wide + xs] - squares[high:high + ys, :xs] + squares[:ys, :xs]
        overlap[row, :ys, :xs] = common[row, :ys, :xs] / np.sqrt(np.maximum(areas[template] * inside, 16))
    return overlap


def _place(x: float) -> str:
    return "left" if x < 0.37 else "right" if x > 0.63 else "middle"
