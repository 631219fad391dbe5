"""Masks: pictures of mode L in which 255 is to be painted anew and 0 is kept."""
from __future__ import annotations

import math

import numpy
from PIL import Image, ImageChops, ImageFilter

Box = tuple[int, int, int, int]                             # left, top, right, bottom in pixels; right and bottom are outside
FILLS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))             # radius of the blur, how often it is laid over


def mask_of(image: Image.Image, *, binary: bool = True) -> Image.Image:
    """The mask in a picture: its alpha where it has one that is not full (binary: above the middle or not), else its greys."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        alpha = image.getchannel("A")
        return alpha.point(lambda level: 255 if level > 128 else 0) if binary else alpha
    return image.convert("L")


def inverted(mask: Image.Image) -> Image.Image:
    return ImageChops.invert(mask)


def blurred(mask: Image.Image, sigma_x: float, sigma_y: float) -> Image.Image:
    """Softened along x, then along y, each time rounded to 8 bits. Gaussians of 2 * int(2.5 * sigma + 0.5) + 1 taps; 0 = not at all.

    The border is mirrored without its own pixel repeated.
    """
    levels = numpy.asarray(mask, dtype=numpy.float64)
    for sigma, axis in ((sigma_x, 1), (sigma_y, 0)):
        if sigma > 0:
            levels = numpy.floor(_convolved(levels, taps(sigma), axis) + 0.5)
    return Image.fromarray(levels.clip(0, 255).astype(numpy.uint8))


def taps(sigma: float) -> numpy.ndarray:
    """The Gaussian's weights; their sum is 1."""
    reach = int(2.5 * sigma + 0.5)
    weights = numpy.exp(-0.5 * (numpy.arange(-reach, reach + 1) / sigma) ** 2)
    return weights / weights.sum()


def _convolved(levels: numpy.ndarray, weights: numpy.ndarray, axis: int) -> numpy.ndarray:
    reach, length = len(weights) // 2, levels.shape[axis]
    padded = numpy.pad(levels, [(reach, reach) if each == axis else (0, 0) for each in (0, 1)],
                       mode="reflect" if length > 1 else "edge")
    out = numpy.zeros_like(levels)
    for place, weight in enumerate(weights):
        out += weight * numpy.take(padded, range(place, place + length), axis=axis)
    return out


def crop_region(mask: Image.Image, padding: int) -> Box | None:
    """The box around all that is not black, `padding` pixels wider on each side as far as the picture goes; None for a black mask."""
    box = mask.getbbox()
    if box is None:
        return None
    return max(0, box[0] - padding), max(0, box[1] - padding), min(mask.width, box[2] + padding), min(mask.height, box[3] + padding)


def expanded(box: Box, shape: tuple[int, int], size: tuple[int, int]) -> Box:
    """The box grown along one side to the shape (width, height): about its middle, then moved into a picture of this size, then cut."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    if wide * shape[1] > shape[0] * high:
        top, bottom = _grown(top, bottom, int(wide * shape[1] / shape[0]), size[1])
    else:
        left, right = _grown(left, right, int(high * shape[0] / shape[1]), size[0])
    return left, top, right, bottom


def _grown(start: int, stop: int, length: int, end: int) -> tuple[int, int]:
    more = max(0, length - (stop - start))
    start, stop = start - more // 2, stop + more - more // 2
    start -= max(0, stop - end)
    stop = min(stop, end)
    if start < 0:
        start, stop = 0, min(stop - start, end)
    return start, stop


def doubled(mask: Image.Image) -> Image.Image:
    """Twice as bright, up to 255: where a whole picture is pasted back, the blur reaches half as far."""
    return mask.point(lambda level: min(255, 2 * level))


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The RGB picture with the colours around it spread into what the mask covers: wide blurs first, narrow ones over them."""
    clear = Image.new("RGBa", image.size)                   # premultiplied: what is transparent has no colour to spread
    clear.paste(image.convert("RGBA").convert("RGBa"), mask=inverted(mask))
    out = Image.new("RGBA", image.size)
    for radius, times in FILLS:
        layer = clear.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            out.alpha_composite(layer)
    return out.convert("RGB")


def latent_sized(mask: Image.Image, width: int, height: int, *, binary: bool = True) -> numpy.ndarray:
    """The mask in latent cells, (height, width) float32 in 0..1; binary: rounded, a half to the even side."""
    levels = numpy.asarray(mask.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), dtype=numpy.float32)[..., 0] / 255
    found: numpy.ndarray = numpy.around(levels) if binary else levels
    return found


def empty(mask: Image.Image) -> bool:
    return mask.getbbox() is None


def ring(mask: Image.Image, width: int) -> tuple[Image.Image, Image.Image]:
    """The bands of `width` pixels just inside and just outside the mask's border, as masks."""
    hard = mask.point(lambda level: 255 if level > 127 else 0)
    size = 2 * math.ceil(width) + 1
    wide, narrow = hard.filter(ImageFilter.MaxFilter(size)), hard.filter(ImageFilter.MinFilter(size))
    return ImageChops.subtract(hard, narrow), ImageChops.subtract(wide, hard)
