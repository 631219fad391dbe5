"""What a picture file says about itself, read without decoding a pixel; and its pixels, once their number is judged.

Only PNG, JPEG, WebP, GIF and AVIF are looked at, known by their first bytes. Broken text never costs the picture: it is left out
with a notice. No torch here.
"""
from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from PIL import Image, ImageOps, UnidentifiedImageError

from modules.core.errors import ImageMetaError
from modules.imaging import containers

MAX_FILE = 256 << 20                                        # bytes
MAX_PIXELS = 2**26                                          # that `pixels` decodes unless asked for more
PARAMETERS, RECORD = "parameters", "easel"
PACKED_RECORD = b"easel\0"                                  # before the zlib data of a record in EXIF
HOUSEKEEPING = frozenset({
    "parameters", "jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "exif", "loop", "background", "timestamp", "duration",
    "progressive", "progression", "icc_profile", "chromaticity", "photoshop", RECORD})
TEXT_TAGS = (0x010E, 0x010F, 0x0110, 0x0131)                # ImageDescription, Make, Model, Software: other programs write texts there


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """infotext: A1111's parameters text, "" = none. record: our JSON text, "" = none. items: the other text entries.

    width, height: pixels, as the header says. format: PNG, JPEG, WEBP, GIF or AVIF. notices: sentences about what was left out.
    """

    infotext: str = ""
    record: str = ""
    items: Mapping[str, str] = field(default_factory=dict)
    width: int = 0
    height: int = 0
    format: str = ""
    notices: tuple[str, ...] = ()


def read(source: bytes | Path) -> Metadata:
    """Whatever this picture file carries. Raises ImageMetaError when it is no picture of the five formats or too large a file."""
    data = _bytes(source)
    format = format_of(data)
    parts = _avif(data) if format == "AVIF" else READERS[format](data)
    if not parts.width or not parts.height:
        raise ImageMetaError(f"This {format} file breaks off before it says how large the picture is.")
    texts = dict(parts.texts)
    comment, record = _from_exif(parts, texts) if parts.exif else ("", "")
    infotext = comment or texts.get(PARAMETERS, "") or texts.get("comment", "")
    return Metadata(
        infotext=infotext, record=texts.get(RECORD, "") or record, width=parts.width, height=parts.height, format=format,
        items={key: text for key, text in texts.items() if key.lower() not in HOUSEKEEPING and key},
        notices=tuple(parts.notices))


def format_of(data: bytes) -> str:
    """PNG, JPEG, WEBP, GIF or AVIF, by the first bytes. Raises ImageMetaError for anything else."""
    if data.startswith(containers.PNG):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if data[4:8] == b"ftyp" and (data[8:12] in (b"avif", b"avis") or b"avif" in data[16:64]):
        return "AVIF"
    raise ImageMetaError("This is no picture that can be read; PNG, JPEG, WebP, GIF and AVIF can.")


def pixels(source: bytes | Path, most_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame, upright, RGB or RGBA where it has transparency.

    The size is judged from the header: raises ImageMetaError when it has more than `most_pixels`, and for a file that cannot be decoded.
    """
    data = _bytes(source)
    found = read(data)
    if found.width * found.height > most_pixels:
        raise ImageMetaError(f"The picture has {found.width} × {found.height} pixels, more than {most_pixels}; make it smaller first.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                 # of bombs: judged above
            clean = containers.without_text(data) if found.format == "PNG" else data
            with Image.open(io.BytesIO(clean), formats=(found.format,)) as image:
                if image.width * image.height > most_pixels:
                    raise ImageMetaError(f"The picture has more than {most_pixels} pixels; make it smaller first.")
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I"):            # 16 bits a pixel, which a plain conversion would cut off at 255
                    upright = upright.convert("I").point(lambda level: level * (1 / 256)).convert("L")
                return upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError, struct.error,
            zlib.error, Image.DecompressionBombError) as error:
        raise ImageMetaError(f"The pixels of this {found.format} file cannot be decoded; it is damaged.") from error


def frames(file: bytes) -> int:
    """How many pictures the file holds; 1 where that cannot be said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(file), formats=("PNG", "GIF", "WEBP", "AVIF")) as image:
                return int(getattr(image, "n_frames", 1))
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, RuntimeError, struct.error, zlib.error,
            Image.DecompressionBombError):
        return 1


def pixels_sha256(image: Image.Image) -> str:
    """SHA-256 of the size and the raw RGB values, the same in every file format that loses nothing."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha256(f"RGB {rgb.width}x{rgb.height}\n".encode())
    digest.update(rgb.tobytes())
    return digest.hexdigest()


# ---- the texts of EXIF

def user_comment(text: str) -> bytes:
    """EXIF UserComment of a text: its character code, then UTF-16, big-endian without a mark. Half characters become U+FFFD."""
    return b"UNICODE\0" + text.encode("utf-16-be", "surrogatepass").decode("utf-16-be", "replace").encode("utf-16-be")


def comment_text(data: bytes) -> str:
    """The text of a UserComment, whatever program wrote it: either byte order after UNICODE, or UTF-8 after anything."""
    code, body = data[:8], data[8:]
    if code == b"UNICODE\0":
        if body[:2] in (b"\xfe\xff", b"\xff\xfe"):
            return body.decode("utf-16", "replace").rstrip("\0")
        if b"Steps: " in body and 0 not in body:
            return body.decode("utf-8", "replace")          # some programs write plain text after this code
        little = body[1::2].count(0) > body[0::2].count(0)  # the high byte of a Latin letter is zero
        return body.decode("utf-16-le" if little else "utf-16-be", "replace").rstrip("\0")
    if code in (b"ASCII\0\0\0", b"\0" * 8, b"JIS\0\0\0\0\0"):
        return body.decode("shift_jis" if code.startswith(b"JIS") else "utf-8", "ignore").strip("\0")
    return data.decode("utf-8", "ignore").strip("\0")


def _from_exif(parts: containers.Parts, texts: dict[str, str]) -> tuple[str, str]:
    """(UserComment, record) of the EXIF block; other programs' texts go into `texts`."""
    try:
        tags = containers.exif(parts.exif)
    except ImageMetaError as error:
        parts.notices.append(str(error))
        return "", ""
    for tag in TEXT_TAGS:
        key, separator, text = tags.get(tag, b"").decode("utf-8", "replace").rstrip("\0").partition(":")
        if separator and key in ("prompt", "workflow") and len(text) <= containers.MAX_TEXT:
            texts.setdefault(key, text)
    return comment_text(tags.get(containers.USER_COMMENT, b"")), _record_of(tags.get(containers.MAKER_NOTE, b""))


def _record_of(note: bytes) -> str:
    if not note.startswith(PACKED_RECORD):
        return ""
    text = containers.unpacked(note[len(PACKED_RECORD):])
    return (text or b"").decode("utf-8", "replace")


# ---- files

def _bytes(source: bytes | Path) -> bytes:
    if isinstance(source, bytes):
        if len(source) > MAX_FILE:
            raise ImageMetaError(f"The file is larger than {MAX_FILE} bytes and is not read.")
        return source
    try:
        if not source.is_file():
            raise ImageMetaError(f"{source.name} is no file.")
        if source.stat().st_size > MAX_FILE:
            raise ImageMetaError(f"{source.name} is larger than {MAX_FILE} bytes and is not read.")
        return source.read_bytes()
    except (OSError, ValueError) as error:                  # ValueError: a NUL in the name
        raise ImageMetaError(f"{source.name} cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _avif(data: bytes) -> containers.Parts:
    """AVIF through Pillow, which reads its boxes without decoding the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=("AVIF",)) as image:
                block = image.info.get("exif", b"")
                return containers.Parts(width=image.width, height=image.height, exif=bytes(block).removeprefix(b"Exif\0\0"))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, TypeError, RuntimeError) as error:
        raise ImageMetaError("This AVIF file cannot be read.") from error


READERS = MappingProxyType({"PNG": containers.png, "JPEG": containers.jpeg, "WEBP": containers.webp, "GIF": containers.gif})
