"""Models at the command line: listed, described, converted, merged and fetched; what is wrong is one sentence and leaves no file."""
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules import cli
from modules.checkpoints import fetch
from modules.core.paths import Paths
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"mult": (1, 1, 1, 1), "text_layers": 1}


@pytest.fixture
def paths(tmp_path):
    made = Paths.of(tmp_path / "house")
    made.make()
    for seed, name in enumerate("abc"):
        tiny.save_sd1(made.checkpoints[0] / f"{name}.safetensors", seed=seed, **SMALL)
    tiny.save_vae(made.vae[0] / "v.safetensors", mult=SMALL["mult"])
    return made


def ran(capsys, paths, *words):
    """(exit code, what was printed, what was said)."""
    capsys.readouterr()
    code = cli.main(["models", *map(str, words)], paths)
    said = capsys.readouterr()
    return code, said.out, said.err


def files(paths):
    return sorted(path.name for path in paths.checkpoints[0].iterdir())


def test_without_an_action_they_are_listed_as_before(paths, capsys):
    code, out, _ = ran(capsys, paths)
    assert code == 0 and [line.split()[:2] for line in out.splitlines()] == [
        ["checkpoint", "a.safetensors"], ["checkpoint", "b.safetensors"], ["checkpoint", "c.safetensors"], ["vae", "v.safetensors"]]
    entries = json.loads(ran(capsys, paths, "--json")[1])
    assert {entry["kind"] for entry in entries} == {"checkpoint", "vae"} and set(entries[0]) == {"kind", "title", "name", "path", "sha256"}


@pytest.mark.parametrize("name", ["a", "a.safetensors", "path"])
def test_info_finds_a_model_by_path_or_by_name_and_says_what_it_is(paths, capsys, name):
    file = paths.checkpoints[0] / "a.safetensors"
    code, out, _ = ran(capsys, paths, "info", file if name == "path" else name)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert code == 0 and "SD1" in out and "eps (guessed)" in out and digest in out and "float16" in out
    found = json.loads(ran(capsys, paths, "info", file if name == "path" else name, "--json")[1])
    assert (found["family"], found["sha256"], found["shorthash"]) == ("SD1", digest, digest[:10])


def test_info_without_the_hash_reads_no_more_than_the_header(paths, capsys):
    assert "sha256" not in ran(capsys, paths, "info", "a", "--no-hash")[1]


def test_a_vae_and_a_file_that_is_none_are_described_or_refused_in_a_sentence(paths, capsys):
    code, out, _ = ran(capsys, paths, "info", "v")
    assert code == 0 and "VAE" in out
    (paths.checkpoints[0] / "bad.safetensors").write_bytes(b"<html>")
    for name in ("bad", "nowhere"):
        code, out, said = ran(capsys, paths, "info", name)
        assert code == 1 and out == "" and said.count("\n") == 1 and name in said


def test_convert_and_prune_write_beside_the_source_and_replace_nothing(paths, capsys):
    torch.save({"state_dict": tiny.sd1(7, **SMALL)}, paths.checkpoints[0] / "old.ckpt")
    code, out, _ = ran(capsys, paths, "convert", paths.checkpoints[0] / "old.ckpt", "--dtype", "float16")
    assert code == 0 and Path(out.strip()) == paths.checkpoints[0] / "old.safetensors"
    assert load_file(out.strip())["model.diffusion_model.out.2.weight"].dtype == torch.float16
    before = Path(out.strip()).stat().st_mtime_ns
    code, out, said = ran(capsys, paths, "convert", paths.checkpoints[0] / "old.ckpt")
    assert code == 1 and "already" in said and (paths.checkpoints[0] / "old.safetensors").stat().st_mtime_ns == before
    code, out, _ = ran(capsys, paths, "prune", "a")
    assert code == 0 and out.strip().endswith("a-pruned.safetensors") and "betas" not in load_file(out.strip())
    assert ran(capsys, paths, "prune", "a", "--ema-only", "--force")[0] == 1


def test_merge_writes_the_formula_and_says_what_was_not_common(paths, capsys, tmp_path):
    out = tmp_path / "m.safetensors"
    code, printed, said = ran(capsys, paths, "merge", "a", "b", "--weight", "0.25", "--out", out, "--dtype", "float32")
    assert (code, printed.strip(), said) == (0, str(out), "")
    a, b = (load_file(paths.checkpoints[0] / f"{name}.safetensors") for name in "ab")
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(load_file(out)[name], a[name].float() * 0.75 + b[name].float() * 0.25)
    assert ran(capsys, paths, "merge", "a", "b", "c", "--blocks", "IN=0", "--vae", "v", "--out", tmp_path / "n.safetensors")[0] == 0
    bare = {key: tensor for key, tensor in b.items() if not key.startswith("first_stage_model.")}
    save_file(bare, paths.checkpoints[0] / "bare.safetensors")
    code, _, said = ran(capsys, paths, "merge", "a", "bare", "--out", tmp_path / "o.safetensors")
    assert code == 0 and "holds no VAE" in said


def test_a_merge_that_cannot_be_is_a_sentence_and_leaves_no_file(paths, capsys, tmp_path):
    for words in (["a", "v"], ["a", "nowhere"], ["a", "b", "--blocks", "1,2"], ["a", "b", "--method", "add_difference"], ["a", "b", "--discard", "("]):
        code, out, said = ran(capsys, paths, "merge", *words, "--out", tmp_path / "m.safetensors")
        assert code == 1 and out == "" and said.count("\n") == 1, words
    assert not (tmp_path / "m.safetensors").exists()


def test_a_new_model_is_on_the_list_at_once(paths, capsys):
    ran(capsys, paths, "merge", "a", "b", "--out", paths.checkpoints[0] / "mixed.safetensors")
    assert "mixed.safetensors" in ran(capsys, paths)[1] and json.loads(ran(capsys, paths, "info", "mixed", "--json")[1])["family"] == "SD1"


def test_get_puts_a_file_into_the_folder_of_its_kind(paths, capsys, tmp_path, monkeypatch):
    body = (paths.vae[0] / "v.safetensors").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    allow = fetch.Allow

    def here(**more):
        return allow(**more, plain_http=True, local=frozenset({f"127.0.0.1:{server.server_port}"}))

    monkeypatch.setattr(fetch, "Allow", here)
    try:
        address, digest = f"http://127.0.0.1:{server.server_port}/new.safetensors", hashlib.sha256(body).hexdigest()
        code, out, _ = ran(capsys, paths, "get", address, "--sha256", digest, "--kind", "vae")
        assert code == 0 and Path(out.strip()) == paths.vae[0] / "new.safetensors" and Path(out.strip()).read_bytes() == body
        assert ran(capsys, paths, "get", address, "--sha256", "0" * 64, "--kind", "lora", "--name", "x.safetensors")[0] == 1
        assert list(paths.lora[0].iterdir()) == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_get_goes_to_public_addresses_over_https_only(paths, capsys):
    for address in ("http://example.com/a.safetensors", "https://127.0.0.1/a.safetensors", "https://localhost/a.safetensors"):
        code, out, said = ran(capsys, paths, "get", address, "--sha256", "0" * 64)
        assert code == 1 and out == "" and said.count("\n") == 1
    assert files(paths) == ["a.safetensors", "b.safetensors", "c.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_in_the_middle_leaves_no_half_file(paths, tmp_path):
    """The command is held at a pipe of its own making, so that the signal meets it at work."""
    code = ("import sys, time; from pathlib import Path; from modules.core.paths import Paths; from modules import cli; from modules.checkpoints import convert\n"
            "convert.AT_ONCE = 2000; slow = convert.cast\n"
            "def cast(*words): print('working', file=sys.stderr, flush=True); time.sleep(0.05); return slow(*words)\n"
            "convert.cast = cast\n"
            "sys.exit(cli.main(['models', 'convert', 'a', sys.argv[2], '--dtype', 'float32'], Paths.of(sys.argv[1])))")
    target = tmp_path / "new.safetensors"
    running = subprocess.Popen([sys.executable, "-c", code, str(paths.root), str(target)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    line = running.stderr.readline()
    assert line.strip() == "working"
    time.sleep(0.2)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130 and said.strip().endswith("Stopped.") and "Traceback" not in said
    assert not target.exists() and not list(tmp_path.glob(".*.part"))
