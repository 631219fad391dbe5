"""The table of parameters: what it covers, what it takes, what it refuses."""
import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.core.errors import PromptError, RequestError, ScheduleError
from modules.core.options import OPTIONS
from modules.pipeline import parameters
from modules.pipeline.init_parameters import INIT
from modules.pipeline.parameters import PARAMETERS, by_api_name, by_field, by_setting, check, coerce, normal, number
from modules.pipeline.request import InitImage, Request

NUMBERS = [row for row in PARAMETERS if row.kind in ("int", "float")]
INTEGERS = [row for row in PARAMETERS if row.kind == "int"]
TEXTS = [row for row in PARAMETERS if row.kind in ("text", "str", "choice")]
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=5)


def rows(some):
    return pytest.mark.parametrize("row", some, ids=[row.field for row in some])


def test_every_field_of_a_request_has_one_row_but_the_two_open_maps():
    fields = [item.name for item in dataclasses.fields(Request) if item.name not in ("extra", "notes", "init")]
    assert sorted(fields) == sorted(row.field for row in PARAMETERS)


def test_every_field_of_an_init_has_one_row_but_its_pictures():
    fields = [item.name for item in dataclasses.fields(InitImage) if item.name not in ("image", "mask", "depth")]
    assert sorted(fields) == sorted(row.field for row in INIT)
    assert not {row.field for row in INIT} & {row.field for row in PARAMETERS}


@pytest.mark.parametrize("key", [row.setting for row in INIT if row.setting])
def test_every_setting_of_an_init_is_an_option_with_its_default(key):
    row = next(row for row in INIT if row.setting == key)
    assert {option.key: option.default for option in OPTIONS}[key] == getattr(InitImage(), row.field)


def test_the_default_request_passes_and_is_in_normal_form():
    check(Request())
    assert normal(Request()) == Request()


@pytest.mark.parametrize("column", ["field", "infotext", "api_name", "setting"])
def test_no_two_rows_claim_the_same_name(column):
    names = [getattr(row, column) for row in PARAMETERS if getattr(row, column)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("key", [row.setting for row in PARAMETERS if row.setting])
def test_every_setting_named_in_the_table_is_an_option(key):
    assert key in {option.key for option in OPTIONS}


def test_the_api_defaults_are_a1111s_where_they_differ():
    differing = {row.api_name: row.api_default for row in PARAMETERS if row.api_default is not None}
    assert differing == {"steps": 50, "sampler_name": "Euler", "seed_resize_from_w": -1, "seed_resize_from_h": -1}
    assert (Request().width, Request().height, Request().cfg_scale, Request().seed) == (512, 512, 7.0, -1)


def test_rows_are_found_by_each_name():
    assert by_field("steps").label == "Sampling steps"
    assert by_api_name("sampler_name") is by_field("sampler")
    assert by_setting("CLIP_stop_at_last_layers") is by_field("clip_skip")
    assert by_api_name("") is None and by_setting("") is None
    with pytest.raises(RequestError):
        by_field("colour")


@pytest.mark.parametrize("value, text", [(7, "7"), (7.0, "7"), (7.5, "7.5"), (-0.0, "0"),
                                         (0.1 + 0.2, "0.30000000000000004"), (1e300, "1e+300")])
def test_a_number_prints_by_one_rule(value, text):
    assert number(value) == text and float(text) == value


@rows(INTEGERS)
@pytest.mark.parametrize("value, taken", [("20", 20), (20.0, 20), ("20.0", 20), (" 20 ", 20), ("-1", -1), (2**64 - 1, 2**64 - 1),
                                          (str(2**64 - 1), 2**64 - 1)])
def test_an_integer_is_taken_from_text_and_from_whole_floats(row, value, taken):
    assert coerce(row, value) == taken and type(coerce(row, value)) is int


@rows(INTEGERS)
@pytest.mark.parametrize("value", [True, False, 20.5, "20.5", "", "many", None, [20], {}, "0x14", "1_000", "٣", math.nan, math.inf, "nan",
                                   "9" * 10_000])
def test_what_is_no_integer_is_refused_naming_the_field(row, value):
    with pytest.raises(RequestError) as refusal:
        coerce(row, value)
    assert refusal.value.field == row.field and len(str(refusal.value)) < 250


@pytest.mark.parametrize("value, taken", [("7.5", 7.5), (7, 7.0), ("7", 7.0), ("1e1", 10.0)])
def test_a_float_is_taken_from_text_and_integers(value, taken):
    assert coerce(by_field("cfg_scale"), value) == taken


@pytest.mark.parametrize("value", [True, "nan", "inf", math.inf, "1_0", None, [], 10**400])
def test_what_is_no_finite_float_is_refused(value):
    with pytest.raises(RequestError):
        coerce(by_field("cfg_scale"), value)


@pytest.mark.parametrize("value, taken", [(5, "5"), (7.0, "7"), ("x", "x")])
def test_a_number_is_taken_for_text(value, taken):
    assert coerce(by_field("prompt"), value) == taken


@pytest.mark.parametrize("value", [True, None, ["a"], {}])
def test_a_list_is_no_prompt(value):
    with pytest.raises(RequestError):
        coerce(by_field("prompt"), value)


def test_eta_alone_may_be_nothing():
    assert coerce(by_field("eta"), None) is None
    check(Request(eta=None))


@pytest.mark.parametrize("value, taken", [(True, True), ("true", True), ("False", False), (1, True), (0, False), ("0", False)])
def test_a_switch_is_taken_from_text_and_from_zero_and_one(value, taken):
    assert coerce(by_field("deterministic"), value) is taken


@given(st.sampled_from(PARAMETERS), ANYTHING)
def test_whatever_is_sent_is_taken_or_refused_in_one_sentence(row, value):
    try:
        taken = coerce(row, value)
        parameters.check_value(row, taken)
    except RequestError as refusal:
        assert refusal.field == row.field and "\n" not in str(refusal)[-2:]
    else:
        json.dumps(taken, allow_nan=False)


@rows([row for row in NUMBERS if row.minimum is not None])
def test_a_number_beyond_its_limits_is_refused_naming_the_field(row):
    for value in (row.minimum - 1, row.maximum * 2 + 1, math.nan, math.inf, True, "1", 10**5000):
        with pytest.raises(RequestError) as refusal:
            check(dataclasses.replace(Request(), **{row.field: value}))
        assert refusal.value.field == row.field


@pytest.mark.parametrize("changes, field", [
    ({"steps": 0}, "steps"), ({"width": 0}, "width"), ({"height": 10**6}, "height"), ({"width": 10**6}, "width"),
    ({"batch_size": 0}, "batch_size"), ({"n_iter": 0}, "n_iter"), ({"seed": -2}, "seed"), ({"seed": 2**64}, "seed"),
    ({"subseed_strength": 1.5}, "subseed_strength"), ({"cfg_scale": math.nan}, "cfg_scale"),
    ({"width": 8192, "height": 8192, "batch_size": 2}, "batch_size"), ({"steps": 1000, "n_iter": 1000, "batch_size": 64}, "n_iter"),
    ({"randn_source": "TPU"}, "randn_source"), ({"image_format": "exe"}, "image_format"), ({"prediction": "score"}, "prediction"),
    ({"emphasis": ""}, "emphasis"), ({"styles": ["a"]}, "styles"), ({"styles": (5,)}, "styles"), ({"styles": ("a",) * 1000}, "styles"),
    ({"deterministic": 1}, "deterministic"), ({"checkpoint": None}, "checkpoint"), ({"extra": {"a": math.nan}}, "extra"),
    ({"extra": {"a": object()}}, "extra"), ({"notes": {"a": "x" * 300_000}}, "notes"), ({"notes": {"a": "\ud800"}}, "notes"),
    ({"notes": [("a", 1)]}, "notes"), ({"schedule_sigma_min": 3.0, "schedule_sigma_max": 2.0}, "schedule_sigma_min"),
])
def test_what_cannot_be_computed_is_refused_naming_the_field(changes, field):
    with pytest.raises(RequestError) as refusal:
        check(Request(**changes))
    assert refusal.value.field == field and refusal.value.status == 422 and str(refusal.value).endswith(".")


@rows(TEXTS)
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "a\0b", "x" * (64 * 1024 + 1), "猫" * 30_000],
                         ids=["high", "low", "nul", "long", "wide"])
def test_half_characters_nul_and_too_much_text_are_refused_naming_the_field(row, text):
    with pytest.raises(RequestError) as refusal:
        check(dataclasses.replace(Request(), **{row.field: text}))
    assert refusal.value.field == row.field
    assert isinstance(refusal.value, PromptError) == (row.kind == "text")
    str(refusal.value).encode("utf-8")


def test_a_prompt_of_64_kib_passes():
    check(Request(prompt="x" * 65536, negative_prompt="ä" * 32768))


def test_equal_requests_by_different_roads_have_one_normal_form():
    page = Request(cfg_scale=7.0, randn_source="NV")
    api = Request(cfg_scale=7, randn_source="GPU", seed_resize_from_w=-1, seed_resize_from_h=-1)
    assert normal(api) == page
    assert json.dumps(normal(api).to_json()) == json.dumps(page.to_json())


def test_a_list_of_levels_has_as_many_steps_as_it_has_and_words_in_it_are_refused():
    assert normal(Request(steps=50, schedule_levels="14.6, 7.3; 2.1 0")).steps == 3
    with pytest.raises(ScheduleError, match="numbers with commas"):
        normal(Request(schedule_levels="fourteen, 7"))
