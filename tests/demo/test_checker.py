"""The checker must prove itself before it may judge: nearly perfect on true pictures, no better than chance on exchanged layouts."""
import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from modules.demo.checker import Reading, Seen, check, compare, read
from modules.demo.scenes import Layout, Object, draw

PARTS = ("sky", "ground", "colour", "place", "kind")


def shares(verdicts):
    """Percent right, for each part."""
    right, all_ = Counter(), Counter()
    for verdict in verdicts:
        for part in PARTS:
            answers = np.atleast_1d(getattr(verdict, part))
            right[part] += int(answers.sum())
            all_[part] += len(answers)
    return {part: 100 * right[part] / all_[part] for part in PARTS}


def truth(layout):
    """What a perfect reader would see."""
    places = {"left": 0.25, "middle": 0.5, "right": 0.75}
    return Reading(layout.sky, layout.ground, tuple(Seen(one.kind, one.colour, one.place, places[one.place], 2.0) for one in layout.objects))


@pytest.fixture(scope="module")
def readings(layouts):
    return [read(draw(layout, 128).image, len(layout.objects)) for layout in layouts]


def test_the_generators_own_pictures_are_read_right_at_128_pixels(layouts, readings):
    found = shares(map(compare, readings, layouts))
    assert min(found.values()) >= 99, found


def test_the_generators_own_pictures_are_read_right_at_256_pixels(layouts):
    found = shares(check(draw(layout, 256).image, layout) for layout in layouts)
    assert min(found.values()) >= 99, found


def test_exchanged_layouts_are_right_by_chance_only(layouts, readings):
    """Chance is what a perfect reader of the wrong picture would score, counted on the layouts alone, over many exchanges."""
    def exchanged(seen, by):
        return [compare(one, other) for shift in by for one, other in zip(seen, layouts[shift:] + layouts[:shift], strict=True)]
    chance, found = shares(exchanged([truth(layout) for layout in layouts], range(1, 60))), shares(exchanged(readings, range(1, 9)))
    assert all(found[part] <= chance[part] + 5 for part in PARTS), (found, chance)
    assert chance["sky"] < 35 and chance["kind"] < 25


def test_a_slight_blur_and_jpeg_are_forgiven(layouts):
    def worn(image):
        buffer = io.BytesIO()
        image.filter(ImageFilter.GaussianBlur(0.8)).save(buffer, "JPEG", quality=60)
        return Image.open(buffer)
    found = shares(check(worn(draw(layout, 128).image), layout) for layout in layouts[:128])
    assert min(found.values()) >= 95, found


def test_a_small_shift_of_all_colours_is_forgiven(layouts):
    def tinted(image):
        return Image.fromarray(np.clip(np.asarray(image, np.float32) * (0.96, 1.0, 0.94) + (6, -3, 4), 0, 255).astype(np.uint8))
    found = shares(check(tinted(draw(layout, 128).image), layout) for layout in layouts[:96])
    assert min(found.values()) >= 95, found


LAYOUT = Layout("day", "clear", "meadow", (Object("cat", "red", "big", "left"),), "plain", 5)


@pytest.mark.parametrize("part, wrong", [
    ("sky", replace(LAYOUT, sky="night")), ("ground", replace(LAYOUT, ground="desert")), ("colour", replace(LAYOUT, objects=(Object("cat", "blue", "big", "left"),))),
    ("place", replace(LAYOUT, objects=(Object("cat", "red", "big", "right"),))), ("kind", replace(LAYOUT, objects=(Object("castle", "red", "big", "left"),)))])
def test_one_wrong_fact_fails_in_its_own_part_only(part, wrong):
    verdict = check(draw(LAYOUT, 128).image, wrong)
    assert {name for name in PARTS if not np.all(getattr(verdict, name))} == {part}


def test_an_empty_scene_shows_nothing_and_noise_has_no_things():
    assert read(draw(replace(LAYOUT, objects=()), 128).image).things == ()
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 255, (128, 128, 3), np.uint8))
    assert read(noise).things == ()


def test_two_things_of_exchanged_colours_are_not_right():
    things = (Object("cat", "red", "small", "left"), Object("dog", "blue", "small", "right"))
    exchanged = (replace(things[0], colour="blue"), replace(things[1], colour="red"))
    verdict = check(draw(replace(LAYOUT, objects=things), 128).image, replace(LAYOUT, objects=exchanged))
    assert verdict.kind == (True, True) and verdict.place == (True, True) and verdict.colour == (False, False)
