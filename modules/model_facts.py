"""What a face tells about a model: its header's facts, what lies beside it, and the size at which it draws best. No value of a tensor is
read; sizes are kept by the files' stamps, since a large header takes half a second and torch.
"""
from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.checkpoints import folder
from modules.core import hashing
from modules.core.errors import CheckpointError, SaveError
from modules.core.files import write_atomically

SQUARE, RESOLUTION = "easel.native_size", "modelspec.resolution"    # metadata: the size a checkpoint draws best at, "512" or "512x768"
LEAST, MOST = 64, 8192                                      # pixels that are believed
BESIDE = (".yaml", ".json")                                 # what may say more about a model than its header
CACHE = "native-sizes.json"                                 # in the cache folder: path -> (stamp, width, height)
TRIGGERS, DESCRIPTION = "modelspec.trigger_phrase", "modelspec.description"

Size = tuple[int, int]                                      # width, height


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One model of the shelf. described: checkpoints.describe.Description, None with `fault` where the file is no model at all.

    entry: of the shelf, with its SHA-256 if that is known already. preview: a picture beside it.
    """

    entry: Any
    described: Any | None
    fault: str
    preview: Path | None
    description: str
    notes: str
    trigger_words: str
    preferred_vae: str


def info(entry: Any) -> ModelInfo:
    """All that is known of a model without reading its weights; what is wrong with the file is part of the answer."""
    from modules.checkpoints.describe import describe  # torch: kept off the start
    described, fault = None, ""
    try:
        described = describe(entry.path)
        fault = described.fault
    except CheckpointError as error:
        fault = str(error)
    said = described.metadata if described else {}
    return ModelInfo(
        entry=entry, described=described, fault=fault, preview=entry.preview, description=entry.description or said.get(DESCRIPTION, ""),
        notes=entry.notes, trigger_words=entry.trigger_words or said.get(TRIGGERS, ""), preferred_vae=entry.preferred_vae)


class NativeSizes:
    """Width and height by model, each found out once. Safe for many threads."""

    def __init__(self, cache: Path) -> None:
        self._file = cache / CACHE
        self._lock = threading.Lock()
        self._known: dict[str, Any] | None = None

    def of(self, entry: Any) -> Size | None:
        """The size at which this model draws best, in pixels: what its metadata say, else its family's; None where neither tells."""
        key, stamp = os.path.abspath(entry.path), _stamp(entry)
        with self._lock:
            if self._known is None:
                self._known = _read(self._file)
            found = self._known.get(key)
        if stamp and found and found[:-2] == stamp:
            return _believed(*found[-2:])
        size = _said(entry) or _built(entry)
        if stamp:
            with self._lock:
                self._known[key] = [*stamp, *(size or (0, 0))]
                self._save()
        return size

    def _save(self) -> None:
        """A cache that cannot be written is kept in memory only."""
        try:
            write_atomically(self._file, json.dumps(self._known).encode("utf-8", "backslashreplace"))
        except SaveError:
            return


def _stamp(entry: Any) -> list[int]:
    """What changes with the model's file or folder, and with what lies beside it; [] where it cannot be read."""
    try:
        stamp = [*(folder.stamp(entry.path) if entry.is_folder else hashing.stamp(entry.path))]
    except CheckpointError:
        return []
    for ending in BESIDE:
        try:
            stamp.append(os.stat(entry.path.parent / f"{entry.base}{ending}").st_mtime_ns)
        except OSError:
            stamp.append(0)
    return stamp


def _said(entry: Any) -> Size | None:
    told = entry.metadata or {}
    parts = str(told.get(SQUARE) or told.get(RESOLUTION) or "").lower().split("x")
    parts = parts * 2 if len(parts) == 1 else parts
    if len(parts) == 2 and all(part.isascii() and part.isdecimal() for part in parts):
        return _believed(*(int(part[:6]) for part in parts))
    return None


def _built(entry: Any) -> Size | None:
    """The size that the family gives to a model of these tensors."""
    from modules.checkpoints.describe import describe  # torch: kept off the start
    try:
        edge = describe(entry.path).native_size
    except CheckpointError:
        return None                                         # whoever loads it will hear why
    return _believed(edge, edge)


def _believed(width: int, height: int) -> Size | None:
    return (width, height) if LEAST <= width <= MOST and LEAST <= height <= MOST else None


def _read(file: Path) -> dict[str, Any]:
    """The cache, without entries that make no sense; a broken one is empty."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    sound = found.items() if isinstance(found, dict) else ()
    return {key: entry for key, entry in sound
            if isinstance(entry, list) and len(entry) == 4 + len(BESIDE) and all(type(number) is int for number in entry)}
