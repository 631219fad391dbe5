"""Pictures that begin from pictures: where the ladder is entered, what is kept bit for bit, what each bad input is told."""
import dataclasses
import io
import json
import struct
import zlib

import numpy
import pytest
import torch
from PIL import Image

from modules.core.errors import ImageMetaError, NotFoundError, RequestError
from modules.core.paths import Paths
from modules.engine import Engine
from modules.imaging import metadata
from modules.pipeline import infotext, start
from modules.pipeline.request import InitImage, Request
from tests import tiny

BASE = Request(prompt="a boat", seed=3, subseed=0, steps=4, width=64, height=64, sampler="Euler")


def scene(width=64, height=64, seed=0):
    """Smooth colours with some grain."""
    y, x = numpy.mgrid[:height, :width]
    grain = numpy.random.default_rng(seed).integers(0, 30, (height, width, 3))
    return Image.fromarray((numpy.stack((x * 3, y * 3, x + y), -1) % 220 + grain).astype(numpy.uint8))


def bar(width=64, height=64, box=(40, 0, 64, 64)):
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


def file(image, kind="PNG", **more):
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("img2img"))
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors", mult=(1, 1, 1, 1), text_layers=2)
    made = Engine(paths)
    yield made
    made.close()


def drawn(engine, image=None, mask=None, base=BASE, **init):
    """The result of a request that begins from this picture."""
    held = {"image": engine.inputs.keep(file(image or scene())).sha256}
    if mask is not None:
        held["mask"] = engine.inputs.keep(file(mask), "mask").sha256
    return engine.submit(dataclasses.replace(base, init=InitImage(**held, **init)), save=False).result(280)


def levels(picture):
    return numpy.asarray(picture.convert("RGB"), dtype=int)


# ---- where the ladder is entered

@pytest.fixture(scope="module")
def model():
    from modules.families import sd1
    return sd1.SD1.build(tiny.sd1(mult=(1, 1, 1, 1), text_layers=2), {})


@pytest.mark.parametrize("strength, count, first", [(0.75, 16, 4), (0.5, 11, 9), (1.0, 20, 0), (0.05, 2, 18), (0.0, 1, 19)])
def test_so_many_of_20_steps_are_walked(model, strength, count, first):
    found, entered, after = start.entry_of(Request(steps=20, sampler="Euler"), InitImage(denoising_strength=strength), model)
    assert (len(found) - 1 - after, entered, after) == (count, first, first)


def test_walking_all_steps_takes_the_end_of_a_longer_ladder(model):
    init = InitImage(denoising_strength=0.5, img2img_fix_steps=True)
    found, entered, after = start.entry_of(Request(steps=20, sampler="Euler"), init, model)
    assert (len(found) - 1, entered, after) == (40, 20, 20)


def test_a_ladder_of_indices_is_entered_one_lower_than_its_noise(model):
    """20 DDIM steps at 0.75: the noise of index 15 of the 20, walked from index 14 down."""
    found, entered, after = start.entry_of(Request(steps=20, sampler="DDIM"), InitImage(denoising_strength=0.75), model)
    assert float(found[entered]) == float(model.prediction.sigmas[751]) and float(found[after]) == float(model.prediction.sigmas[701])
    assert len(found) - 1 - after == 14


def test_noise_on_a_picture_carries_over_what_has_unit_variance():
    latent, noise = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    init = InitImage(initial_noise_multiplier=1.0)
    assert torch.equal(start.on_picture(latent, noise, init, 3.0, 3.0), latent + 3.0 * noise)
    z = start.on_picture(latent, noise, init, 3.0, 2.0) / 5 ** 0.5
    assert torch.allclose(z, (latent + 3.0 * noise) / 10 ** 0.5, atol=1e-6)


# ---- what is kept

@pytest.mark.parametrize("sampler", ["Euler a", "DDIM", "DPM++ 2M SDE", "UniPC"])
def test_outside_the_blurred_mask_every_pixel_is_the_pictures_own(engine, sampler):
    image, mask = scene(), bar()
    base = dataclasses.replace(BASE, sampler=sampler)
    made = drawn(engine, image, mask, base, denoising_strength=1.0, inpainting_fill=0).pictures[0].image
    untouched = levels(made) == levels(image)
    assert untouched[:, :30].all()                          # the blur of 4 pixels reaches 10 to the left of 40
    assert not untouched[:, 44:].all()


def test_only_masked_draws_the_part_large_and_leaves_the_rest_alone(engine):
    image, mask = scene(160, 96), bar(160, 96, (100, 40, 120, 60))
    made = drawn(engine, image, mask, denoising_strength=1.0, inpaint_full_res=True, inpaint_full_res_padding=4, mask_blur_x=2, mask_blur_y=2)
    picture = made.pictures[0].image
    same = (levels(picture) == levels(image)).all(-1)
    assert picture.size == (160, 96)
    rows, columns = numpy.nonzero(~same)
    assert columns.min() >= 95 and columns.max() < 125 and rows.min() >= 35 and rows.max() < 65 and (~same).sum() > 100


def test_a_black_mask_is_said_and_the_whole_picture_drawn(engine):
    result = drawn(engine, scene(), Image.new("L", (64, 64)), inpaint_full_res=True)
    assert "black" in result.warnings[0]


def test_little_strength_stays_near_the_picture_and_much_goes_away(engine):
    image = scene()
    there = levels(drawn(engine, image, denoising_strength=0.0, base=dataclasses.replace(BASE, steps=20)).pictures[0].image)
    far = levels(drawn(engine, image, denoising_strength=1.0).pictures[0].image)
    plain = levels(engine.submit(BASE, save=False).result(280).pictures[0].image)
    assert not (there == far).all() and not (far == plain).all()


@pytest.mark.parametrize("fill", [0, 1, 2, 3])
def test_each_content_under_the_mask_gives_another_picture(engine, fill):
    first = drawn(engine, scene(), bar(), inpainting_fill=fill).pictures[0]
    other = drawn(engine, scene(), bar(), inpainting_fill=(fill + 1) % 4).pictures[0]
    assert first.image.tobytes() != other.image.tobytes()


def test_a_picture_is_the_same_alone_and_in_a_batch(engine):
    two = drawn(engine, scene(), bar(), dataclasses.replace(BASE, batch_size=2), inpainting_fill=2).pictures[1]
    alone = drawn(engine, scene(), bar(), dataclasses.replace(BASE, seed=4), inpainting_fill=2).pictures[0]
    assert abs(levels(two.image) - levels(alone.image)).max() <= 1


# ---- the record and the text

def test_a_masked_picture_is_made_again_with_its_source_files_deleted(engine, tmp_path):
    source = tmp_path / "source.png"
    source.write_bytes(file(scene()))
    held = InitImage(image=engine.inputs.keep(source.read_bytes()).sha256, mask=engine.inputs.keep(file(bar())).sha256, inpainting_fill=0)
    source.unlink()
    made = engine.submit(dataclasses.replace(BASE, init=held), save=False).result(280).pictures[0]
    assert engine.tools.replay(made.file).identical
    engine.inputs.file(held.mask).unlink()
    verdict = engine.tools.replay(made.file)
    assert verdict.state == "cannot" and "mask" in verdict.sentence


def test_a_request_with_a_picture_survives_json():
    request = dataclasses.replace(BASE, init=InitImage(image="a" * 64, mask="b" * 64, denoising_strength=0.4, resize_mode=2))
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request


def test_the_text_says_what_was_asked(engine):
    asked = {"denoising_strength": 0.6, "mask_blur_x": 7, "mask_blur_y": 7, "inpainting_mask_invert": True, "inpainting_fill": 2,
             "inpaint_full_res": True, "inpaint_full_res_padding": 12, "initial_noise_multiplier": 0.9, "soft_inpainting": True}
    text = drawn(engine, scene(), bar(), **asked).pictures[0].infotext
    for words in ("Denoising strength: 0.6", "Mask blur: 7", "Mask mode: Inpaint not masked", "Masked content: latent noise",
                  "Inpaint area: Only masked", "Masked area padding: 12", "Noise multiplier: 0.9"):
        assert words in text
    found = infotext.init_fields_of(infotext.read(text))
    assert {name: found[name] for name in asked} == asked
    assert "Denoising" not in engine.submit(BASE, save=False).result(280).pictures[0].infotext


# ---- bad input

def bomb():
    """A PNG that says it has 12000 x 12000 pixels in 69 bytes or so."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("bad, words", [
    (bomb(), "12000 × 12000 pixels"), (file(scene(), "JPEG")[:600], "damaged"), (b"hello", "no picture"),
    (file(Image.new("RGB", (4, 4))), "at least 8 pixels")], ids=["bomb", "cut off", "no picture", "too small"])
def test_a_file_that_cannot_be_used_is_refused_with_a_sentence(engine, bad, words):
    with pytest.raises(ImageMetaError, match=words):
        engine.inputs.keep(bad)


def test_odd_pictures_are_taken_as_one_would_see_them(engine, tmp_path):
    deep = Image.fromarray(numpy.linspace(0, 65535, 64 * 64).astype(numpy.uint16).reshape(64, 64))
    assert abs(levels(engine.inputs.image(engine.inputs.keep(file(deep)).sha256)).mean() - 127) < 1
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    red, green, blue = engine.inputs.image(engine.inputs.keep(file(ink, "JPEG")).sha256).getpixel((8, 8))
    assert red < 60 and green > 150 and blue > 150
    turned = Image.Exif()
    turned[0x0112] = 6
    kept = engine.inputs.keep(file(scene(64, 32), "JPEG", exif=turned))
    assert (kept.width, kept.height) == (32, 64)
    moving = engine.inputs.keep(file(scene(16, 16), "GIF", save_all=True, append_images=[scene(16, 16, 1)]))
    assert "2 frames" in moving.notices[0]


def test_equal_pixels_have_one_name_whatever_file_they_came_in(engine):
    image = scene()
    names = {engine.inputs.keep(file(image, kind, **more)).sha256 for kind, more in (("PNG", {}), ("WEBP", {"lossless": True}))}
    assert len(names) == 1
    assert metadata.read(engine.inputs.file(names.pop()).read_bytes()).items == {}


def test_a_picture_that_never_came_in_is_missed_by_its_name(engine):
    with pytest.raises(NotFoundError, match="abababab"):
        engine.submit(dataclasses.replace(BASE, init=InitImage(image="ab" * 32)))


@pytest.mark.parametrize("init, field", [({"image": "ab"}, "image"), ({}, "image"), ({"denoising_strength": 2.0}, "denoising_strength"),
                                         ({"img2img_background_color": "red"}, "img2img_background_color"), ({"resize_mode": 9}, "resize_mode")])
def test_an_init_that_makes_no_sense_is_refused_naming_the_field(engine, init, field):
    with pytest.raises(RequestError) as caught:
        engine.submit(dataclasses.replace(BASE, init=InitImage(**{"image": "a" * 64 if init and "image" not in init else "", **init})))
    assert caught.value.field == field


def test_a_mask_of_another_size_is_refused_with_both_sizes(engine):
    with pytest.raises(RequestError, match="32 × 32 pixels and the picture 64 × 64"):
        drawn(engine, scene(), bar(32, 32))
