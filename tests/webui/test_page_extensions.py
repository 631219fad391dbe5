"""The controls of extensions on a page: made from their descriptions, read into a request, pasted from one."""
import gradio as gr
import pytest

from modules.engine import Engine
from modules.extension_loader import load
from modules.pipeline.request import Request
from tests.jobs import stub
from tests.webui.test_api_extensions import LAMP, TWICE
from webui.form import Form


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    paths = stub.house(tmp_path_factory.mktemp("page"))
    for folder, text in (("lamp", LAMP), ("twice", TWICE)):
        (paths.extensions / folder).mkdir(parents=True)
        (paths.extensions / folder / "extension.py").write_text(text, encoding="utf-8")
    made = Engine(paths, spine=stub.spine, extensions=lambda settings: load(paths, settings))
    yield made
    made.close()


@pytest.fixture
def form(engine):
    made = Form(engine, "txt2img", Request())
    with gr.Blocks():
        made.make("steps")
        made.extensions.build()
    return made


def test_each_control_is_a_component_with_an_id_of_its_own(form):
    assert [type(control).__name__ for control in form.controls] == ["Slider", "Checkbox", "Slider", "Dropdown", "Dropdown"]
    ids = [control.elem_id for control in form.controls]
    assert ids[1:] == ["txt2img_lamp_on", "txt2img_lamp_light", "txt2img_lamp_shade", "txt2img_script_list"] and len(set(ids)) == 5


def test_what_is_set_rides_in_the_request_and_what_is_not_leaves_it_as_it_was(form, engine):
    asked = form.request([20, True, 0.25, "red", "None"])
    assert engine.submit(asked).request.extra == {"Lamp": {"on": True, "light": 0.25}}
    assert engine.submit(form.request([20, False, 0.5, "red", "None"])).request.extra == {}
    assert "Twice" in engine.submit(form.request([20, False, 0.5, "red", "Twice"])).request.extra


def test_a_request_shown_again_sets_them_and_fields_without_extensions_leave_them_alone(form):
    updates = form.values(Request(steps=7, extra={"Lamp": {"light": 0.25}, "Twice": {}}))
    assert [update["value"] for update in updates] == [7, False, 0.25, "red", "Twice"]
    assert all("value" not in update for update in form.paste({"steps": 3})[1:])


def test_without_extensions_there_is_nothing(tmp_path):
    made = Engine(stub.house(tmp_path), spine=stub.spine)
    try:
        form = Form(made, "txt2img", Request())
        with gr.Blocks():
            form.make("steps")
            form.extensions.build()
        assert len(form.controls) == 1 and form.request([20]).extra == {} and len(form.values(Request())) == 1
    finally:
        made.close()
