"""A run's tensors to a safetensors file and back; the file is written whole or not at all."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from modules.checkpoints.write import NO_TEXT, stream
from modules.core.errors import CheckpointError


def write(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = NO_TEXT) -> Path:
    """Replace `path` by a file with these tensors, as core.files.replacing does. Raises what that raises."""
    return stream(path, {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}, tensors.items(), metadata)


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
