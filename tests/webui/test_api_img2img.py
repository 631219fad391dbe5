"""POST /sdapi/v1/img2img as A1111's clients meet it, and the same bytes from engine, API and command line."""
from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path

import numpy
import pytest
from PIL import Image

from modules import cli
from modules.core.flags import Flags
from modules.core.paths import Paths
from modules.engine import Engine
from modules.pipeline.request import InitImage, Request
from tests import tiny
from tests.webui.test_api import Client
from webui.app import build

SMALL = {"width": 64, "height": 64, "steps": 3, "seed": 5, "sampler_name": "Euler"}


def file(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def text(image):
    return base64.b64encode(file(image)).decode("ascii")


SCENE = Image.fromarray(numpy.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(numpy.uint8))
MASK = Image.new("L", (64, 64))
MASK.paste(255, (40, 0, 64, 64))


def house(folder: Path) -> Paths:
    paths = Paths.of(folder)
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors", mult=(1, 1, 1, 1), text_layers=2)
    return paths


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = Engine(house(tmp_path_factory.mktemp("api")))
    yield made
    made.close()


@pytest.fixture(scope="module")
def api(engine):
    return Client(build(engine, Flags(nowebui=True, data_dir=str(engine.paths.data))))


def drawn(api, **fields):
    answer = api("POST", "/sdapi/v1/img2img", {**SMALL, "init_images": [text(SCENE)], **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_engine_api_and_command_line_give_the_same_bytes(api, engine, tmp_path, capsys):
    reply = drawn(api, mask=text(MASK), inpaint_full_res=False, mask_blur=2, denoising_strength=0.6)
    init = InitImage(image=engine.inputs.keep(file(SCENE)).sha256, mask=engine.inputs.keep(file(MASK)).sha256,
                     mask_blur_x=2, mask_blur_y=2, denoising_strength=0.6, inpainting_fill=0, inpaint_full_res_padding=0)
    request = Request(sampler="Euler", seed=5, steps=3, width=64, height=64, init=init)
    ours = engine.submit(request, save=False).result(280).pictures[0].file
    (tmp_path / "scene.png").write_bytes(file(SCENE))
    (tmp_path / "mask.png").write_bytes(file(MASK))
    out = tmp_path / "out.png"
    words = ["img2img", str(tmp_path / "scene.png"), "--mask", str(tmp_path / "mask.png"), "--mask-blur-x", "2", "--denoising-strength", "0.6",
             "--inpainting-fill", "0", "--inpaint-full-res-padding", "0", "--sampler", "Euler", "--seed", "5", "--steps", "3", "-o", str(out)]
    assert cli.main(words, house(tmp_path / "other")) == 0, capsys.readouterr().err
    assert base64.b64decode(reply["images"][0]) == ours == out.read_bytes()


def test_the_reply_leaves_the_pictures_out_unless_asked(api):
    reply = drawn(api, mask=text(MASK))
    told = json.loads(reply["info"])
    assert reply["parameters"]["init_images"] is None and reply["parameters"]["mask"] is None
    assert told["denoising_strength"] == 0.75 and "Denoising strength: 0.75" in told["infotexts"][0]
    assert reply["parameters"]["inpainting_fill"] == 0 and reply["parameters"]["inpaint_full_res"] is True
    assert drawn(api, include_init_images=True)["parameters"]["init_images"] == [text(SCENE)]


@pytest.mark.parametrize("body, status, words", [
    ({}, 404, "Init image not found"), ({"init_images": []}, 404, "Init image not found"),
    ({"init_images": [base64.b64encode(b"hello").decode()]}, 422, "no picture"),
    ({"init_images": ["http://example.org/a.png"]}, 422, "Requests not allowed"),
    ({"init_images": [text(SCENE), text(SCENE)]}, 422, "2 pictures"),
    ({"init_images": [text(SCENE)], "mask": text(MASK.resize((32, 32)))}, 422, "32 × 32"),
    ({"init_images": [text(SCENE)], "denoising_strength": 1.5}, 422, "Denoising strength"),
    ({"init_images": [text(SCENE)], "resize_mode": 7}, 422, "Resize mode"),
], ids=["absent", "empty", "no picture", "address", "two", "mask size", "strength", "mode"])
def test_a_wish_that_cannot_be_met_is_told_in_a_sentence(api, body, status, words):
    answer = api("POST", "/sdapi/v1/img2img", {**SMALL, **body})
    assert answer.status_code == status and words in answer.text


def test_an_infotext_fills_what_the_client_did_not_name(api):
    said = "a boat\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 9, Size: 64x64, Denoising strength: 0.3, Mask blur: 1"
    reply = api("POST", "/sdapi/v1/img2img", {"infotext": said, "init_images": [text(SCENE)], "steps": 3}).json()
    assert (reply["parameters"]["denoising_strength"], reply["parameters"]["mask_blur_x"], reply["parameters"]["steps"]) == (0.3, 1, 3)


def test_a_picture_goes_in_by_its_file_and_comes_back_by_its_name(api, engine):
    answer = api("POST", "/easel/v1/inputs?what=mask", content=file(SCENE)).json()
    assert engine.inputs.image(answer["sha256"]).tobytes() == SCENE.tobytes()
    assert api("POST", "/easel/v1/inputs?what=mask", content=b"nothing").json()["detail"].startswith("The mask cannot be used")
    request = dataclasses.replace(Request(width=64, height=64, steps=2, seed=1), init=InitImage(image=answer["sha256"]))
    assert api("POST", "/easel/v1/jobs", {"request": request.to_json(), "save": False}).json()["kind"] == "img2img"
