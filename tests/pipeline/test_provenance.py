"""The record inside every picture carries any request at all, and refuses what is none."""
import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.core.errors import ImageMetaError, RequestError, WebUIError
from modules.pipeline import provenance
from modules.pipeline.parameters import PARAMETERS, normal
from modules.pipeline.request import Request

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3), max_leaves=6)


def record_of(request, **more):
    facts = {"index": 2, "seed": 7, "subseed": 9, "prompt": request.prompt, "negative_prompt": request.negative_prompt,
             "model": {"name": "m.safetensors", "sha256": "0" * 64, "family": "SD1", "prediction": "eps"},
             "libraries": {"torch": "2.13.0", "easel": "0.1.0"}, "device": "cpu", "dtype": "float32", "layers": "plain",
             "pixels": {"sha256": "1" * 64, "width": 512, "height": 512}}
    return provenance.record(request, **{**facts, **more})


def _values(row):
    if row.kind in ("int", "float"):
        return st.integers(int(row.minimum), int(row.maximum)) if row.kind == "int" else st.floats(row.minimum, row.maximum)
    if row.kind == "bool":
        return st.booleans()
    if row.field == "schedule_levels":
        return st.sampled_from(("", "14.6, 7, 0", "[3 2 1]"))
    if row.kind == "list":
        return st.lists(ANY_TEXT, max_size=3).map(tuple)
    return st.sampled_from(row.choices) if isinstance(row.choices, tuple) else ANY_TEXT


REQUESTS = st.fixed_dictionaries({}, optional={
    **{row.field: _values(row) for row in PARAMETERS if row.field not in ("width", "height", "batch_size", "n_iter", "steps")},
    "extra": st.dictionaries(ANY_TEXT, JSON, max_size=3), "notes": st.dictionaries(ANY_TEXT, JSON, max_size=3),
}).map(lambda values: normal(Request(**values))).filter(lambda one: not 0 < one.schedule_sigma_max <= one.schedule_sigma_min)


@settings(max_examples=200, deadline=None)
@given(REQUESTS)
def test_what_the_record_says_is_what_was_asked(request_):
    assert provenance.request_of(provenance.read(provenance.write(record_of(request_)))) == request_


@given(st.text(st.characters(), max_size=50))
def test_a_record_can_be_written_as_utf8_whatever_it_holds(text):
    """Half characters are refused at the edge; should one come by another way, the picture is not lost for it."""
    line = provenance.write(record_of(Request(prompt=text)))
    line.encode("utf-8")
    assert "\n" not in line and isinstance(provenance.read(line), dict)


def test_a_lone_surrogate_comes_back():
    assert provenance.read(provenance.write(record_of(Request(prompt="a\ud800b"))))["request"]["prompt"] == "a\ud800b"


def test_seven_and_seven_point_nothing_give_the_same_bytes():
    one = record_of(Request(cfg_scale=9, extra={"x": {"b": 1.0, "a": [2.0]}}, randn_source="GPU", seed_resize_from_w=-1))
    other = record_of(Request(cfg_scale=9.0, extra={"x": {"a": (2,), "b": 1}}))
    assert provenance.write(one) == provenance.write(other)


def test_a_record_that_was_read_is_written_with_the_same_bytes():
    line = provenance.write(record_of(Request(prompt="猫 é", cfg_scale=7.5, seed=2**64 - 1)))
    assert provenance.write(provenance.read(line)) == line
    assert "猫" in line and " " not in line.replace("猫 é", "")


def test_no_time_no_path_and_no_job_stands_in_a_record():
    assert set(record_of(Request())) == {
        "easel", "request", "picture", "model", "vae", "files", "libraries", "device", "dtype", "layers", "pixels"}
    assert set(record_of(Request())["picture"]) == {"index", "seed", "subseed", "complete"}


def test_one_picture_of_a_batch_can_be_asked_for_alone():
    request = Request(prompt="a", styles=("oil",), batch_size=4, n_iter=2, seed=5)
    alone = provenance.alone(record_of(request, prompt="a, oil", seed=7, subseed=11))
    assert alone == dataclasses.replace(request, prompt="a, oil", styles=(), batch_size=1, n_iter=1, seed=7, subseed=11)


@pytest.mark.parametrize("text", [
    "", "{}", "[]", "null", "5", '"easel"', '{"easel":"1"}', '{"easel":2,"request":{},"picture":{},"model":{},"pixels":{}}',
    '{"easel":true}',
    '{"easel":1}', '{"easel":1,"request":[],"picture":{},"model":{},"pixels":{}}', "{", "[" * 100_000, '{"easel":NaN}',
    '{"easel":' + "9" * 5000 + "}", "x" * (provenance.MAX_RECORD + 1)])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(ImageMetaError):
        provenance.read(text)


@pytest.mark.parametrize("values", [
    {"colour": "red"}, {"styles": 5}, {"prompt": 5}, {"steps": 0}, {"width": 10**6}, {"seed": "1"}, {"extra": []}, {"cfg_scale": None},
    {"prompt": "\ud800"}, {"styles": [[]]}])
def test_a_record_with_a_request_that_cannot_be_used_is_refused(values):
    record = {**record_of(Request()), "request": values}
    with pytest.raises((ImageMetaError, RequestError)):
        provenance.request_of(provenance.read(json.dumps(record)))


@pytest.mark.parametrize("picture", [{"seed": "x"}, {"prompt": 5}, {"subseed": None}, {"seed": -7}])
def test_a_record_with_a_picture_that_cannot_be_used_is_refused(picture):
    with pytest.raises(WebUIError):
        provenance.alone({**record_of(Request()), "picture": picture})


def test_a_damaged_record_gives_our_error_or_a_record():
    line = provenance.write(record_of(Request(prompt="a (b:1.2)", styles=("x",), extra={"a": 1})))
    random_ = random.Random(0)
    for _ in range(500):
        place = random_.randrange(len(line))
        damaged = line[:place] + random_.choice(["", '"', "{", "9", "\\", "null", "-"]) + line[place + random_.randrange(3):]
        try:
            provenance.request_of(provenance.read(damaged))
        except WebUIError:
            continue
