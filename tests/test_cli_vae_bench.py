"""VAEs compared at the command line: named as the shelf knows them, on a picture, a latent, or a scene that is drawn for it."""
import csv

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules import cli
from modules.core.paths import Paths
from tests import tiny

SMALL = {"mult": (1, 1, 1, 1), "text_layers": 1}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    made = Paths.of(tmp_path_factory.mktemp("bench"))
    made.make()
    tiny.save_sd1(made.checkpoints[0] / "drawer.safetensors", seed=1, **SMALL)
    tiny.save_vae(made.vae[0] / "soft.safetensors", seed=2, mult=SMALL["mult"])
    return made


def ran(capsys, paths, *words):
    capsys.readouterr()
    code = cli.main(["vae-bench", *map(str, words), "--quiet"], paths)
    said = capsys.readouterr()
    return code, said.out, said.err


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_vae_and_a_checkpoints_own_are_compared_by_name_on_a_drawn_scene(paths, capsys):
    code, out, _ = ran(capsys, paths, "--vae", "soft", "--vae", "drawer", "--size", 64)
    found = rows(paths.data / "vae-bench.csv")
    assert code == 0 and [(row["vae"], row["task"]) for row in found] == [
        ("soft", "there and back"), ("soft", "same latent"), ("drawer", "there and back"), ("drawer", "same latent")]
    assert out.splitlines()[0].split()[:2] == ["vae", "task"] and "vae-bench.csv" in out and Image.open(paths.data / "vae-bench.png").width > 128
    own = next(row for row in found if row["vae"] == "drawer" and row["task"] == "there and back")
    code, _, _ = ran(capsys, paths, "--vae", paths.checkpoints[0] / "drawer.safetensors", "--size", 64)
    assert code == 0 and rows(paths.data / "vae-bench.csv")[0]["psnr_db"] == own["psnr_db"]     # the same scene each time, by path or name


def test_a_latent_is_decoded_by_each_and_the_first_is_what_the_others_are_measured_by(paths, capsys, tmp_path):
    latent, table = tmp_path / "z.safetensors", tmp_path / "table.csv"
    save_file({"latent": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))}, latent)
    code, _, _ = ran(capsys, paths, "--vae", "soft", "--vae", "drawer", "--latent", latent, "--csv", table, "--sheet", tmp_path / "sheet.png")
    first, second = rows(table)
    assert code == 0 and (first["psnr_db"], first["ssim"]) == ("inf", "1.0000") and float(second["ssim"]) < 1
    assert (tmp_path / "sheet.png").exists()


def test_a_picture_is_made_smaller_than_the_size_that_was_asked_for(paths, capsys, tmp_path):
    Image.effect_noise((300, 150), 40).convert("RGB").save(tmp_path / "photo.png")
    code, _, _ = ran(capsys, paths, "--vae", "soft", "--image", tmp_path / "photo.png", "--size", 128, "--sheet", tmp_path / "sheet.png")
    assert code == 0 and Image.open(tmp_path / "sheet.png").width < 3 * 150


@pytest.mark.parametrize(("words", "said"), [
    (("--vae", "nobody"), "nobody"), (("--vae", "soft", "--image", "gone.png"), "gone.png"),
    (("--vae", "soft", "--latent", "gone.safetensors"), "gone.safetensors"), (("--vae", "soft", "--size", "8"), "too small"),
])
def test_what_cannot_be_compared_is_one_sentence(paths, capsys, words, said):
    code, _, error = ran(capsys, paths, *words)
    assert code == 1 and said in error and error.count("\n") == 1 and "Traceback" not in error
