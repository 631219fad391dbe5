"""Memory in pages of 2 MiB: a network on the CPU walks through gigabytes a step, a tenth faster where the processor need not look up each
4 KiB of them (tests/benchmarks/against_diffusers.py).

Asked for when memory is taken, such pages can take seconds to be found, and a load would take twice as long. So they are made afterwards,
of what is there already, while the user writes a prompt.
"""
from __future__ import annotations

import ctypes
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from modules.core.hardware import ram_free

log = logging.getLogger("easel.memory")
HUGE = 2 << 20                                              # bytes in such a page
LEAST = 8 << 20                                             # bytes of a piece of memory that is worth it
AT_ONCE = 16 << 20                                          # bytes asked for in one call, which no one can interrupt
SPARE = 1 << 30                                             # bytes that stay free for others
MADV_COLLAPSE = 25                                          # linux/mman.h, since 6.1
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_turn = threading.Lock()


def gather_soon() -> threading.Thread | None:
    """`gather` beside whatever else is done; None where it can do nothing, or is at it already."""
    if not possible() or _turn.locked():
        return None
    thread = threading.Thread(target=gather, name="pages", daemon=True)
    thread.start()
    return thread


def possible() -> bool:
    """Whether this system has such pages and its owner allows them."""
    try:
        return sys.platform == "linux" and "[never]" not in SWITCH.read_text(encoding="ascii")
    except OSError:
        return False


def gather() -> int:
    """Put this process's large pieces of memory into pages of 2 MiB, as far as the system has them; bytes that are in such pages now.

    Values and addresses stay. Ends early where memory is short.
    """
    collapse = ctypes.CDLL(None, use_errno=True).madvise    # lets other threads of Python run
    collapse.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    done = 0
    with _turn:
        for start, end in list(_pieces()):
            for at in range(start, end, AT_ONCE):
                if (ram_free() or 0) < SPARE:
                    return done
                size = min(AT_ONCE, end - at)
                done += size if collapse(at, size, MADV_COLLAPSE) == 0 else 0
    log.debug("%d MiB are in pages of 2 MiB.", done >> 20)
    return done


def _pieces() -> Iterator[tuple[int, int]]:
    """First and last address of private memory that belongs to no file, to whole pages of 2 MiB."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, rights, _, _, inode, *_ = line.split(None, 5)
        first, last = (int(number, 16) for number in span.split("-"))
        start, end = -(-first // HUGE) * HUGE, last // HUGE * HUGE
        if rights.startswith("rw") and rights.endswith("p") and inode == "0" and end - start >= LEAST:
            yield start, end
