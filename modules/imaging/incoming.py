"""Pictures that come in: read, set upright, and brought into one form, so that equal pixels have one name whatever file they came in."""
from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from modules.core.errors import ImageMetaError
from modules.imaging import metadata

LEAST_EDGE = 8                                              # pixels; less than a latent cell is no picture to begin from


@dataclass(frozen=True, kw_only=True, eq=False)
class Incoming:
    """image: RGB, or RGBA where something is transparent; upright, 8 bits. notices: sentences about what was left out."""

    image: Image.Image
    notices: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of mode, size and pixels."""
        digest = hashlib.sha256(f"{self.image.mode} {self.image.width}x{self.image.height}\n".encode())
        digest.update(self.image.tobytes())
        return digest.hexdigest()

    def png(self) -> bytes:
        """The pixels as a PNG without a word of what the file said beside them (a camera writes where it stood)."""
        out = io.BytesIO()
        self.image.save(out, "PNG", compress_level=1)
        return out.getvalue()


def read(file: bytes, what: str = "picture") -> Incoming:
    """A picture file as pixels; of a moving one the first frame, and a notice says so.

    what: how an error calls it. Raises ImageMetaError for what is no picture, is damaged or cut off, or has too many or too few pixels.
    """
    try:
        image = metadata.pixels(file)
    except ImageMetaError as error:
        raise ImageMetaError(f"The {what} cannot be used: {_lower(str(error))}") from error
    if min(image.size) < LEAST_EDGE:
        raise ImageMetaError(f"The {what} is {image.width} × {image.height} pixels; it must be at least {LEAST_EDGE} pixels wide and high.")
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    frames = metadata.frames(file)
    moving = (f"The {what} has {frames} frames; the first was taken.",) if frames > 1 else ()
    return Incoming(image=image, notices=moving)


def flat(layers: Sequence[Image.Image], size: tuple[int, int]) -> Image.Image | None:
    """Layers laid over each other at this size, RGBA, the first lowest; None when nothing is drawn on any."""
    out = Image.new("RGBA", size)
    for layer in layers:
        if layer.mode == "RGBA":                            # one without transparency is no drawing
            out.alpha_composite(layer if layer.size == size else layer.resize(size, Image.Resampling.BILINEAR))
    return out if out.getchannel("A").getbbox() else None


def over(found: Incoming, strokes: Image.Image) -> Incoming:
    """The picture with the strokes on it."""
    painted = Image.alpha_composite(found.image.convert("RGBA"), strokes)
    return Incoming(image=painted.convert("RGB") if found.image.mode == "RGB" else painted, notices=found.notices)


def drawn_on(strokes: Image.Image) -> Incoming:
    """White where anything is drawn, black elsewhere."""
    return Incoming(image=strokes.getchannel("A").point(lambda level: 255 if level else 0).convert("RGB"))


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
