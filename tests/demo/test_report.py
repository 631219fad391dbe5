"""The report counts what it claims to count: a perfect artist passes every gate, one who does not listen passes none."""
import math
import random

import pytest
from PIL import Image, ImageFilter

from modules.demo import captions, scenes
from modules.demo.report import GATES, report

COUNT = 32


def layouts():
    """What `report` asks for, by the prompt."""
    found = [scenes.unseen_layout(random.Random(f"report 0 {number}")) for number in range(COUNT)]
    return {captions.prompt_for(layout): layout for layout in found}


def test_a_perfect_artist_passes_every_gate_and_strange_words_cost_nothing():
    known = layouts()

    def draw(prompt, seed):
        return scenes.draw(next(layout for words, layout in known.items() if prompt.startswith(words)), 128).image

    found = report(draw, size=128, count=COUNT, decoded=lambda image: image.filter(ImageFilter.GaussianBlur(0.5)))
    for name, _, high in GATES:
        assert found.rates[name] >= high and found.strange[name] == found.rates[name]
    assert 20 < found.psnr < 50
    assert len(found.lines()) == 6 and all("%" in line for line in found.lines()[2:5])
    assert found.sheet.size == (8 * 128, 4 * 128)


def test_one_who_draws_always_the_same_passes_none():
    same = scenes.draw(scenes.training_layout(random.Random(0)), 128).image
    found = report(lambda prompt, seed: same, size=128, count=COUNT)
    assert found.psnr is None
    for name, low, _ in GATES:
        assert found.rates[name] < low


def test_seeds_differ_and_every_picture_is_told_of():
    seeds, told = [], []
    plain = Image.new("RGB", (128, 128), "grey")
    report(lambda prompt, seed: seeds.append(seed) or plain, size=128, count=4, tell=lambda done, of: told.append((done, of)))
    assert seeds == [0, 1, 2, 3] * 2 and told[-1] == (8, 8)


@pytest.mark.parametrize("level, decibel", [(0, math.inf), (1, 48.13), (10, 28.13)])
def test_decibels_are_those_of_the_formula(level, decibel):
    from modules.demo.report import psnr_of
    assert psnr_of(Image.new("RGB", (8, 8), (100, 100, 100)), Image.new("RGB", (8, 8), (100 + level,) * 3)) == pytest.approx(decibel, abs=0.01)


def test_the_unknown_words_are_unknown():
    from modules.demo.recipe import STRANGERS
    from modules.demo.report import UNKNOWN
    assert not set(UNKNOWN) & ({word for words in STRANGERS for word in words.split()} | set(captions.WORDS))
