"""Picture files taken apart without decoding a pixel: size, text entries and EXIF of PNG, JPEG, WebP and GIF.

Every reader walks the file's own blocks once, believes no length that reaches beyond the file, and caps what it unpacks.
"""
from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from modules.core.errors import ImageMetaError

PNG = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 2_500_000                                        # bytes of one text entry, unpacked
MAX_ALL_TEXT = 8_000_000                                    # bytes of all text entries of a file
MAX_BLOCKS = 100_000                                        # chunks or segments that are walked
EXIF_POINTER, USER_COMMENT, MAKER_NOTE = 0x8769, 0x9286, 0x927C


@dataclass
class Parts:
    """What the blocks of a file say. texts: keyword -> text; exif: TIFF bytes without prefix; notices: what was left out, and why."""

    width: int = 0
    height: int = 0
    texts: dict[str, str] = field(default_factory=dict)
    exif: bytes = b""
    notices: list[str] = field(default_factory=list)
    taken: int = 0

    def add(self, keyword: str, text: bytes | None, encoding: str) -> None:
        """Keep one text entry; None = it was too long to unpack."""
        if text is None or len(text) > MAX_TEXT or self.taken + len(text) > MAX_ALL_TEXT:
            self.notices.append(f"The text “{keyword[:40]}” is longer than {MAX_TEXT} bytes and was left out.")
            return
        self.taken += len(text)
        self.texts[keyword] = text.decode(encoding, "replace")


# ---- PNG

def png(data: bytes) -> Parts:
    """Chunks of a PNG, those after the pixels included. A file that breaks off gives what came before, if its header is whole."""
    parts = Parts()
    for kind, body in _chunks(data):
        if kind == b"IHDR" and len(body) >= 8:
            parts.width, parts.height = struct.unpack(">II", body[:8])
        elif kind == b"tEXt":
            keyword, _, text = body.partition(b"\0")
            parts.add(_latin(keyword), text, "latin-1")
        elif kind == b"zTXt":
            keyword, _, text = body.partition(b"\0")
            parts.add(_latin(keyword), unpacked(text[1:]), "latin-1")
        elif kind == b"iTXt":
            _international(body, parts)
        elif kind == b"eXIf":
            parts.exif = body
    return parts


def without_text(data: bytes) -> bytes:
    """A PNG without its text chunks, so that no decoder unpacks them."""
    kept = [PNG]
    place = len(PNG)
    for kind, body in _chunks(data):
        end = place + 12 + len(body)
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(PNG)
    for _ in range(MAX_BLOCKS):
        if place + 8 > len(data):
            return
        length, = struct.unpack(">I", data[place:place + 4])
        if length > len(data) - place - 8:
            return
        yield data[place + 4:place + 8], data[place + 8:place + 8 + length]
        place += 12 + length


def _international(body: bytes, parts: Parts) -> None:
    keyword, _, rest = body.partition(b"\0")
    if len(rest) < 2:
        return
    packed = rest[0] == 1
    pieces = rest[2:].split(b"\0", 2)                        # language, translated keyword, text
    if len(pieces) == 3:
        parts.add(_latin(keyword), unpacked(pieces[2]) if packed else pieces[2], "utf-8")


def _latin(keyword: bytes) -> str:
    return keyword[:79].decode("latin-1")


def unpacked(data: bytes) -> bytes | None:
    """zlib data, None beyond MAX_TEXT. What is no zlib data is empty."""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, MAX_TEXT + 1)
    except zlib.error:
        return b""
    return None if len(text) > MAX_TEXT else text


# ---- JPEG

def jpeg(data: bytes) -> Parts:
    """Segments of a JPEG up to its pixels: size, the first EXIF block, comments."""
    parts = Parts()
    place = 2
    for _ in range(MAX_BLOCKS):
        if place + 4 > len(data) or data[place] != 0xFF:
            break
        marker = data[place + 1]
        if marker == 0xFF:                                  # fill byte
            place += 1
            continue
        if marker in (0x01, *range(0xD0, 0xD9)):            # markers without a length
            place += 2
            continue
        length, = struct.unpack(">H", data[place + 2:place + 4])
        body = data[place + 4:place + 2 + length]
        if marker in (0xD9, 0xDA) or length < 2:
            break
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 5:
            parts.height, parts.width = struct.unpack(">HH", body[1:5])
        elif marker == 0xE1 and body.startswith(b"Exif\0\0") and not parts.exif:
            parts.exif = body[6:]
        elif marker == 0xFE:
            parts.add("comment", body.rstrip(b"\0"), "utf-8")
        place += 2 + length
    return parts


# ---- WebP

def webp(data: bytes) -> Parts:
    """Chunks of a RIFF WebP: size and EXIF."""
    parts = Parts()
    place = 12
    for _ in range(MAX_BLOCKS):
        if place + 8 > len(data):
            break
        kind, length = data[place:place + 4], struct.unpack("<I", data[place + 4:place + 8])[0]
        body = data[place + 8:place + 8 + min(length, 16)] if kind != b"EXIF" else data[place + 8:place + 8 + length]
        if kind == b"VP8X" and len(body) >= 10:
            parts.width, parts.height = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif kind == b"VP8 " and len(body) >= 10 and not parts.width:
            parts.width, parts.height = (side & 0x3FFF for side in struct.unpack("<HH", body[6:10]))
        elif kind == b"VP8L" and len(body) >= 5 and not parts.width:
            bits = int.from_bytes(body[1:5], "little")
            parts.width, parts.height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"EXIF":
            parts.exif = body.removeprefix(b"Exif\0\0")
        place += 8 + length + (length & 1)
    return parts


# ---- GIF

def gif(data: bytes) -> Parts:
    """Size and comments of a GIF; frames are stepped over."""
    parts = Parts()
    if len(data) < 13:
        return parts
    parts.width, parts.height = struct.unpack("<HH", data[6:10])
    place = 13 + _colour_table(data[10])
    comment = b""
    for _ in range(MAX_BLOCKS):
        kind = data[place:place + 1]
        if kind == b"!" and data[place + 1:place + 2] == b"\xfe":
            text, place = _sub_blocks(data, place + 2)
            comment = (comment + text)[:MAX_TEXT + 1]
        elif kind == b"!":
            _, place = _sub_blocks(data, place + 2, keep=False)
        elif kind == b"," and place + 10 < len(data):
            _, place = _sub_blocks(data, place + 11 + _colour_table(data[place + 9]), keep=False)
        else:
            break
    if comment:
        parts.add("comment", comment, "utf-8")
    return parts


def _colour_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks(data: bytes, place: int, *, keep: bool = True) -> tuple[bytes, int]:
    pieces = []
    while place < len(data) and data[place]:
        if keep:
            pieces.append(data[place + 1:place + 1 + data[place]])
        place += 1 + data[place]
    return b"".join(pieces), place + 1


# ---- EXIF

TEXTUAL = frozenset({1, 2, 6, 7})                           # types of one byte a value: the ones that hold text


def exif(data: bytes) -> dict[int, bytes]:
    """tag -> bytes of the text-like entries of the first and the Exif directory. Raises ImageMetaError if this is no EXIF."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8 or struct.unpack(order + "H", data[2:4])[0] != 42:
        raise ImageMetaError("The picture's EXIF block cannot be read.")
    found: dict[int, bytes] = {}
    main, = struct.unpack(order + "I", data[4:8])
    pointer = _directory(data, order, main, found)
    if pointer:
        _directory(data, order, pointer, found)
    return found


def _directory(data: bytes, order: str, place: int, found: dict[int, bytes]) -> int:
    """Read one directory into `found`. Returns the place of the Exif directory that it points to, 0 if to none."""
    pointer = 0
    if place + 2 > len(data):
        return pointer
    count, = struct.unpack(order + "H", data[place:place + 2])
    for entry in range(place + 2, min(place + 2 + 12 * count, len(data) - 11), 12):
        tag, kind, length, value = struct.unpack(order + "HHII", data[entry:entry + 12])
        if tag == EXIF_POINTER:
            pointer = value
        elif kind in TEXTUAL:
            start = entry + 8 if length <= 4 else value
            if length <= MAX_TEXT * 2 and start + length <= len(data):
                found[tag] = data[start:start + length]
    return pointer
