"""Moving in from A1111: what is taken is here afterwards, what is left is told, and the old folder keeps every byte."""
import json

import pytest
import torch
from safetensors.torch import save_file

from modules import cli
from modules.checkpoints.shelf import Shelf
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.core.settings import SettingsFile
from modules.jobs.lock import Lock
from modules.prompts import styles
from modules.prompts.styles import Style


@pytest.fixture
def old(tmp_path):
    """An installation as A1111 leaves it."""
    folder = tmp_path / "stable diffusion #1"
    for name in ("models/Stable-diffusion", "models/VAE", "models/Lora", "embeddings"):
        (folder / name).mkdir(parents=True)
    save_file({"a": torch.ones(1)}, folder / "models/Stable-diffusion/theirs.safetensors")
    (folder / "webui.py").write_text("raise SystemExit('never run')")
    (folder / "config.json").write_text(json.dumps({
        "samples_format": "webp", "jpeg_quality": "90", "eta_ancestral": 0.5, "outdir_txt2img_samples": "/elsewhere", "s_churn": 1e9,
        "CLIP_stop_at_last_layers": 2, "sd_lora": "None", "ad_max_models": 2}))
    (folder / "ui-config.json").write_text(json.dumps({
        "txt2img/Width/value": 640, "txt2img/Width/minimum": 64, "customscript/sampler.py/txt2img/Sampling steps/value": 33,
        "txt2img/Height/value": 512, "txt2img/CFG Scale/value": 5.5, "img2img/Width/value": 999, "txt2img/Batch size/value": 10000,
        "txt2img/Dark magic/value": True, "txt2img/Negative prompt/value": "rain"}))
    (folder / "styles.csv").write_text('\ufeffname,prompt,negative_prompt\nBoth,theirs,\nMine too,"{prompt}, ink",blurry\n', encoding="utf-8")
    return folder


@pytest.fixture
def root(tmp_path):
    paths = Paths.of(tmp_path / "house")
    paths.make()
    styles.write(paths.styles_file, [Style("Both", "ours", "")])
    return tmp_path / "house"


def bytes_of(folder):
    return {path: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns) for path in folder.rglob("*")}


def moved(capsys, root, *words):
    capsys.readouterr()
    code = cli.main(["import-a1111", *map(str, words)], Paths.of(root))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_all_of_it_is_here_afterwards_and_the_old_folder_is_as_it_was(old, root, capsys):
    before = bytes_of(old)
    found = json.loads(moved(capsys, root, old, "--json")[1])
    assert bytes_of(old) == before
    paths = Paths.of(root)
    settings = SettingsFile(paths.settings_file).read()
    assert (settings["samples_format"], settings["jpeg_quality"], settings["eta_ancestral"], settings["CLIP_stop_at_last_layers"]) == ("webp", 90, 0.5, 2)
    assert settings["s_churn"] == 0.0 and settings["outdir_txt2img_samples"] == "outputs/txt2img-images"
    assert json.loads((paths.data / "page_defaults.json").read_text()) == {"txt2img": {"width": 640, "steps": 33, "cfg_scale": 5.5, "negative_prompt": "rain"}}
    assert styles.read(paths.styles_file) == (Style("Both", "ours", ""), Style("Mine too", "{prompt}, ink", "blurry"))
    assert paths.checkpoints[1:] == (old / "models/Stable-diffusion",) and paths.lora[1:] == (old / "models/Lora",)
    assert paths.vae[1:] == (old / "models/VAE",) and paths.more_embeddings == (old / "embeddings",)
    assert Shelf(paths, Hashes(paths.hashes_file)).checkpoints()[0].name == "theirs.safetensors"
    assert set(found["unknown"]) == {"sd_lora", "ad_max_models", "txt2img/Dark magic/value"}
    left = " ".join(found["left"])
    assert all(word in left for word in ("outdir_txt2img_samples", "s_churn", "Batch size", "Both"))


def test_a_second_time_nothing_is_taken_twice(old, root, capsys):
    moved(capsys, root, old)
    lists = (Paths.of(root).imported_folders.read_text(), Paths.of(root).styles_file.read_bytes())
    code, _, said = moved(capsys, root, old)
    assert code == 0 and "known already" in said and lists == (Paths.of(root).imported_folders.read_text(), Paths.of(root).styles_file.read_bytes())


def test_a_second_installation_is_added_to_the_first(old, root, capsys, tmp_path):
    (tmp_path / "other" / "models" / "Stable-diffusion").mkdir(parents=True)
    moved(capsys, root, old)
    moved(capsys, root, tmp_path / "other")
    assert Paths.of(root).checkpoints[1:] == (old / "models/Stable-diffusion", tmp_path / "other" / "models" / "Stable-diffusion")


def test_a_dry_run_says_the_same_and_writes_nothing(old, root, capsys):
    before = bytes_of(root)
    dry = json.loads(moved(capsys, root, old, "--dry-run", "--json")[1])
    assert {path: found for path, found in bytes_of(root).items() if path.is_file() and path.name != "easel.lock"} == {
        path: found for path, found in before.items() if path.is_file() and path.name != "easel.lock"}
    assert dry == json.loads(moved(capsys, root, old, "--json")[1])


def test_only_what_is_asked_for_is_taken(old, root, capsys):
    code, out, _ = moved(capsys, root, old, "--only", "styles")
    paths = Paths.of(root)
    assert code == 0 and "Mine too" in out and len(paths.checkpoints) == 1 and not (paths.data / "page_defaults.json").exists()
    assert SettingsFile(paths.settings_file).read()["samples_format"] == "png"


@pytest.mark.parametrize("name, raw", [("config.json", b'{"samples_format": "we'), ("config.json", b"[]"), ("ui-config.json", b"\xff\xfe"),
                                       ("styles.csv", b"name,prompt\n\xe9,x\n"), ("config.json", b"[" * 100000)])
def test_a_broken_file_is_told_and_stops_nothing_else(old, root, capsys, name, raw):
    (old / name).write_bytes(raw)
    code, out, said = moved(capsys, root, old)
    assert code == 0 and name in said and "folder" in out and "Traceback" not in said


def test_a_folder_that_is_no_installation_is_refused(root, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        code, out, said = moved(capsys, root, folder)
        assert code == 1 and out == "" and said.count("\n") == 1


def test_under_a_running_easel_nothing_is_changed(old, root, capsys):
    paths = Paths.of(root)
    lock = Lock(paths.data)
    try:
        code, _, said = moved(capsys, root, old)
    finally:
        lock.release()
    assert code == 1 and "Another Easel" in said and not paths.settings_file.exists()
