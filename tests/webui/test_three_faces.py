"""One request by page, API and command line: one file, byte for byte."""
from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys

import pytest

from tests.webui import running
from tests.webui.test_page import Page

PROMPT = "a lighthouse in a storm, (oil painting:1.2) [fog:rain:0.5]"
REQUEST = {"negative_prompt": "people, text", "steps": 4, "cfg_scale": 7.5, "seed": 1234, "width": 128, "height": 64, "sampler_name": "Euler a"}


@pytest.fixture(scope="module")
def easel(tmp_path_factory):
    with running.launched(tmp_path_factory.mktemp("faces")) as found:
        yield found


def by_api(easel) -> bytes:
    answer = easel.post("/sdapi/v1/txt2img", {"prompt": PROMPT, **REQUEST})
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0])


def by_page(easel) -> bytes:
    with running.browser() as chromium:
        page = Page(chromium.new_context(), easel.address)
        page.tab.locator("#txt2img_sampling input").click()
        page.tab.get_by_role("option", name="Euler a", exact=True).click()
        page.set(prompt=PROMPT, neg_prompt=REQUEST["negative_prompt"], steps=4, cfg_scale=7.5, seed=1234, width=128, height=64).generate()
        return page.picture()


def by_command_line(folder, checkpoints, *more: str) -> bytes:
    """A process of its own, with a data folder of its own unless another Easel holds it."""
    out = folder / f"out{len(more)}.png"
    words = ["txt2img", PROMPT, "--negative-prompt", REQUEST["negative_prompt"], "--steps", "4", "--cfg-scale", "7.5", "--seed", "1234",
             "--width", "128", "--height", "64", "--sampler", "Euler a", "--checkpoint", running.MODEL, "-o", str(out), "--quiet",
             "--ckpt-dir", str(checkpoints), *more]
    done = subprocess.run([sys.executable, str(running.ROOT / "launch.py"), *words], cwd=folder, capture_output=True, text=True, timeout=280,
                          check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return out.read_bytes()


def test_one_request_by_page_api_and_command_line_is_one_file(easel, tmp_path):
    files = {"api": by_api(easel), "page": by_page(easel),
             "command line": by_command_line(tmp_path, easel.checkpoints, "--data-dir", str(tmp_path / "data")),
             "command line through the server": by_command_line(tmp_path, easel.checkpoints, "--server", easel.address, "--quiet")}
    digests = {face: hashlib.sha256(file).hexdigest() for face, file in files.items()}
    assert len(set(digests.values())) == 1, digests


def test_another_seed_is_another_file(easel):
    """The comparison above can fail."""
    other = easel.post("/sdapi/v1/txt2img", {"prompt": PROMPT, **REQUEST, "seed": 1235}).json()["images"][0]
    assert base64.b64decode(other) != by_api(easel)
