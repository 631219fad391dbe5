"""Storybook scenes with known truth: what is in a picture is chosen first and drawn then, so captions cannot lie.

    layout = draw_layout(random.Random(seed))
    scene = draw(layout, 128)                               # image, masks, edges, depth

A picture depends on its layout alone, and is the same picture at every size.
"""
from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageFilter

from modules.core.errors import RequestError
from modules.demo import drawing_land as land
from modules.demo.drawing import OVER, Canvas, Colour, Field, Pen, mix, rim, times
from modules.demo.drawing_things import ACCENTS, THINGS, TONES, tones

SKIES = tuple(land.LIGHTS)
WEATHERS = ("clear", "cloudy", "rain", "snow", "fog", "rainbow")
GROUNDS = tuple(land.GROUNDS)
KINDS = tuple(THINGS)
SIZES = ("small", "big")
PLACES = ("left", "middle", "right")
STYLES = ("plain", "paper", "watercolour", "pastel", "ink")
COLOURS: Mapping[str, Colour] = MappingProxyType({
    "red": (216, 44, 50), "orange": (244, 126, 28), "yellow": (252, 208, 44), "green": (36, 136, 72), "blue": (40, 88, 204),
    "purple": (124, 54, 176), "pink": (246, 118, 176), "white": (252, 251, 250), "black": (44, 41, 50), "brown": (126, 74, 42),
})
GROUNDS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "house": ("meadow", "desert", "snow", "forest", "mountains", "beach", "lavender", "road"),
    "tree": ("meadow", "snow", "mountains", "beach", "lavender", "road"),
    "boat": ("sea",), "fish": ("sea",), "duck": ("sea",),
    "car": ("meadow", "desert", "snow", "beach", "road"),
    "cat": ("meadow", "desert", "snow", "forest", "mountains", "beach", "lavender", "road"),
    "dog": ("meadow", "desert", "snow", "forest", "mountains", "beach", "lavender", "road"),
    "bird": GROUNDS, "balloon": GROUNDS, "star": GROUNDS,
    "kite": ("meadow", "sea", "desert", "snow", "mountains", "beach", "lavender", "road"),
    "butterfly": ("meadow", "forest", "mountains", "beach", "lavender", "road"),
    "flower": ("meadow", "desert", "forest", "mountains", "lavender", "road"),
    "castle": ("meadow", "desert", "snow", "forest", "mountains", "beach", "lavender"),
    "mushroom": ("meadow", "snow", "forest", "mountains", "lavender", "road"),
    "lighthouse": ("sea", "beach", "mountains", "snow", "meadow"),
})
EXTENT: Mapping[str, float] = MappingProxyType({"small": 0.29, "big": 0.45})       # of a thing of width 1, part of the picture
CENTRE: Mapping[str, float] = MappingProxyType({"left": 0.22, "middle": 0.5, "right": 0.78})
HELD_OUT = 10                                               # one combination in so many is never trained on


@dataclass(frozen=True)
class Object:
    """One thing of a scene; the values are from KINDS, COLOURS, SIZES and PLACES."""

    kind: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True)
class Layout:
    """All that determines a picture. `seed` moves clouds, hills and textures and states nothing a caption could say."""

    sky: str
    weather: str
    ground: str
    objects: tuple[Object, ...]
    style: str
    seed: int


@dataclass(frozen=True)
class Scene:
    """A picture and the truth about it. All images are size x size: image RGB, the others L.

    masks: one for each object of the layout, 255 inside; edges: 255 on outlines; depth: 255 near, 0 the sky.
    """

    image: Image.Image
    masks: tuple[Image.Image, ...]
    edges: Image.Image
    depth: Image.Image
    layout: Layout


def draw_layout(rng: random.Random) -> Layout:
    """A sensible layout: boats on water, birds in the air, colours that stand out from what is behind them. Kinds are equally likely."""
    while True:
        first = rng.choice(KINDS)
        ground = rng.choice(GROUNDS_OF[first])
        kinds = [first]
        if rng.random() < 0.4:
            kinds.append(rng.choice([kind for kind in KINDS if kind != first and ground in GROUNDS_OF[kind]]))
        sizes = [rng.choice(SIZES) for _ in kinds]
        places = rng.sample(PLACES, len(kinds))
        colours = [rng.choice(tuple(COLOURS)) for _ in kinds]
        objects = tuple(Object(*parts) for parts in zip(kinds, colours, sizes, places, strict=True))
        sky = rng.choice(SKIES)
        weather = rng.choice(("clear", "clear", *WEATHERS))
        layout = Layout(sky, weather, ground, objects, rng.choice(("plain", *STYLES)), rng.randrange(2 ** 32))
        if sensible(layout):
            return layout


def sensible(layout: Layout) -> bool:
    """Whether a storybook would show it: each kind where it lives, none over another, each colour visible."""
    if not 1 <= len(layout.objects) <= 2 or any(layout.ground not in GROUNDS_OF[thing.kind] for thing in layout.objects):
        return False
    if layout.weather == "rainbow" and layout.sky not in ("day", "dawn"):
        return False
    if any((thing.kind, layout.sky) in (("star", "day"), ("butterfly", "night")) for thing in layout.objects):
        return False
    if len(layout.objects) == 2:
        one, two = layout.objects
        if one.kind == two.kind or one.colour == two.colour or one.place == two.place:
            return False
        if "middle" in (one.place, two.place) and "big" in (one.size, two.size):
            return False
    return all(_visible(thing, layout) for thing in layout.objects)


def _visible(thing: Object, layout: Layout) -> bool:
    """Whether the colour differs from sky, clouds and ground behind the thing."""
    air = THINGS[thing.kind].lives == "air"
    if thing.colour == "white" and layout.sky != "night":
        pale = layout.weather not in ("clear", "rain") or layout.style in ("pastel", "watercolour")
        return not pale and (layout.sky == "sunset" if air else layout.ground not in ("snow", "beach"))
    clash = {("orange", "sunset"), ("pink", "dawn"), ("blue", "night"), ("black", "night"), ("pink", "sunset")}
    return not (air and (thing.colour, layout.sky) in clash)


def held_out(layout: Layout) -> bool:
    """Whether the layout shows a combination of kind, colour, ground and sky that is kept out of training for ever."""
    return any(_draw_lots(thing.kind, thing.colour, layout.ground, layout.sky) for thing in layout.objects)


def _draw_lots(*words: str) -> bool:
    return int.from_bytes(hashlib.sha256(" ".join(words).encode()).digest()[:4], "big") % HELD_OUT == 0


def training_layout(rng: random.Random) -> Layout:
    """A layout that may be trained on."""
    while held_out(layout := draw_layout(rng)):
        pass
    return layout


def unseen_layout(rng: random.Random) -> Layout:
    """A layout with a combination that is never trained on."""
    while not held_out(layout := draw_layout(rng)):
        pass
    return layout


def toned(colour: Colour, style: str) -> Colour:
    """How a style changes a colour: watercolour and pastel are paler."""
    share = {"watercolour": 0.16, "pastel": 0.26}.get(style, 0.0)
    return mix(colour, (250, 242, 240), share)


def box_of(thing: Object) -> tuple[float, float, float, float]:
    """left, top, width, height of the thing, parts of the picture."""
    drawn, extent = THINGS[thing.kind], EXTENT[thing.size]
    width, height = extent * drawn.width, extent * drawn.height
    if drawn.lives == "air":
        bottom = (0.27 if thing.size == "big" else 0.24) + height / 2
    else:
        bottom = 0.92 if thing.size == "big" else 0.82
    left = min(max(CENTRE[thing.place] - width / 2, 0.015), 0.985 - width)
    return left, bottom - height, width, height


def draw(layout: Layout, size: int) -> Scene:
    """The scene at size x size pixels. Raises RequestError for a size under 16 or a name that is not in the tables above."""
    _check(layout, size)
    canvas, rng = Canvas(size), random.Random(layout.seed)
    stage = land.Stage(canvas, rng, layout.sky, layout.style)
    free = [place for place in PLACES if place not in {thing.place for thing in layout.objects}]
    sun_x = CENTRE[rng.choice(free)] + rng.uniform(-0.05, 0.05)
    land.sky(stage, layout.weather, sun_x, layout.seed)
    land.GROUNDS[layout.ground](stage)
    land.weather_before(stage, layout.weather)
    masks = [_draw_object(stage, thing, facing_left(thing, layout.seed)) for thing in layout.objects]
    land.weather_after(stage, layout.weather)
    _finish(canvas, layout)
    pixels = np.clip(canvas.pixels + 0.5, 0, 255).astype(np.uint8)
    return Scene(Image.fromarray(pixels), tuple(_grey(mask) for mask in masks), _grey((canvas.edges > 0.3).astype(np.float32)),
                 _grey(np.clip(canvas.depth, 0, 1)), layout)


def facing_left(thing: Object, seed: int) -> bool:
    """Things look into the picture; in the middle the seed decides."""
    return thing.place == "right" or (thing.place == "middle" and seed % 2 == 1)


def _check(layout: Layout, size: int) -> None:
    if size < 16:
        raise RequestError(f"A scene of {size} pixels is too small; ask for 16 or more.", "size")
    tables = [(layout.sky, SKIES), (layout.weather, WEATHERS), (layout.ground, GROUNDS), (layout.style, STYLES)]
    for thing in layout.objects:
        tables += [(thing.kind, KINDS), (thing.colour, tuple(COLOURS)), (thing.size, SIZES), (thing.place, PLACES)]
    for word, table in tables:
        if word not in table:
            raise RequestError(f"A scene cannot show “{word}”; use one of: {', '.join(table)}.", "layout")
    if not 0 <= len(layout.objects) <= 2:
        raise RequestError(f"A scene of {len(layout.objects)} objects has no room; use at most two.", "layout")


def _grey(field: Field) -> Image.Image:
    return Image.fromarray((field * 255 + 0.5).astype(np.uint8))


def silhouette(thing: Object, flip: bool, size: int, paints: Mapping[str, object]) -> Image.Image:
    """The thing alone at its place in a picture of size x size, antialiased, mode L: each part in the grey its paint names."""
    image = Image.new("L", (size * OVER, size * OVER))
    left, top, width, height = (part * size * OVER for part in box_of(thing))
    THINGS[thing.kind].draw(Pen(image, (left, top, width, height), paints, flip))
    return image.reduce(OVER)


def _draw_object(stage: land.Stage, thing: Object, flip: bool) -> Field:
    """Draw the thing with its shadow. Returns its mask (S, S), 0..1."""
    canvas, drawn = stage.canvas, THINGS[thing.kind]
    light = land.LIGHTS[stage.sky].on_things
    paints = {**{name: times(colour, light) for name, colour in ACCENTS.items()}, **tones(times(COLOURS[thing.colour], light))}
    if stage.sky == "night":
        paints["glass"] = paints["gold"] = (255, 222, 120)
    whole = dict.fromkeys((*TONES, *ACCENTS), 255)
    alpha = np.asarray(silhouette(thing, flip, canvas.size, whole), np.float32) / 255
    left, top, width, height = box_of(thing)
    _shadow(stage, thing, alpha)
    around = (paints["body"][0], paints["body"][1], paints["body"][2])
    image = Image.new("RGB", (canvas.size * OVER, canvas.size * OVER), tuple(round(v) for v in around))   # type: ignore[arg-type]
    box = tuple(part * canvas.size * OVER for part in (left, top, width, height))
    drawn.draw(Pen(image, box, {name: tuple(round(v) for v in colour) for name, colour in paints.items()}, flip))   # type: ignore[arg-type]
    colours = np.asarray(image.reduce(OVER), np.float32)
    roundness = 1.05 - 0.13 * np.clip((canvas.y - top) / height, 0, 1) - 0.05 * np.clip((canvas.x - left) / width, 0, 1)
    if stage.style in ("paper", "ink"):
        wide = _grown(alpha, 0.011 if stage.style == "paper" else 0.012)
        canvas.lay(wide, times(land.PAPER, light) if stage.style == "paper" else land.INK)
    foot = min(1.0, 0.46 + 0.5 * (top + height - land.HORIZON)) if drawn.lives != "air" else 0.5
    canvas.lay(alpha, np.clip(colours * roundness[..., None], 0, 255), foot, edge=True)
    inside = rim(colours @ np.array([0.3, 0.59, 0.11], np.float32) / 255) * alpha
    canvas.edges = np.maximum(canvas.edges, np.clip(inside * 2.5, 0, 1))
    if drawn.lives == "water":
        _foam(stage, left, top + height, width)
    return alpha


def _grown(alpha: Field, by: float) -> Field:
    """The mask made wider by a part of the picture's size."""
    image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(by * alpha.shape[0]))
    return np.clip(np.asarray(image, np.float32) / 255 * 7 - 0.7, 0, 1)


def _shadow(stage: land.Stage, thing: Object, alpha: Field) -> None:
    canvas = stage.canvas
    left, top, width, height = box_of(thing)
    lives = THINGS[thing.kind].lives
    dark: Colour = (34, 34, 70)
    if lives == "land":
        canvas.lay(canvas.halo(left + width * 0.5, top + height * 0.985, width * 0.52, 0.028, 1.6) * 0.42, dark)
    elif lives == "water":
        canvas.lay(canvas.halo(left + width * 0.5, top + height, width * 0.5, 0.03, 1.6) * 0.35, (20, 60, 90))
    if stage.style == "paper":
        shift = max(1, round(canvas.size * 0.018))
        moved = np.roll(_grown(alpha, 0.014), (shift, shift), (0, 1))
        canvas.lay(moved * 0.28, (40, 34, 60))


def _foam(stage: land.Stage, left: float, bottom: float, width: float) -> None:
    """Pale ripples where a thing meets the water."""
    def ripples(pen: Pen) -> None:
        for x, w in ((0.22, 0.20), (0.5, 0.26), (0.78, 0.20)):
            pen.oval(left + width * x, bottom - 0.002, width * w, 0.013, "ink")
    stage.canvas.lay(stage.canvas.drawn(ripples) * 0.9, stage.air((226, 248, 246), 0.05))


def _finish(canvas: Canvas, layout: Layout) -> None:
    """What a style does to the whole sheet: paler colours, paper that shows, the grain of chalk."""
    ones = np.ones_like(canvas.depth)
    share = {"watercolour": 0.16, "pastel": 0.26}.get(layout.style, 0.0)
    if share:
        canvas.lay(ones * share, (250, 242, 240))
    if layout.style == "watercolour":
        cloth = canvas.cloth(9, layout.seed + 1)
        canvas.pixels += 4 * cloth[..., None]
        distance = np.minimum(np.minimum(canvas.x, 1 - canvas.x), np.minimum(canvas.y, 1 - canvas.y))
        distance = distance + 0.007 * canvas.cloth(12, layout.seed + 2)
        canvas.lay(np.clip(1 - (distance - 0.012) / 0.022, 0, 1) * 0.9, land.PAPER)
    if layout.style == "pastel":
        canvas.pixels += 2.5 * canvas.cloth(16, layout.seed + 3)[..., None]
