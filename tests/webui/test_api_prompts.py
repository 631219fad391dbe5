"""What a prompt box asks over HTTP: tokens, wildcards, styles, embeddings."""
import pytest
import torch

from modules.core.flags import Flags
from modules.core.paths import Paths
from modules.engine import Engine
from tests.webui import running
from tests.webui.test_api import Client
from webui.app import build


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api-prompts")
    running.models(folder / "models" / "Stable-diffusion")
    made = Engine(Paths.of(folder))
    yield made
    made.close()


@pytest.fixture(scope="module")
def api(engine):
    return Client(build(engine, Flags(nowebui=True, api=True)))


def counted(api, **body):
    answer = api("POST", "/easel/v1/tokens", body)
    assert answer.status_code == 200, answer.text
    return answer.json()["tokens"], answer.json()["limit"]


def test_tokens_are_counted_with_their_styles_and_embeddings(api, engine):
    assert counted(api) == (0, 75) and counted(api, text="a cat") == (2, 75) and counted(api, text="cat " * 80) == (80, 150)
    assert counted(api, text="a <lora:x:1>") == (1, 75) and counted(api, text="a <lora:x:1>", negative=True)[0] > 5
    assert api("PUT", "/easel/v1/styles", {"name": "film", "prompt": "{prompt}, grain", "negative_prompt": "flat"}).status_code == 200
    assert counted(api, text="a cat", styles=["film", "none such"]) == (4, 75)
    assert counted(api, text="", negative=True, styles=["film"]) == (1, 75)
    torch.save({"<x>": torch.ones(5, 64)}, engine.paths.embeddings / "ti-five.pt")
    assert counted(api, text="a ti-five") == (6, 75)
    assert api("POST", "/easel/v1/tokens", {"text": "x" * 70_000}).status_code == 422


def test_styles_are_kept_changed_and_removed(api):
    api("PUT", "/easel/v1/styles", {"name": "ink, black", "prompt": 'a "b"\nc'})
    api("PUT", "/easel/v1/styles", {"name": "chalk", "negative_prompt": "colour"})
    api("PUT", "/easel/v1/styles", {"name": "ink, black", "prompt": "d"})
    found = {one["name"]: one for one in api.get("/sdapi/v1/prompt-styles")}
    assert found["ink, black"] == {"name": "ink, black", "prompt": "d", "negative_prompt": ""} and "chalk" in found
    assert api("DELETE", "/easel/v1/styles?name=ink%2C%20black").status_code == 200
    assert "ink, black" not in {one["name"] for one in api.get("/easel/v1/styles")}
    assert api("DELETE", "/easel/v1/styles?name=ink").status_code == 404
    assert api("PUT", "/easel/v1/styles", {"name": "#no"}).status_code == 422
    assert api("PUT", "/easel/v1/styles", {"name": "long", "prompt": "x" * 70_000}).status_code == 422


def test_wildcards_are_listed_and_a_missing_one_is_answered_with_the_nearest(api, engine):
    folder = engine.paths.wildcards / "deep"
    folder.mkdir(parents=True)
    (folder / "animals.txt").write_text("cat\ndog\n")
    assert api.get("/easel/v1/wildcards") == ["deep/animals"]
    answer = api("POST", "/sdapi/v1/txt2img", {"prompt": "a __deep/anmals__", "steps": 1, "width": 64, "height": 64})
    assert answer.status_code == 422 and "__deep/animals__" in answer.text
    reply = api.draw(prompt="a __deep/animals__", negative_prompt="{x|y}", prompt_2="")
    assert '"Template": ' not in reply["info"] and "Template: a __deep/animals__" in reply["info"]


def test_embeddings_are_listed_as_clients_know_them_and_looked_for_again(api, engine):
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 64)}, "step": 9, "sd_checkpoint": "ab",
                "sd_checkpoint_name": "m"}, engine.paths.embeddings / "ti-good.pt")
    torch.save({"<x>": torch.ones(1, 32)}, engine.paths.embeddings / "ti-narrow.pt")
    (engine.paths.embeddings / "ti-broken.pt").write_bytes(b"no")
    assert api("POST", "/sdapi/v1/refresh-embeddings").status_code == 200
    found = api.get("/sdapi/v1/embeddings")
    assert found["loaded"]["ti-good"] == {"step": 9, "sd_checkpoint": "ab", "sd_checkpoint_name": "m", "shape": 64, "vectors": 2}
    assert found["skipped"]["ti-narrow"]["shape"] == 32 and "ti-broken" in found["skipped"]
