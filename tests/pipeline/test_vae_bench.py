"""The bench of VAEs: its figures against their formulas, and what it does with VAEs that do not fit each other."""
import argparse
import csv
import io
import math
import random
from functools import partial

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules.cli import vae_bench as cli
from modules.core.errors import CheckpointError, RequestError
from modules.demo import scenes
from modules.families.autoencoders import autoencoder_from
from modules.imaging import convert
from modules.pipeline import vae_bench
from modules.pipeline.vae_bench import BACK, SAME, bench, colour_shift, fitting, open_vae, psnr, read_latent, ssim
from tests import tiny
from tests.oracles import published_vae

CPU = torch.device("cpu")


def picture(width=96, height=64):
    return scenes.draw(scenes.unseen_layout(random.Random("bench")), max(width, height)).image.crop((0, 0, width, height))


def noisy(image, spread, seed=0):
    levels = numpy.asarray(image, numpy.float64) + numpy.random.default_rng(seed).normal(0, spread, (image.height, image.width, 3))
    return Image.fromarray(levels.round().clip(0, 255).astype(numpy.uint8))


def kl(seed=0, **sizes):
    return autoencoder_from(tiny.draw(tiny.vae_shapes(**sizes), seed), {})


def small_weights():
    return published_vae.original_tiny(published_vae.tiny_vae(width=8).state_dict())


# ---- figures

def slow_ssim(one, two):
    """Equations 12 and 13 of the paper, window by window, on one colour."""
    bell = numpy.exp(-((numpy.arange(11) - 5) ** 2)[:, None] / 4.5 - ((numpy.arange(11) - 5) ** 2)[None] / 4.5)
    bell /= bell.sum()
    found = []
    for top in range(one.shape[0] - 10):
        for left in range(one.shape[1] - 10):
            x, y = one[top:top + 11, left:left + 11], two[top:top + 11, left:left + 11]
            mx, my = (bell * x).sum(), (bell * y).sum()
            vx, vy, both = (bell * (x - mx) ** 2).sum(), (bell * (y - my) ** 2).sum(), (bell * (x - mx) * (y - my)).sum()
            found.append((2 * mx * my + 2.55 ** 2) * (2 * both + 7.65 ** 2) / ((mx * mx + my * my + 2.55 ** 2) * (vx + vy + 7.65 ** 2)))
    return numpy.mean(found)


def test_the_structural_similarity_is_that_of_its_formula():
    one = picture(32, 24)
    two = noisy(one, 20)
    expected = numpy.mean([slow_ssim(numpy.asarray(one, float)[..., c], numpy.asarray(two, float)[..., c]) for c in range(3)])
    assert ssim(one, two) == pytest.approx(expected, abs=1e-9)
    assert 0.0 < ssim(one, two) < 0.95 and ssim(one, one) == pytest.approx(1.0, abs=1e-12)


def test_an_inverted_picture_is_less_similar_than_a_noisy_one():
    one = picture()
    assert ssim(one, Image.eval(one, lambda level: 255 - level)) < ssim(one, noisy(one, 30)) < ssim(one, noisy(one, 5))


def test_a_difference_of_one_level_everywhere_is_48_13_db_and_equal_pictures_are_infinitely_near():
    one, two = Image.new("RGB", (16, 12), (10, 20, 30)), Image.new("RGB", (16, 12), (11, 19, 31))
    assert psnr(one, two) == pytest.approx(20 * math.log10(255), abs=1e-9)
    assert psnr(one, one) == math.inf


def test_the_colour_shift_is_signed_and_by_channel():
    assert colour_shift(Image.new("RGB", (12, 12), (10, 20, 30)), Image.new("RGB", (12, 12), (13, 20, 25))) == pytest.approx((3, 0, -5))


@pytest.mark.parametrize("size, longest, expected", [((130, 70), 0, (128, 64)), ((2000, 1000), 256, (256, 128)), ((64, 64), 512, (64, 64))])
def test_the_picture_is_brought_to_a_size_for_any_vae(size, longest, expected):
    assert fitting(Image.new("RGBA", size), longest).size == expected


def test_a_picture_too_small_is_refused():
    with pytest.raises(RequestError, match="40 × 80"):
        fitting(Image.new("RGB", (40, 80)))


# ---- runs

def test_each_vae_gets_the_same_latent_and_its_own_way_there_and_back():
    one, two, image = kl(0), kl(1), picture(128, 64)
    seen = []
    found = bench({"one": lambda: one, "two": lambda: two}, image=image, device=CPU, tell=lambda *at: seen.append(at))
    assert {(row.vae, row.task) for row in found.rows} == {("one", SAME), ("one", BACK), ("two", SAME), ("two", BACK)}
    rows = {(row.vae, row.task): row for row in found.rows}
    pixels = convert.to_pixels(image)
    with torch.inference_mode():
        z = one.encode(pixels)[0]
        for task, latent in ((SAME, z), (BACK, two.encode(pixels)[0])):
            expected = convert.to_images(two.decode(latent))[0]
            assert rows["two", task].psnr == pytest.approx(psnr(image, expected), abs=0.01)
            assert rows["two", task].shift == pytest.approx(colour_shift(image, expected), abs=0.02)
    assert rows["one", SAME].psnr == pytest.approx(rows["one", BACK].psnr) and rows["one", BACK].encode > 0 and rows["one", SAME].encode is None
    assert seen == [(1, 2), (2, 2)] and found.notes == ()


def test_a_latent_is_measured_against_what_the_first_vae_makes_of_it():
    one, two, latent = kl(0), kl(1), torch.randn(1, 4, 4, 6)
    found = bench({"one": lambda: one, "again": lambda: one, "two": lambda: two}, latent=latent, scale=0.5, device=CPU)
    assert [row.psnr for row in found.rows[:2]] == [math.inf, math.inf] and found.rows[2].psnr < 40
    expected = [convert.to_images(vae.decode(latent / 0.5))[0] for vae in (one, two)]
    assert found.rows[2].psnr == pytest.approx(psnr(*expected), abs=0.01)


def test_a_vae_with_other_latents_is_measured_there_and_back_only_and_that_is_said():
    other = autoencoder_from(published_vae.draw(published_vae.shapes(width=32, mult=(1, 2, 2), latent=3, codes=50)), {})
    found = bench({"kl": partial(kl, 0), "vq": lambda: other}, image=picture(), device=CPU)
    assert [(row.vae, row.task) for row in found.rows] == [("kl", BACK), ("kl", SAME), ("vq", BACK)]
    assert len(found.notes) == 1 and "vq" in found.notes[0] and "kl" in found.notes[0]


def test_a_decoder_alone_decodes_the_others_latent_and_cannot_come_first():
    half = autoencoder_from({name: tensor for name, tensor in small_weights().items() if "decoder" in name}, {})
    found = bench({"kl": partial(kl, 0), "half": lambda: half}, image=picture(), device=CPU)
    assert [(row.vae, row.task) for row in found.rows][2:] == [("half", SAME)]
    with pytest.raises(CheckpointError, match="half cannot begin"):
        bench({"half": lambda: half}, image=picture(), device=CPU)


@pytest.mark.parametrize("what", [{}, {"image": picture(), "latent": torch.zeros(1, 4, 8, 8)}])
def test_a_bench_of_nothing_or_of_two_things_is_refused(what):
    with pytest.raises(RequestError):
        bench({"one": partial(kl, 0)}, device=CPU, **what)


def test_table_and_csv_say_the_same_and_the_sheet_shows_all_pictures():
    found = bench({"one, the first": partial(kl, 0), "two": partial(kl, 1)}, image=picture(128, 64), device=CPU)
    table = list(csv.reader(io.StringIO(found.csv())))
    assert tuple(table[0]) == vae_bench.COLUMNS and [row[0] for row in table[1:]] == [row.vae for row in found.rows]
    for line, cells in zip(found.lines(), table, strict=True):
        assert line.split() == " ".join(cells).split()
    assert found.sheet.width * found.sheet.height >= 5 * 128 * 64


def test_vaes_are_opened_from_files_and_checkpoints_and_others_named_in_a_sentence(tmp_path):
    tiny.save_sd1(tmp_path / "model.safetensors", dtype=torch.float16)
    tiny.save_vae(tmp_path / "vae.safetensors", seed=0, dtype=torch.float32)
    save_file(small_weights(), tmp_path / "taesd.safetensors")
    z = torch.randn(1, 4, 4, 4)
    for name in ("model", "vae", "taesd"):
        vae = open_vae(tmp_path / f"{name}.safetensors", device=CPU, dtype=torch.float32)
        with torch.inference_mode():
            assert vae.decode(z).shape == (1, 3, 32, 32)
    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        open_vae(tmp_path / "other.safetensors", device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("tensors, shape", [({"latent": torch.ones(2, 4, 8, 8), "other": torch.ones(1)}, (1, 4, 8, 8)), ({"x": torch.ones(4, 8, 6)}, (1, 4, 8, 6)),
                                            ({"a": torch.ones(3), "b": torch.ones(3)}, None), ({"latent": torch.ones(4)}, None)])
def test_a_latent_is_read_from_its_file(tensors, shape, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    if shape:
        assert read_latent(tmp_path / "x.safetensors").shape == shape
    else:
        with pytest.raises(CheckpointError, match="latent"):
            read_latent(tmp_path / "x.safetensors")


@pytest.mark.skipif(vae_bench._peak_begins(CPU) is None, reason="this system does not say")
def test_the_peak_is_what_was_taken_inside_at_most_and_not_what_was_taken_before():
    """A map of 64 MiB before and one of 32 MiB inside, both given back."""
    torch.ones(2 ** 24).sum()
    with vae_bench._measured(CPU) as measure:
        torch.ones(2 ** 23).sum()
    assert 30 <= measure.peak / 2 ** 20 <= 45 and measure.seconds > 0


# ---- the command

def test_the_command_prints_the_table_and_writes_both_files(tmp_path, capsys):
    asked = {}

    def made(paths, vaes, **named):
        asked.update(named, vaes=vaes)
        found = bench({name: partial(kl, 0) for name in vaes}, image=picture(64, 64), device=CPU, tell=named["tell"])
        return found.lines(), found.csv(), found.sheet

    parser = argparse.ArgumentParser()
    cli.add(parser, made)
    flags = parser.parse_args(["--vae", "a", "--vae", "b", "--vae", "a", "--scale", "0.13025", "--csv", str(tmp_path / "t.csv"), "--sheet", str(tmp_path / "s.png")])
    assert flags.run(flags, None) == 0
    assert asked["vaes"] == ("a", "b") and asked["scale"] == 0.13025 and asked["image"] is None and asked["size"] == 1024
    assert "psnr_db" in capsys.readouterr().out and (tmp_path / "t.csv").read_text().startswith("vae,task")
    assert Image.open(tmp_path / "s.png").format == "PNG"
    with pytest.raises(SystemExit):
        parser.parse_args(["--image", "x.png"])
