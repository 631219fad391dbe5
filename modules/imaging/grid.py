"""Several pictures as one contact sheet."""
from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from modules.core.errors import RequestError

MAX_PIXELS = 200_000_000                                    # of the whole sheet


def shape(count: int, rows: int = -1) -> tuple[int, int]:
    """(columns, rows) for so many pictures. rows < 1: as square as they come, wider rather than higher."""
    if count < 1:
        raise RequestError("A grid needs at least one picture.")
    rows = min(rows, count) if rows > 0 else math.isqrt(count)
    return math.ceil(count / rows), rows


def grid(images: Sequence[Image.Image], rows: int = -1, background: str = "#ffffff", most_pixels: int = MAX_PIXELS) -> Image.Image:
    """The pictures in reading order, each centred in a cell of the largest size. Returns one RGB picture.

    Raises RequestError when there is no picture, or when the sheet would have more than `most_pixels`.
    """
    columns, rows = shape(len(images), rows)
    wide, high = max(image.width for image in images), max(image.height for image in images)
    if columns * wide * rows * high > most_pixels:
        raise RequestError(f"The grid would be {columns * wide} × {rows * high} pixels, more than {most_pixels}; ask for fewer pictures.")
    sheet = Image.new("RGB", (columns * wide, rows * high), background)
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        sheet.paste(image.convert("RGB"), (column * wide + (wide - image.width) // 2, row * high + (high - image.height) // 2))
    return sheet
