"""Models and VAEs over the API as A1111's clients use it: listed, found again, chosen for one request, let go and taken up."""
from __future__ import annotations

import hashlib
import io
import json
import threading
import time

import pytest
from PIL import Image
from safetensors.torch import save_file

from modules.core.flags import Flags
from modules.core.paths import Paths
from modules.engine import Engine
from tests import tiny, tiny_families
from tests.webui.test_api import SMALL, Client, info
from webui.app import build

VAE_SIZES = {"mult": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    made = Engine(Paths.of(tmp_path_factory.mktemp("models")))
    folder = made.paths.checkpoints[0]
    tiny.save_sd1(folder / "first.safetensors", seed=1)
    save_file(tiny_families.sdxl(2), folder / "xl.safetensors")
    save_file(tiny_families.sd2(3), folder / "sub.safetensors", {"modelspec.prediction_type": "v"})
    tiny.save_vae(made.paths.vae[0] / "soft.safetensors", seed=4)
    made.tools.set_options({"sd_model_checkpoint": "first"})
    yield made
    made.close()


@pytest.fixture(scope="module")
def api(engine):
    return Client(build(engine, Flags(nowebui=True)))


def loaded(engine):
    """The title of the model in memory."""
    return engine._residency.loaded.split(" [")[0] if engine._residency else ""


def drawn(api, **fields):
    told = info(api.draw(**fields))
    return told["sd_model_name"], told["sd_vae_name"]


def test_models_are_listed_under_a1111s_fields_and_hashed_when_they_were_used(api, engine):
    (engine.paths.checkpoints[0] / "first.yaml").write_text("model: {}\n")
    api.draw()
    found = {one["model_name"]: one for one in api.get("/sdapi/v1/sd-models")}
    digest = hashlib.sha256((engine.paths.checkpoints[0] / "first.safetensors").read_bytes()).hexdigest()
    first = found["first"]
    assert (first["title"], first["hash"], first["sha256"]) == (f"first.safetensors [{digest[:10]}]", digest[:10], digest)
    assert first["filename"].endswith("first.safetensors") and first["config"].endswith("first.yaml")
    assert found["xl"]["config"] is None and {"first", "xl", "sub"} <= set(found)
    assert [one["model_name"] for one in api.get("/sdapi/v1/sd-vae")] == ["soft.safetensors"]


def test_a_file_that_was_added_is_there_after_a_refresh(api, engine):
    vae, model = engine.paths.vae[0] / "late.safetensors", engine.paths.checkpoints[0] / "late-model.safetensors"
    tiny.save_vae(vae, seed=9)
    tiny.save_sd1(model, seed=9)
    assert "late.safetensors" not in str(api.get("/sdapi/v1/sd-vae")) and "late-model" not in str(api.get("/sdapi/v1/sd-models"))
    for route in ("refresh-checkpoints", "refresh-vae"):
        answer = api("POST", f"/sdapi/v1/{route}")
        assert answer.status_code == 200 and answer.json() is None
    assert "late.safetensors" in str(api.get("/sdapi/v1/sd-vae")) and "late-model" in str(api.get("/sdapi/v1/sd-models"))
    vae.unlink()
    model.unlink()
    api("POST", "/sdapi/v1/refresh-vae")
    assert "late" not in str(api.get("/sdapi/v1/sd-vae")) + str(api.get("/sdapi/v1/sd-models"))


@pytest.mark.parametrize("override, expected", [
    ({"sd_model_checkpoint": "xl.safetensors"}, ("xl", None)), ({"sd_model_checkpoint": "sub"}, ("sub", None)),
    ({"sd_vae": "soft.safetensors"}, ("first", "soft.safetensors")),
    ({"sd_model_checkpoint": "sub", "sd_vae": "soft"}, ("sub", "soft.safetensors")), ({"sd_vae": "None"}, ("first", None)),
])
def test_a_checkpoint_and_a_vae_for_one_request_are_not_those_of_the_next(api, override, expected):
    before = api.get("/sdapi/v1/options")
    assert drawn(api, override_settings=override) == expected
    after = api.get("/sdapi/v1/options")
    assert [before[key].split(" [")[0] for key in ("sd_model_checkpoint", "sd_vae")] == [
        after[key].split(" [")[0] for key in ("sd_model_checkpoint", "sd_vae")] == ["first.safetensors", "Automatic"]
    assert drawn(api) == ("first", None)


def test_another_vae_gives_another_picture_and_its_own_the_same_again(api):
    own = api.draw()["images"]
    other = api.draw(override_settings={"sd_vae": "soft"})["images"]
    assert own != other and api.draw()["images"] == own


def test_a_failed_request_changes_no_setting(api, engine):
    broken = engine.paths.checkpoints[0] / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0 no header here")
    api("POST", "/sdapi/v1/refresh-checkpoints")
    answer = api("POST", "/sdapi/v1/txt2img", {**SMALL, "override_settings": {"sd_model_checkpoint": "broken"}})
    assert answer.status_code == 422 and "broken.safetensors" in answer.json()["detail"] and answer.json()["error"] == "HTTPException"
    broken.unlink()
    api("POST", "/sdapi/v1/refresh-checkpoints")
    assert api.get("/sdapi/v1/options")["sd_model_checkpoint"].startswith("first") and drawn(api) == ("first", None)


@pytest.mark.parametrize("override", [{"sd_model_checkpoint": "gone"}, {"sd_vae": "gone"}])
def test_names_that_are_not_here_are_404_in_overrides_and_in_options(api, override):
    for path, body in (("txt2img", {**SMALL, "override_settings": override}), ("options", override)):
        answer = api("POST", f"/sdapi/v1/{path}", body)
        assert answer.status_code == 404 and "gone" in answer.json()["detail"] and set(answer.json()) == {"error", "detail", "body", "errors"}


def test_a_checkpoint_that_is_kept_by_the_request_is_that_of_the_next(api):
    assert drawn(api, override_settings={"sd_model_checkpoint": "xl"}, override_settings_restore_afterwards=False) == ("xl", None)
    assert api.get("/sdapi/v1/options")["sd_model_checkpoint"].startswith("xl") and drawn(api) == ("xl", None)
    api("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "first"})
    assert drawn(api) == ("first", None)


def test_unloading_frees_the_model_and_the_next_request_loads_it_again(api, engine):
    before = api.draw()["images"]
    assert loaded(engine) == "first.safetensors"
    answer = api("POST", "/sdapi/v1/unload-checkpoint")
    assert answer.status_code == 200 and answer.json() == {} and loaded(engine) == ""
    assert api("POST", "/sdapi/v1/unload-checkpoint").json() == {}      # twice is no mistake
    assert api.draw()["images"] == before and loaded(engine) == "first.safetensors"


def test_reloading_has_the_chosen_model_in_memory_before_anybody_asks_for_a_picture(api, engine):
    api("POST", "/sdapi/v1/unload-checkpoint")
    answer = api("POST", "/sdapi/v1/reload-checkpoint")
    assert answer.status_code == 200 and answer.json() == {} and loaded(engine) == "first.safetensors"


def test_a_model_that_cannot_be_reloaded_is_named_in_the_answer(api, engine):
    file = engine.paths.checkpoints[0] / "fleeting.safetensors"
    tiny.save_sd1(file, seed=11)
    api("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "fleeting"})
    api.draw()
    api("POST", "/sdapi/v1/unload-checkpoint")
    file.write_bytes(file.read_bytes()[:5000])
    answer = api("POST", "/sdapi/v1/reload-checkpoint")
    assert answer.status_code == 422 and "fleeting.safetensors" in answer.json()["detail"]
    file.unlink()
    api("POST", "/sdapi/v1/options", {"sd_model_checkpoint": "first"})
    assert drawn(api) == ("first", None)


def test_the_picture_beside_a_model_is_sent_small_and_what_is_none_is_404(api, engine):
    Image.new("RGB", (1600, 800), "teal").save(engine.paths.checkpoints[0] / "xl.preview.png")
    answer = api("GET", "/easel/v1/models/preview?name=xl.safetensors")
    assert answer.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(answer.content)).size == (768, 384)
    assert api("GET", "/easel/v1/models/preview?name=first.safetensors").status_code == 404
    assert api("GET", "/easel/v1/models/preview?name=../../etc/passwd").status_code == 404
    (engine.paths.checkpoints[0] / "xl.preview.png").write_bytes(b"no picture")
    answer = api("GET", "/easel/v1/models/preview?name=xl.safetensors")
    assert answer.status_code == 422 and "xl.preview.png" in answer.json()["detail"]


def test_what_closes_leaves_nobody_waiting_for_a_model(tmp_path):
    engine = Engine(Paths.of(tmp_path), spine=lambda request, resources: json.loads("null"))
    assert engine.unload().result(10) is None and engine.reload().result(10) is None
    engine.close()
    assert Client(build(engine, Flags(nowebui=True)))("POST", "/sdapi/v1/unload-checkpoint").status_code == 503


def test_unloading_waits_for_the_job_that_runs_and_costs_it_nothing(api, engine):
    job = engine.submit(engine.tools.request({**SMALL, "steps": 25, "prompt": "undisturbed"}), save=False)
    while job.state == "pending":                           # what is asked between jobs comes before one that still waits
        time.sleep(0.01)
    assert api("POST", "/sdapi/v1/unload-checkpoint").json() == {}
    assert job.state == "done" and len(job.result(10).pictures) == 1 and loaded(engine) == ""


def test_whoever_waits_while_easel_closes_is_let_go(tmp_path):
    begun, go = threading.Event(), threading.Event()

    def stuck(request, resources):
        begun.set()
        go.wait(60)

    engine = Engine(Paths.of(tmp_path), spine=stuck)
    tiny.save_sd1(engine.paths.checkpoints[0] / "any.safetensors")
    engine.submit(engine.tools.request({}))
    assert begun.wait(30)
    waiting = engine.unload()
    engine.close(0.1)
    assert waiting.cancelled()
    go.set()
