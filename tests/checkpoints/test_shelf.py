"""The lists of models: how a file is named and how a name finds its file."""
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from modules.checkpoints.shelf import Shelf
from modules.core.errors import NotFoundError
from modules.core.hashing import Hashes, legacy_hash
from modules.core.paths import Paths


@pytest.fixture
def paths(tmp_path) -> Paths:
    """Files whose contents do not matter."""
    found = Paths.of(tmp_path)
    found.make()
    for name in ("dream.safetensors", "Anime/night.ckpt", "Anime/dream-v2.safetensors", "Anime/night.vae.pt", "notes.txt", ".hidden.ckpt"):
        path = found.checkpoints[0] / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() * 120_000)
    (found.vae[0] / "sharp.safetensors").write_bytes(b"vae")
    (found.vae[0] / "dream.pt").write_bytes(b"vae of dream")
    return found


@pytest.fixture
def shelf(paths) -> Shelf:
    return Shelf(paths, Hashes(paths.hashes_file))


def test_models_and_vaes_are_listed_apart_and_sorted_without_regard_to_case(shelf):
    assert [entry.name for entry in shelf.checkpoints()] == ["Anime/dream-v2.safetensors", "Anime/night.ckpt", "dream.safetensors"]
    assert [entry.name for entry in shelf.vaes()] == ["Anime/night.vae.pt", "dream.pt", "sharp.safetensors"]


def test_a_file_is_found_by_each_of_its_names(shelf, paths):
    entry = shelf.hashed(shelf.find_checkpoint("night"))
    full = hashlib.sha256(entry.path.read_bytes()).hexdigest()
    old = legacy_hash(entry.path)
    assert entry.title == f"Anime/night.ckpt [{full[:10]}]" and entry.model_name == "Anime_night" and entry.shorthash == full[:10]
    for name in ("Anime_night", entry.title, "Anime/night.ckpt", "Anime\\night.ckpt", "night", full[:10], full, f"night [{full[:10]}]", old,
                 f"Anime/night.ckpt [{old}]"):
        assert shelf.find_checkpoint(name) == entry, name


def test_a_title_with_a_hash_finds_its_file_before_anything_was_hashed(shelf):
    path = shelf.find_checkpoint("dream.safetensors").path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert shelf.find_checkpoint(f"dream.safetensors [{digest[:10]}]").sha256 == digest
    with pytest.raises(NotFoundError):
        shelf.find_checkpoint("dream.safetensors [0123456789]")


def test_a_file_is_found_by_its_whole_hash_even_when_none_is_known(shelf):
    digest = hashlib.sha256(shelf.find_vae("sharp").path.read_bytes()).hexdigest()
    assert shelf.find_sha256(digest).name == "sharp.safetensors"
    with pytest.raises(NotFoundError):
        shelf.find_sha256("0" * 64)


def test_files_too_short_for_the_old_hash_do_not_share_one(shelf, paths):
    (paths.checkpoints[0] / "short.ckpt").write_bytes(b"x")
    with pytest.raises(NotFoundError):
        shelf.find_checkpoint(legacy_hash(paths.checkpoints[0] / "short.ckpt"))


def test_part_of_a_name_is_enough_only_where_that_is_asked_for(shelf):
    with pytest.raises(NotFoundError):
        shelf.find_checkpoint("drea")
    assert shelf.find_checkpoint("drea", fuzzy=True).name == "dream.safetensors"
    assert shelf.find_checkpoint("dream-v [0123456789]", fuzzy=True).name == "Anime/dream-v2.safetensors"


@pytest.mark.parametrize("name", ["draem", "", "\0", "x" * 10_000, "../../etc/passwd", "night [zz]"])
def test_an_unknown_name_is_a_sentence(shelf, name):
    with pytest.raises(NotFoundError) as said:
        shelf.find_checkpoint(name)
    assert "\n" not in str(said.value) and len(str(said.value)) < 300


def test_the_sentence_offers_the_nearest(shelf):
    with pytest.raises(NotFoundError, match=r"dream\.safetensors"):
        shelf.find_checkpoint("draem")


def test_listing_computes_no_hash_and_a_computed_one_is_shown(shelf, paths):
    assert all(entry.sha256 is None and entry.title == entry.name for entry in shelf.checkpoints())
    assert not paths.hashes_file.exists()
    shelf.hashed(shelf.find_checkpoint("dream"))
    assert [entry.sha256 is not None for entry in shelf.checkpoints()] == [False, False, True]


def test_a_vae_belongs_to_the_checkpoint_of_its_base_name(shelf):
    dream, night, second = (shelf.find_checkpoint(name) for name in ("dream", "night", "dream-v2"))
    assert shelf.vae_of(dream).name == "dream.pt" and shelf.vae_of(night, "").name == "Anime/night.vae.pt"
    assert shelf.vae_of(second) is None and shelf.vae_of(dream, "None") is None
    assert shelf.vae_of(dream, "sharp.safetensors").name == "sharp.safetensors"
    with pytest.raises(NotFoundError):
        shelf.vae_of(dream, "blunt")


def test_a_file_that_comes_later_is_found_and_one_that_goes_is_gone_after_a_refresh(shelf, paths):
    shelf.checkpoints()
    (paths.checkpoints[0] / "late.safetensors").write_bytes(b"x")
    assert shelf.find_checkpoint("late").name == "late.safetensors"
    (paths.checkpoints[0] / "late.safetensors").unlink()
    shelf.refresh()
    with pytest.raises(NotFoundError):
        shelf.find_checkpoint("late")


def test_links_are_followed_once_and_what_is_no_file_is_left_out(shelf, paths, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "linked.safetensors").write_bytes(b"x")
    (paths.checkpoints[0] / "more").symlink_to(store)
    (store / "round").symlink_to(paths.checkpoints[0])
    (paths.checkpoints[0] / "broken.ckpt").symlink_to(tmp_path / "nothing")
    (paths.checkpoints[0] / "folder.safetensors").mkdir()
    os.mkfifo(paths.checkpoints[0] / "pipe.ckpt")
    assert [entry.name for entry in shelf.checkpoints()] == [
        "Anime/dream-v2.safetensors", "Anime/night.ckpt", "dream.safetensors", "more/linked.safetensors"]


def test_a_name_that_is_not_utf8_can_still_be_written_as_json(shelf, paths):
    Path(os.fsdecode(os.fsencode(paths.checkpoints[0]) + b"/b\xe4r.ckpt")).write_bytes(b"x")
    names = [entry.name for entry in shelf.checkpoints()]
    assert all(name.encode("utf-8") for name in names) and shelf.find_checkpoint(names[2]).path.is_file()


def test_the_builtin_model_comes_last_and_gives_way_to_a_file_of_the_same_name(paths, tmp_path):
    builtin = tmp_path / "demo" / "storybook.safetensors"
    builtin.parent.mkdir()
    builtin.write_bytes(b"x")
    paths = replace(paths, builtin_models=(builtin, tmp_path / "gone.safetensors"))
    assert Shelf(paths, Hashes(paths.hashes_file)).checkpoints()[-1].path == builtin
    (paths.checkpoints[0] / "storybook.safetensors").write_bytes(b"y")
    shelf = Shelf(paths, Hashes(paths.hashes_file))
    assert shelf.find_checkpoint("storybook").path.parent == paths.checkpoints[0]
    assert shelf.find_checkpoint("demo/storybook.safetensors").path == builtin


def test_two_folders_may_hold_the_same_name(tmp_path):
    paths = Paths.of(tmp_path, ckpt_dir=tmp_path / "more")
    paths.make()
    for folder in paths.checkpoints:
        (folder / "x.ckpt").write_bytes(str(folder).encode())
    shelf = Shelf(paths, Hashes(paths.hashes_file))
    assert len({shelf.find_checkpoint(entry.name).path for entry in shelf.checkpoints()}) == 2


def test_models_can_be_listed_without_torch():
    code = "import sys, modules.checkpoints.shelf; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0
