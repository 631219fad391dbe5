"""The README's pictures, made by the program: python -m tests.screenshots"""
from __future__ import annotations

import tempfile
from pathlib import Path

from tests.webui import running

DOCS = running.ROOT / "docs"
PROMPT = "a red boat on a lake at night, (stars:1.2)"


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running.launched(Path(folder), model="stand-in") as easel, running.browser() as chromium:
        tab = chromium.new_page(viewport={"width": 1440, "height": 900}, device_scale_factor=1)
        tab.goto(easel.address)
        tab.wait_for_selector("#txt2img_generate", state="visible")
        tab.locator("#txt2img_prompt textarea").fill(PROMPT)
        tab.locator("#txt2img_batch_size input[type=number]").fill("4")
        tab.locator("#txt2img_seed input, #txt2img_seed textarea").first.fill("7")
        tab.locator("#txt2img_prompt textarea").click()
        tab.click("#txt2img_generate")
        tab.wait_for_selector("#txt2img_progress progress", state="attached")
        tab.wait_for_selector("#txt2img_generate", state="visible", timeout=300_000)
        tab.wait_for_selector("#txt2img_gallery img")
        tab.wait_for_timeout(1500)
        tab.screenshot(path=DOCS / "txt2img.png")
        tab.click("#txt2img_send_to_pnginfo")
        tab.wait_for_selector("#pnginfo_picture img", state="visible")
        tab.click("#pnginfo_replay")
        tab.wait_for_selector("#pnginfo_note .good", timeout=300_000)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=DOCS / "png-info.png")


if __name__ == "__main__":
    main()
