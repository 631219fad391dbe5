"""Files written whole or not at all, and never over another. A part file in the same folder, fsync, then one atomic step.

A number in a file name is claimed by creating the file, not by looking which numbers are free.
"""
from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from modules.core.errors import DiskFullError, SaveError
from modules.core.paths import safe_name

PART = re.compile(r"\.[0-9a-f]{16}\.part")                  # ours alone; other programs' .part files are left in peace
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES, errno.EINVAL})


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end: after a crash at any moment the old bytes are there or all new ones.

    A missing folder is made. Raises DiskFullError, or SaveError with the cause; the old file is then untouched.
    """
    target = Path(path)
    with _sentences(target.parent):
        part = _fresh(target.parent)
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        _sync_folder(target.parent)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Replace `path` by `data`, as `replacing` does. Raises what that raises."""
    with replacing(path) as file:
        file.write(data)
    return Path(path)


def copy_atomically(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Replace `target` by a copy of `source`, however large, as `replacing` does. Raises what that raises."""
    with open(source, "rb") as old, replacing(target) as new:
        shutil.copyfileobj(old, new, 16 << 20)
    return Path(target)


def create_exclusively(folder: str | os.PathLike[str], name_of: Callable[[int], str], first: int, data: bytes) -> Path:
    """Write `data` under name_of(n) with the first free n >= first; no file that exists is ever touched, by whatever process.

    Names pass `safe_name`. Should name_of not use its number, "-2", "-3" ... is put before the ending.
    Raises DiskFullError, SaveError or PathError.
    """
    home = Path(folder)
    with _sentences(home):
        with _part(home, data) as part:
            path = next(path for path in _candidates(home, name_of, first) if _claim(part, path))
        _sync_folder(home)
    return path


def remove_parts(folder: str | os.PathLike[str]) -> int:
    """Take away part files that a killed process left, in this folder and below. For start-up only. Returns how many."""
    removed = 0
    for home, _, names in os.walk(folder):
        for name in names:
            if PART.fullmatch(name):
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    os.unlink(os.path.join(home, name))
                    removed += 1
    return removed


def _candidates(home: Path, name_of: Callable[[int], str], first: int) -> Iterator[Path]:
    last, again = None, 1
    number = first
    while True:
        name = safe_name(name_of(number))
        if name == last:                                    # the pattern has no number of its own
            again += 1
            yield home / f"{Path(name).stem}-{again}{Path(name).suffix}"
        else:
            last = name
            yield home / name
        number += 1


def _claim(part: Path, path: Path) -> bool:
    """Give the finished part file its name; False when the name is taken."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _claim_without_links(part, path)
    return True


def _claim_without_links(part: Path, path: Path) -> bool:
    """For file systems without hard links (exFAT, some network shares): claim the name with an empty file, then put ours over it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    try:
        os.replace(part, path)
    except BaseException:
        os.unlink(path)
        raise
    return True


@contextlib.contextmanager
def _part(folder: Path, data: bytes) -> Iterator[Path]:
    """A part file in `folder` with these bytes safely on disk; gone afterwards, unless it was renamed."""
    part = _fresh(folder)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _fresh(folder: Path) -> Path:
    """An empty part file. The folder is made if it is missing, and made again if it vanishes in between."""
    for attempt in (1, 2, 3):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{secrets.token_hex(8)}.part"
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return part
        except FileNotFoundError:
            if attempt == 3:
                raise
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _sentences(folder: Path) -> Iterator[None]:
    """Turn the system's words into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"There is no room left in {folder}; make room there and try again.") from error
        cause = error.strerror or type(error).__name__
        raise SaveError(f"Nothing could be written in {folder} ({cause}); check the folder and its permissions.") from error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where folders can be synced (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):   # some network file systems cannot
            raise
    finally:
        os.close(handle)
