"""Pictures follow from their layouts alone, show what the layout says, and some combinations stay out of training."""
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from modules.core.errors import RequestError
from modules.demo.scenes import (
    COLOURS,
    GROUNDS,
    KINDS,
    PLACES,
    SIZES,
    SKIES,
    STYLES,
    WEATHERS,
    Layout,
    Object,
    draw,
    draw_layout,
    held_out,
    sensible,
    training_layout,
    unseen_layout,
)

PLAIN = Layout("day", "clear", "meadow", (Object("house", "red", "big", "left"),), "plain", 7)


def pixels(image):
    return np.asarray(image, np.float64)


@pytest.mark.parametrize("style", STYLES)
def test_the_same_layout_gives_the_same_bytes(style):
    layout = replace(PLAIN, style=style, weather="rain")
    one, two = draw(layout, 96), draw(layout, 96)
    for a, b in zip((one.image, one.edges, one.depth, *one.masks), (two.image, two.edges, two.depth, *two.masks), strict=True):
        assert a.tobytes() == b.tobytes()


def test_another_seed_gives_another_picture_of_the_same_house():
    one, two = draw(PLAIN, 96), draw(replace(PLAIN, seed=8), 96)
    assert one.image.tobytes() != two.image.tobytes()
    assert one.masks[0].tobytes() == two.masks[0].tobytes()


def test_a_picture_is_the_same_picture_at_twice_the_size(layouts):
    for layout in layouts[:16]:
        small, big = pixels(draw(layout, 96).image), pixels(draw(layout, 192).image.reduce(2))
        assert np.abs(small - big).mean() < 3, layout


def test_all_truth_has_the_pictures_size_and_the_stated_modes(layouts):
    for layout in layouts[:16]:
        scene = draw(layout, 80)
        assert scene.image.mode == "RGB" and len(scene.masks) == len(layout.objects)
        assert {truth.mode for truth in (scene.edges, scene.depth, *scene.masks)} == {"L"}
        assert {truth.size for truth in (scene.image, scene.edges, scene.depth, *scene.masks)} == {(80, 80)}
        assert set(np.unique(scene.edges)) <= {0, 255} and 0.005 < pixels(scene.edges).mean() / 255 < 0.4


def test_every_word_of_the_tables_is_drawn_by_chance():
    rng = random.Random(1)
    layouts = [draw_layout(rng) for _ in range(2000)]
    things = [thing for layout in layouts for thing in layout.objects]
    for table, drawn in ((SKIES, {one.sky for one in layouts}), (WEATHERS, {one.weather for one in layouts}), (GROUNDS, {one.ground for one in layouts}),
                         (STYLES, {one.style for one in layouts}), (KINDS, {one.kind for one in things}), (SIZES, {one.size for one in things})):
        assert set(table) == drawn
    assert len(KINDS) >= 12 and all(sensible(layout) for layout in layouts)
    assert Counter(len(layout.objects) for layout in layouts)[2] > 300
    assert {(one.kind, one.colour) for one in things} == {(kind, colour) for kind in KINDS for colour in COLOURS}
    assert {(one.kind, one.place) for one in things} == {(kind, place) for kind in KINDS for place in PLACES}


def test_boats_are_on_water_and_no_two_things_share_a_place():
    rng = random.Random(2)
    for layout in (draw_layout(rng) for _ in range(1000)):
        assert all(layout.ground == "sea" for thing in layout.objects if thing.kind in ("boat", "fish", "duck"))
        assert all(layout.ground != "sea" for thing in layout.objects if thing.kind in ("house", "car", "cat"))
        assert len({thing.place for thing in layout.objects}) == len(layout.objects)


def test_masks_lie_where_the_place_says_and_do_not_meet(layouts):
    middle = {"left": (0.1, 0.37), "middle": (0.37, 0.63), "right": (0.63, 0.9)}
    for layout in layouts[:100]:
        masks = [pixels(mask) / 255 for mask in draw(layout, 64).masks]
        for thing, mask in zip(layout.objects, masks, strict=True):
            x = (mask.sum(0) * (np.arange(64) + 0.5) / 64).sum() / mask.sum()
            assert middle[thing.place][0] < x < middle[thing.place][1], (thing, x)
            assert (0.015 if thing.size == "small" else 0.04) < mask.mean() < (0.10 if thing.size == "small" else 0.22), (thing, mask.mean())
        if len(masks) == 2:
            assert (masks[0] * masks[1]).sum() < 0.04 * min(masks[0].sum(), masks[1].sum()), layout


def test_a_thing_has_its_colour_where_its_mask_is():
    """The commonest colour under the mask is the named one, in daylight and without tint."""
    for kind in ("house", "car", "cat", "dog", "castle", "mushroom", "flower", "tree"):
        for name, colour in COLOURS.items():
            scene = draw(replace(PLAIN, objects=(Object(kind, name, "big", "middle"),)), 96)
            inside = pixels(scene.image)[pixels(scene.masks[0]) > 250]
            assert (np.abs(inside - colour).max(1) < 45).mean() > 0.2, (kind, name)


def test_near_is_bright_in_the_depth_and_the_sky_is_black():
    depth = pixels(draw(PLAIN, 96).depth)
    assert depth[:30, 60:].max() == 0
    assert depth[94].min() > depth[64, 60:].max() > 0


def test_the_outline_of_a_thing_is_among_the_edges(layouts):
    for layout in layouts[:32]:
        if layout.style == "paper":
            continue
        scene = draw(layout, 128)
        for thing, mask in zip(layout.objects, scene.masks, strict=True):
            inside = pixels(mask) > 128
            border = inside & ~(np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1))
            edges = pixels(scene.edges) > 0
            near = np.any([np.roll(edges, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0)
            assert near[border].mean() > 0.8, thing


def test_no_training_layout_is_held_out_and_no_unseen_one_is_trained_on():
    rng = random.Random(3)
    trained = [training_layout(rng) for _ in range(1500)]
    unseen = [unseen_layout(rng) for _ in range(300)]

    def combinations(layouts):
        return {(thing.kind, thing.colour, layout.ground, layout.sky) for layout in layouts for thing in layout.objects}
    assert not any(map(held_out, trained)) and all(map(held_out, unseen))
    for layout in unseen:
        assert not combinations([layout]) <= combinations(trained)


def test_what_is_held_out_depends_on_kind_colour_ground_and_sky_only(layouts):
    for layout in layouts:
        other = replace(layout, weather="fog", style="ink", seed=1, objects=tuple(replace(thing, size="big", place="left") for thing in layout.objects))
        assert held_out(layout) == held_out(other)
    assert 0.05 < np.mean([held_out(layout) for layout in layouts]) < 0.25


@pytest.mark.parametrize("layout, size, word", [
    (replace(PLAIN, sky="noon"), 64, "noon"), (replace(PLAIN, objects=(Object("dragon", "red", "big", "left"),)), 64, "dragon"),
    (PLAIN, 8, "8 pixels"), (replace(PLAIN, objects=PLAIN.objects * 3), 64, "3 objects")])
def test_a_scene_that_cannot_be_drawn_says_why(layout, size, word):
    with pytest.raises(RequestError, match=word):
        draw(layout, size)
