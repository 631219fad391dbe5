"""Skies, weather and grounds of the storybook: soft fields and ridges, laid from back to front."""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from modules.demo.drawing import Canvas, Colour, Field, Pen, mix, times, waves

Ridge = Callable[[NDArray[np.float64]], NDArray[np.float64]]
HORIZON = 0.60                                              # where the ground begins, part of the height
INK: Colour = (52, 46, 66)
PAPER: Colour = (253, 249, 240)


@dataclass(frozen=True)
class Light:
    """A time of day: colours of the sky at the top, in the middle and at the horizon, and its light on ground and things (1 = white)."""

    top: Colour
    middle: Colour
    low: Colour
    cloud: Colour
    on_ground: Colour
    on_things: Colour


LIGHTS: Mapping[str, Light] = MappingProxyType({
    "dawn": Light((186, 172, 226), (246, 196, 208), (255, 232, 206), (255, 238, 240), (1.0, 0.94, 0.96), (1.0, 0.96, 0.97)),
    "day": Light((104, 184, 240), (160, 214, 246), (222, 241, 248), (255, 255, 255), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    "sunset": Light((118, 88, 164), (240, 128, 104), (255, 206, 120), (250, 176, 152), (0.99, 0.86, 0.83), (1.0, 0.94, 0.90)),
    "night": Light((26, 32, 84), (44, 60, 126), (84, 106, 170), (92, 108, 168), (0.52, 0.58, 0.78), (0.86, 0.88, 0.97)),
})


@dataclass(frozen=True)
class Stage:
    """The canvas with what every layer asks for. light: on the ground; glow: of windows; style: as in scenes.STYLES."""

    canvas: Canvas
    rng: random.Random
    sky: str
    style: str

    def lit(self, colour: Colour) -> Colour:
        return times(colour, LIGHTS[self.sky].on_ground)

    def air(self, colour: Colour, share: float) -> Colour:
        """A lit colour seen through `share` of haze."""
        return mix(self.lit(colour), LIGHTS[self.sky].low, share)

    def layer(self, ridge: Ridge, top: Colour, bottom: Colour, depth: float, until: float = 1.0) -> Field:
        """Land below a ridge, running from colour top there to bottom at y = until; both already lit. Returns its alpha."""
        canvas = self.canvas
        alpha = canvas.below(ridge)
        start = float(np.min(ridge(np.linspace(0, 1, 33))))
        if self.style == "paper":                           # the sheet throws a soft shadow on the one behind
            shadow = canvas.below(lambda x: ridge(x) - 0.016) * 0.5 + canvas.below(lambda x: ridge(x) - 0.032) * 0.3
            canvas.lay(shadow * 0.28, (40, 34, 60))
        slope = np.clip((canvas.y - start) / max(until - start, 0.05), 0, 1)
        nearer = np.float32(depth) + np.float32(0.42) * slope ** 1.3 if until == 1.0 else np.float32(depth)
        canvas.lay(alpha, canvas.fall((start, top), (until, bottom)), np.broadcast_to(nearer, alpha.shape), edge=True)
        if self.style == "ink":
            canvas.lay((alpha - canvas.below(lambda x: ridge(x) + 0.013)) * 0.8, INK)
        return alpha


def sky(stage: Stage, weather: str, sun_x: float, seed: int) -> None:
    """The sky with sun or moon about x = sun_x, and with its clouds and stars."""
    canvas, light = stage.canvas, LIGHTS[stage.sky]
    grey = (0.55, (150, 158, 178)) if weather in ("rain", "snow") else (0.35, (214, 218, 226)) if weather == "fog" else (0.0, light.top)
    dim = {"dawn": 1.12, "day": 1.06, "sunset": 0.86, "night": 0.42}[stage.sky]
    veil = times(grey[1], (dim, dim, dim))
    colours = [mix(colour, veil, grey[0] * part) for colour, part in ((light.top, 0.75), (light.middle, 0.55), (light.low, 0.45))]
    canvas.lay(np.ones_like(canvas.depth), canvas.fall((0.0, colours[0]), (0.33, colours[1]), (HORIZON, colours[2])))
    if stage.style == "watercolour":
        canvas.lay(np.clip(canvas.cloth(6, seed) * 0.12, 0, 0.3), PAPER)
    if stage.sky == "night" and weather in ("clear", "cloudy"):
        _stars(stage)
    if weather in ("clear", "cloudy", "rainbow"):
        _sun_or_moon(stage, sun_x)
    if weather == "rainbow":
        _rainbow(stage, sun_x)
    if weather != "clear" and weather != "fog":
        cover = 2 if weather == "rainbow" else 3
        _clouds(stage, cover, mix(light.cloud, veil, 0.5 if weather in ("rain", "snow") else 0.0))


def _stars(stage: Stage) -> None:
    def dots(pen: Pen) -> None:
        for _ in range(20):
            radius = stage.rng.choice((0.006, 0.008, 0.0115))
            pen.oval(stage.rng.random(), stage.rng.uniform(0.02, 0.46), radius, radius, "ink")
    stage.canvas.lay(stage.canvas.drawn(dots), (255, 246, 208))


def _sun_or_moon(stage: Stage, x: float) -> None:
    canvas, night = stage.canvas, stage.sky == "night"
    y, radius = {"dawn": (0.50, 0.085), "day": (0.15, 0.075), "sunset": (0.53, 0.105), "night": (0.16, 0.075)}[stage.sky]
    colour: Colour = {"dawn": (255, 246, 214), "day": (255, 232, 120), "sunset": (255, 236, 150), "night": (250, 244, 214)}[stage.sky]
    canvas.lay(canvas.halo(x, y, radius * 2.6, radius * 2.6) * (0.35 if night else 0.55), colour)
    canvas.lay(canvas.drawn(lambda pen: pen.oval(x, y, radius, radius, "ink")), colour, edge=True)
    if night:
        for dx, dy, r in ((-0.28, -0.2, 0.24), (0.34, 0.26, 0.18), (-0.1, 0.45, 0.13)):
            canvas.lay(canvas.halo(x + dx * radius, y + dy * radius, r * radius, r * radius, 3) * 0.35, (206, 196, 170))


def _rainbow(stage: Stage, x: float) -> None:
    canvas = stage.canvas
    bands: tuple[Colour, ...] = ((236, 92, 92), (250, 160, 80), (252, 222, 100), (120, 200, 120), (100, 170, 235), (150, 120, 215))
    across = np.sqrt((canvas.x - (1 - x)) ** 2 + (canvas.y - 0.72) ** 2)
    for i, colour in enumerate(bands):
        canvas.lay(np.clip(1.3 - np.abs(across - (0.60 - 0.026 * i)) / 0.014, 0, 1) * 0.62, colour)


def _clouds(stage: Stage, number: int, colour: Colour) -> None:
    canvas, rng = stage.canvas, stage.rng
    start = rng.random()
    for i in range(number):
        x, y, scale = (start + i / number + rng.uniform(-0.06, 0.06)) % 1.0, rng.uniform(0.10, 0.34), rng.uniform(0.085, 0.13)

        def puffs(pen: Pen, x: float = x, y: float = y, scale: float = scale) -> None:
            for dx, dy, r in ((-1.0, 0.1, 0.55), (-0.4, -0.25, 0.75), (0.35, -0.1, 0.8), (1.05, 0.15, 0.5)):
                pen.oval(x + dx * scale, y + dy * scale, r * scale, r * scale * 0.85, "ink")
            pen.block(x - 1.5 * scale, y + 0.05 * scale, x + 1.5 * scale, y + 0.62 * scale, "ink", 0.28 * scale)
        alpha = canvas.drawn(puffs)
        base = mix(colour, LIGHTS[stage.sky].middle, 0.35)
        canvas.lay(alpha * 0.92, canvas.fall((y - scale * 0.6, colour), (y + scale * 0.6, base)), edge=True)


def weather_before(stage: Stage, weather: str) -> None:
    """What hangs in the air behind the things: a bank of fog, most of the rain and snow."""
    if weather == "fog":
        canvas = stage.canvas
        pale = mix(LIGHTS[stage.sky].low, (236, 238, 242), 0.25 if stage.sky == "night" else 0.6)
        for y, height, strength in ((0.54, 0.09, 0.66), (0.67, 0.035, 0.34)):
            canvas.lay(np.broadcast_to(np.exp(-((canvas.y - y) / height) ** 2) * strength, canvas.depth.shape), pale)
    _falling(stage, weather, across=6, down=7)


def weather_after(stage: Stage, weather: str) -> None:
    """The little rain or snow that falls before the things."""
    _falling(stage, weather, across=4, down=4)


def _falling(stage: Stage, weather: str, across: int, down: int) -> None:
    """Slanted strokes of rain or flakes of snow, one in each cell of a grid."""
    canvas, rng = stage.canvas, stage.rng
    cells = [((i + rng.random()) / across, (j + rng.random()) / down) for i in range(across) for j in range(down)]
    sizes = [rng.choice((0.008, 0.011, 0.014)) for _ in cells]

    def strokes(pen: Pen) -> None:
        for x, y in cells[::2] if down > 4 else cells[::3]:
            pen.stroke([(x, y), (x - 0.022, y + 0.075)], 0.011, "ink")

    def flakes(pen: Pen) -> None:
        for (x, y), radius in zip(cells, sizes, strict=True):
            pen.oval(x, y, radius, radius, "ink")
    if weather == "rain":
        canvas.lay(canvas.drawn(strokes) * 0.42, (214, 230, 250))
    if weather == "snow":
        canvas.lay(canvas.drawn(flakes) * 0.9, (250, 252, 255))


def _tufts(stage: Stage, colour: Colour, number: int, y0: float, shape: str) -> None:
    """Small marks on the ground that grow with nearness: grass, petals or pebbles."""
    rng = stage.rng

    def marks(pen: Pen) -> None:
        for _ in range(number):
            x, y = rng.random(), y0 + (0.99 - y0) * rng.random()
            size = 0.008 + 0.022 * (y - y0)
            if shape == "grass":
                for lean in (-1.2, 0, 1.2):
                    foot = x + lean * size
                    pen.shape([(foot - size * 0.5, y), (x + lean * size * 1.9, y - size * 2.4), (foot + size * 0.5, y)], "ink")
            else:
                pen.oval(x, y, size * (1.9 if shape == "pebbles" else 1.1), size, "ink")
    stage.canvas.lay(stage.canvas.drawn(marks), colour)


def _meadow(stage: Stage) -> None:
    rng = stage.rng
    stage.layer(waves(rng, 0.54, 0.035), stage.air((150, 206, 148), 0.35), stage.air((150, 206, 120), 0.2), 0.2, 0.75)
    stage.layer(waves(rng, HORIZON + 0.01, 0.018), stage.lit((186, 220, 112)), stage.lit((140, 196, 84)), 0.4)
    _tufts(stage, stage.lit((112, 176, 78)), 12, 0.68, "grass")
    for colour in ((255, 250, 240), (252, 214, 120), (246, 168, 190)):
        _tufts(stage, stage.lit(colour), 5, 0.68, "petals")


def _sea(stage: Stage) -> None:
    rng, canvas = stage.rng, stage.canvas
    stage.layer(lambda x: np.full_like(x, HORIZON - 0.01), stage.air((110, 204, 206), 0.3), stage.lit((48, 158, 176)), 0.35)
    for i, y in enumerate((0.66, 0.73, 0.81, 0.90)):
        near, phase = i / 3, rng.random()
        upper, lower = (canvas.below(_crest(y + thick, 0.008 + 0.010 * near, 9 - 3.5 * near, phase)) for thick in (0, 0.008 + 0.007 * near))
        canvas.lay((upper - lower) * 0.75, stage.air((206, 242, 238), 0.1), edge=i > 1)


def _crest(y: float, height: float, number: float, phase: float) -> Ridge:
    return lambda x: y + height * np.abs(np.sin(np.pi * (x * number + phase)))


def _desert(stage: Stage) -> None:
    rng = stage.rng
    stage.layer(waves(rng, 0.55, 0.05, 0.7), stage.air((240, 208, 156), 0.3), stage.lit((224, 178, 122)), 0.2, 0.75)
    cactus_x = rng.uniform(0.1, 0.9)

    def cactus(pen: Pen) -> None:
        pen.stroke([(cactus_x, 0.50), (cactus_x, 0.64)], 0.024, "ink")
        pen.stroke([(cactus_x - 0.035, 0.53), (cactus_x - 0.035, 0.575), (cactus_x, 0.585)], 0.016, "ink")
        pen.stroke([(cactus_x + 0.035, 0.51), (cactus_x + 0.035, 0.56), (cactus_x, 0.57)], 0.016, "ink")
    stage.canvas.lay(stage.canvas.drawn(cactus), stage.lit((150, 176, 124)), 0.3, edge=True)
    stage.layer(waves(rng, 0.64, 0.03, 0.8), stage.lit((252, 226, 172)), stage.lit((236, 196, 132)), 0.4)
    stage.layer(waves(rng, 0.87, 0.03, 0.6), stage.lit((250, 218, 158)), stage.lit((234, 190, 124)), 0.62)


def _snow(stage: Stage) -> None:
    rng = stage.rng
    stage.layer(waves(rng, 0.54, 0.035), stage.air((220, 232, 246), 0.25), stage.air((206, 222, 242), 0.15), 0.2, 0.75)

    def pines(pen: Pen) -> None:
        for _ in range(6):
            x, scale = rng.random(), rng.uniform(0.7, 1.1)
            for i in range(3):
                top = 0.47 + (0.60 - 0.47) * (1 - scale) + 0.035 * i * scale
                wide, high = 0.02 * (1.5 + i) * scale, 0.062 * scale
                pen.shape([(x, top), (x - wide, top + high), (x + wide, top + high)], "ink")
    stage.canvas.lay(stage.canvas.drawn(pines), stage.air((150, 184, 196), 0.2), 0.3, edge=True)
    stage.layer(waves(rng, HORIZON + 0.015, 0.02), stage.lit((246, 250, 255)), stage.lit((216, 230, 248)), 0.4)
    stage.layer(waves(rng, 0.86, 0.025, 0.6), stage.lit((250, 252, 255)), stage.lit((222, 234, 250)), 0.62)


def _forest(stage: Stage) -> None:
    rng = stage.rng
    for base, height, colour, haze, depth in ((0.44, 0.10, (110, 166, 140), 0.38, 0.15), (0.52, 0.10, (78, 140, 112), 0.14, 0.25)):
        tips = [(rng.uniform(-0.03, 0.03) + i / 8, rng.uniform(0.6, 1.25)) for i in range(10)]

        def wood(x: NDArray[np.float64], base: float = base, height: float = height,
                 tips: list[tuple[float, float]] = tips) -> NDArray[np.float64]:
            peaks = [base + 0.06 - height * tall * np.clip(1 - np.abs(x - at) / 0.085, 0, 1) for at, tall in tips]
            return np.min(peaks, axis=0)
        stage.layer(wood, stage.air(colour, haze), stage.air(mix(colour, (50, 96, 84), 0.4), haze), depth, 0.7)
    stage.layer(waves(rng, HORIZON + 0.03, 0.012), stage.lit((140, 158, 92)), stage.lit((96, 124, 66)), 0.4)
    _tufts(stage, stage.lit((78, 112, 58)), 14, 0.70, "grass")


def _mountains(stage: Stage) -> None:
    rng = stage.rng
    spread = rng.uniform(-0.05, 0.05)
    usual = ((0.06, 0.20), (0.36, 0.29), (0.66, 0.22), (0.94, 0.28))
    tops = [(spread + at + rng.uniform(-0.05, 0.05), tall * rng.uniform(0.9, 1.1)) for at, tall in usual]

    def peaks(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.min([HORIZON - tall + np.abs(x - at) * 1.15 for at, tall in tops], axis=0)
    body = stage.layer(peaks, stage.air((146, 152, 186), 0.2), stage.air((184, 190, 206), 0.3), 0.15, 0.7)
    caps = stage.canvas.below(lambda x: 0.135 + HORIZON - 0.24 + 0.018 * np.abs((x * 14) % 2 - 1))
    stage.canvas.lay(np.clip(body - caps, 0, 1), stage.air((250, 252, 255), 0.1))
    stage.layer(waves(rng, 0.57, 0.02), stage.air((150, 182, 160), 0.2), stage.lit((140, 172, 150)), 0.3, 0.7)
    stage.layer(waves(rng, 0.64, 0.015), stage.lit((188, 190, 184)), stage.lit((152, 154, 156)), 0.4)
    _tufts(stage, stage.lit((126, 128, 134)), 12, 0.70, "pebbles")


def _beach(stage: Stage) -> None:
    rng, canvas = stage.rng, stage.canvas
    stage.layer(lambda x: np.full_like(x, HORIZON - 0.05), stage.air((100, 196, 206), 0.25), stage.lit((70, 180, 196)), 0.25, 0.75)
    shore = waves(rng, 0.72, 0.018, 0.8)
    canvas.lay(canvas.below(lambda x: shore(x) - 0.022), stage.lit((240, 252, 250)), edge=True)
    stage.layer(shore, stage.lit((250, 226, 176)), stage.lit((240, 206, 148)), 0.45)
    _tufts(stage, stage.lit((255, 242, 224)), 8, 0.80, "petals")


def _lavender(stage: Stage) -> None:
    rng, canvas = stage.rng, stage.canvas
    stage.layer(waves(rng, 0.54, 0.03), stage.air((168, 200, 160), 0.35), stage.air((160, 190, 150), 0.2), 0.2, 0.7)
    alpha = stage.layer(waves(rng, HORIZON + 0.01, 0.012), stage.lit((214, 188, 236)), stage.lit((184, 148, 220)), 0.4)
    vanish, offset = rng.uniform(0.4, 0.6), rng.random()
    fan = (canvas.x - vanish) / (canvas.y - 0.52) * 1.3 + offset
    furrow = np.clip(np.abs((fan % 1) - 0.5) * 9 - 3.4, 0, 1).astype(np.float32) * alpha * np.clip((canvas.y - 0.62) * 6, 0, 1)
    canvas.lay(furrow * 0.75, stage.lit((150, 176, 128)))
    _tufts(stage, stage.lit((156, 112, 204)), 22, 0.66, "petals")


def _road(stage: Stage) -> None:
    rng = stage.rng
    stage.layer(waves(rng, 0.55, 0.025), stage.air((168, 204, 150), 0.35), stage.air((168, 204, 140), 0.2), 0.2, 0.75)
    stage.layer(waves(rng, HORIZON + 0.01, 0.012), stage.lit((186, 214, 132)), stage.lit((166, 200, 116)), 0.35, 0.8)
    stage.layer(lambda x: 0.695 + 0.006 * np.sin(3 * x), stage.lit((236, 232, 220)), stage.lit((226, 222, 214)), 0.5, 0.73)
    stage.layer(lambda x: 0.725 + 0.006 * np.sin(3 * x), stage.lit((164, 164, 178)), stage.lit((140, 140, 156)), 0.5)
    offset = rng.random() * 0.25

    def dashes(pen: Pen) -> None:
        for i in range(-1, 5):
            x = offset + i * 0.25
            pen.shape([(x, 0.855), (x + 0.13, 0.855), (x + 0.12, 0.885), (x - 0.01, 0.885)], "ink")
    stage.canvas.lay(stage.canvas.drawn(dashes), stage.lit((250, 246, 232)))


GROUNDS: Mapping[str, Callable[[Stage], None]] = MappingProxyType({
    "meadow": _meadow, "sea": _sea, "desert": _desert, "snow": _snow, "forest": _forest,
    "mountains": _mountains, "beach": _beach, "lavender": _lavender, "road": _road,
})
