"""SHA-256 of files, kept in a cache file, and the short hashes that A1111 made of them."""
from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from pathlib import Path

from modules.core.errors import CheckpointError, SaveError
from modules.core.files import write_atomically

BLOCK = 1 << 20                                             # bytes read at once
LEGACY_OFFSET, LEGACY_LENGTH = 0x100000, 0x10000            # AutoV1 looked at 64 KiB behind the first MiB

Stamp = tuple[int, int]                                     # size in bytes, modification time in nanoseconds


class Hashes:
    """SHA-256 by path; computed again when size or modification time changed. Safe for many threads."""

    def __init__(self, cache_file: str | os.PathLike[str]) -> None:
        self._file = Path(cache_file)
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, int, str]] | None = None

    def sha256(self, path: str | os.PathLike[str]) -> str:
        """64 hex digits of the whole file. Raises CheckpointError when it cannot be read or changes meanwhile."""
        found = self.known(path)
        if found:
            return found
        before = stamp(path)
        digest = _digest(Path(path))
        if stamp(path) != before:
            raise CheckpointError(f"{Path(path).name} changed while it was read; try again when it is complete.")
        with self._lock:
            table = self._table()
            table[_key(path)] = (*before, digest)
            self._save(table)
        return digest

    def known(self, path: str | os.PathLike[str]) -> str | None:
        """The hash if it is in the cache and the file has not changed since; never reads the file's content."""
        with self._lock:
            entry = self._table().get(_key(path))
        try:
            return entry[2] if entry and stamp(path) == entry[:2] else None
        except CheckpointError:
            return None

    def _table(self) -> dict[str, tuple[int, int, str]]:
        if self._known is None:
            self._known = _read(self._file)
        return self._known

    def _save(self, table: dict[str, tuple[int, int, str]]) -> None:
        """A cache that cannot be written is kept in memory only: the next start computes again."""
        try:
            write_atomically(self._file, json.dumps({key: list(entry) for key, entry in table.items()}).encode("utf-8", "backslashreplace"))
        except SaveError:
            return


def stamp(path: str | os.PathLike[str]) -> Stamp:
    """Size and modification time of a regular file. Raises CheckpointError naming what it is instead."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{Path(path).name} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no ordinary file"
        raise CheckpointError(f"{Path(path).name} is {kind}, so it holds no model.")
    return facts.st_size, facts.st_mtime_ns


def legacy_hash(path: str | os.PathLike[str]) -> str:
    """A1111's first model hash (AutoV1): 8 hex digits from 64 KiB behind the first MiB; "NOFILE" when there is no such file."""
    try:
        stamp(path)
        with open(path, "rb") as file:
            file.seek(LEGACY_OFFSET)
            return hashlib.sha256(file.read(LEGACY_LENGTH)).hexdigest()[:8]
    except (OSError, CheckpointError):
        return "NOFILE"


def _key(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def _read(file: Path) -> dict[str, tuple[int, int, str]]:
    """The cache, without the entries that make no sense; a broken cache is an empty one."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: (entry[0], entry[1], entry[2]) for key, entry in found.items() if _sound(entry)}


def _sound(entry: object) -> bool:
    return (isinstance(entry, list) and len(entry) == 3 and isinstance(entry[0], int) and isinstance(entry[1], int)
            and isinstance(entry[2], str) and len(entry[2]) == 64)
