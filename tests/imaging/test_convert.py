"""Tensors to pictures and back, and the contact sheet."""
import math
import random

import pytest
import torch
from PIL import Image

from modules.core.errors import NanError, RequestError
from modules.imaging.color import on_colour
from modules.imaging.convert import to_images, to_pixels
from modules.imaging.grid import grid, shape


def test_values_are_clamped_and_truncated_not_rounded():
    values = torch.tensor([-5.0, -1.0, 0.0, 2 * 127.9 / 255 - 1, 1.0, 5.0])
    row = to_images(values.expand(1, 3, 1, -1))[0]
    assert [row.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 127, 127, 255, 255]


def test_a_batch_gives_a_picture_each_with_its_channels_in_order():
    pixels = torch.full((2, 3, 4, 6), -1.0)
    pixels[1, 2] = 1.0
    first, second = to_images(pixels)
    assert first.size == (6, 4) and first.getpixel((0, 0)) == (0, 0, 0) and second.getpixel((5, 3)) == (0, 0, 255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_number_type_is_taken(dtype):
    assert to_images(torch.ones(1, 3, 2, 2, dtype=dtype))[0].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_no_number_is_an_error_and_not_a_black_picture(bad):
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[0, 1, 3, 4] = bad
    with pytest.raises(NanError):
        to_images(pixels)


def test_a_picture_comes_back_within_one_level():
    """Truncation may lose one level where float32 falls just short."""
    image = Image.frombytes("RGB", (16, 16), random.Random(0).randbytes(768))
    pixels = to_pixels(image)
    assert pixels.shape == (1, 3, 16, 16) and pixels.dtype == torch.float32 and float(pixels.abs().max()) <= 1.0
    back = to_pixels(to_images(pixels)[0])
    assert float((back - pixels).abs().max()) <= 2 / 255 + 1e-6
    assert to_images(pixels + 1e-4)[0].tobytes() == image.tobytes()


def test_transparency_shows_the_colour_below():
    assert on_colour(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "#ff0000").getpixel((0, 0)) == (255, 0, 0)
    assert on_colour(Image.new("L", (2, 2), 9)).getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize("count, rows, expected", [(1, -1, (1, 1)), (2, -1, (2, 1)), (4, -1, (2, 2)), (5, -1, (3, 2)), (9, -1, (3, 3)),
                                                   (5, 1, (5, 1)), (3, 9, (1, 3))])
def test_a_sheet_is_as_square_as_it_comes(count, rows, expected):
    assert shape(count, rows) == expected


def test_pictures_stand_in_reading_order():
    sheet = grid([Image.new("RGB", (4, 4), (number * 50, 0, 0)) for number in range(3)])
    assert sheet.size == (8, 4) or sheet.size == (12, 4)
    assert [sheet.getpixel((x, 1))[0] for x in range(1, sheet.width, 4)] == [0, 50, 100]


def test_a_smaller_picture_stands_in_the_middle_of_its_cell():
    sheet = grid([Image.new("RGB", (8, 8), "black"), Image.new("RGB", (4, 4), "red")], rows=1)
    assert sheet.getpixel((9, 4)) == (255, 255, 255) and sheet.getpixel((11, 4)) == (255, 0, 0)


def test_a_sheet_that_would_be_too_large_is_refused_before_it_is_made():
    with pytest.raises(RequestError, match="more than"):
        grid([Image.new("RGB", (100, 100))] * 4, most_pixels=30_000)
    with pytest.raises(RequestError):
        grid([])
