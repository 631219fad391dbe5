"""One Easel a data folder: an operating-system lock on data/easel.lock, and in the file the address at which its owner answers."""
from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from modules.core.errors import BusyError, SaveError

NAME = "easel.lock"
FAR = 1 << 30                                               # the locked byte on Windows, far behind the text so that others can read it


@dataclass(frozen=True)
class Holder:
    """Who holds the folder. address: "http://127.0.0.1:7860", or "" when it serves no page."""

    pid: int
    address: str


class Lock:
    """Held from construction to `release`, or until the process dies. Raises BusyError naming the holder when another has it."""

    def __init__(self, data: Path) -> None:
        self.path = data / NAME
        try:
            data.mkdir(parents=True, exist_ok=True)
            self._file: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise SaveError(f"The data folder {data} cannot be written ({error.strerror}); choose another with --data-dir.") from error
        if not _take(self._file):
            os.close(self._file)
            self._file = None
            held = _read(self.path)
            by = f" (process {held.pid}{', ' + held.address if held.address else ''})" if held else ""
            raise BusyError(f"Another Easel{by} uses the data folder {data}; end it, or give this one a --data-dir of its own.")
        self.announce("")

    def announce(self, address: str) -> None:
        """Write the address at which this Easel answers."""
        if self._file is not None:
            body = json.dumps({"pid": os.getpid(), "address": address}).encode()
            os.lseek(self._file, 0, os.SEEK_SET)
            os.write(self._file, body + b" " * max(0, 200 - len(body)))

    def release(self) -> None:
        """Let the next one in. Harmless when called twice."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(file, 0)
            os.close(file)                                  # the lock goes with the handle


def holder(data: Path) -> Holder | None:
    """Who holds this data folder now, or None. Leaves the folder as it is."""
    path = data / NAME
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _take(file) else _read(path) or Holder(0, "")
    finally:
        os.close(file)


def _read(path: Path) -> Holder | None:
    try:
        found = json.loads(path.read_bytes()[:4096])
        return Holder(int(found["pid"]), str(found["address"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _take(file: int) -> bool:
    """Lock without waiting; False when another process holds it."""
    if sys.platform == "win32":
        import msvcrt  # this system only
        os.lseek(file, FAR, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl  # this system only
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
