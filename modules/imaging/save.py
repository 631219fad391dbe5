"""A picture as the bytes of its file, and a place for them on disk. The same picture and texts give the same bytes, always.

Pixels come first: a text that a format cannot hold is shortened or left out with a warning, and the picture is written all the same.
"""
from __future__ import annotations

import io
import logging
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import piexif
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from modules.core.errors import SaveError
from modules.core.files import create_exclusively
from modules.core.paths import clean_name, relative_components, safe_join
from modules.imaging import containers, metadata
from modules.imaging.color import on_colour
from modules.imaging.names import Naming, expand

log = logging.getLogger("easel.imaging")
PNG_LEVEL = 4                                               # of zlib: the file is as small as with 6, made as fast as with 1
MAX_SIDE = (("jpg", 65535), ("webp", 16383))                # pixels that the format can hold
MAX_JPEG_EXIF = 65533 - 6                                   # bytes of one segment, less the "Exif" mark
FORMATS = ("png", "jpg", "webp")
Warn = Callable[[str], object]


def encode(image: Image.Image, infotext: str = "", record: str = "", format: str = "png", *, quality: int = 80, lossless: bool = False,
           warn: Warn = log.warning) -> bytes:
    """The file of a picture. infotext: A1111's text; record: our JSON text; both may be empty.

    format: png, jpg (jpeg) or webp; what is too large for it becomes a PNG (`ending` tells). quality: 1..100 for jpg and lossy webp.
    warn gets a sentence when a text had to be changed or left out. Raises SaveError when the pixels themselves cannot be encoded.
    """
    kind = _kind(format, image, warn)
    try:
        if kind == "png":
            return _png(image, infotext, record, warn)
        options = {"format": "JPEG", "quality": quality} if kind == "jpg" else {"format": "WEBP", "quality": quality, "lossless": lossless}
        exif = exif_of(infotext, record, MAX_JPEG_EXIF if kind == "jpg" else containers.MAX_TEXT * 2, warn)
        picture = on_colour(image) if kind == "jpg" or image.mode not in ("RGB", "RGBA") else image
        return _written(picture, **options, **({"exif": exif} if exif else {}))
    except (OSError, ValueError, TypeError, KeyError, SystemError, MemoryError) as error:
        raise SaveError(f"The picture could not be encoded as {kind} ({error}); choose another image format.") from error


def ending(data: bytes) -> str:
    """png, jpg, webp ... as the bytes of a picture file say."""
    return {"JPEG": "jpg"}.get(found := metadata.format_of(data), found.lower())


def save(data: bytes, root: Path, naming: Naming, *, pattern: str = "", folders: str = "[date]", add_number: bool = True) -> Path:
    """Put a file under `root` and return its path; no existing file is ever touched.

    pattern: of the file name without ending ("" = `[seed]`, or `[seed]-[prompt_spaces]` where `folders` is ""); folders: of the folders
    below root, parted by /; add_number: `00001-` goes first, counted on from the highest in the folder (always without a pattern).
    Raises DiskFullError, SaveError or PathError.
    """
    *inner, name = relative_components(pattern) or (("[seed]" if folders else "[seed]-[prompt_spaces]"),)
    components = [clean_name(expand(part, naming)) for part in (*relative_components(folders), *inner)]
    folder = safe_join(root, *components) if components else root
    stem = clean_name(expand(name, naming), longest=200)
    suffix = ending(data)
    if add_number or not pattern:
        return create_exclusively(folder, lambda number: f"{number:05d}-{stem}.{suffix}", _next_number(folder), data)
    return create_exclusively(folder, lambda number: f"{stem}.{suffix}" if number == 0 else f"{stem}-{number}.{suffix}", 0, data)


def exif_of(infotext: str, record: str, most: int, warn: Warn = log.warning) -> bytes:
    """An EXIF block of at most so many bytes with the text as UserComment and the record, packed, as MakerNote; b"" for neither.

    What does not fit is left out: first the text (the record holds all that it says), then the record.
    """
    note = metadata.PACKED_RECORD + zlib.compress(_utf8(record), 9) if record else b""
    comment = metadata.user_comment(infotext) if infotext else b""
    tries = ((comment, note, ""), (b"", note, "The parameters text is"), (comment, b"", "The picture's record is"))
    for text, packed, lost in tries:
        tags = {piexif.ExifIFD.UserComment: text, piexif.ExifIFD.MakerNote: packed}
        tags = {tag: value for tag, value in tags.items() if value}
        block = piexif.dump({"Exif": tags}) if tags else b""
        if len(block) <= most and (block or not lost):
            if lost:
                warn(f"{lost} too long for this image format and was left out; the picture is complete. PNG can hold it.")
            return block
    warn("The texts are too long for this image format and were left out; the picture is complete. PNG can hold them.")
    return b""


def _kind(format: str, image: Image.Image, warn: Warn) -> str:
    kind = {"jpeg": "jpg"}.get(format.lower(), format.lower())
    if kind not in FORMATS:
        raise SaveError(f"Pictures cannot be saved as “{format[:20]}”; choose one of {', '.join(FORMATS)}.")
    most = dict(MAX_SIDE).get(kind)
    if most and max(image.size) > most:
        warn(f"A {kind} file cannot be more than {most} pixels wide or high; the picture was written as PNG.")
        return "png"
    return kind


def _png(image: Image.Image, infotext: str, record: str, warn: Warn) -> bytes:
    """tEXt where Latin-1 suffices, else iTXt, as other programs write `parameters`; the record always as iTXt."""
    info = PngInfo()
    if infotext:
        text = _utf8(infotext).decode("utf-8").replace("\0", "�")
        if text != infotext:
            warn("The parameters text held characters that no file can hold; they were replaced.")
        info.add_text(metadata.PARAMETERS, text)
    if len(_utf8(record)) > containers.MAX_TEXT:
        warn("The picture's record is too long and was left out; the picture is complete.")
    elif record:
        info.add_itxt(metadata.RECORD, _utf8(record).decode("utf-8"))
    return _written(image, format="PNG", pnginfo=info, compress_level=PNG_LEVEL)


def _written(image: Image.Image, **options: Any) -> bytes:
    plain = image.copy()
    plain.info = {}                                         # nothing rides along that was not asked for
    file = io.BytesIO()
    plain.save(file, **options)
    return file.getvalue()


def _utf8(text: str) -> bytes:
    """UTF-8 of any text; half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace")


def _next_number(folder: Path) -> int:
    """One more than the highest number that begins a name in this folder. A hint: the number is claimed by making the file."""
    highest = 0
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_file()]
    except OSError:
        return 1
    for name in names:
        digits = name.split("-", 1)[0]
        if digits.isascii() and digits.isdecimal() and 5 <= len(digits) <= 9:
            highest = max(highest, int(digits))
    return highest + 1
