"""What people put beside a model file: configurations as the trainers published them, notes, pictures."""
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoints import load, sidecars
from modules.checkpoints.shelf import Entry, Shelf
from modules.core.errors import NotFoundError
from modules.core.hashing import Hashes
from modules.core.paths import Paths

CPU = {"device": "cpu", "dtype": torch.float32, "kind": "plain"}
SD2 = """\
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    linear_end: 0.0120   # a comment
    timesteps: 1000
    scale_factor: 0.18215
    scheduler_config: # 10000 warmup steps
      target: ldm.lr_scheduler.LambdaLinearScheduler
      params:
        warm_up_steps: [ 10000 ]
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        use_checkpoint: True
        attention_resolutions: [ 4, 2, 1 ]
        num_heads: -1
        num_head_channels: 64 # need to fix for flash-attn
    first_stage_config:
      params:
        ddconfig:
          ch_mult:
          - 1
          - 2
        lossconfig:
          target: torch.nn.Identity
"""
UPSCALER = """\
model:
  params:
    parameterization: "v"
    low_scale_config:
      params:
        noise_schedule_config: # image space
          linear_start: 0.5
          linear_end: 0.6
    linear_start: 0.0001
    unet_config:
      params:
        num_heads: 8
"""
XL = """\
model:
  target: sgm.models.diffusion.DiffusionEngine
  params:
    scale_factor: 0.13025
    denoiser_config:
      params:
        num_idx: 1000
        scaling_config:
          target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling
    network_config:
      params:
        num_head_channels: 64
    conditioner_config:
      params:
        emb_models:
          - is_trainable: False
            params:
              linear_start: 3
"""
PUBLISHED = [
    (SD2, {"modelspec.prediction_type": "v", "easel.beta_start": "0.00085", "easel.beta_end": "0.0120", "easel.scale_factor": "0.18215",
           "easel.head_dim": "64"}),
    (UPSCALER, {"modelspec.prediction_type": "v", "easel.beta_start": "0.0001", "easel.heads": "8"}),
    (XL, {"modelspec.prediction_type": "v", "easel.scale_factor": "0.13025", "easel.head_dim": "64"}),
]


@pytest.mark.parametrize("text, hints", PUBLISHED, ids=["SD2", "upscaler", "SDXL"])
@pytest.mark.parametrize("change", [str, lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text, lambda text: "# x\n---\n" + text],
                         ids=["as it is", "Windows", "byte order mark", "document mark"])
def test_a_published_configuration_tells_what_no_tensor_does(tmp_path, text, hints, change):
    (tmp_path / "x.yaml").write_bytes(change(text).encode())
    assert sidecars.yaml_hints(tmp_path / "x.safetensors") == hints


@pytest.mark.parametrize("text", [
    b"", b"\xff\xfe", b"\0" * 100, b"a: b: c", b"!!python/object/apply:os.system ['touch canary']", b"model: &a [*a]", b"- " * 50_000,
    b"".join(b" " * n + b"a:\n" for n in range(1000)), b"model:\n  params:\n    scale_factor: nan\n    linear_start: -1\n    linear_end: many\n",
    b"model:\n  params:\n    unet_config:\n      params:\n        num_heads: -1\n", b"x" * 3_000_000, b"parameterization: w"],
    ids=["empty", "UTF-16", "zeros", "colons", "tag", "anchor", "list", "deep", "no numbers", "no heads", "long", "another parameterization"])
def test_a_configuration_that_makes_no_sense_is_none_and_runs_nothing(tmp_path, text):
    (tmp_path / "x.yaml").write_bytes(text)
    assert sidecars.yaml_hints(tmp_path / "x.safetensors") == {} and os.listdir(tmp_path) == ["x.yaml"]


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link"])
def test_what_is_no_file_beside_a_model_is_not_waited_for(tmp_path, kind):
    for ending in (".yaml", ".json", ".txt", ".png"):
        path = tmp_path / f"x{ending}"
        if kind == "folder":
            path.mkdir()
        if kind == "pipe":
            os.mkfifo(path)
        if kind == "broken link":
            path.symlink_to(tmp_path / "nothing")
    model = tmp_path / "x.safetensors"
    assert sidecars.yaml_hints(model) == sidecars.json_hints(model) == sidecars.notes(model) == {}
    assert sidecars.description(model) == "" and sidecars.preview(model) is None


def test_the_models_heads_are_those_of_its_configuration(originals, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(load_file(originals / "a.safetensors"), path)
    usual = load.load(path, **CPU).unet.config.heads
    (tmp_path / "x.yaml").write_text("model:\n  params:\n    unet_config:\n      params:\n        num_heads: 4\n")
    assert load.load(path, **CPU).unet.config.heads == 4 != usual
    (tmp_path / "x.json").write_text(json.dumps({"easel.heads": 2, "description": "mine"}))      # the user's own word comes first
    assert load.load(path, **CPU).unet.config.heads == 2


@pytest.mark.parametrize("said, hints", [
    ({"easel.heads": 4, "easel.zero_terminal_snr": True, "x": 1}, {"easel.heads": "4", "easel.zero_terminal_snr": "true"}),
    ({"easel.prediction": "v"}, {"modelspec.prediction_type": "v"}), ({"easel.list": [1], "easel.table": {}, "easel.none": None}, {}), ([1], {})])
def test_the_users_own_entries_are_hints(tmp_path, said, hints):
    (tmp_path / "x.json").write_text(json.dumps(said))
    assert sidecars.json_hints(tmp_path / "x.safetensors") == hints


@pytest.fixture
def paths(tmp_path) -> Paths:
    found = Paths.of(tmp_path)
    found.make()
    for name in ("dream.safetensors", "night.ckpt"):
        (found.checkpoints[0] / name).write_bytes(name.encode())
    (found.vae[0] / "sharp.safetensors").write_bytes(b"vae")
    return found


@pytest.fixture
def shelf(paths) -> Shelf:
    return Shelf(paths, Hashes(paths.hashes_file))


def told(paths: Paths, **notes) -> None:
    (paths.checkpoints[0] / "dream.json").write_text(json.dumps(notes))


def test_notes_are_read_as_the_user_left_them(shelf, paths):
    entry = shelf.find_checkpoint("dream")
    assert (entry.notes, entry.description, entry.trigger_words, entry.preferred_vae, entry.preview) == ("", "", "", "", None)
    told(paths, **{"description": "of hills", "activation text": "dreamy, soft", "notes": "CFG 5", "vae": "sharp.safetensors", "sd version": "SD1"})
    assert (entry.notes, entry.description, entry.trigger_words, entry.preferred_vae) == (
        "CFG 5", "of hills", "dreamy, soft", "sharp.safetensors")
    told(paths, **{"description": 3, "vae": ["x"], "notes": None})
    assert (entry.notes, entry.description, entry.preferred_vae) == ("", "", "")
    (paths.checkpoints[0] / "dream.txt").write_text("from a text file\n")
    assert entry.description == "from a text file"


@pytest.mark.parametrize("names", [["dream.preview.png", "dream.png"], ["dream.png", "dream.jpg"], ["dream.jpg"], ["dream.preview.webp"]])
def test_the_preview_is_the_first_picture_of_the_models_name(shelf, paths, names):
    for name in (*names, "dream2.png", "night.gif"):
        (paths.checkpoints[0] / name).write_bytes(b"x")
    assert shelf.find_checkpoint("dream").preview == paths.checkpoints[0] / names[0]
    assert shelf.find_checkpoint("night").preview is None


def test_a_folders_name_has_no_ending_to_lose(tmp_path):
    (tmp_path / "dream v1.5").mkdir()
    (tmp_path / "dream v1.5.png").write_bytes(b"x")
    assert Entry(path=tmp_path / "dream v1.5", name="dream v1.5", is_folder=True).preview == tmp_path / "dream v1.5.png"


def test_automatic_takes_the_vae_beside_then_the_tied_one_then_the_checkpoints_own(shelf, paths):
    dream, night = shelf.find_checkpoint("dream"), shelf.find_checkpoint("night")
    assert shelf.vae_of(dream) is None
    told(paths, vae="sharp.safetensors")
    assert shelf.vae_of(dream).name == "sharp.safetensors" and shelf.vae_of(night) is None and shelf.vae_of(dream, "None") is None
    (paths.checkpoints[0] / "dream.vae.pt").write_bytes(b"y")
    shelf.refresh()
    assert shelf.vae_of(dream).name == "dream.vae.pt"


@pytest.mark.parametrize("name, found", [("None", None), ("Automatic", None), ("", None), ("sharp", "sharp.safetensors")])
def test_a_tie_may_name_the_checkpoints_own_vae(shelf, paths, name, found):
    told(paths, vae=name)
    vae = shelf.vae_of(shelf.find_checkpoint("dream"))
    assert (vae.name if vae else None) == found


def test_a_tie_to_a_vae_that_is_gone_is_a_sentence(shelf, paths):
    told(paths, vae="gone.pt")
    with pytest.raises(NotFoundError, match=r"gone\.pt"):
        shelf.vae_of(shelf.find_checkpoint("dream"))
