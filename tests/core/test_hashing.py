"""Hashes of files and their cache."""
import hashlib
import json
import os
import threading

import pytest

from modules.core.errors import CheckpointError
from modules.core.hashing import Hashes, legacy_hash


def test_the_hash_is_sha256_and_is_kept_for_the_next_start(tmp_path):
    path, cache = tmp_path / "x.safetensors", tmp_path / "cache" / "hashes.json"
    path.write_bytes(b"abc")
    assert Hashes(cache).known(path) is None
    assert Hashes(cache).sha256(path) == hashlib.sha256(b"abc").hexdigest() == Hashes(cache).known(path)


def test_a_changed_file_is_hashed_again(tmp_path):
    path, hashes = tmp_path / "x", Hashes(tmp_path / "hashes.json")
    path.write_bytes(b"one")
    first = hashes.sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert hashes.known(path) is None
    assert hashes.sha256(path) == hashlib.sha256(b"two").hexdigest() != first


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"/x": 3}', b"\xff", b'{"/x": [1, 2, "short"]}'])
def test_a_broken_cache_is_an_empty_one(tmp_path, content):
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "hashes.json").write_bytes(content)
    assert Hashes(tmp_path / "hashes.json").sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()
    assert list(json.loads((tmp_path / "hashes.json").read_bytes())) == [str(tmp_path / "x")]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    hashes = Hashes(tmp_path / "cache" / "hashes.json")
    assert hashes.sha256(tmp_path / "x") == hashes.known(tmp_path / "x")


def test_what_is_no_ordinary_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "gone"):
        with pytest.raises(CheckpointError, match=path.name):
            Hashes(tmp_path / "hashes.json").sha256(path)
        assert legacy_hash(path) == "NOFILE"


def test_many_threads_agree(tmp_path):
    hashes, found = Hashes(tmp_path / "hashes.json"), []
    for n in range(8):
        (tmp_path / str(n)).write_bytes(bytes([n]) * 1000)
    threads = [threading.Thread(target=lambda n=n: found.append(hashes.sha256(tmp_path / str(n % 8)))) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 32 and len(set(found)) == 8 == len(json.loads((tmp_path / "hashes.json").read_bytes()))


def test_the_old_hash_looks_at_64_kib_behind_the_first_mib(tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"a" * 0x100000 + b"b" * 0x10000 + b"c" * 100)
    assert legacy_hash(path) == hashlib.sha256(b"b" * 0x10000).hexdigest()[:8]
