"""The API as A1111's clients meet it, on a real engine with a miniature model."""
from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
import time

import httpx
import pytest
from PIL import Image

from modules.core.flags import Flags
from modules.core.paths import Paths
from modules.engine import Engine
from tests.webui import running
from webui.app import build

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 5}
INFO_KEYS = (
    "prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed all_subseeds subseed_strength width height sampler_name "
    "cfg_scale steps batch_size restore_faces face_restoration_model sd_model_name sd_model_hash sd_vae_name sd_vae_hash seed_resize_from_w "
    "seed_resize_from_h denoising_strength extra_generation_params index_of_first_image infotexts styles job_timestamp clip_skip "
    "is_using_inpainting_conditioning version").split()


class Client:
    """Calls an ASGI application without a port; 5xx come back as answers."""

    def __init__(self, app) -> None:
        self._app = app

    def __call__(self, method: str, path: str, body=None, **more) -> httpx.Response:
        async def call():
            transport = httpx.ASGITransport(app=self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://easel", timeout=280) as client:
                return await client.request(method, path, json=body, **more)
        return asyncio.run(call())

    def get(self, path: str):
        return self("GET", path).json()

    def draw(self, **fields) -> dict:
        answer = self("POST", "/sdapi/v1/txt2img", {**SMALL, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    running.models(folder / "models" / "Stable-diffusion")
    made = Engine(Paths.of(folder))
    yield made
    made.close()


@pytest.fixture(scope="module")
def api(engine):
    flags = Flags(nowebui=True, users=(("ada", "swordfish"),), data_dir=str(engine.paths.data))
    return Client(build(engine, flags))


@pytest.fixture(scope="module")
def with_page(engine):
    """The application as it is beside a page; /internal is only there. The page itself is not asked."""
    return Client(build(engine, Flags(api=True)))


def opened(image: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image)))


def info(reply: dict) -> dict:
    return json.loads(reply["info"])


# ---- txt2img

def test_a_picture_comes_back_as_bare_base64_with_its_text_inside(api):
    reply = api.draw(prompt="a red boat")
    told = info(reply)
    image = opened(reply["images"][0])
    assert image.size == (64, 64) and image.info["parameters"] == told["infotexts"][0]
    assert list(told) == INFO_KEYS
    assert told["prompt"] == "a red boat" and told["all_seeds"] == [5] and told["sd_model_name"] == "miniature" and len(told["sd_model_hash"]) == 10


def test_what_a_client_leaves_out_has_a1111s_defaults(api):
    body = api("GET", "/openapi.json").json()["components"]["schemas"]["Txt2ImgBody"]["properties"]
    assert body["steps"]["default"] == 50 and body["sampler_index"]["default"] == "Euler" and body["cfg_scale"]["default"] == 7.0
    reply = api.draw(steps=None, width=64, height=64, prompt=None)
    assert reply["parameters"]["steps"] == 50 and info(reply)["steps"] == 50 and info(reply)["sampler_name"] == "Euler"
    assert reply["parameters"]["sampler_name"] is None and reply["parameters"]["save_images"] is False


@pytest.mark.parametrize(("fields", "sampler", "line"), [
    ({"sampler_index": "Euler a"}, "Euler a", "Sampler: Euler a"),
    ({"sampler_name": "DPM++ 2M Karras", "sampler_index": "Euler"}, "DPM++ 2M", "Sampler: DPM++ 2M, Schedule type: Karras"),
    ({"sampler_name": "k_euler_a"}, "Euler a", "Sampler: Euler a"),
    ({"sampler_name": "dpm++ 2m", "scheduler": "exponential"}, "DPM++ 2M", "Sampler: DPM++ 2M, Schedule type: Exponential"),
    ({"sampler_name": "Euler", "scheduler": "automatic"}, "Euler", "Sampler: Euler"),
])
def test_a_sampler_is_found_by_every_name_that_clients_use(api, fields, sampler, line):
    told = info(api.draw(**fields))
    assert told["sampler_name"] == sampler and line in told["infotexts"][0]


def test_an_unknown_sampler_is_refused_in_a1111s_words(api):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, "sampler_name": "Oiler"})
    assert answer.status_code == 400 and answer.json()["detail"].startswith("Sampler not found")
    assert list(answer.json()) == ["error", "detail", "body", "errors"] and answer.json()["error"] == "HTTPException"


def test_seeds_count_on_over_batches_and_stand_still_for_variations(api):
    assert info(api.draw(batch_size=2, n_iter=2))["all_seeds"] == [5, 6, 7, 8]
    varied = info(api.draw(batch_size=2, subseed=9, subseed_strength=0.5))
    assert varied["all_seeds"] == [5, 5] and varied["all_subseeds"] == [9, 10]


@pytest.mark.parametrize(("body", "field"), [
    ({"steps": "abc"}, "steps"), ({"steps": 0}, "steps"), ({"steps": True}, "steps"), ({"steps": 2.5}, "steps"), ({"width": 0}, "width"),
    ({"width": 10**6}, "width"), ({"cfg_scale": "high"}, "cfg_scale"), ({"prompt": ["a"]}, "prompt"), ({"prompt": "x" * 65537}, "prompt"),
    ({"seed": 2**70}, "seed"), ({"batch_size": 64, "width": 8192, "height": 8192}, "batch_size"), ({"send_images": 7}, "send_images"),
])
def test_a_field_that_does_not_fit_is_named(api, body, field):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, **body})
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail[0]["loc"] == ["body", field] and set(detail[0]) == {"loc", "msg", "type"} and detail[0]["msg"]


def test_half_a_character_is_refused_and_the_answer_is_still_json(api):
    answer = api("POST", "/sdapi/v1/txt2img", content=b'{"prompt": "a \\ud800 b", "steps": 1}', headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", "prompt"]


def test_numbers_may_be_texts_and_texts_numbers_and_strangers_are_ignored(api):
    reply = api.draw(steps="3", seed="7", prompt=12, cfg_scale="6.5", batch_size=1.0, nobody_knows=1, sd_model="x")
    told = info(reply)
    assert told["steps"] == 3 and told["seed"] == 7 and told["prompt"] == "12" and told["cfg_scale"] == 6.5
    assert reply["parameters"]["steps"] == 3 and "nobody_knows" not in reply["parameters"]


def test_an_unknown_refiner_is_not_found_and_none_is_none(api):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, "refiner_checkpoint": "nobody"})
    assert answer.status_code == 404 and "nobody" in answer.json()["detail"]
    plain, none = (api("POST", "/sdapi/v1/txt2img", {**SMALL, **extra}).json()["images"] for extra in ({}, {"refiner_checkpoint": "None"}))
    assert plain == none


@pytest.mark.parametrize(("fields", "words"), [
    ({"script_name": "nope"}, "Script 'nope' not found"), ({"alwayson_scripts": {"nope": {}}}, "Script 'nope' not found"),
    ({"enable_hr": True}, "enable_hr"), ({"tiling": True}, "tiling"), ({"restore_faces": True}, "restore_faces"),
])
def test_what_is_not_there_yet_is_refused_rather_than_left_out_in_silence(api, fields, words):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, **fields})
    assert answer.status_code == 422 and words in answer.json()["detail"] and answer.json()["error"] == "HTTPException"


def test_the_same_features_asked_for_trivially_are_accepted(api):
    api.draw(script_name="", alwayson_scripts={}, script_args=[], enable_hr=False, hr_upscaler="Latent", hr_scale=2, denoising_strength=0.7,
             tiling=False, restore_faces=False, refiner_checkpoint="None", s_churn=0, s_tmax=0, s_noise=1, eta=1.0, seed_resize_from_w=0,
             comments=None, override_settings={}, override_settings_restore_afterwards=True)


def test_images_are_left_out_when_nobody_wants_them(api):
    reply = api.draw(send_images=False)
    assert reply["images"] == [] and len(info(reply)["infotexts"]) == 1


def test_pictures_are_saved_when_asked_and_can_be_fetched_by_job_otherwise(api, engine):
    before = set(engine.paths.outputs.rglob("*.png"))
    unsaved = api("POST", "/sdapi/v1/txt2img", {**SMALL, "prompt": "kept in the spool"})
    assert set(engine.paths.outputs.rglob("*.png")) == before
    job = api.get(f"/easel/v1/jobs/{unsaved.headers['X-Easel-Job']}")
    file = api("GET", "/" + job["pictures"][0]["file"]).content
    assert job["state"] == "done" and file == base64.b64decode(unsaved.json()["images"][0])
    assert hashlib.sha256(file).hexdigest() == job["pictures"][0]["sha256"]
    saved = api.draw(save_images=True, prompt="kept in outputs")
    new = set(engine.paths.outputs.rglob("*.png")) - before
    assert [path.read_bytes() for path in new] == [base64.b64decode(saved["images"][0])]


def test_an_override_holds_for_one_request(api):
    reply = api.draw(override_settings={"samples_format": "jpg", "CLIP_stop_at_last_layers": 2, "randn_source": "CPU"})
    told = info(reply)
    assert opened(reply["images"][0]).format == "JPEG" and told["clip_skip"] == 2 and "RNG: CPU" in told["infotexts"][0]
    assert api.get("/sdapi/v1/options")["samples_format"] == "png" and info(api.draw())["clip_skip"] == 1


def test_an_unknown_checkpoint_in_an_override_is_refused_not_replaced(api):
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, "override_settings": {"sd_model_checkpoint": "gone.safetensors"}})
    assert answer.status_code == 404 and "gone" in answer.json()["detail"]
    api.draw(override_settings={"sd_model_checkpoint": running.MODEL, "sd_vae": "None"})


def test_the_infotext_field_fills_what_the_client_did_not_name(api):
    text = "a green hill\nNegative prompt: rain\nSteps: 3, Sampler: Euler a, CFG scale: 4.5, Seed: 99, Size: 72x64, Clip skip: 2, Model: x"
    reply = api("POST", "/sdapi/v1/txt2img", {"infotext": text, "steps": 2}).json()
    told = info(reply)
    assert (told["prompt"], told["negative_prompt"], told["seed"], told["width"], told["clip_skip"]) == ("a green hill", "rain", 99, 72, 2)
    assert told["steps"] == 2 and told["sampler_name"] == "Euler a" and reply["parameters"]["cfg_scale"] == 4.5


# ---- progress and stopping

def long_job(api, **fields):
    """A thread that waits for a long job, and the list in which its answer will stand."""
    answers: list[httpx.Response] = []
    body = {**SMALL, "width": 256, "height": 256, "steps": 300, **fields}
    thread = threading.Thread(target=lambda: answers.append(api("POST", "/sdapi/v1/txt2img", body)))
    thread.start()
    end = time.monotonic() + 100
    while (api.get("/sdapi/v1/progress")["state"]["sampling_step"]) < 2:
        assert time.monotonic() < end and thread.is_alive()
        time.sleep(0.05)
    return thread, answers


def test_nothing_running_is_all_zero(api):
    assert api.get("/sdapi/v1/progress") == {
        "progress": 0.0, "eta_relative": 0.0, "current_image": None, "textinfo": None,
        "state": {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0, "job_timestamp": "0",
                  "job_no": 0, "sampling_step": 0, "sampling_steps": 0}}


def test_a_running_job_is_seen_and_an_interrupt_brings_what_there_is(api, with_page):
    thread, answers = long_job(api, force_task_id="x1")
    seen = api.get("/sdapi/v1/progress")
    assert 0 < seen["progress"] <= 1 and seen["state"]["job_count"] == 1 and seen["state"]["sampling_steps"] == 300
    assert api.get("/sdapi/v1/progress?skip_current_image=true")["current_image"] is None
    task = with_page("POST", "/internal/progress", {"id_task": "x1"}).json()
    assert task["active"] and not task["completed"] and 0 <= task["progress"] <= 1
    assert api("POST", "/sdapi/v1/interrupt").json() == {}
    thread.join(100)
    assert answers[0].status_code == 200 and len(answers[0].json()["images"]) == 1
    assert not with_page("POST", "/internal/progress", {"id_task": "x1"}).json()["active"]


def test_a_skip_ends_one_batch_and_the_next_goes_on(api):
    thread, answers = long_job(api, n_iter=2, steps=60)
    assert api("POST", "/sdapi/v1/skip").json() is None
    thread.join(200)
    assert answers[0].status_code == 200 and info(answers[0].json())["all_seeds"][-1] == 6


def test_a_client_that_goes_away_stops_nothing(api, engine):
    async def leave():
        transport = httpx.ASGITransport(app=api._app)
        async with httpx.AsyncClient(transport=transport, base_url="http://easel") as client:
            body = {**SMALL, "steps": 40, "force_task_id": "left alone"}
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.post("/sdapi/v1/txt2img", json=body), 0.3)
    asyncio.run(leave())
    job = engine.task("left alone")
    assert job is not None and len(job.result(100).pictures) == 1 and job.state == "done"


# ---- lists, options, pictures

@pytest.mark.parametrize(("path", "kind"), [
    ("samplers", list), ("schedulers", list), ("upscalers", list), ("latent-upscale-modes", list), ("sd-models", list), ("sd-vae", list),
    ("hypernetworks", list), ("face-restorers", list), ("realesrgan-models", list), ("prompt-styles", list), ("embeddings", dict),
    ("loras", list), ("extensions", list), ("scripts", dict), ("script-info", list), ("cmd-flags", dict), ("memory", dict), ("options", dict),
])
def test_every_list_that_clients_ask_for_is_there(api, path, kind):
    answer = api("GET", f"/sdapi/v1/{path}")
    assert answer.status_code == 200 and isinstance(answer.json(), kind)


def test_lists_have_a1111s_fields(api):
    assert set(api.get("/sdapi/v1/sd-models")[0]) == {"title", "model_name", "hash", "sha256", "filename", "config"}
    euler = next(one for one in api.get("/sdapi/v1/samplers") if one["name"] == "Euler a")
    assert "k_euler_a" in euler["aliases"] and euler["options"]["uses_ensd"] == "True"
    karras = next(one for one in api.get("/sdapi/v1/schedulers") if one["name"] == "karras")
    assert karras == {"name": "karras", "label": "Karras", "aliases": None, "default_rho": 7.0, "need_inner_model": False}
    assert set(api.get("/sdapi/v1/memory")) == {"ram", "cuda"}


def test_an_option_is_set_and_read_back(api):
    assert api("POST", "/sdapi/v1/options", {"send_seed": False}).json() is None
    assert api.get("/sdapi/v1/options")["send_seed"] is False
    assert api("POST", "/sdapi/v1/options", {"send_seed": True}).status_code == 200


def test_a_setting_that_does_not_exist_changes_nothing(api):
    answer = api("POST", "/sdapi/v1/options", {"send_size": False, "no_such_option": 1})
    assert answer.status_code == 422 and "no_such_option" in answer.json()["detail"]
    assert api.get("/sdapi/v1/options")["send_size"] is True


def test_no_listing_tells_a_password(api):
    for path in ("cmd-flags", "options", "memory", "sd-models"):
        assert "swordfish" not in api("GET", f"/sdapi/v1/{path}").text and "ada" not in api.get("/sdapi/v1/cmd-flags")


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,", " \n"])
def test_png_info_reads_what_txt2img_wrote(api, prefix):
    reply = api.draw(prompt="a blue door, wide")
    found = api("POST", "/sdapi/v1/png-info", {"image": prefix + reply["images"][0]}).json()
    assert found["info"] == info(reply)["infotexts"][0] and found["parameters"]["Seed"] == "5" and found["parameters"]["Prompt"] == "a blue door, wide"


@pytest.mark.parametrize(("image", "words"), [
    ("http://127.0.0.1:1/x.png", "Requests not allowed"), ("not base64 at all!", "Invalid encoded image"),
    (base64.b64encode(b"<svg/>").decode(), "Invalid encoded image"), ("", "Invalid encoded image"),
])
def test_what_is_no_picture_is_refused_in_a1111s_words(api, image, words):
    answer = api("POST", "/sdapi/v1/png-info", {"image": image})
    assert answer.status_code == 422 and answer.json()["detail"] == words


# ---- jobs by id, faults

def test_a_job_is_followed_by_its_id(api):
    job = api("POST", "/easel/v1/jobs", {"request": {**SMALL, "prompt": "by id"}, "save": False}).json()
    end = time.monotonic() + 100
    while api.get(f"/easel/v1/jobs/{job['id']}")["state"] in ("pending", "running"):
        assert time.monotonic() < end
        time.sleep(0.05)
    done = api.get(f"/easel/v1/jobs/{job['id']}")
    assert done["state"] == "done" and done["request"]["prompt"] == "by id" and done["pictures"][0]["width"] == 64
    assert api("GET", "/easel/v1/jobs/nobody").status_code == 404
    assert api("GET", f"/easel/v1/jobs/{job['id']}/pictures/7").status_code == 404


def test_a_fault_of_our_own_is_500_without_path_or_traceback(api, engine, monkeypatch):
    def broken():
        raise KeyError("/home/ada/secret")
    monkeypatch.setattr(engine.tools, "samplers", broken)
    answer = api("GET", "/sdapi/v1/samplers")
    assert answer.status_code == 500 and answer.json()["error"] == "KeyError" and "ada" not in answer.text and "Traceback" not in answer.text


def test_unknown_paths_and_methods_keep_their_words(api):
    assert api("GET", "/sdapi/v1/nothing").json() == {"detail": "Not Found"}
    assert api("GET", "/sdapi/v1/txt2img").json() == {"detail": "Method Not Allowed"}


def test_without_the_flag_there_is_no_api_but_the_page_keeps_what_it_needs(engine):
    plain = Client(build(engine, Flags()))
    assert plain.get("/internal/ping") == {} and plain("GET", "/easel/static/easel.js").status_code == 200
    assert plain("GET", "/sdapi/v1/samplers").status_code == 404 and plain("POST", "/sdapi/v1/txt2img", SMALL).status_code in (404, 405)


def test_an_api_alone_has_no_page_and_loads_no_gradio():
    import subprocess
    import sys
    code = ("import sys; from webui.api import routes; from modules.core.flags import Flags; from types import SimpleNamespace;"
            "routes(SimpleNamespace(), Flags(nowebui=True)); assert not {'gradio', 'torch'} & set(sys.modules), 'loaded'")
    assert subprocess.run([sys.executable, "-c", code], cwd=running.ROOT, check=False).returncode == 0
