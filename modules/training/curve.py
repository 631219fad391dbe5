"""The losses of a run as a table and as a curve."""
from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

SIZE = (720, 360)                                           # pixels
LEFT, TOP, RIGHT, BOTTOM = 64, 16, 16, 32                   # margins in pixels
COLOURS = ("#2457a6", "#c0562b", "#3a8a4d")
LINES = 5                                                   # labelled levels
SMOOTH = 200                                                # points across; each is the mean of the losses that fall on it


def png(picture: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def table(history: Sequence[Sequence[float]], names: Sequence[str]) -> str:
    """Comma-separated lines: step, learning rate, the loss of each name (nan where there was none)."""
    rows = (",".join((f"{row[0]:.0f}", *(f"{value:.6g}" for value in row[1:]))) for row in history)
    return "\n".join((",".join(("step", "lr", *names)), *rows, ""))


def drawn(history: Sequence[Sequence[float]], names: Sequence[str]) -> Image.Image:
    """Losses over steps. history: rows of (step, learning rate, loss of each name); nan is left out. Logarithmic where all are positive."""
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    lines = [_means([(row[0], row[2 + place]) for row in history]) for place in range(len(names))]
    values = [value for line in lines for _, value in line]
    if not values:
        draw.text((LEFT, TOP), "no loss yet", "black")
        return picture
    scale = math.log10 if min(values) > 0 else float
    low, high = scale(min(values)), scale(max(values))
    span, last = (high - low) or 1.0, max(line[-1][0] for line in lines if line)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place_of(step: float, value: float) -> tuple[float, float]:
        return LEFT + width * step / max(last, 1), TOP + height * (1 - (scale(value) - low) / span)

    for number in range(LINES):
        level = low + span * number / (LINES - 1)
        y = TOP + height * (1 - number / (LINES - 1))
        draw.line((LEFT, y, LEFT + width, y), "#dddddd")
        draw.text((4, y - 6), f"{10 ** level if scale is math.log10 else level:.4g}", "black")
    draw.text((LEFT, SIZE[1] - BOTTOM + 8), "step 0", "black")
    draw.text((SIZE[0] - RIGHT - 72, SIZE[1] - BOTTOM + 8), f"step {last:.0f}", "black")
    for number, (name, line) in enumerate(zip(names, lines, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        points = [place_of(*point) for point in line]
        draw.line(points, colour, 2) if len(points) > 1 else draw.point(points, colour)
        draw.text((SIZE[0] - RIGHT - 120, TOP + 14 * number), name, colour)
    return picture


def _means(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most SMOOTH points: means of neighbours."""
    good = [(step, value) for step, value in points if math.isfinite(value)]
    size = max(1, math.ceil(len(good) / SMOOTH))
    chunks = (good[first:first + size] for first in range(0, len(good), size))
    return [(chunk[-1][0], sum(value for _, value in chunk) / len(chunk)) for chunk in chunks]
