"""The page in a real browser, in front of a real server started by launch.py."""
from __future__ import annotations

import hashlib
import time

import httpx
import pytest
from PIL import Image

from modules.imaging import metadata
from tests import tiny
from tests.webui import running

WAIT = 90_000                                               # milliseconds after which the page is called hung
XSS = ("<img src=x onerror=\"window.__pwned=1\">", "<script>window.__pwned=1</script>", "[x](javascript:window.__pwned=1)",
       "\"><svg/onload=window.__pwned=1>", "${window.__pwned=1}", "{{constructor.constructor('window.__pwned=1')()}}",
       "<iframe srcdoc='<script>parent.__pwned=1</script>'>", "\n\n<b onmouseover=window.__pwned=1 style='position:fixed;inset:0'>x</b>")


@pytest.fixture(scope="module")
def easel(tmp_path_factory):
    with running.launched(tmp_path_factory.mktemp("page")) as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with running.browser() as found:
        yield found


class Page:
    """A browser tab on the page, in a user's words."""

    def __init__(self, context, address: str) -> None:
        self.context, self.address = context, address
        self.tab = context.new_page()
        self.tab.set_default_timeout(WAIT)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.open()

    def open(self) -> None:
        self.tab.goto(self.address)
        self.tab.wait_for_selector("#txt2img_generate, #txt2img_interrupt", state="attached")
        self.tab.wait_for_selector("#txt2img_prompt textarea")
        self.tab.wait_for_timeout(1500)                     # the first questions of a fresh page are answered

    def set(self, **fields) -> Page:
        """Type values into the controls: texts, and numbers of sliders."""
        for name, value in fields.items():
            box = self.tab.locator(f"#txt2img_{name} textarea, #txt2img_{name} input[type=number], #txt2img_{name} input[type=text]").first
            box.fill(str(value))
            box.blur()
        return self

    def small(self, **fields) -> Page:
        return self.set(**{"steps": 2, "width": 64, "height": 64, "seed": 5, **fields})

    def generate(self) -> Page:
        return self.submitted(lambda: self.tab.click("#txt2img_generate")).finished()

    def submitted(self, act) -> Page:
        """Until what `act` does has become a job, whose id the browser keeps. A short one may be over before its progress was drawn."""
        kept = self.tab.evaluate("() => JSON.stringify(localStorage)")
        act()
        self.tab.wait_for_function("before => JSON.stringify(localStorage) !== before", arg=kept)
        return self

    def finished(self) -> Page:
        """Until Generate is there again and the pictures are."""
        self.tab.wait_for_function("() => !document.querySelector('#txt2img_progress progress')")
        self.tab.wait_for_selector("#txt2img_generate", state="visible")
        return self

    def drawing(self) -> Page:
        self.tab.wait_for_function("() => { const bar = document.querySelector('#txt2img_progress progress'); return bar && bar.value > 0 }")
        return self

    def text(self, element: str) -> str:
        return self.tab.locator(f"#{element} textarea, #{element} input").first.input_value()

    def picture(self) -> bytes:
        """The file behind the picture that is looked at."""
        source = self.tab.locator("#txt2img_gallery img").first.get_attribute("src")
        return httpx.get(source).content

    def pwned(self) -> bool:
        return self.tab.evaluate("() => window.__pwned !== undefined")


@pytest.fixture
def page(easel, chromium):
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    yield Page(context, easel.address)
    context.close()


def test_generate_gives_the_saved_file_with_its_text_inside(page, easel):
    page.small(prompt="a lighthouse in a storm, (oil:1.2)", neg_prompt="people").generate()
    file = page.picture()
    saved = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (easel.data / "outputs").rglob("*.png")}
    assert hashlib.sha256(file).hexdigest() in saved
    told = metadata.read(file)
    assert told.infotext == page.text("txt2img_infotext") and "Seed: 5" in told.infotext and "Negative prompt: people" in told.infotext and told.record
    assert "Saved as" in page.tab.inner_text("#txt2img_note")
    assert not page.complaints, page.complaints


def test_ctrl_enter_generates_what_was_typed_last(page):
    page.small(prompt="typed")
    page.tab.locator("#txt2img_prompt textarea").press_sequentially(" to the end")
    page.submitted(lambda: page.tab.keyboard.press("Control+Enter")).finished()
    assert page.text("txt2img_infotext").startswith("typed to the end") or page.text("txt2img_infotext").startswith(" to the endtyped")


def test_interrupt_ends_a_long_job_soon(page, easel):
    page.small(prompt="long", width=256, height=256, steps=150, batch_count=50)
    page.tab.click("#txt2img_generate")
    page.drawing()
    page.tab.click("#txt2img_interrupt")
    page.finished()
    assert easel.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert not page.tab.locator("#txt2img_interrupt").is_visible()


def test_skip_passes_to_the_next_batch(page):
    page.small(prompt="two", width=256, height=256, steps=40, batch_count=2)
    page.tab.click("#txt2img_generate")
    page.drawing()
    page.tab.click("#txt2img_skip")
    page.finished()
    assert "Steps: 40" in page.text("txt2img_infotext")


def test_a_page_that_is_loaded_again_goes_on_watching(page):
    page.small(prompt="seen twice", width=256, height=256, steps=120)
    page.tab.click("#txt2img_generate")
    page.drawing()
    page.open()
    page.tab.wait_for_selector("#txt2img_interrupt", state="visible")
    assert page.text("txt2img_prompt") == "seen twice" and page.text("txt2img_seed") == "-1"
    page.drawing()
    page.tab.wait_for_selector("#txt2img_live img", state="visible")
    page.tab.click("#txt2img_interrupt")
    page.finished()


def test_a_closed_tab_loses_nothing_and_the_next_one_shows_the_result(page, easel):
    page.small(prompt="left alone", steps=30)
    page.tab.click("#txt2img_generate")
    page.tab.wait_for_selector("#txt2img_interrupt", state="visible")
    page.tab.close()
    end = time.monotonic() + 100
    while easel.get("/sdapi/v1/progress").json()["state"]["job_count"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    again = Page(page.context, easel.address)
    again.tab.wait_for_selector("#txt2img_gallery img")
    assert again.text("txt2img_infotext").startswith("left alone") and again.text("txt2img_steps") == "30"


def test_png_info_reads_a_dropped_picture_sends_it_on_and_calls_its_replay_identical(page, tmp_path):
    page.small(prompt="round trip, \"quoted\"", neg_prompt="fog", steps=3, seed=18446744073709551615, cfg_scale=4.5).generate()
    file = tmp_path / "dropped.png"
    file.write_bytes(page.picture())
    page.open()
    page.set(prompt="something else", neg_prompt="", steps=9)
    page.tab.get_by_role("tab", name="PNG Info").click()
    page.tab.set_input_files("#pnginfo_image input[type=file]", str(file))
    page.tab.wait_for_selector("#pnginfo_picture img", state="visible")
    assert page.text("pnginfo_generation_info").startswith('round trip, "quoted"\nNegative prompt: fog\nSteps: 3')
    page.tab.click("#pnginfo_replay")
    page.tab.wait_for_selector("#pnginfo_note .good")
    assert "identical" in page.tab.inner_text("#pnginfo_note")
    page.tab.click("#pnginfo_send_to_txt2img")
    page.tab.wait_for_selector("#txt2img_prompt textarea", state="visible")
    page.tab.wait_for_function("() => document.querySelector('#txt2img_prompt textarea').value.startsWith('round')")
    sent = {name: page.text(f"txt2img_{name}") for name in ("prompt", "neg_prompt", "steps", "width", "seed", "cfg_scale")}
    assert sent == {"prompt": 'round trip, "quoted"', "neg_prompt": "fog", "steps": "3", "width": "64", "seed": "18446744073709551615",
                    "cfg_scale": "4.5"}
    page.generate()
    assert page.picture() == file.read_bytes()


def test_a_picture_just_drawn_is_replayed_and_inspected_from_under_the_gallery(page):
    page.small(prompt="near at hand").generate()
    page.tab.click("#txt2img_replay")
    page.tab.wait_for_selector("#txt2img_note .good")
    page.tab.click("#txt2img_send_to_pnginfo")
    page.tab.wait_for_selector("#pnginfo_picture img", state="visible")
    assert page.text("pnginfo_generation_info").startswith("near at hand")


def test_the_text_follows_the_picture_that_is_chosen_and_its_seed_is_reused(page):
    page.small(prompt="three", batch_size=3, seed=40).generate()
    page.tab.wait_for_selector("#txt2img_gallery img")
    page.tab.locator("#txt2img_gallery .thumbnails button, #txt2img_gallery button.thumbnail-item").nth(2).click()
    page.tab.wait_for_function("() => document.querySelector('#txt2img_infotext textarea').value.includes('Seed: 42')")
    page.tab.click("#txt2img_random_seed")
    page.tab.wait_for_function("() => document.querySelector('#txt2img_seed input, #txt2img_seed textarea').value === '-1'")
    page.tab.click("#txt2img_reuse_seed")
    page.tab.wait_for_function("() => document.querySelector('#txt2img_seed input, #txt2img_seed textarea').value === '42'")


def test_what_is_no_picture_and_what_is_no_number_get_one_sentence(page, tmp_path):
    page.small(seed="many").tab.click("#txt2img_generate")
    page.tab.wait_for_selector("#txt2img_note .bad")
    assert page.tab.inner_text("#txt2img_note").startswith("Seed must be a whole number")
    file = tmp_path / "broken.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    page.tab.get_by_role("tab", name="PNG Info").click()
    page.tab.set_input_files("#pnginfo_image input[type=file]", str(file))
    page.tab.wait_for_selector("#pnginfo_note .bad")
    assert page.tab.locator("#pnginfo_send_to_txt2img").is_disabled()


def test_no_text_of_a_user_becomes_a_script(page, tmp_path):
    words = " ".join(XSS)
    page.small(prompt=words, neg_prompt=words).generate()
    page.tab.wait_for_selector("#txt2img_gallery img")
    assert not page.pwned()
    file = tmp_path / "nasty.png"
    file.write_bytes(page.picture())
    page.tab.click("#txt2img_send_to_pnginfo")
    page.tab.wait_for_selector("#pnginfo_facts table")
    page.tab.wait_for_timeout(1000)
    assert not page.pwned()
    page.tab.get_by_role("tab", name="txt2img").click()
    page.small(seed=XSS[0])
    page.tab.click("#txt2img_generate")
    page.tab.wait_for_selector("#txt2img_note .bad")
    page.tab.wait_for_timeout(500)
    assert not page.pwned() and "<img" in page.tab.inner_text("#txt2img_note")


def test_tokens_are_counted_while_one_types_and_swap_exchanges_the_sides(page):
    page.tab.locator("#txt2img_prompt textarea").press_sequentially("a red boat")
    page.tab.wait_for_function("() => document.querySelector('#txt2img_token_counter').innerText.trim() === '3/75'")
    page.set(width=128, height=64)
    page.tab.click("#txt2img_res_switch_btn")
    page.tab.wait_for_function("() => document.querySelector('#txt2img_width input[type=number]').value === '64'")
    assert page.text("txt2img_height") == "128"


def test_the_page_warns_of_a_stand_in_and_only_of_that(page, easel):
    assert page.tab.inner_text("#notice").strip() == ""
    tiny.save_sd1(easel.checkpoints / "standing-in.safetensors", metadata={"easel.standin": "true", "easel.native_size": "128"})
    page.tab.click("#refresh_models")
    page.tab.locator("#setting_sd_model_checkpoint input").click()
    page.tab.get_by_role("option", name="standing-in.safetensors").click()
    page.tab.wait_for_selector("#notice .warn")
    assert "random weights" in page.tab.inner_text("#notice")
    page.tab.wait_for_function("() => document.querySelector('#txt2img_width input[type=number]').value === '128'")
    easel.post("/sdapi/v1/options", {"sd_model_checkpoint": running.MODEL}).raise_for_status()
    (easel.checkpoints / "standing-in.safetensors").unlink()
    easel.post("/sdapi/v1/refresh-checkpoints").raise_for_status()


def test_the_page_asks_nobody_but_its_own_server(page, easel):
    page.small(prompt="at home").generate()
    foreign = [url for url in page.asked if not url.startswith((easel.address, "data:", "blob:"))]
    assert not foreign, foreign


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window(easel, chromium, width, scheme):
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = Page(context, easel.address)
    for name in ("txt2img", "PNG Info"):
        page.tab.get_by_role("tab", name=name).click()
        page.tab.wait_for_timeout(300)
        assert page.tab.evaluate("() => document.documentElement.scrollWidth") <= width
    context.close()


def test_what_is_drawn_over_a_picture_is_painted_anew_and_nothing_else(page, tmp_path):
    tab, source = page.tab, Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    source.save(tmp_path / "source.png")
    tab.get_by_role("tab", name="img2img").first.click()
    tab.locator("#img2img_image input[type=file]").set_input_files(tmp_path / "source.png")
    tab.locator("#img2img_source_note").filter(has_text="96 × 64").wait_for()
    assert page.text("img2img_width") == "96"
    tab.locator("#img2img_steps input[type=number]").fill("2")
    tab.get_by_role("tab", name="Draw on it").click()
    canvas = tab.locator("#img2img_canvas canvas")
    canvas.wait_for()
    frame = canvas.bounding_box()
    tab.mouse.move(frame["x"] + 0.9 * frame["width"], frame["y"] + 5)
    tab.mouse.down()
    tab.mouse.move(frame["x"] + 0.9 * frame["width"], frame["y"] + frame["height"] - 5, steps=4)
    tab.mouse.up()
    tab.wait_for_timeout(500)
    page.submitted(lambda: tab.click("#img2img_generate"))
    tab.wait_for_selector("#img2img_gallery img")
    made = metadata.pixels(httpx.get(tab.locator("#img2img_gallery img").first.get_attribute("src")).content)
    same = [made.getpixel((x, 32)) == source.getpixel((x, 32)) for x in range(96)]
    assert all(same[:60]) and not any(same[84:90])
    assert "Mask blur: 4" in page.text("img2img_infotext")
    assert not page.complaints, page.complaints
