"""Named tensors to a safetensors file as a stream, whole or not at all: a run's state is too large to be held in memory twice."""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from modules.core.errors import CheckpointError
from modules.core.files import replacing

NAMES = MappingProxyType({
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.uint8: "U8", torch.bool: "BOOL",
})
NO_TEXT: Mapping[str, str] = MappingProxyType({})


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = NO_TEXT) -> Path:
    """Replace `path` by a file with these tensors, as core.files.replacing does. Raises what that raises."""
    with replacing(path) as file:
        file.write(_header(tensors, metadata))
        for tensor in tensors.values():
            file.write(_bytes(tensor))
    return Path(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file that `write` made, on the CPU, and its metadata. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open  # heavy

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read; it is damaged or of another kind: delete it to begin anew.") from error


def metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of such a file alone. Raises CheckpointError."""
    from safetensors import SafetensorError, safe_open  # heavy

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read; it is damaged or of another kind: delete it to begin anew.") from error


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name, tensor in tensors.items():
        entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, place + tensor.nbytes]}
        place += tensor.nbytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
