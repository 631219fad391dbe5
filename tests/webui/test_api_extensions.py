"""Extensions in the API, as A1111's clients know scripts."""
import pytest

from modules.core.flags import Flags
from modules.engine import Engine
from modules.extension_loader import load
from tests.jobs import stub
from tests.webui.test_api import Client
from webui.app import build

SMALL = {"width": 64, "height": 64, "steps": 1, "seed": 5}
LAMP = """
from modules.pipeline.extension import Control, Extension

class Lamp(Extension):
    name = "Lamp"

    def controls(self, tab):
        return (Control(name="on", label="On", kind="bool", default=False, infotext="My lamp"),
                Control(name="light", label="Light", kind="float", default=0.5, minimum=0, maximum=1, step=0.1),
                Control(name="shade", label="Shade", kind="choice", default="red", choices=("red", "blue")))
"""
TWICE = """
from modules.pipeline.extension import Extension

class Twice(Extension):
    name = "Twice"
    selectable = True
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = stub.house(tmp_path_factory.mktemp("extensions"))
    for folder, text in (("lamp", LAMP), ("twice", TWICE), ("broken", "import no_such_module\n")):
        (paths.extensions / folder).mkdir(parents=True)
        (paths.extensions / folder / "extension.py").write_text(text, encoding="utf-8")
    made = Engine(paths, spine=stub.spine, extensions=lambda settings: load(paths, settings))
    yield made
    made.close()


@pytest.fixture(scope="module")
def api(engine):
    return Client(build(engine, Flags(api=True, nowebui=True)))


def extra(engine, api, **fields):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, **fields})
    assert answer.status_code == 200, answer.text
    return engine.job(answer.headers["X-Easel-Job"]).request.extra


def test_the_lists_name_what_is_there(api):
    assert api.get("/sdapi/v1/scripts") == {"txt2img": ["lamp", "twice"], "img2img": ["lamp", "twice"]}
    first = api.get("/sdapi/v1/script-info")[0]
    assert first["name"] == "lamp" and first["is_alwayson"] is True and first["is_img2img"] is False
    assert first["args"][1] == {"label": "Light", "value": 0.5, "minimum": 0, "maximum": 1, "step": 0.1, "choices": None}
    assert first["args"][2]["choices"] == ["red", "blue"]
    assert {one["name"]: one["enabled"] for one in api.get("/sdapi/v1/extensions")} == {"broken": True, "lamp": True, "twice": True}


@pytest.mark.parametrize("args, wanted", [
    ([True, 0.25], {"on": True, "light": 0.25}), ([None, "0.75", "blue", "dropped"], {"light": 0.75, "shade": "blue"}),
    ({"shade": "blue"}, {"shade": "blue"}), ([], {}), ([False, 0.5], {})])
def test_values_come_in_order_or_by_name_in_any_case(engine, api, args, wanted):
    assert extra(engine, api, alwayson_scripts={"LAMP": {"args": args}}) == ({"Lamp": wanted} if wanted else {})


def test_a_text_sets_controls_and_values_that_are_sent_stand_above_it(engine, api):
    text = "a boat\nSteps: 1, Sampler: Euler, Seed: 5, Size: 64x64, My lamp: True"
    assert extra(engine, api, infotext=text) == {"Lamp": {"on": True}}
    assert extra(engine, api, infotext=text, alwayson_scripts={"lamp": {"args": [False]}}) == {}


def test_a_selectable_one_is_chosen_by_script_name(engine, api):
    assert extra(engine, api, script_name="twice") == {"Twice": {}}


@pytest.mark.parametrize("fields, words", [
    ({"alwayson_scripts": {"nope": {}}}, "Script 'nope' not found"), ({"alwayson_scripts": {"broken": {}}}, "Script 'broken' not found"),
    ({"script_name": "lamp"}, "Script 'lamp' not found"), ({"alwayson_scripts": {"lamp": {"args": 3}}}, "args of Lamp"),
    ({"alwayson_scripts": {"twice": {}}}, "Cannot have a selectable script in the always on scripts params"),
    ({"alwayson_scripts": {"lamp": {"args": [True, 7]}}}, "Light"), ({"alwayson_scripts": {"lamp": {"args": {"nope": 1}}}}, "nope")])
def test_what_is_not_there_is_refused_with_a_sentence(api, fields, words):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, **fields})
    assert answer.status_code == 422 and words in answer.text


def test_the_minimum_sigma_of_the_negative_prompt_is_a_field(engine, api):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, "s_min_uncond": 2})
    assert engine.job(answer.headers["X-Easel-Job"]).request.s_min_uncond == 2.0
