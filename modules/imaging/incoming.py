"""Pictures that come in: read, set upright, and brought into one form, so that equal pixels have one name whatever file they came in."""
from __future__ import annotations

import hashlib
import io
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


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
