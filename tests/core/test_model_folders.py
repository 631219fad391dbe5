"""Folders of other programs are found as their own list names them, and a list that cannot be read stops nothing."""
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.core import model_folders
from modules.core.paths import Paths

COMFY = """\
# Rename this to extra_model_paths.yaml
comfyui:
     base_path: {base}/comfy/   # where it is
     is_default: true
     checkpoints: models/checkpoints/
     clip: |
          models/text_encoders/
          models/clip/
     vae: "models/vae"
     loras: |
          models/loras
          models/my lycoris # 2

     embeddings: ~/own embeddings
#     controlnet: models/controlnet

a111:
    base_path: '{base}/a1111'
    checkpoints: [models/Stable-diffusion, {base}/extra]
    vae:
      - models/VAE
      - "models/VAE 2"
    loras: $MORE/lora
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Two other installations, and a root folder whose list names them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MORE", str(tmp_path / "more"))
    for folder in ("comfy/models/checkpoints", "comfy/models/vae", "comfy/models/loras", "comfy/models/my lycoris # 2", "home/own embeddings",
                   "a1111/models/Stable-diffusion", "a1111/models/VAE 2", "extra", "more/lora", "root"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "root" / model_folders.NAME).write_text(COMFY.format(base=tmp_path.as_posix()), encoding="utf-8")
    return tmp_path


def test_every_folder_that_is_there_is_searched_behind_the_users_own(house):
    paths = Paths.of(house / "root", ckpt_dir=house / "flag")
    assert paths.checkpoints == (house / "root/models/Stable-diffusion", house / "flag", house / "comfy/models/checkpoints",
                                 house / "a1111/models/Stable-diffusion", house / "extra")
    assert paths.vae == (house / "root/models/VAE", house / "comfy/models/vae", house / "a1111/models/VAE 2")
    assert paths.lora == (house / "root/models/Lora", house / "comfy/models/loras", house / "comfy/models/my lycoris # 2", house / "more/lora")
    assert paths.more_embeddings == (house / "home/own embeddings",) and paths.notices == ()


def test_no_folder_of_another_program_is_made(house):
    before = {path for path in house.rglob("*") if "root" not in path.parts}
    Paths.of(house / "root").make()
    assert {path for path in house.rglob("*") if "root" not in path.parts} == before


def test_a_relative_base_begins_at_the_files_own_folder(tmp_path):
    (tmp_path / "comfy" / "ckpt").mkdir(parents=True)
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / model_folders.NAME).write_text("comfyui:\n  base_path: ../comfy\n  checkpoints: ckpt\nno_base:\n  vae: ../comfy/ckpt\n")
    paths = Paths.of(tmp_path / "root")
    assert paths.checkpoints[1:] == (tmp_path / "comfy" / "ckpt",) and paths.vae[1:] == (tmp_path / "comfy" / "ckpt",)


def test_a_base_that_is_gone_is_told_and_nothing_else_is_lost(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / model_folders.NAME).write_text("gone:\n  base_path: /nowhere/at/all\n  vae: v\nhere:\n  vae: here\n")
    paths = Paths.of(tmp_path)
    assert paths.vae[1:] == (tmp_path / "here",) and len(paths.notices) == 1 and "/nowhere/at/all" in paths.notices[0].replace(os.sep, "/")


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe\x00", b"just words", b"- a\n- b\n", b"a: b\n", b"a:\n  checkpoints:\n", b"a:\n\tcheckpoints: x\n", b"{}", b"a:\n  vae: [\n",
                                 b"x" * (model_folders.LONGEST + 1)])
def test_a_list_that_says_nothing_adds_nothing_and_stops_nothing(tmp_path, raw):
    (tmp_path / model_folders.NAME).write_bytes(raw)
    paths = Paths.of(tmp_path)
    assert len(paths.checkpoints) == 1 and len(paths.vae) == 1


@given(st.text(alphabet="ab :-|>[]'\"#\n\t~$/\\", max_size=80))
def test_no_text_makes_it_raise(text):
    for name, entries in model_folders._sections(text.splitlines()):
        assert name and all(isinstance(value, str) for _, values in entries for value in values)


def test_a_section_that_is_written_is_read_back(tmp_path):
    base = tmp_path / "a b #1"
    (base / "models" / "Lora").mkdir(parents=True)
    (tmp_path / model_folders.NAME).write_text(model_folders.section("a1111", base, [("loras", ("models/Lora", "models/LyCORIS"))]), encoding="utf-8")
    [section], notices = model_folders.read(tmp_path / model_folders.NAME)
    assert section == model_folders.Section("a1111", base, (("loras", base / "models/Lora"), ("loras", base / "models/LyCORIS"))) and notices == ()
