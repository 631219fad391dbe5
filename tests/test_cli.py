"""The command line makes the same files as every other road, says in a sentence what is wrong, and stops when told to."""
import asyncio
import contextlib
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from modules import cli, client
from modules.core import flags
from modules.core.errors import BusyError, NotFoundError, RequestError
from modules.core.flags import Flags
from modules.core.paths import Paths
from modules.engine import Engine
from modules.pipeline import parameters
from modules.pipeline.request import Request
from tests import tiny
from tests.jobs import stub
from webui.api import install_handlers, routes

HERE = Path(__file__).resolve().parents[1]
SMALL = ("--steps", "2", "--width", "64", "--height", "64")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    made = Paths.of(tmp_path_factory.mktemp("cli"))
    made.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(made.checkpoints[0] / "tiny.safetensors")
    return made


@contextlib.contextmanager
def served(engine, *, api=True):
    """The API of this engine on a real port."""
    app = FastAPI()
    install_handlers(app)
    app.include_router(routes(engine, Flags(api=api)))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ---- one request, one file

def test_command_line_engine_server_and_api_write_the_same_bytes(paths, tmp_path, capsys):
    outputs = [tmp_path / f"{name}.png" for name in ("own", "held", "server")]
    asked = ("txt2img", "a red boat", *SMALL, "--seed", "5", "--sampler", "Euler a", "--cfg-scale", "7.50")
    assert cli.main([*asked, "-o", str(outputs[0])], paths) == 0
    engine = Engine(paths)
    try:
        with served(engine) as address:
            engine.announce(address)
            assert cli.main([*asked, "-o", str(outputs[1])], paths) == 0                        # finds the one that holds the folder
            other = Paths.of(tmp_path / "elsewhere")
            assert cli.main([*asked, "-o", str(outputs[2]), "--server", address], other) == 0
            with client.Client(address) as http:
                [image] = http.send(client.txt2img(prompt="a red boat", steps="2", width=64, height=64, seed=5, sampler_name="Euler a",
                                                   cfg_scale=7.5, save_images=True)).images
    finally:
        engine.close()
    assert {sha(path) for path in outputs} == {hashlib.sha256(image).hexdigest()}
    [saved] = list(paths.outputs.rglob("*.png"))            # -o writes its own file only; the API saves
    assert sha(saved) == sha(outputs[0])


def test_the_ending_of_the_output_chooses_the_format_and_more_pictures_are_numbered(paths, tmp_path):
    assert cli.main(["txt2img", "x", *SMALL, "--n-iter", "2", "-o", str(tmp_path / "out.webp")], paths) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out.webp", "out-2.webp"}
    assert Image.open(tmp_path / "out.webp").format == "WEBP"


def test_json_tells_what_was_made(paths, capsys):
    assert cli.main(["txt2img", "x", *SMALL, "--seed", "9", "--json"], paths) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["pictures"][0]["seed"]) == ("done", 9)
    assert Path(told["pictures"][0]["path"]).is_file()


def test_every_row_of_the_table_is_a_flag():
    flags = cli.parser().parse_args(["txt2img", "words"])
    assert {row.field for row in parameters.PARAMETERS} <= vars(flags).keys()


# ---- reading and replaying

def test_png_info_prints_the_text_and_the_record(paths, tmp_path, capsys):
    file = tmp_path / "out.png"
    cli.main(["txt2img", "a boat 🚤", *SMALL, "--seed", "3", "-o", str(file)], paths)
    capsys.readouterr()
    assert cli.main(["png-info", str(file)], paths) == 0
    assert "a boat 🚤\nSteps: 2, " in capsys.readouterr().out
    assert cli.main(["png-info", str(file), "--json"], paths) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["record"]["request"]["prompt"] == "a boat 🚤" and told["parameters"]["Seed"] == "3"


def test_replay_leaves_with_0_1_or_2(paths, tmp_path, capsys):
    file = tmp_path / "out.png"
    cli.main(["txt2img", "x", *SMALL, "--seed", "3", "-o", str(file)], paths)
    assert cli.main(["replay", str(file)], paths) == 0
    from modules.imaging import metadata, save
    found = metadata.read(file)
    dark = metadata.pixels(file).point(lambda value: value // 2)
    file.write_bytes(save.encode(dark, found.infotext, found.record, "png"))
    capsys.readouterr()
    assert cli.main(["replay", str(file)], paths) == 1
    assert "First difference: pixels" in capsys.readouterr().out
    file.write_bytes(save.encode(dark, "", "", "png"))
    assert cli.main(["replay", str(file), "--json"], paths) == 2
    assert json.loads(capsys.readouterr().out)["state"] == "cannot"
    assert cli.main(["replay", str(tmp_path / "missing.png")], paths) == 2


def test_replay_by_a_server_gives_the_same_verdict(paths, tmp_path):
    file = tmp_path / "out.png"
    cli.main(["txt2img", "x", *SMALL, "--seed", "3", "-o", str(file)], paths)
    engine = Engine(paths)
    try:
        with served(engine) as address:
            assert cli.main(["replay", str(file), "--server", address], Paths.of(tmp_path / "elsewhere")) == 0
    finally:
        engine.close()


def test_models_and_jobs_are_listed(paths, capsys):
    assert cli.main(["models", "--json"], paths) == 0
    assert "tiny.safetensors" in {entry["name"] for entry in json.loads(capsys.readouterr().out)}
    cli.main(["txt2img", "listed words", *SMALL], paths)
    capsys.readouterr()
    assert cli.main(["jobs"], paths) == 0
    assert re.search(r"[0-9a-f]{16}  done +listed words", capsys.readouterr().out)


# ---- what is wrong

@pytest.mark.parametrize("wrong", [("--steps", "0"), ("--steps", "many"), ("--width", "1000000"), ("--sampler", "Eulerr"),
                                   ("--checkpoint", "nowhere"), ("--image-format", "bmp"), ("-o", "out.bmp"), ("--styles", "\ud800"),
                                   ("--server", "http://127.0.0.1:9")])
def test_what_is_wrong_is_one_sentence_and_code_1(paths, capsys, wrong):
    assert cli.main(["txt2img", "x", *wrong], paths) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and "Traceback" not in told.err and told.err.strip()[-1] in ".?)"


def test_a_wrong_command_line_leaves_with_code_2(paths, capsys):
    for wrong in ([], ["paint", "x"], ["txt2img"], ["txt2img", "x", "--no-such-flag"]):
        with pytest.raises(SystemExit) as left:
            cli.main(wrong, paths)
        assert left.value.code == 2


def test_a_fault_of_ours_is_a_sentence_too_and_its_traceback_is_in_the_log(paths, capsys, monkeypatch):
    def broken(self, job):
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(Engine, "_run", broken)
    assert cli.main(["txt2img", "x", *SMALL], paths) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert "ZeroDivisionError: deep inside" in (paths.data / "logs" / "easel.log").read_text()


def test_the_help_of_launch_names_every_command():
    [commands] = [action for action in cli.parser()._actions if action.dest == "command"]
    assert {name for name, _ in flags.COMMANDS} == {*commands.choices, "test"}


RECIPE = """
kind = "{kind}"
[data]
folder = "pictures"
size = 16
[model]
title = "mine"
norm_groups = 4
{vae}
[vae]
channels = 8
multiply = [1, 1, 1, 1]
[unet]
channels = 8
multiply = [1]
depths = [1]
res_blocks = 1
heads = 2
[text]
width = 8
layers = 1
[training]
steps = 2
batch = 2
"""


def test_trained_from_a_recipe_a_model_stands_in_the_list_and_draws(paths, capsys, tmp_path):
    (tmp_path / "pictures").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (16, 16), colour).save(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(f"all {colour}")
    recipe = tmp_path / "first.toml"
    recipe.write_text(RECIPE.format(kind="vae", vae=""))
    assert cli.main(["train", str(recipe)], paths) == 0
    vae = Path(capsys.readouterr().out.strip())
    assert vae == paths.vae[0] / "mine.safetensors"
    recipe = tmp_path / "second.toml"
    recipe.write_text(RECIPE.format(kind="diffusion", vae=f'vae = "{vae}"'))
    assert cli.main(["train", str(recipe)], paths) == 0
    capsys.readouterr()
    assert "mine.safetensors" in json.dumps(json_of(capsys, ["models", "--json"], paths))
    [made] = json_of(capsys, ["txt2img", "all red", "--checkpoint", "mine", "--width", "64", "--height", "64", "--steps", "2", "--json"], paths)["pictures"]
    assert "Model: mine" in made["infotext"]


def test_a_trained_model_never_takes_the_place_of_another(paths, capsys, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "pictures" / "a.png")
    paths.vae[0].mkdir(parents=True, exist_ok=True)
    (paths.vae[0] / "mine.safetensors").write_bytes(b"somebody else's")
    recipe = tmp_path / "other.toml"
    recipe.write_text(RECIPE.format(kind="vae", vae=""))
    assert cli.main(["train", str(recipe)], paths) == 1
    assert "model.title" in capsys.readouterr().err
    foreign = paths.vae[0] / "mine.safetensors"
    assert foreign.read_bytes() == b"somebody else's"
    assert (paths.data / "training" / "other" / "mine.safetensors").exists()
    foreign.unlink()


def test_a_recipe_that_is_wrong_is_one_sentence(paths, capsys, tmp_path):
    (tmp_path / "bad.toml").write_text("[trainig]\nsteps = 2")
    assert cli.main(["train", str(tmp_path / "bad.toml")], paths) == 1
    assert "training" in capsys.readouterr().err
    assert cli.main(["train", str(tmp_path / "none.toml")], paths) == 1


def test_the_demo_report_prints_the_gates_and_makes_a_contact_sheet(paths, capsys, tmp_path):
    tiny.save_sd1(paths.checkpoints[0] / "small.safetensors", metadata={"modelspec.resolution": "64x64"})
    sheet = tmp_path / "sheet.png"
    assert cli.main(["demo-report", "--model", "small", "--count", "2", "--sheet", str(sheet)], paths) == 0
    out = capsys.readouterr().out
    assert "kind of object" in out and "dB" in out and str(sheet) in out
    with Image.open(sheet) as picture:
        assert picture.size == (2 * 64, 64)
    assert cli.main(["demo-report", "--count", "1", "--model", "nobody"], paths) == 1
    assert "nobody" in capsys.readouterr().err


# ---- stopping

@pytest.mark.parametrize("number, code, state", [(signal.SIGINT, 130, "cancelled"), (signal.SIGTERM, 143, "interrupted")])
def test_stopped_from_outside_it_leaves_soon_and_the_job_can_be_resumed(tmp_path, capsys, number, code, state):
    paths = Paths.of(tmp_path)
    paths.checkpoints[0].mkdir(parents=True)
    tiny.save_sd1(paths.checkpoints[0] / "tiny.safetensors")
    # A test run in the background of a shell has Ctrl-C switched off, and hands that on.
    program = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from modules.cli import main; "
               "from modules.core.paths import Paths; sys.exit(main(sys.argv[2:], Paths.of(sys.argv[1])))")
    words = ["txt2img", "x", "--steps", "40", "--width", "64", "--height", "64", "--n-iter", "3"]
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), *words], cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(1200):
            if list(paths.outputs.rglob("*.png")):
                break
            time.sleep(0.05)
        process.send_signal(number)
        _, words = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, words
    assert "Traceback" not in words
    [told] = json_of(capsys, ["jobs", "--json"], paths)
    assert told["state"] == state
    assert cli.main(["resume", told["id"], "--json"], paths) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 3


def json_of(capsys, words, paths):
    assert cli.main(words, paths) == 0
    return json.loads(capsys.readouterr().out)


# ---- the client

@pytest.fixture
def server(tmp_path):
    engine = Engine(stub.house(tmp_path), spine=stub.spine)
    with served(engine) as address:
        yield engine, address
    engine.close()


def test_the_client_watches_skips_and_cancels_a_job(server):
    _, address = server
    with client.Client(address) as http:
        job = http.send(client.submit(Request(prompt="x", steps=200, n_iter=20, width=64, height=64), task_id="task(1)"))
        assert (job.task_id, job.request.steps) == ("task(1)", 200)
        looks = []
        http.send(client.skip(job.id))
        while not http.send(client.job(job.id)).pictures:
            http.send(client.skip(job.id))
        http.send(client.cancel(job.id))
        ended = http.wait(job.id, looks.append)
        assert ended.state == "cancelled" and looks[-1] == ended
        for picture in ended.pictures:
            assert hashlib.sha256(http.send(client.picture(job.id, picture.index))).hexdigest() == picture.sha256


def test_both_clients_read_every_list(server):
    _, address = server

    async def awaited(call):
        async with client.AsyncClient(address) as http:
            return await http.send(call)

    with client.Client(address) as http:
        for call in (client.samplers(), client.schedulers(), client.models(), client.options(), client.progress(), client.ready()):
            assert http.send(call) == asyncio.run(awaited(call)) != []
        assert http.send(client.vaes()) == []
        http.send(client.set_options({"jpeg_quality": 61}))
        assert http.send(client.options())["jpeg_quality"] == 61
        assert http.send(client.interrupt()) is None


def test_the_async_client_waits_for_a_picture(server):
    _, address = server

    async def made():
        async with client.AsyncClient(address) as http:
            job = await http.send(client.submit(Request(prompt="x", seed=4, steps=2, width=64, height=64), save=False))
            ended = await http.wait(job.id)
            return ended, await http.send(client.picture(job.id, 0))

    ended, file = asyncio.run(made())
    assert ended.state == "done" and hashlib.sha256(file).hexdigest() == ended.pictures[0].sha256


def test_errors_arrive_as_the_classes_that_the_engine_raises(server):
    _, address = server
    with client.Client(address) as http:
        with pytest.raises(RequestError, match="Sampling steps"):
            http.send(client.submit(Request(steps=0)))
        with pytest.raises(NotFoundError):
            http.send(client.job("0" * 16))
    with client.Client("http://127.0.0.1:9") as http, pytest.raises(BusyError, match="cannot be reached"):
        http.send(client.ready())


def test_a_server_without_the_api_says_how_to_get_it(tmp_path):
    engine = Engine(stub.house(tmp_path), spine=stub.spine)
    try:
        with served(engine, api=False) as address, client.Client(address) as http:
            with pytest.raises(NotFoundError, match="--api"):
                http.send(client.samplers())
            assert http.send(client.submit(Request(steps=1, width=64, height=64))).id        # jobs by id are always there
    finally:
        engine.close()


def test_where_no_size_is_asked_for_the_picture_has_the_models_own(paths, capsys):
    tiny.save_sd1(paths.checkpoints[0] / "wide.safetensors", metadata={"modelspec.resolution": "128x64"})
    words = ["txt2img", "x", "--steps", "1", "--checkpoint", "wide", "--json"]
    assert cli.main(words, paths) == 0
    [own] = json.loads(capsys.readouterr().out)["pictures"]
    assert cli.main([*words, "--width", "64"], paths) == 0
    [asked] = json.loads(capsys.readouterr().out)["pictures"]
    assert "Size: 128x64" in own["infotext"] and "Size: 64x512" in asked["infotext"]


def test_controls_of_extensions_are_told_by_name():
    from modules.cli import _extra
    assert _extra(["Guidance.rescale=0.7", "Guidance.pag = 3", "A b.c=x=y", "Twice"]) == {
        "Guidance": {"rescale": "0.7", "pag": " 3"}, "A b": {"c": "x=y"}, "Twice": {}}
    with pytest.raises(RequestError, match="NAME.CONTROL=VALUE"):
        _extra(["rescale=0.7"])
