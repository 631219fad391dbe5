"""Masks, sizes and colours of pictures by their closed forms."""
import numpy
import pytest
from PIL import Image

from modules.imaging import mask, match, resize


def box_mask(size, box):
    found = Image.new("L", size)
    found.paste(255, box)
    return found


@pytest.mark.parametrize("sigma, taps", [(4, 21), (8, 41), (1, 7)])
def test_a_blur_has_so_many_taps_of_sum_one(sigma, taps):
    assert len(mask.taps(sigma)) == taps and mask.taps(sigma).sum() == pytest.approx(1)


def test_a_blurred_edge_is_the_running_sum_of_the_taps():
    levels = numpy.asarray(mask.blurred(box_mask((80, 9), (40, 0, 80, 9)), 4, 4))
    rising = 255 * numpy.cumsum(mask.taps(4))
    assert numpy.abs(levels[4, 30:51] - rising).max() <= 1
    assert (levels[:, :30] == 0).all() and (levels[:, 51:] == 255).all()


def test_a_mask_is_taken_from_alpha_where_there_is_one_and_else_from_greys():
    image = Image.new("RGBA", (16, 16), (200, 200, 200, 100))
    assert mask.mask_of(image).getextrema() == (0, 0) and mask.mask_of(image, binary=False).getextrema() == (100, 100)
    assert mask.mask_of(Image.new("RGBA", (16, 16), (200, 200, 200, 255))).getextrema() == (200, 200)


@pytest.mark.parametrize("padding, box", [(0, (10, 20, 30, 40)), (5, (5, 15, 35, 45)), (32, (0, 0, 62, 72))])
def test_the_region_is_the_box_with_its_padding_inside_the_picture(padding, box):
    assert mask.crop_region(box_mask((100, 80), (10, 20, 30, 40)), padding) == box
    assert mask.crop_region(Image.new("L", (9, 9)), padding) is None


@pytest.mark.parametrize("box, shape, size, grown", [
    ((10, 20, 30, 40), (2, 1), (100, 80), (0, 20, 40, 40)), ((10, 20, 30, 40), (1, 1), (100, 80), (10, 20, 30, 40)),
    ((80, 20, 100, 40), (2, 1), (100, 80), (60, 20, 100, 40)), ((0, 0, 60, 10), (1, 1), (60, 40), (0, 0, 60, 40)),
    ((10, 70, 30, 80), (1, 1), (100, 80), (10, 60, 30, 80))])
def test_a_region_grows_to_the_shape_about_its_middle_and_is_moved_inside(box, shape, size, grown):
    assert mask.expanded(box, shape, size) == grown


@pytest.mark.parametrize("size, target, cover, contain", [
    ((100, 50), (64, 64), (128, 64), (64, 32)), ((50, 100), (64, 64), (64, 128), (32, 64)), ((64, 64), (64, 64), (64, 64), (64, 64))])
def test_a_picture_keeps_its_shape_when_it_covers_or_lies_inside(size, target, cover, contain):
    assert resize.scaled(size, target, cover=True) == cover and resize.scaled(size, target, cover=False) == contain


def test_what_lies_inside_has_its_edges_drawn_out():
    image = Image.linear_gradient("L").resize((40, 20))
    out = numpy.asarray(resize.fitted(image, 40, 40, resize.CONTAIN))
    assert (out[:10] == out[10]).all() and (out[30:] == out[29]).all() and (out[10:30] == numpy.asarray(image)).all()
    assert resize.fitted(image, 20, 20, resize.COVER).size == (20, 20)


def test_a_hole_is_filled_from_around_it_and_the_rest_stays():
    image = Image.new("RGB", (64, 64), (200, 40, 90))
    image.paste((0, 255, 0), (24, 24, 40, 40))
    out = numpy.asarray(mask.filled(image, box_mask((64, 64), (24, 24, 40, 40))), dtype=int)
    assert numpy.abs(out - (200, 40, 90)).max() <= 8        # thin layers of 8 bits round roughly


def test_a_picture_given_its_own_colours_stays_and_another_takes_them_on():
    own = Image.fromarray(numpy.random.default_rng(0).integers(40, 200, (32, 32, 3)).astype(numpy.uint8))
    same = numpy.asarray(match.matched(own, own), dtype=int)
    assert numpy.abs(same - numpy.asarray(own)).max() <= 1
    red = Image.merge("RGB", (own.getchannel("R").point(lambda level: min(255, level + 50)), own.getchannel("G"), own.getchannel("B")))
    assert numpy.asarray(match.matched(own, red), dtype=float)[..., 0].mean() > numpy.asarray(own)[..., 0].mean() + 5
