"""`launch.py schedule`: numbers and a plot of what a model would be drawn with, known from its header."""
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules import cli
from modules.checkpoints.ladders import Ladders, noise_of
from modules.checkpoints.load import load
from modules.core.errors import NotFoundError, ScheduleError
from modules.core.paths import Paths
from modules.engine import Engine, Library
from modules.sampling import schedule
from tests import tiny, tiny_families

SMALL = {"mult": (1, 1, 1, 1), "text_layers": 1}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    made = Paths.of(tmp_path_factory.mktemp("ladders"))
    made.make()
    tiny.save_sd1(made.checkpoints[0] / "plain.safetensors", seed=1, **SMALL)
    for name, markers in (("large", {}), ("cos", {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}),
                          ("terminal", {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)})):
        save_file(tiny_families.sdxl(2, dtype=torch.float16, markers=markers), made.checkpoints[0] / f"{name}.safetensors")
    return made


def ran(capsys, paths, *words):
    capsys.readouterr()
    code = cli.main(["schedule", *map(str, words)], paths)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("name", ["plain", "large", "cos", "terminal"])
def test_a_header_tells_the_same_noise_as_the_loaded_model(paths, name):
    path = paths.checkpoints[0] / f"{name}.safetensors"
    prediction, sdxl = noise_of(path)
    model = load(path, device="cpu", dtype=torch.float32)
    assert torch.equal(prediction.sigmas, model.prediction.sigmas) and prediction.kind == model.prediction.kind
    assert prediction.continuous == (name == "cos") and sdxl == (name != "plain")


def test_every_schedule_is_printed_as_it_would_be_walked_and_drawn_in_its_own_colour(paths, capsys, tmp_path):
    code, out, _ = ran(capsys, paths, "--plot", tmp_path / "all.png", "--steps", 10)
    lines = out.splitlines()
    assert code == 0 and len(lines) == len(Ladders().labels) + 1 and lines[-1] == f"Plot: {tmp_path / 'all.png'}"
    assert "Karras                14.6146 9.1029 5.4784 3.1686 1.7494 0.9141 0.4469 0.2014 0.0819 0.0292 0" in lines
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size == (960, 540) and len(picture.convert("RGB").getcolors(1 << 20)) > len(Ladders().labels)


def test_a_falling_curve_falls_in_the_picture():
    picture = cli.schedule.drawn({"only": (10.0, 3.0, 1.0, 0.1, 0.0)}, "test").convert("RGB")
    place = np.asarray(picture)[40:500, 70:740].astype(int)
    rows, columns = np.nonzero(place[..., 2] - place[..., 0] > 60)
    heights = [rows[columns == column].mean() for column in np.unique(columns)]
    assert len(heights) > 660 and np.diff(heights).min() > -1.5 and heights[-1] - heights[0] > 400      # a point is thicker than the line


def test_models_are_named_as_the_shelf_names_them_or_by_path_and_have_their_own_levels(paths, capsys):
    for model, first in (("plain", 14.6146), ("cos", 120.0), (paths.checkpoints[0] / "terminal.safetensors", 4518.76)):
        code, out, _ = ran(capsys, paths, "--model", model, "--scheduler", "karras", "--steps", 5, "--json")
        assert code == 0 and json.loads(out)["karras"][0] == pytest.approx(first, rel=1e-4)


def test_tables_are_those_of_the_models_family(paths, capsys):
    second = [ran(capsys, paths, "--model", model, "--scheduler", "Align Your Steps", "--steps", 11)[1].split()[4] for model in ("plain", "large")]
    assert second == ["6.4750", "6.3150"]


def test_levels_of_ones_own_stand_beside_a_schedule(paths, capsys):
    code, out, _ = ran(capsys, paths, "--sigmas", "[12, 3; 0.5 0]", "--scheduler", "Simple", "--steps", 3)
    assert code == 0 and [line.split()[-4:] for line in out.splitlines()][1] == ["12.0000", "3.0000", "0.5000", "0"]


@pytest.mark.parametrize("words, said", [
    (("--scheduler", "Karas"), "Karras"), (("--sampler", "Eulre"), "Euler"), (("--steps", 0), "Sampling steps must be 1 to"),
    (("--sigma-min", "nan"), "Schedule min sigma"), (("--sigma-min", 20), "Schedule max sigma"), (("--model", "nobody"), "nobody"),
    (("--sigmas", "1, 2, 3"), "must fall"), (("--sigmas", "a"), "numbers"), (("--plot", "levels.jpg"), ".png"),
])
def test_what_cannot_be_shown_is_refused_in_one_sentence(paths, capsys, words, said):
    code, out, error = ran(capsys, paths, *words)
    assert code == 1 and said in error and error.count("\n") == 1 and out == ""


def test_a_schedule_that_cannot_have_so_many_steps_is_left_out_and_named(paths, capsys):
    code, out, error = ran(capsys, paths, "--steps", 1200)
    assert code == 0 and "Simple cannot make 1200" in error and "Karras" in out and "\nSimple" not in out


def test_a_changed_file_is_read_anew(paths, tmp_path):
    ladders, path = Ladders(), tmp_path / "model.safetensors"
    tiny.save_sd1(path, seed=1, **SMALL)
    before = ladders.of(path, "Karras", "Euler", 4)
    save_file(tiny_families.sdxl(2, dtype=torch.float16, markers={"ztsnr": torch.zeros(1)}), path)
    assert before[0] < 15 < 4000 < ladders.of(path, "Karras", "Euler", 4)[0]


def test_a_library_answers_with_the_ladder_that_a_picture_walks(paths):
    path = paths.checkpoints[0] / "cos.safetensors"
    walked = schedule.ladder("Automatic", "DPM++ 2M", 7, load(path, device="cpu", dtype=torch.float32).prediction, rho=5)
    assert Library(paths).ladders.of(path, "Automatic", "DPM++ 2M", 7, rho=5) == tuple(walked.tolist())
    with pytest.raises(ScheduleError):
        Library(paths).ladders.of(path, "Automatic", "DPM++ 2M", 0)
    with pytest.raises(NotFoundError):
        Library(paths).ladders.of(path, "nothing", "DPM++ 2M", 3)


def test_a_living_engine_answers_for_the_chosen_model_and_for_another(paths):
    engine = Engine(paths)
    try:
        engine.tools.set_options({"sd_model_checkpoint": "cos"}, remote=False)
        chosen, other = engine.tools.ladder("Karras", "Euler", 6), engine.tools.ladder("Karras", "Euler", 6, "plain", sigma_max=10)
        assert (chosen[0], other[0], len(chosen)) == (pytest.approx(120, rel=1e-4), pytest.approx(10), 7)
        assert engine.tools.ladder("Karras", "Euler", 6, levels="3 1 0") == (3, 1, 0)
        with pytest.raises(NotFoundError):
            engine.tools.ladder("Karras", "Euler", 6, "nobody")
    finally:
        engine.close()
