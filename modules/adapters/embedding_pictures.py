"""Embeddings inside pictures: as JSON in a PNG text chunk, or in the low bits of columns beside the picture, as A1111 writes both."""
from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
from PIL import Image, UnidentifiedImageError

from modules.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ENDINGS = (".png", ".webp", ".avif")
CHUNK = "sd-ti-embedding"
TOLD = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
NESTED, TENSOR = "string_to_param", "TORCHTENSOR"
MOST_PIXELS = 1 << 24
LONGEST_JSON = 32 << 20                                     # bytes
MULTIPLIER, INCREMENT = 1664525, 1013904223                 # of the generator whose bytes hide the columns; Press et al. 1992, ranqd1


def read(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]] | None:
    """(what it says of itself, tensors by name), None for a picture without an embedding. Raises CheckpointError."""
    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
            if isinstance(text, str | bytes):
                return _tensors(base64.b64decode(text, validate=True), path.name)
            if image.width * image.height > MOST_PIXELS or image.mode not in ("RGB", "RGBA", "P"):
                return None
            found = columns(numpy.asarray(image.convert("RGB")))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, binascii.Error, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read as a picture with an embedding ({type(error).__name__}).") from error
    return None if found is None else _tensors(found, path.name)


def columns(pixels: numpy.ndarray) -> bytes | None:
    """The JSON in the columns left and right of a picture (h, w, 3) uint8; None where there is none.

    The black border goes. Two or more black columns then part off the low halves of the bytes, left, and the high ones, right.
    """
    inside = numpy.asarray(pixels.min(axis=2) > 0)
    rows, across = numpy.flatnonzero(inside.max(axis=1)), numpy.flatnonzero(inside.max(axis=0))
    if not len(rows):
        return None
    low = pixels[rows[0]:rows[-1] + 1, across[0]:across[-1] + 1] & 0x0F
    black = numpy.flatnonzero(low.max(axis=(0, 2)) == 0)
    if len(black) < 2:
        return None
    left, right = low[:, :black[0]], low[:, black[-1] + 1:]
    if not left.size or left.shape != right.shape:
        return None
    key = _key(left.size).reshape(left.shape)
    data = (((right ^ key) << 4) | (left ^ key)).tobytes()
    try:
        return zlib.decompressobj().decompress(data, LONGEST_JSON)
    except zlib.error:
        return None                                         # black columns of an ordinary picture


def _key(length: int) -> numpy.ndarray:
    """(length,) uint8: the low halves of the hiding bytes."""
    seed, found = 0, bytearray(length)
    for place in range(length):
        seed = (MULTIPLIER * seed + INCREMENT) & 0xFFFFFFFF
        found[place] = seed % 255 & 0x0F
    return numpy.frombuffer(bytes(found), dtype=numpy.uint8)


def _tensors(data: bytes, file: str) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    import torch  # kept off the start
    try:
        told: Any = json.loads(data) if len(data) < LONGEST_JSON else None
        vectors = told[NESTED] if isinstance(told, dict) and NESTED in told else told
        found = {str(key): torch.tensor(value[TENSOR], dtype=torch.float32) for key, value in vectors.items()
                 if isinstance(value, dict) and TENSOR in value}
        if found and all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
            return {key: told[key] for key in TOLD if isinstance(told.get(key), str | int)}, found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RuntimeError) as error:
        raise CheckpointError(f"The embedding in {file} is damaged; get the picture as its maker saved it.") from error
    raise CheckpointError(f"The embedding in {file} is damaged or holds no vectors.")
