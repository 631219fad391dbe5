"""Memory that is gathered into large pages holds what it held, where it was."""
import mmap
import re
from pathlib import Path

import pytest
import torch

from modules.core import pages

SIZE = 64 << 20


def huge_bytes(address):
    """What the system says of the piece of memory that holds this address."""
    text = Path("/proc/self/smaps").read_text()
    for head, body in re.findall(r"^([0-9a-f]+-[0-9a-f]+) [^\n]*\n((?:[A-Z][^\n]*\n)+)", text, re.M):
        first, last = (int(number, 16) for number in head.split("-"))
        if first <= address < last:
            return int(re.search(r"AnonHugePages:\s+(\d+) kB", body)[1]) * 1024
    raise AssertionError("not there")


def test_values_stay_and_the_pages_are_large_afterwards():
    if not pages.possible():
        pytest.skip("this system has no pages of 2 MiB")
    room = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held = torch.frombuffer(room, dtype=torch.int32)
    held.copy_(torch.arange(len(held), dtype=torch.int32))
    before = huge_bytes(held.data_ptr())
    done = pages.gather()
    if not done:
        pytest.skip("this kernel gathers no pages, or memory is short")
    assert huge_bytes(held.data_ptr()) >= max(before, SIZE // 2) and torch.equal(held, torch.arange(len(held), dtype=torch.int32))


def test_where_the_owner_forbids_large_pages_nothing_is_done(tmp_path, monkeypatch):
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(pages, "SWITCH", tmp_path / "enabled")
    assert not pages.possible() and pages.gather_soon() is None
    monkeypatch.setattr(pages, "SWITCH", tmp_path / "missing")
    assert not pages.possible()


def test_it_ends_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(pages, "ram_free", lambda: pages.SPARE - 1)
    assert pages.gather() == 0
