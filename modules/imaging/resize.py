"""A picture brought to another size: stretched, cut to fit, or fitted with its edges drawn out."""
from __future__ import annotations

from PIL import Image

STRETCH, COVER, CONTAIN, LATENT = 0, 1, 2, 3                # resize modes as A1111's API numbers them; LATENT is for latents
FILTER = Image.Resampling.LANCZOS


def fitted(image: Image.Image, width: int, height: int, mode: int = STRETCH) -> Image.Image:
    """The picture at width x height pixels, in its own mode (L, RGB ...); one that has this size already is given back.

    STRETCH gives it the new shape. COVER keeps its shape and cuts off what hangs over, the same on both sides. CONTAIN keeps all of it and
    fills the bands beside it with its outermost row or column.
    """
    if image.size == (width, height):
        return image
    if mode not in (COVER, CONTAIN):
        return image.resize((width, height), FILTER)
    inner = scaled(image.size, (width, height), cover=mode == COVER)
    small = image.resize(inner, FILTER)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    out = Image.new(image.mode, (width, height))
    out.paste(small, (left, top))
    if mode == CONTAIN:
        _fill_bands(out, small, left, top)
    return out


def scaled(size: tuple[int, int], target: tuple[int, int], *, cover: bool) -> tuple[int, int]:
    """The (width, height) in the shape of `size` that covers the target, or that lies inside it; at least 1 pixel."""
    (wide, high), (width, height) = size, target
    wider = width * high > wide * height                    # the target's shape is the wider one
    if wider == cover:
        return width, max(1, high * width // wide)
    return (width, height) if width * high == wide * height else (max(1, wide * height // high), height)


def _fill_bands(out: Image.Image, small: Image.Image, left: int, top: int) -> None:
    """Draw the edges of `small`, which lies in `out` at (left, top), out to the border."""
    wide, high = small.size
    if top > 0:
        out.paste(small.crop((0, 0, wide, 1)).resize((out.width, top)), (0, 0))
    if (below := out.height - top - high) > 0:
        out.paste(small.crop((0, high - 1, wide, high)).resize((out.width, below)), (0, top + high))
    if left > 0:
        out.paste(small.crop((0, 0, 1, high)).resize((left, out.height)), (0, 0))
    if (right := out.width - left - wide) > 0:
        out.paste(small.crop((wide - 1, 0, wide, high)).resize((right, out.height)), (left + wide, 0))
