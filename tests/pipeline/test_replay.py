"""A replay says identical when it is, and names the first difference when it is not."""
import dataclasses
import json

import pytest

from modules.core.paths import Paths
from modules.engine import Engine
from modules.imaging import metadata, save
from modules.pipeline import replay
from modules.pipeline.request import Request
from tests import tiny

ASKED = Request(prompt="a [red|blue] boat, (sea:1.2)", negative_prompt="fog", seed=11, steps=3, width=64, height=64)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("replay"))
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors")
    made = Engine(paths)
    yield made
    made.close()


@pytest.fixture(scope="module")
def picture(engine):
    return engine.submit(ASKED, save=False).result(120).pictures[0]


def rewritten(picture, change, text=None):
    """The file with its record changed by `change(record)`; None leaves the record out."""
    found = metadata.read(picture.file)
    record = json.loads(found.record)
    record = change(record) if change else record
    return save.encode(metadata.pixels(picture.file), found.infotext if text is None else text, json.dumps(record) if record else "", "png")


def without_record(record):
    return None


@pytest.mark.parametrize("change", [
    {}, {"sampler": "Euler a", "eta_noise_seed_delta": 31337}, {"sampler": "DPM++ 2M SDE", "scheduler": "Exponential"}, {"clip_skip": 2},
    {"subseed_strength": 0.3, "subseed": 5}, {"image_format": "jpg"}, {"image_format": "webp"}, {"randn_source": "CPU"}])
def test_a_picture_of_this_machine_comes_out_identical(engine, change):
    file = engine.submit(dataclasses.replace(ASKED, **change), save=False).result(120).pictures[0].file
    verdict = engine.tools.replay(file)
    assert (verdict.state, verdict.exit_code, verdict.max_error) == ("identical", 0, 0), verdict


def test_each_picture_of_a_batch_comes_out_identical(engine):
    pictures = engine.submit(dataclasses.replace(ASKED, batch_size=3, n_iter=2), save=False).result(120).pictures
    assert [engine.tools.replay(one.file).state for one in pictures] == ["identical"] * 6


@pytest.mark.parametrize("field, value", [("seed", 12), ("steps", 4), ("cfg_scale", 3), ("prompt", "a house")])
def test_a_record_that_tells_other_settings_gives_another_picture(engine, picture, field, value):
    def change(record):
        record["request"][field] = value
        record["picture"].pop("prompt", None)
        if field == "seed":
            record["picture"]["seed"] = value
        return record

    verdict = engine.tools.replay(rewritten(picture, change))
    assert (verdict.state, verdict.exit_code, verdict.first_difference) == ("different", 1, "pixels")
    assert verdict.max_error > 0 and verdict.mean_error > 0


def test_pixels_that_were_retouched_are_different_by_what_was_retouched(engine, picture):
    image = metadata.pixels(picture.file)
    old = image.getpixel((3, 4))
    image.putpixel((3, 4), (old[0] ^ 1, old[1], old[2]))
    found = metadata.read(picture.file)
    verdict = engine.tools.replay(save.encode(image, found.infotext, found.record, "png"))
    assert (verdict.state, verdict.first_difference, verdict.max_error) == ("different", "pixels", 1)
    assert verdict.mean_error == pytest.approx(1 / (64 * 64 * 3))


def other_hash(record):
    record["model"]["sha256"] = "0" * 64
    return record


def other_library(record):
    record["libraries"]["torch"] = "1.0.0"
    return record


def other_seed_too(change):
    """So that pixels differ and the cause is looked for."""
    def both(record):
        record = change(record)
        record["picture"]["seed"] = record["request"]["seed"] = 99
        return record
    return both


@pytest.mark.parametrize("change, named", [(other_hash, "file hash: model"), (other_library, "library: torch"),
                                           (lambda record: other_library(other_hash(record)), "file hash: model")])
def test_the_first_difference_is_the_hash_before_the_library_before_the_pixels(engine, picture, change, named):
    verdict = engine.tools.replay(rewritten(picture, other_seed_too(change)))
    assert (verdict.state, verdict.first_difference) == ("different", named)
    same = engine.tools.replay(rewritten(picture, change))
    assert same.state == "identical" and "although" in same.sentence


def test_a_renamed_checkpoint_is_found_by_its_hash(engine, picture):
    folder = engine.paths.checkpoints[0]
    (folder / "tiny.safetensors").rename(folder / "renamed.safetensors")
    engine.tools.checkpoints(refresh=True)
    try:
        assert engine.tools.replay(picture.file).state == "identical"
    finally:
        (folder / "renamed.safetensors").rename(folder / "tiny.safetensors")
        engine.tools.checkpoints(refresh=True)


def missing_model(record):
    record["model"] = {"name": "elsewhere", "sha256": "1" * 64}
    return record


def newer(record):
    record["easel"] = 99
    return record


def unfinished(record):
    record["picture"]["complete"] = False
    return record


def hostile(record):
    record["request"]["width"] = 10**9
    return record


def unknown_field(record):
    record["request"]["warp"] = 1
    return record


@pytest.mark.parametrize("change", [missing_model, newer, unfinished, hostile, unknown_field])
def test_what_cannot_be_made_again_is_said_in_a_sentence(engine, picture, change):
    verdict = engine.tools.replay(rewritten(picture, change))
    assert (verdict.state, verdict.exit_code, verdict.max_error) == ("cannot", 2, None)
    assert verdict.sentence.endswith(".")


def test_no_picture_and_a_picture_that_says_nothing_cannot_be_made_again(engine, picture, tmp_path):
    bare = save.encode(metadata.pixels(picture.file), "", "", "png")
    for source in (b"", b"no picture", bare, tmp_path / "missing.png"):
        assert engine.tools.replay(source).exit_code == 2


def test_a_text_without_a_record_is_enough_when_it_says_everything(engine, picture):
    verdict = engine.tools.replay(rewritten(picture, without_record))
    assert verdict.state == "identical" and "no record" in verdict.sentence


def test_what_a_text_lacks_is_named(engine, picture):
    text = metadata.read(picture.file).infotext.replace("Model hash: ", "Other: ").replace(", CFG scale: 7", "")
    verdict = engine.tools.replay(rewritten(picture, without_record, text))
    assert "Model hash" in verdict.sentence and "CFG scale" in verdict.sentence
    text = metadata.read(picture.file).infotext.replace("Seed: 11, ", "")
    verdict = engine.tools.replay(rewritten(picture, without_record, text))
    assert verdict.exit_code == 2 and "Seed" in verdict.sentence


def test_a_text_of_something_this_version_cannot_do_names_it_as_the_difference(engine, picture):
    text = metadata.read(picture.file).infotext.replace("Seed: 11", "Seed: 12, Hires upscale: 2")
    verdict = engine.tools.replay(rewritten(picture, without_record, text))
    assert (verdict.state, verdict.first_difference) == ("different", "setting: Hires upscale")


def test_what_is_replayed_is_not_saved(engine, picture):
    before = list(engine.paths.outputs.rglob("*"))
    engine.tools.replay(picture.file)
    assert list(engine.paths.outputs.rglob("*")) == before


def test_files_of_other_sizes_are_not_compared(picture):
    wide = save.encode(metadata.pixels(picture.file).resize((72, 64)), "", "", "png")
    assert replay.compare(picture.file, wide) is None
    assert replay.compare(picture.file, picture.file) == (0, 0)
