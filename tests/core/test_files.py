"""Files are written whole or not at all, and never over another."""
import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from modules.core import files
from modules.core.errors import DiskFullError, PathError, SaveError

ROOT = Path(__file__).resolve().parents[2]
MANY = """
import sys
from modules.core.files import create_exclusively
for n in range(50):
    create_exclusively(sys.argv[1], "{:05}.png".format, 0, sys.argv[2].encode())
"""


def numbered(number: int) -> str:
    return f"{number:05}.png"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_an_existing_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a" / "settings.json"
    files.write_atomically(path, b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and names(path.parent) == ["settings.json"]


def test_a_number_is_claimed_by_creation_and_no_file_is_touched(tmp_path):
    (tmp_path / "00002.png").write_bytes(b"theirs")
    made = [files.create_exclusively(tmp_path, numbered, 1, b"ours").name for _ in range(3)]
    assert made == ["00001.png", "00003.png", "00004.png"]
    assert (tmp_path / "00002.png").read_bytes() == b"theirs"


def test_a_pattern_without_number_gets_one(tmp_path):
    made = [files.create_exclusively(tmp_path, lambda n: "cat.png", 0, b"x").name for _ in range(3)]
    assert made == ["cat.png", "cat-2.png", "cat-3.png"]


@pytest.mark.parametrize("links", [True, False])
def test_four_threads_saving_a_hundred_files_each_make_four_hundred(tmp_path, monkeypatch, links):
    if not links:
        def no_link(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "no links here")
        monkeypatch.setattr(os, "link", no_link)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: (n, files.create_exclusively(tmp_path, numbered, 0, b"%d" % n)), range(400)))
    assert len({path for _, path in made}) == 400 == len(names(tmp_path))
    assert all(path.read_bytes() == b"%d" % n for n, path in made)


def test_two_processes_never_overwrite_each_other(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", MANY, str(tmp_path), who], cwd=ROOT) for who in "ab"]
    assert [process.wait(120) for process in running] == [0, 0]
    said = [(tmp_path / name).read_bytes() for name in names(tmp_path)]
    assert len(said) == 100 and said.count(b"a") == 50


def test_a_link_in_the_place_of_a_name_is_not_followed(tmp_path):
    (tmp_path / "00000.png").symlink_to(tmp_path / "elsewhere")
    assert files.create_exclusively(tmp_path, numbered, 0, b"x").name == "00001.png"
    assert not (tmp_path / "elsewhere").exists()


def test_a_hostile_name_writes_nothing(tmp_path):
    with pytest.raises(PathError):
        files.create_exclusively(tmp_path / "out", lambda n: "../x.png", 0, b"x")
    assert names(tmp_path / "out") == [] and names(tmp_path) == ["out"]


def test_a_removed_folder_is_made_again(tmp_path):
    folder = tmp_path / "out" / "2026-01-01"
    files.create_exclusively(folder, numbered, 0, b"x")
    shutil.rmtree(tmp_path / "out")
    assert files.create_exclusively(folder, numbered, 0, b"x").read_bytes() == b"x"


def test_saving_goes_on_while_the_folder_is_removed_again_and_again(tmp_path):
    folder, stop = tmp_path / "out", threading.Event()

    def remove() -> None:
        while not stop.is_set():
            shutil.rmtree(folder, ignore_errors=True)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(100):
            try:
                files.create_exclusively(folder, numbered, 0, b"x")
            except SaveError as error:                      # lost three races in a row: said, not crashed
                assert str(folder) in str(error)
    finally:
        stop.set()
        remover.join()


@pytest.mark.parametrize("code, kind", [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, SaveError)])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_fault_of_the_disk_is_a_sentence_and_leaves_the_old_file_alone(tmp_path, monkeypatch, call, code, kind):
    path = files.write_atomically(tmp_path / "x", b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(kind, match=str(tmp_path)):
            files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["x"]


def test_a_file_where_the_folder_should_be_is_a_sentence(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(SaveError):
        files.create_exclusively(tmp_path / "out", numbered, 0, b"x")


def test_a_full_disk_is_named_and_everything_written_before_stays(small_disk):
    saved = []
    with pytest.raises(DiskFullError, match=str(small_disk)):
        for n in range(20):
            saved.append((n, files.create_exclusively(small_disk, numbered, 0, bytes([n]) * 300_000)))
    assert 4 <= len(saved) <= 7 and names(small_disk) == [path.name for _, path in saved]
    assert all(path.read_bytes() == bytes([n]) * 300_000 for n, path in saved)
    saved[0][1].unlink()                                    # room again: the next one is written
    assert files.create_exclusively(small_disk, numbered, 0, bytes(300_000)).stat().st_size == 300_000


def test_only_our_own_leftover_parts_are_swept_away(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".0123456789abcdef.part").write_bytes(b"")
    (tmp_path / "download.part").write_bytes(b"")
    assert files.remove_parts(tmp_path) == 1
    assert (tmp_path / "download.part").exists() and names(tmp_path / "deep") == []
