"""`launch.py samplers`: the list, and samplers side by side on a miniature."""
import csv
import json

import pytest
from PIL import Image, ImageChops

from modules import cli
from modules.core.errors import RequestError
from modules.core.paths import Paths
from modules.pipeline.request import Request
from modules.pipeline.sampler_grid import sampler_grid
from tests import tiny


def test_all_samplers_are_listed_and_one_is_found_by_its_alias(tmp_path, capsys):
    paths = Paths.of(tmp_path)
    assert cli.main(["samplers", "--json"], paths) == 0
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) > 30 and {"Euler a", "UniPC", "DPM adaptive"} <= {one["name"] for one in listed}
    assert cli.main(["samplers", "--sampler", "k_heun"], paths) == 0
    assert capsys.readouterr().out.split()[:6] == ["Heun", "order", "2", "2", "calls", "a"]


def test_a_grid_has_a_picture_for_every_sampler_and_step_count_and_comes_nearer_to_its_reference(tmp_path, capsys):
    paths = Paths.of(tmp_path)
    paths.checkpoints[0].mkdir(parents=True, exist_ok=True)
    tiny.save_sd1(paths.checkpoints[0] / "small.safetensors")
    assert cli.main(["samplers", "--grid", "--checkpoint", "small.safetensors", "--sampler", "Euler", "--sampler", "Heun", "--steps", "10,2",
                     "--reference", "40", "--size", "64", "--quiet"], paths) == 0
    assert "samplers.csv" in capsys.readouterr().out
    rows = list(csv.DictReader((paths.data / "samplers.csv").open()))
    assert [(row["sampler"], row["steps"], row["calls"]) for row in rows] == [
        ("Euler", "2", "2"), ("Euler", "10", "10"), ("Euler", "40", "40"), ("Heun", "2", "4"), ("Heun", "10", "20"), ("Heun", "40", "80")]
    for first in (0, 3):
        assert float(rows[first]["own_db"]) < float(rows[first + 1]["own_db"]) < float(rows[first + 2]["own_db"]) == float("inf")
    assert float(rows[2]["heun_db"]) > float(rows[0]["heun_db"]) and rows[5]["heun_db"] == "inf"
    sheet = Image.open(paths.data / "samplers.png")
    assert sheet.width > 3 * 64 and ImageChops.difference(sheet, Image.new("RGB", sheet.size, "white")).getbbox()


@pytest.mark.parametrize("steps", ["", "0,5", "5,40", "5,forty"])
def test_step_counts_that_cannot_be_compared_are_refused(tmp_path, steps, capsys):
    paths = Paths.of(tmp_path)
    paths.checkpoints[0].mkdir(parents=True, exist_ok=True)
    tiny.save_sd1(paths.checkpoints[0] / "small.safetensors")
    assert cli.main(["samplers", "--grid", "--steps", steps, "--reference", "40", "--quiet"], paths) != 0
    assert "step counts" in capsys.readouterr().err


def test_nothing_is_drawn_before_the_names_are_known():
    def draw(request):
        raise AssertionError("drawn")

    with pytest.raises(RequestError):
        sampler_grid(draw, Request(), ["Euler"], [600], reference=500)
