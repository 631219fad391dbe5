"""At most one model in memory, switched all or nothing: whatever a file is like, the model before it works on."""
import dataclasses
import os
import shutil
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoints import load
from modules.checkpoints.residency import Residency
from modules.checkpoints.shelf import Shelf
from modules.core import hardware
from modules.core.errors import BusyError, CheckpointError, NotFoundError, OutOfMemoryError, WebUIError
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from tests import tiny_families
from tests.checkpoints.conftest import picture


def shown(residency: Residency, name: str, vae: str = "None") -> torch.Tensor:
    with residency.borrow(name, vae) as model:
        return picture(model)


def test_a_model_is_lent_under_its_title_with_its_hashes(residency, paths):
    with residency.borrow("a", "Automatic") as model:
        assert model.title.startswith("a.safetensors [") and model.sha256.startswith(model.title[-11:-1])
        assert residency.loaded == model.title and (model.vae_name, model.vae_sha256) == ("", "")
    with residency.borrow("a", "v.safetensors") as model:
        assert model.vae_name == "v.safetensors" and len(model.vae_sha256) == 64


def test_the_same_model_is_not_loaded_again_and_another_is(residency):
    with residency.borrow("a") as first:
        pass
    with residency.borrow("a.safetensors") as second:
        assert second is first
    with residency.borrow("a", prediction="v") as third:
        assert third is not first and third.prediction.kind == "v"
    with residency.borrow("b") as fourth:
        assert fourth.title.startswith("b.safetensors")


def test_no_name_means_the_one_in_memory_or_the_first(residency):
    with residency.borrow("") as model:
        assert model.title.startswith("a.safetensors")
    residency.preload("b")
    with residency.borrow("") as model:
        assert model.title.startswith("b.safetensors")


def test_only_the_vae_is_exchanged_when_only_the_vae_is_another(residency):
    own = shown(residency, "a", "None")
    with residency.borrow("a", "None") as model:
        unet, vae = model.unet, model.vae
        model.colours = torch.ones(1)
    with residency.borrow("a", "v") as model:
        assert model.unet is unet and model.vae is not vae and model.colours is None and model.vae_name == "v.safetensors"
        assert not torch.equal(picture(model), own)
    with residency.borrow("a", "None") as model:
        assert model.unet is unet and model.vae_name == "" and torch.equal(picture(model), own)


def test_a_vae_beside_the_checkpoint_is_taken_by_itself(residency, paths, originals):
    shutil.copy(originals / "full.safetensors", paths.checkpoints[0] / "b.vae.safetensors")
    with residency.borrow("b") as model:
        assert model.vae_name == "b.vae.safetensors"
    with residency.borrow("b", "None") as model:
        assert model.vae_name == ""


def test_a_name_that_is_not_there_leaves_the_model(residency):
    before = shown(residency, "a")
    for checkpoint, vae in (("c", "None"), ("b", "w")):
        with pytest.raises(NotFoundError), residency.borrow(checkpoint, vae):
            pass
    assert residency.loaded.startswith("a.safetensors") and torch.equal(shown(residency, "a"), before)


KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def make_bad(kind: str, path, good) -> None:
    """One of the fourteen kinds of bad checkpoints in the place of `path`."""
    content = good.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    raw = {
        "empty": b"", "cut": content[:len(content) // 2], "html": b"<!doctype html><html>", "lfs": b"version https://git-lfs.github.com/spec/v1\n",
        "header of 2^60": struct.pack("<Q", 1 << 60) + content[8:], "bytes behind": content + b"x",
        "name twice": struct.pack("<Q", length * 2 - 1) + content[8:7 + length] + b"," + content[9:8 + length] + content[8 + length:],
    }
    stored = load_file(good)
    changed = {
        "wrong type": stored | {KEY: stored[KEY].to(torch.int32)}, "wrong shape": stored | {KEY: stored[KEY].t().contiguous()},
        "missing": {name: tensor for name, tensor in stored.items() if name != KEY},
        "nan": stored | {KEY: stored[KEY].clone().index_fill_(0, torch.tensor([3]), float("nan"))},
    }
    if kind in raw:
        path.write_bytes(raw[kind])
    elif kind in changed:
        save_file(changed[kind], path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        shutil.copy(good, path)
        (path if kind == "no permission" else path.parent).chmod(0)


BAD = ("empty", "cut", "html", "lfs", "header of 2^60", "bytes behind", "name twice", "wrong type", "wrong shape", "missing", "nan",
       "folder", "pipe", "no permission", "no permission above")


@pytest.fixture
def bad(request, unprivileged, originals):
    """A shelf with a good model and a bad one; the bad one was good when the list was read, so that every kind is asked for by name."""
    paths = Paths.of(unprivileged)
    paths.make()
    folder = paths.checkpoints[0] / "sub"
    folder.mkdir()
    shutil.copy(originals / "a.safetensors", paths.checkpoints[0] / "good.safetensors")
    path = folder / "bad.safetensors"
    path.write_bytes(b"x")
    shelf = Shelf(paths, Hashes(paths.hashes_file))
    assert len(shelf.checkpoints()) == 2
    path.unlink()
    make_bad(request.param, path, originals / "b.safetensors")
    yield Residency(shelf, "cpu", torch.float32)
    folder.chmod(0o700)


@pytest.mark.parametrize("bad, room", [*((kind, True) for kind in BAD), ("nan", False), ("cut", False)], indirect=["bad"])
def test_a_bad_checkpoint_is_a_sentence_and_the_model_before_it_works_on(bad, monkeypatch, room):
    if not room:
        monkeypatch.setattr(hardware, "memory_free", lambda device: 0)
    before = shown(bad, "good")
    unet = bad._residents[-1].model.unet
    held = psutil.Process().memory_info().rss
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"bad\.safetensors") as said, bad.borrow("sub/bad.safetensors"):
            pass
        assert "\n" not in str(said.value)
    del said
    assert psutil.Process().memory_info().rss - held < 50 << 20
    assert bad._residents[-1].model.unet is unet                          # never even let go
    assert torch.equal(shown(bad, "good"), before)


@pytest.mark.parametrize("bad", BAD, indirect=True)
def test_a_bad_checkpoint_as_the_first_one_is_a_sentence_and_the_next_one_loads(bad):
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"), bad.borrow("sub/bad.safetensors"):
        pass
    assert bad.loaded == ""
    assert shown(bad, "good").isfinite().all()


def test_a_bad_vae_leaves_the_vae_before_it(residency, paths):
    before = shown(residency, "a", "v")
    stored = load_file(paths.vae[0] / "v.safetensors")
    stored["decoder.conv_in.bias"].fill_(float("nan"))
    save_file(stored, paths.vae[0] / "w.safetensors")
    for checkpoint in ("a", "b"):
        with pytest.raises(CheckpointError, match=r"w\.safetensors"), residency.borrow(checkpoint, "w"):
            pass
    assert torch.equal(shown(residency, "a", "v"), before)


@pytest.mark.parametrize("room", [True, False], ids=["with room for two", "with room for one"])
def test_a_model_that_does_not_fit_on_the_device_gives_way_to_the_former(residency, monkeypatch, room):
    before = shown(residency, "a")
    if not room:
        monkeypatch.setattr(hardware, "memory_free", lambda device: 0)
    move, refused = load.move, []

    def full(model, device):
        """Fails for b, as a card without room does."""
        if len(refused) < 1 and device.type == "cpu" and model.title.startswith("b."):
            refused.append(model.title)
            raise OutOfMemoryError("The graphics card has no room for this model.")
        return move(model, device)

    monkeypatch.setattr(load, "move", full)
    with pytest.raises(OutOfMemoryError), residency.borrow("b", "None"):
        pass
    assert refused and residency.loaded.startswith("a.safetensors")
    assert torch.equal(shown(residency, "a"), before) and shown(residency, "b").isfinite().all()


@pytest.mark.parametrize("change", ["unlinked", "replaced", "truncated", "touched"])
def test_a_file_that_changed_on_disk_is_noticed_when_the_model_is_next_asked_for(residency, paths, change):
    path = paths.checkpoints[0] / "a.safetensors"
    other = shown(residency, "b")
    with residency.borrow("a", "None") as model:
        before, title = picture(model), model.title
        if change == "unlinked":
            path.unlink()
        if change == "replaced":
            os.replace(shutil.copy(paths.checkpoints[0] / "b.safetensors", paths.root / "x"), path)
        if change == "truncated":
            os.truncate(path, 1000)
        if change == "touched":
            os.utime(path, ns=(1, 1))
        assert torch.equal(picture(model), before)          # the job that runs ends as it began
    if change in ("unlinked", "truncated"):
        with pytest.raises(WebUIError, match=r"a\.safetensors"), residency.borrow("a", "None"):
            pass
        assert torch.equal(shown(residency, "b"), other)
        return
    with residency.borrow("a", "None") as model:
        assert torch.equal(picture(model), other if change == "replaced" else before)
        assert (model.title == title) == (change == "touched")


class Parts(torch.nn.Linear):
    """A network that tells where it is sent, and a card that is full as long as `full` holds."""

    places: list = []                                       # shared: one order for all networks
    full = False

    def to(self, device):
        if str(device) != "cpu" and self.full:
            raise torch.OutOfMemoryError("full")
        self.places.append((self.in_features, str(device)))
        return self


def test_a_model_that_does_not_fit_as_a_whole_sends_its_parts_to_the_device_in_turns(residency):
    with residency.borrow("a", "None") as lent:
        model = dataclasses.replace(lent, unet=Parts(1, 1), vae=Parts(2, 1), text=(Parts(3, 1),))
    Parts.places.clear()
    load.move(model, torch.device("cuda"))
    assert {place for _, place in Parts.places} == {"cuda"} and not model.apart
    with model.at_work(model.unet):
        pass
    assert len(Parts.places) == 3                           # they were all there already
    load.move(model, torch.device("cpu"))
    model.vae.full = True
    with pytest.raises(OutOfMemoryError):
        load.move(model, torch.device("cuda"))
    assert model.device.type == "cpu" and Parts.places[-3:] == [(1, "cpu"), (2, "cpu"), (3, "cpu")]
    load.set_apart(model, torch.device("cuda"))
    Parts.places.clear()
    with model.at_work(*model.text):
        assert Parts.places == [(3, "cuda")]
    with pytest.raises(ZeroDivisionError), model.at_work(model.unet):
        raise ZeroDivisionError
    assert Parts.places == [(3, "cuda"), (3, "cpu"), (1, "cuda"), (1, "cpu")]
    assert model.device.type == "cuda"                      # where its latents are


def test_memory_stays_flat_over_twenty_switches(residency):
    process, seen = psutil.Process(), []
    for _ in range(10):
        for name, vae in (("a", "None"), ("b", "v")):
            with residency.borrow(name, vae) as model:
                size = sum(tensor.numel() * tensor.itemsize for network in load.networks(model) for tensor in network.parameters())
                del model
        seen.append(process.memory_info().rss)
    # The least of the last ones: freed pages may go back to the system a switch later, but what is leaked never does.
    assert min(seen[-4:]) <= seen[1] + 0.5 * size, [rss >> 20 for rss in seen]


def test_memory_stays_flat_over_thirty_switches_between_families(residency, paths):
    save_file(tiny_families.sdxl(dtype=torch.float16), paths.checkpoints[0] / "xl.safetensors")
    process, seen = psutil.Process(), []
    for name in ("a", "b", "xl") * 10:
        with residency.borrow(name, "None") as model:
            del model
        seen.append(process.memory_info().rss)
    for turn in (2, 3, 4):                                  # the larger model's turn, and those of the small ones after it
        assert min(seen[turn + 18::3]) <= 1.05 * seen[turn], [rss >> 20 for rss in seen]


def test_many_threads_each_get_the_model_they_asked_for(residency):
    expected = {name: shown(residency, name) for name in ("a", "b")}
    inside, most = [], []

    def job(number: int) -> bool:
        name = "ab"[number % 2]
        with residency.borrow(name, "None") as model:
            inside.append(number)
            most.append(len(inside))
            found = picture(model)
            inside.remove(number)
        return torch.equal(found, expected[name])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(job, range(12)))
    assert max(most) == 1


def test_a_borrower_may_borrow_the_same_model_again_and_others_beside_it_but_not_with_another_vae(residency):
    with residency.borrow("a", "None") as outer:
        before = picture(outer)
        with residency.borrow("a", "None") as inner:
            assert inner is outer
        with residency.borrow("b", "None") as other:
            assert other is not outer and not torch.equal(picture(other), before)
        with pytest.raises(BusyError), residency.borrow("a", "v"):
            pass
        with pytest.raises(BusyError):
            residency.release()
        assert torch.equal(picture(outer), before)
    residency.release()
    assert residency.loaded == "" and shown(residency, "b").isfinite().all()


def test_as_many_models_stay_as_the_limit_lets_and_the_one_used_longest_ago_goes(shelf, paths, originals):
    shutil.copy(originals / "a.safetensors", paths.checkpoints[0] / "c.safetensors")
    limit = [2]
    residency = Residency(shelf, "cpu", torch.float32, limit=lambda: limit[0])
    kept = {}
    for name in ("a", "b", "a"):
        with residency.borrow(name, "None") as model:
            assert kept.setdefault(name, model) is model    # a was still there
    with residency.borrow("c", "None"):
        pass
    with residency.borrow("a", "None") as model:
        assert model is kept["a"]
    with residency.borrow("b", "None") as model:
        assert model is not kept["b"]
    limit[0] = 1
    with residency.borrow("a", "None"), residency.borrow("b", "None"):
        pass
    assert [resident.model.title[0] for resident in residency._residents] == ["b"]


def test_a_file_that_was_replaced_does_not_stay_beside_its_successor(shelf, paths, originals):
    residency = Residency(shelf, "cpu", torch.float32, limit=lambda: 3)
    shown(residency, "a")
    shutil.copy(originals / "b.safetensors", paths.checkpoints[0] / "a.safetensors")
    shown(residency, "a")
    assert len(residency._residents) == 1


def test_a_job_that_fails_gives_the_model_back(residency):
    with pytest.raises(ZeroDivisionError), residency.borrow("a", "None"):
        raise ZeroDivisionError
    done = threading.Event()
    threading.Thread(target=lambda: (residency.preload("b"), done.set()), daemon=True).start()
    assert done.wait(60) and residency.loaded.startswith("b.safetensors")
