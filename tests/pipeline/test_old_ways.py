"""What older versions did with a prompt can be asked for, is told, and makes the same picture again."""
import dataclasses

import pytest

from modules.core.paths import Paths
from modules.engine import Engine
from modules.imaging import metadata, save
from modules.pipeline import infotext
from modules.pipeline.request import Request
from tests import tiny

ASKED = Request(prompt="a [boat:house:1.0]", negative_prompt="fog, " * 40, seed=5, steps=3, width=128, height=64)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = Paths.of(tmp_path_factory.mktemp("old"))
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors", mult=(1, 1, 1, 1), text_layers=2)
    made = Engine(paths)
    yield made
    made.close()


@pytest.mark.parametrize("field, label", [
    ("use_old_scheduling", "Old prompt editing timelines"), ("pad_cond_uncond", "Pad conds"), ("pad_cond_uncond_v0", "Pad conds v0")])
def test_it_is_another_picture_and_told(engine, field, label):
    plain, other = (engine.submit(asked, save=False).result(120).pictures[0]
                    for asked in (ASKED, dataclasses.replace(ASKED, **{field: True})))
    assert plain.image.tobytes() != other.image.tobytes() and label not in plain.infotext
    read = infotext.read(other.infotext)
    assert read.fields[label] == "True" and infotext.fields_of(read)[field] is True
    assert engine.tools.replay(other.file).state == "identical"
    assert engine.tools.replay(save.encode(metadata.pixels(other.file), other.infotext, "", "png")).state == "identical"


def test_the_settings_ask_for_it_too(engine):
    made = engine.tools.request({"prompt": "a"}, {"use_old_scheduling": True, "pad_cond_uncond": True})
    assert made.use_old_scheduling and made.pad_cond_uncond and not made.pad_cond_uncond_v0
