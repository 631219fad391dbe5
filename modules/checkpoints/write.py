"""Named tensors to a safetensors file as a stream, whole or not at all: what is written need never be in memory at once."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import torch
from torch import Tensor

from modules.core.files import replacing

CODES = MappingProxyType({
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64",
})
NO_TEXT: Mapping[str, str] = MappingProxyType({})
HASH = "modelspec.hash_sha256"                              # of all bytes behind the header; the header can therefore hold it
UNKNOWN_HASH = "0x" + 64 * "0"                              # as long as any

Place = tuple[torch.dtype, tuple[int, ...]]


def stream(path: str | os.PathLike[str], places: Mapping[str, Place], tensors: Iterable[tuple[str, Tensor]],
           metadata: Mapping[str, str] = NO_TEXT) -> Path:
    """Replace `path` by a file of tensors that come one after the other, as core.files.replacing does. Raises what that raises.

    places: type and shape by name; the tensors come in this order and are let go of when they are written. Values of wider types
    should come first, so that every tensor begins at a multiple of its values' size.
    metadata: where it has modelspec.hash_sha256, whatever its value, that gets the hash of what was written.
    """
    hashed = HASH in metadata
    texts = {**metadata, HASH: UNKNOWN_HASH} if hashed else dict(metadata)
    with replacing(path) as file:
        file.write(header(places, texts))
        digest = _bodies(file, places, tensors)
        if hashed:
            file.seek(0)
            file.write(header(places, {**texts, HASH: f"0x{digest}"}))
    return Path(path)


def _bodies(file: BinaryIO, places: Mapping[str, Place], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Write the tensors; 64 hex digits of all their bytes."""
    digest = hashlib.sha256()
    expected = iter(places.items())
    for name, tensor in tensors:
        wanted = next(expected, None)
        assert wanted == (name, (tensor.dtype, tuple(tensor.shape))), f"{name} is not what the header says: {wanted}"
        data = _bytes(tensor)
        digest.update(data)
        file.write(data)
    assert next(expected, None) is None, "fewer tensors came than the header names"
    return digest.hexdigest()


def header(places: Mapping[str, Place], metadata: Mapping[str, str]) -> bytes:
    """The bytes before the tensors': the length of a JSON table, and the table, padded to whole 8 bytes."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape) in places.items():
        end = at + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
