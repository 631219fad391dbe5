"""Colours and transparency of pictures."""
from __future__ import annotations

from PIL import Image


def on_colour(image: Image.Image, colour: str = "#ffffff") -> Image.Image:
    """The picture in RGB; where it is transparent, `colour` (CSS notation) shows through."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), layer).convert("RGB")
