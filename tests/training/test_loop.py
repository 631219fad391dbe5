"""Steps, states and endings: a run that was stopped is the same run; what goes wrong ends with a sentence and the last good state."""
import errno
import math
import os

import pytest
import torch
from PIL import Image
from torch import nn

from modules.core.errors import Cancelled, CheckpointError, DiskFullError, NanError, SettingsError
from modules.training import loop, tensors
from modules.training.loop import Phase, Run
from modules.training.recipe import Recipe, Training
from modules.training.train import train
from tests.training.squares import Squares, Stopping

SIX = {"vae": {"training": {"steps": 6, "batch": 3, "accumulate": 2, "warmup": 2}, "data": {"crop": 8, "flip": True}, "ema": {"decay": 0.9},
               "vae_objective": {"adversarial": 0.5, "adversarial_start": 2, "discriminator_channels": 8, "discriminator_layers": 1,
                                 "learn_logvar": True}},
       "diffusion": {"training": {"steps": 6, "batch": 3, "accumulate": 2, "decay": "cosine"}, "data": {"flip": True},
                     "objective": {"offset_noise": 0.1, "perturbation": 0.1, "weight": "min_snr", "elbo": 0.1}}}


class Line:
    """The least task there is: a weight vector that shall become the mean of numbers; batch n is numbers n * size and on."""

    def __init__(self, size: int = 4, bad: frozenset[int] = frozenset()) -> None:
        self.weight, self.size, self.bad = nn.Parameter(torch.zeros(3)), size, bad
        self.device = torch.device("cpu")
        self.phases = (Phase("loss", ({"params": [self.weight]},), (0.9, 0.999)),)

    def tensors(self):
        return {"weight": self.weight}

    averaged = tensors

    def batch(self, number):
        numbers = torch.arange(number * self.size, (number + 1) * self.size) % 8
        return torch.sin(numbers[:, None] * torch.tensor([1.0, 2.0, 3.0])) * (math.nan if number in self.bad else 1.0)

    def loss(self, phase, batch, generator, step):
        return (self.weight - batch).square().sum(1).mean()


def line(folder, progress=None, **settings):
    task = Line(settings.pop("size", 4), settings.pop("bad", frozenset()))
    return Run(task=task, settings=Training(**{"lr": 0.1, "weight_decay": 0.0, **settings}), folder=folder, progress=progress or Stopping())


@pytest.mark.parametrize("kind", ["vae", "diffusion"])
def test_a_run_that_was_stopped_and_one_that_was_not_are_equal_bit_for_bit(recipes, tmp_path, kind):
    recipe = recipes(kind, **SIX[kind])
    whole = train(recipe, folder=tmp_path / "whole", progress=Stopping(), data=Squares())
    for stop in (2, 3, 5):
        with pytest.raises(Cancelled, match=f"step {stop} of 6"):
            train(recipe, folder=tmp_path / "parts", progress=Stopping(stop), data=Squares())
        torch.rand(7)                                       # draws elsewhere change nothing
    parts = train(recipe, folder=tmp_path / "parts", progress=Stopping(), data=Squares())
    assert parts.read_bytes() == whole.read_bytes()
    one, other = (tensors.read(path.parent / "state.safetensors")[0] for path in (whole, parts))
    assert one.keys() == other.keys() and len(one) > 100
    assert [name for name in one if not torch.equal(one[name], other[name]) and name not in ("rng.cpu", "history")] == []
    assert torch.equal(one["history"].nan_to_num(-1), other["history"].nan_to_num(-1))


def test_training_goes_on_from_a_checkpoint_and_leaves_its_text_tower_alone(recipes, tmp_path):
    first = train(recipes("diffusion", training={"steps": 1}), folder=tmp_path / "a", progress=Stopping(), data=Squares())
    second = train(recipes("diffusion", model={"checkpoint": str(first), "vae": ""}, training={"steps": 2}), folder=tmp_path / "b",
                   progress=Stopping(), data=Squares())
    one, other = (tensors.read(path)[0] for path in (first, second))
    changed = {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}
    assert one.keys() == other.keys() and changed == {"model"}


def test_a_recipe_in_a_file_and_pictures_in_a_folder_are_all_that_is_needed(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (70, 70), colour).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(colour)
    (tmp_path / "vae.toml").write_text("""
        kind = "vae"
        data = {folder = "pictures", size = 64, crop = 16}
        model = {norm_groups = 4, title = "My VAE"}
        vae = {channels = 8, multiply = [1, 1]}
        training = {steps = 2, batch = 2, sample_every = 2}""")
    vae = train(Recipe.read(tmp_path / "vae.toml"), folder=tmp_path / "out", progress=Stopping())
    assert vae.name == "My-VAE.safetensors" and (tmp_path / "out" / "samples" / "0000002.png").is_file()
    (tmp_path / "unet.toml").write_text("""
        data = {folder = "pictures", size = 64}
        model = {vae = "out/My-VAE.safetensors", norm_groups = 4}
        unet = {channels = 16, multiply = [1, 2], depths = [0, 1], res_blocks = 1}
        text = {width = 16, layers = 1}
        training = {steps = 1, batch = 2}""")
    assert train(Recipe.read(tmp_path / "unet.toml"), folder=tmp_path / "model", progress=Stopping()).is_file()
    with pytest.raises(SettingsError, match=r"data\.folder"):
        train(Recipe.of({"kind": "vae"}), folder=tmp_path / "none", progress=Stopping())


def test_the_losses_are_a_table_and_a_curve(tmp_path):
    line(tmp_path, steps=3, bad=frozenset({1})).go()
    rows = [row.split(",") for row in (tmp_path / "loss.csv").read_text().splitlines()]
    assert rows[0] == ["step", "lr", "loss"] and [row[0] for row in rows[1:]] == ["1", "2", "3"] and rows[2][2] == "nan"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_another_seed_is_another_run(recipes, tmp_path):
    paths = [train(recipes("diffusion", seed=seed, training={"steps": 1}), folder=tmp_path / str(seed), progress=Stopping(), data=Squares())
             for seed in (0, 1)]
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_gradients_of_two_halves_make_the_step_of_the_whole(tmp_path):
    halves, whole = line(tmp_path / "a", steps=5, size=4, accumulate=2), line(tmp_path / "b", steps=5, size=8)
    assert halves.go() and whole.go()
    torch.testing.assert_close(halves.task.weight, whole.task.weight)
    assert float(whole.task.weight.detach().abs().max()) > 0.1


def test_a_run_reaches_the_minimum_that_is_known(tmp_path):
    run = line(tmp_path, steps=300, size=8, decay="cosine")
    run.go()
    torch.testing.assert_close(run.task.weight.detach(), run.task.batch(0).mean(0), rtol=0, atol=1e-3)


def test_the_rate_rises_stays_and_falls_by_its_formula():
    constant, cosine = Training(warmup=4, steps=14), Training(warmup=4, steps=14, decay="cosine", lr_floor=0.1)
    assert [loop.rate(constant, step) for step in (0, 1, 3, 4, 13)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert [loop.rate(cosine, step) for step in (0, 4, 9, 14)] == pytest.approx([0.25, 1.0, 0.55, 0.1])


def test_a_step_without_a_number_is_left_out(tmp_path):
    run, same = line(tmp_path / "a", steps=3, bad=frozenset({1})), line(tmp_path / "b", steps=1)
    run.go()
    same.go()
    assert math.isnan(run.history[1][2]) and [math.isnan(row[2]) for row in run.history] == [False, True, False]
    assert bool(run.task.weight.isfinite().all()) and run.saved == 3


def test_too_many_in_a_row_end_the_run_with_a_sentence_and_the_last_good_state(tmp_path):
    run = line(tmp_path, steps=20, save_every=2, most_nan=3, bad=frozenset(range(5, 20)))
    with pytest.raises(NanError, match=r"3 steps in a row; the last good state is that of step 4, in .*state\.safetensors"):
        run.go()
    again = line(tmp_path, steps=5)
    assert again.resume() and again.step == 4 and bool(again.task.weight.isfinite().all())
    assert again.go()


def test_pictures_without_numbers_end_a_run_with_a_sentence(recipes, tmp_path):
    recipe = recipes("vae", data={"cache": False}, training={"steps": 9, "batch": 4, "most_nan": 2})
    with pytest.raises(NanError, match="no state was saved before"):
        train(recipe, folder=tmp_path, progress=Stopping(), data=Squares(broken=frozenset(range(4))))


def test_a_weight_that_is_no_number_is_never_saved(tmp_path):
    run = line(tmp_path, steps=2)
    run.go()
    before = run.state_file.read_bytes()
    run.task.weight.data[0] = math.nan
    with pytest.raises(NanError, match="state is that of step 2"):
        run.save()
    assert run.state_file.read_bytes() == before


def test_a_full_disk_ends_with_a_sentence_and_the_last_good_state(tmp_path, monkeypatch):
    run, written = line(tmp_path, steps=9, save_every=3), []
    sync = os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 5:                                # the first state goes well, and its table and curve, each with its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskFullError, match="no room left.*the last good state is that of step 3"):
            run.go()
    again, whole = line(tmp_path, steps=9), line(tmp_path / "whole", steps=9)
    assert again.resume() and again.step == 3 and not list(tmp_path.glob("*.part"))
    assert again.go() and whole.go()
    assert torch.equal(again.task.weight, whole.task.weight)


@pytest.mark.parametrize("small_disk", [6], indirect=True)
def test_a_disk_that_really_is_full_keeps_the_state_before(recipes, small_disk):
    recipe = recipes("vae", training={"steps": 3, "save_every": 1, "batch": 1})
    whole = {file.name: file.stat().st_size for file in _trained(recipes, recipe, small_disk.parent / "size").iterdir() if file.is_file()}
    (small_disk / "ballast").write_bytes(bytes(6 * 2**20 - int(1.5 * whole["state.safetensors"]) - 65536))
    with pytest.raises(DiskFullError, match="the last good state is that of step 1"):
        train(recipe, folder=small_disk, progress=Stopping(), data=Squares())
    (small_disk / "ballast").unlink()
    assert train(recipe, folder=small_disk, progress=Stopping(), data=Squares()).is_file()


def _trained(recipes, recipe, folder):
    train(recipe, folder=folder, progress=Stopping(), data=Squares())
    return folder


def test_time_that_is_over_leaves_a_checkpoint_and_a_state_to_go_on_from(recipes, tmp_path):
    recipe = recipes("diffusion", training={"steps": 3, "minutes": 1e-9})
    steps = []
    for _ in range(3):
        assert train(recipe, folder=tmp_path, progress=Stopping(), data=Squares()).is_file()
        steps.append(tensors.metadata(tmp_path / "state.safetensors")["step"])
    assert steps == ["1", "2", "3"]


def test_a_state_of_other_sizes_or_another_seed_is_refused(recipes, tmp_path):
    train(recipes("vae", training={"steps": 1}), folder=tmp_path, progress=Stopping(), data=Squares())
    for change in ({"vae": {"channels": 8}}, {"seed": 3}, {"ema": {"decay": 0.5}}, {"vae_objective": {"adversarial": 1.0}}):
        with pytest.raises(CheckpointError, match="another recipe"):
            train(recipes("vae", training={"steps": 2}, **change), folder=tmp_path, progress=Stopping(), data=Squares())


def test_a_damaged_state_is_a_sentence(recipes, tmp_path):
    (tmp_path / "state.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(CheckpointError, match="damaged"):
        train(recipes("vae", training={"steps": 1}), folder=tmp_path, progress=Stopping(), data=Squares())


def test_half_precision_is_refused_on_a_cpu_and_bfloat16_is_not(recipes, tmp_path):
    with pytest.raises(SettingsError, match="accelerator"):
        train(recipes("vae", training={"precision": "float16"}), folder=tmp_path, progress=Stopping(), data=Squares(), device=torch.device("cpu"))
    path = train(recipes("diffusion", training={"steps": 2, "precision": "bfloat16"}), folder=tmp_path, progress=Stopping(), data=Squares())
    assert path.is_file() and loop.precision("auto", torch.device("cpu")) == torch.float32
