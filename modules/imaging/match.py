"""One picture given the colours of another."""
from __future__ import annotations

import numpy
from PIL import Image

TO_XYZ = numpy.array(((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041)))
WHITE = TO_XYZ.sum(1)                                       # D65
EPSILON = (6 / 29) ** 3
LUMINOSITY = numpy.array((0.3, 0.59, 0.11))


def matched(image: Image.Image, reference: Image.Image) -> Image.Image:
    """The RGB picture with the colours of the reference and its own lightness.

    Each channel of CIE Lab takes the reference's histogram; then hue and saturation of that picture stay and the lightness is the first
    one's, blended as W3C's "Compositing and Blending Level 1" defines `luminosity`.
    """
    own, wanted = (_lab(_levels(one)) for one in (image, reference))
    moved = numpy.stack([_histogram_matched(own[..., channel], wanted[..., channel]) for channel in range(3)], axis=-1)
    blended = _with_luminosity(_rgb(moved), _levels(image) @ LUMINOSITY)
    return Image.fromarray(numpy.floor(blended.clip(0, 1) * 255 + 0.5).astype(numpy.uint8))


def _levels(image: Image.Image) -> numpy.ndarray:
    return numpy.asarray(image.convert("RGB"), dtype=numpy.float64) / 255


def _lab(rgb: numpy.ndarray) -> numpy.ndarray:
    """sRGB 0..1 (H, W, 3) -> CIE Lab of the D65 white."""
    linear = numpy.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / WHITE
    root = numpy.where(xyz > EPSILON, numpy.cbrt(xyz), (xyz / (3 * (6 / 29) ** 2)) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return numpy.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=-1)


def _rgb(lab: numpy.ndarray) -> numpy.ndarray:
    """CIE Lab -> sRGB, cut to 0..1."""
    y = (lab[..., 0] + 16) / 116
    root = numpy.stack((y + lab[..., 1] / 500, y, y - lab[..., 2] / 200), axis=-1)
    xyz = numpy.where(root > 6 / 29, root ** 3, 3 * (6 / 29) ** 2 * (root - 4 / 29)) * WHITE
    linear = (xyz @ numpy.linalg.inv(TO_XYZ).T).clip(0, 1)
    return numpy.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def _histogram_matched(values: numpy.ndarray, reference: numpy.ndarray) -> numpy.ndarray:
    """Each value replaced by the one that stands at its quantile in the reference."""
    _, places, counts = numpy.unique(values.round(4), return_inverse=True, return_counts=True)
    levels, wanted = numpy.unique(reference.round(4), return_counts=True)
    found = numpy.interp(numpy.cumsum(counts) / values.size, numpy.cumsum(wanted) / reference.size, levels)
    return found[places].reshape(values.shape)


def _with_luminosity(rgb: numpy.ndarray, luminosity: numpy.ndarray) -> numpy.ndarray:
    """The colours moved to this luminosity (H, W); where that leaves 0..1, drawn towards the grey of it."""
    moved = rgb + (luminosity - rgb @ LUMINOSITY)[..., None]
    grey, low, high = luminosity[..., None], moved.min(-1, keepdims=True), moved.max(-1, keepdims=True)
    with numpy.errstate(divide="ignore", invalid="ignore"):
        moved = numpy.where(low < 0, grey + (moved - grey) * grey / (grey - low), moved)
        moved = numpy.where(high > 1, grey + (moved - grey) * (1 - grey) / (high - grey), moved)
    return moved
