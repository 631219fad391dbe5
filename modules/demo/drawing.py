"""A canvas of light and a pen: antialiased layers, soft fields, smooth shapes. Knows nothing of what is drawn.

A point is (x, y) in 0..1 of the canvas or of a thing's own box, y downward. Colours are RGB in 0..255.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.floating]                                # (S, S) in 0..1, or (S, S, 3) in 0..255
Colour = tuple[float, float, float]
Point = tuple[float, float]
OVER = 3                                                    # shapes are drawn so many times larger and shrunk


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`share` of b, the rest a."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def times(a: Colour, b: Colour) -> Colour:
    """Colour a under light b, where light is 1 for white; stops at 255."""
    return (min(255.0, a[0] * b[0]), min(255.0, a[1] * b[1]), min(255.0, a[2] * b[2]))


def smooth(points: Sequence[Point], samples: int = 6) -> list[Point]:
    """A closed curve through the points. Catmull and Rom 1974, uniform."""
    curve: list[Point] = []
    for i in range(len(points)):
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = (points[(i + k) % len(points)] for k in (-1, 0, 1, 2))
        for step in range(samples):
            t = step / samples
            weights = (-0.5 * t + t * t - 0.5 * t ** 3, 1 - 2.5 * t * t + 1.5 * t ** 3,
                       0.5 * t + 2 * t * t - 1.5 * t ** 3, -0.5 * t * t + 0.5 * t ** 3)
            curve.append((sum(w * v for w, v in zip(weights, (ax, bx, cx, dx), strict=True)),
                          sum(w * v for w, v in zip(weights, (ay, by, cy, dy), strict=True))))
    return curve


class Pen:
    """Draws in a box of the larger picture with named paints. A paint that is not in `paints` is left out."""

    def __init__(self, image: Image.Image, box: tuple[float, float, float, float], paints: Mapping[str, object],
                 flip: bool = False) -> None:
        """image: mode RGB or L. box: left, top, width, height in its pixels. flip: mirror the box left to right."""
        self._draw = ImageDraw.Draw(image)
        self._box, self._paints, self._flip = box, paints, flip

    def _at(self, x: float, y: float) -> Point:
        left, top, width, height = self._box
        return left + (1 - x if self._flip else x) * width, top + y * height

    def shape(self, points: Sequence[Point], paint: str) -> None:
        if paint in self._paints:
            self._draw.polygon([self._at(*point) for point in points], fill=self._paints[paint])   # type: ignore[arg-type]

    def blob(self, points: Sequence[Point], paint: str) -> None:
        """A smooth closed shape through the points."""
        self.shape(smooth(points), paint)

    def oval(self, x: float, y: float, rx: float, ry: float, paint: str) -> None:
        """An ellipse about (x, y) with radii rx and ry."""
        if paint in self._paints:
            (ax, ay), (bx, by) = self._at(x - rx, y - ry), self._at(x + rx, y + ry)
            self._draw.ellipse((min(ax, bx), ay, max(ax, bx), by), fill=self._paints[paint])       # type: ignore[arg-type]

    def block(self, x0: float, y0: float, x1: float, y1: float, paint: str, bend: float = 0.0) -> None:
        """A rectangle; bend = radius of its corners as a part of the box's width."""
        if paint in self._paints:
            (ax, ay), (bx, by) = self._at(x0, y0), self._at(x1, y1)
            edges = (min(ax, bx), ay, max(ax, bx), by)
            self._draw.rounded_rectangle(edges, bend * self._box[2], fill=self._paints[paint])     # type: ignore[arg-type]

    def stroke(self, points: Sequence[Point], width: float, paint: str) -> None:
        """A line with round ends; width as a part of the box's width."""
        if paint in self._paints:
            path, radius = [self._at(*point) for point in points], width * self._box[2] / 2
            self._draw.line(path, fill=self._paints[paint], width=max(1, round(2 * radius)), joint="curve")    # type: ignore[arg-type]
            for x, y in (path[0], path[-1]):
                self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=self._paints[paint])  # type: ignore[arg-type]


class Canvas:
    """A square picture that grows from back to front: pixels, depth (near = 1) and edge strength, all float32."""

    def __init__(self, size: int) -> None:
        self.size = size
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x, self.y = axis[None, :], axis[:, None]
        self.pixels: Field = np.zeros((size, size, 3), np.float32)
        self.depth: Field = np.zeros((size, size), np.float32)
        self.edges: Field = np.zeros((size, size), np.float32)

    def lay(self, alpha: Field, colour: Colour | Field, depth: float | Field | None = None, edge: bool = False) -> None:
        """Put a colour or a field of colours over the picture where alpha (S, S) says; optionally new depth and an edge around it."""
        colours = np.asarray(colour, np.float32)
        self.pixels += alpha[..., None] * (colours - self.pixels)
        if depth is not None:
            self.depth += alpha * (np.asarray(depth, np.float32) - self.depth)
        if edge:
            self.edges = np.maximum(self.edges * (1 - alpha), rim(alpha))

    def below(self, ridge: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Field:
        """(S, S) alpha of all that lies below y = ridge(x)."""
        fine = (np.arange(self.size * OVER) + 0.5) / (self.size * OVER)
        heights = ridge(fine).astype(np.float32).reshape(1, self.size, OVER) * self.size
        rows = np.arange(self.size, dtype=np.float32)[:, None, None]
        return np.clip(rows + 1 - heights, 0, 1).mean(axis=2)

    def drawn(self, draw: Callable[[Pen], None]) -> Field:
        """(S, S) alpha of what `draw` does with the paint "ink" in a box that is the whole canvas."""
        image = Image.new("L", (self.size * OVER, self.size * OVER))
        draw(Pen(image, (0, 0, image.width, image.height), {"ink": 255}))
        return np.asarray(image.reduce(OVER), np.float32) / 255

    def halo(self, x: float, y: float, rx: float, ry: float, power: float = 1.0) -> Field:
        """(S, S) soft spot about (x, y): 1 in the middle, exp(-1) on the ellipse; a high power makes its border harder."""
        distance = ((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2
        return np.exp(-distance ** power, dtype=np.float32)

    def cloth(self, cells: int, seed: int) -> Field:
        """(S, S) soft random field about 0 with a spread near 1; the same cloth at every size."""
        grid = np.random.RandomState(seed % 2 ** 32).standard_normal((cells, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(grid).resize((self.size, self.size), Image.Resampling.BICUBIC), np.float32)

    def fall(self, *stops: tuple[float, Colour]) -> Field:
        """(S, S, 3) colours that run down the picture through (y, colour) stops."""
        places = [place for place, _ in stops]
        columns = [np.interp(self.y[:, 0], places, [colour[channel] for _, colour in stops]) for channel in range(3)]
        return np.broadcast_to(np.stack(columns, -1).astype(np.float32)[:, None], self.pixels.shape)


def rim(alpha: Field) -> Field:
    """How steep alpha is, 0..1: 1 on a hard border."""
    down, across = np.zeros_like(alpha), np.zeros_like(alpha)
    down[1:] = np.abs(np.diff(alpha, axis=0))
    across[:, 1:] = np.abs(np.diff(alpha, axis=1))
    return np.minimum(1, down + across)


def waves(rng: random.Random, middle: float, height: float, slowest: float = 1.0) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """A rolling ridge about y = middle: three sines of falling height and random phase."""
    parts = [(height / (1 + i), slowest * (1 + i) * rng.uniform(0.8, 1.2), rng.uniform(0, 2 * np.pi)) for i in range(3)]
    return lambda x: middle + sum((h * np.sin(2 * np.pi * f * x + p) for h, f, p in parts), np.zeros_like(x))
