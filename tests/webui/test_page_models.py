"""Models on the page, in a real browser: pickers, what is told about a model, its prediction, and what was brought along from A1111."""
from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from safetensors.torch import save_file

from modules.core import model_folders
from tests import tiny, tiny_families
from tests.webui import running
from tests.webui.test_page import Page
from tests.webui.test_page import chromium as chromium  # the fixture

NASTY = "<img src=x onerror=\"window.__pwned=1\"> | [x](javascript:window.__pwned=1)"
XL = "xl.safetensors"


@pytest.fixture(scope="module")
def easel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page-models")
    data, models = folder / "data", folder / "checkpoints"
    data.mkdir()
    models.mkdir()
    (data / "page_defaults.json").write_text(json.dumps({"txt2img": {
        "steps": 3, "sampler": "DPM++ 2M Karras", "cfg_scale": 4.5, "negative_prompt": "people", "seed": "x", "unknown": 1}}))
    (data / "settings.json").write_text(json.dumps({"CLIP_stop_at_last_layers": 2}))
    (data / model_folders.NAME).write_text("gone:\n  base_path: /nowhere/at/all\n  vae: v\n")
    save_file(tiny_families.sdxl(2), models / XL, {"modelspec.author": NASTY})
    (models / "xl.json").write_text(json.dumps({"activation text": "in oils", "notes": f"mine\n\n{NASTY}", "description": "Paints large."}))
    tiny.save_sd1(models / "second.safetensors", seed=21)
    Image.new("RGB", (400, 300), "teal").save(models / "xl.preview.png")
    (models / "broken.safetensors").write_bytes(b"nothing at all")
    tiny.save_vae(models / "elsewhere.vae.safetensors", seed=3)
    with running.launched(folder) as found:
        yield found


@pytest.fixture
def page(easel, chromium):
    easel.post("/sdapi/v1/options", {"sd_model_checkpoint": running.MODEL, "sd_vae": "Automatic"}).raise_for_status()
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    yield Page(context, easel.address)
    context.close()


def choose(page, element, name):
    """The entry of this name in a list."""
    page.tab.locator(f"#{element} input").click()
    page.tab.get_by_role("option", name=name).click()


def pixels(file):
    return Image.open(io.BytesIO(file)).tobytes()


def opened(page):
    page.tab.get_by_role("button", name="About this model").click()
    page.tab.wait_for_selector("#model_facts table", state="visible")
    return facts(page)


def facts(page):
    return page.tab.inner_text("#model_facts")


def until_told(page, words):
    page.tab.wait_for_function("words => document.querySelector('#model_facts').innerText.includes(words)", arg=words)
    return facts(page)


def test_the_panel_tells_what_the_chosen_model_is_and_marks_what_was_guessed(page):
    told = opened(page)
    assert all(words in told for words in ("miniature.safetensors", "SD1", "512 × 512", "8 pixels", "float16", "U-Net"))
    assert page.tab.locator("#model_facts .guess").inner_text() == "guessed" and "does not say it: prediction: eps" in told
    assert not page.tab.locator("#model_picture img").is_visible() and not page.complaints, page.complaints


def test_another_model_brings_its_own_facts_words_and_picture_and_none_of_them_is_a_script(page):
    opened(page)
    choose(page, "setting_sd_model_checkpoint", XL)
    told = until_told(page, "SDXL")
    assert all(words in told for words in ("1024 × 1024", "in oils", "Paints large.", "mine", "<img src=x"))
    page.tab.wait_for_function("() => { const i = document.querySelector('#model_picture img'); return i && i.naturalWidth === 400 }")
    choose(page, "setting_sd_model_checkpoint", running.MODEL)
    until_told(page, "SD1")
    assert not page.tab.locator("#model_picture img").is_visible() and not page.pwned()


def test_a_file_that_is_no_model_says_so_before_anybody_draws_with_it(page):
    opened(page)
    choose(page, "setting_sd_model_checkpoint", "broken.safetensors")
    page.tab.wait_for_selector("#model_facts .bad")
    assert "broken.safetensors" in page.tab.inner_text("#model_facts .bad")


def test_the_prediction_is_the_users_to_choose_and_is_forgotten_with_another_model(page, easel):
    page.small(prompt="alike").generate()
    plain = page.picture()
    opened(page)
    choose(page, "txt2img_prediction", "v")
    page.generate()
    assert page.picture() != plain and easel.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    page.open()
    page.tab.get_by_role("button", name="About this model").click()
    assert page.tab.locator("#txt2img_prediction input").input_value() == "v"       # of the same model: a page that is loaded again keeps it
    choose(page, "setting_sd_model_checkpoint", XL)
    page.tab.wait_for_function("() => document.querySelector('#txt2img_prediction input').value === 'Auto'")


def test_a_second_checkpoint_takes_over_where_it_is_chosen_and_none_where_it_is_not(page):
    page.small(prompt="handed over", steps=4).generate()
    alone = page.picture()
    assert "Refiner" not in page.text("txt2img_infotext")
    page.tab.get_by_role("button", name="Refiner").click()
    choose(page, "txt2img_refiner", "second.safetensors")
    page.set(refiner_switch_at=0.5).generate()
    assert page.picture() != alone and "Refiner: second" in page.text("txt2img_infotext") and "Refiner switch at: 0.5" in page.text("txt2img_infotext")
    choose(page, "txt2img_refiner", "None")
    page.generate()
    assert pixels(page.picture()) == pixels(alone) and "Refiner" not in page.text("txt2img_infotext")


def test_a_model_and_a_vae_that_were_added_are_there_after_a_refresh_and_draw(page, easel):
    tiny.save_sd1(easel.checkpoints / "late.safetensors", seed=8)
    tiny.save_vae(easel.checkpoints / "late-colours.vae.safetensors", seed=9)
    page.tab.click("#refresh_models")
    choose(page, "setting_sd_model_checkpoint", "late.safetensors")
    page.small(prompt="late").generate()
    own = page.picture()
    choose(page, "setting_sd_vae", "late-colours.vae.safetensors")
    page.generate()
    assert page.picture() != own and "VAE: late-colours.vae.safetensors" in page.text("txt2img_infotext")
    assert "Model: late" in page.text("txt2img_infotext")


def test_what_was_brought_along_fills_a_fresh_page(easel, chromium):
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = Page(context, easel.address)
    shown = {name: page.text(f"txt2img_{name}") for name in ("steps", "cfg_scale", "width", "height", "seed", "neg_prompt", "sampling", "scheduler")}
    assert shown == {
        "steps": "3", "cfg_scale": "4.5", "width": "512", "height": "512", "seed": "-1", "neg_prompt": "people", "sampling": "DPM++ 2M",
        "scheduler": "Automatic"}                           # Karras is that sampler's own
    assert page.tab.locator("#setting_CLIP_stop_at_last_layers input[type=number]").input_value() == "2"
    context.close()


def test_what_went_wrong_at_the_start_is_told_once_to_each_browser(easel, chromium):
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = Page(context, easel.address)
    page.tab.wait_for_selector("#start_notes .warn")
    assert "/nowhere/at/all" in page.tab.inner_text("#start_notes")
    page.open()
    assert page.tab.inner_text("#start_notes").strip() == ""
    context.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_the_open_panel_fits_its_window(easel, chromium, width):
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page = Page(context, easel.address)
    easel.post("/sdapi/v1/options", {"sd_model_checkpoint": XL}).raise_for_status()
    page.open()
    opened(page)
    assert page.tab.evaluate("() => document.documentElement.scrollWidth") <= width
    context.close()


def test_a_fresh_page_leaves_no_complaint_in_the_log(easel, chromium):
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = Page(context, easel.address)
    page.open()
    context.close()
    assert "Traceback" not in easel.log.read_text() and not page.complaints, easel.log.read_text()[-3000:]
