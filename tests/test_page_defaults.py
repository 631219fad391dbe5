"""What a fresh page shows: the user's own list of defaults, as far as a request can hold it."""
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules import cli
from modules.core.paths import Paths
from modules.engine import Engine
from modules.pipeline import parameters
from modules.pipeline.request import Request
from modules.tools import _fitting

ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                   lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=4)


@pytest.fixture
def paths(tmp_path):
    made = Paths.of(tmp_path / "easel")
    made.make()
    return made


def told(paths, tab="txt2img"):
    engine = Engine(paths)
    try:
        return engine.tools.page_defaults(tab)
    finally:
        engine.close()


def test_what_was_taken_over_from_a1111_is_what_the_page_is_told(paths, tmp_path):
    theirs = tmp_path / "webui"
    theirs.mkdir()
    (theirs / "webui.py").touch()
    (theirs / "ui-config.json").write_text(json.dumps({
        "txt2img/Width/value": 640, "txt2img/Sampling steps/value": 33, "txt2img/Sampling method/value": "Euler a",
        "txt2img/Negative prompt/value": "blurry", "txt2img/CFG Scale/value": 7.0, "img2img/Width/value": 1, "txt2img/Width/maximum": 2048}))
    assert cli.main(["import-a1111", str(theirs)], paths) == 0
    assert told(paths) == {"width": 640, "steps": 33, "negative_prompt": "blurry", "sampler": "Euler a", "scheduler": "Automatic"}
    assert told(paths, "img2img") == {}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"txt2img": []}', '{"txt2img": {"steps": "many"}}', '{"txt2img": {"steps": 0, "sampler": "Oiler"}}', "\xff"])
def test_a_list_that_says_nothing_sound_changes_nothing(paths, text):
    (paths.data / "page_defaults.json").write_text(text, encoding="latin-1")
    assert told(paths) == {}


@given(st.dictionaries(st.sampled_from([row.field for row in parameters.PARAMETERS]), ANY))
def test_whatever_is_left_of_a_list_makes_a_request_that_may_be_sent(values):
    parameters.check(Request(**{"width": 512, "height": 512, **{
        name: value for name, value in _fitting(values).items() if name not in ("width", "height", "batch_size", "n_iter", "steps")}}))
