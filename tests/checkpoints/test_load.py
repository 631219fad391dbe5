"""From a file to a Model: every kind of sound file gives the same networks, and a broken one says what is wrong with it."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoints import load
from modules.core.errors import CheckpointError, UnsafeFileError
from tests import tiny
from tests.checkpoints.conftest import picture

ROOT = Path(__file__).resolve().parents[2]
CPU = {"device": "cpu", "dtype": torch.float32}
PEAK = """
import sys, torch
from modules.checkpoints import load
from modules.families import catalogue
torch.set_num_threads(1)
load.verify(sys.argv[1])
def taken(row):                         # of this process alone; getrusage counts in what started it
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(row))
before = taken("VmRSS")
model = load.load(sys.argv[1], device="cpu", dtype=torch.float32)
own = 4 * load.verify(sys.argv[1])
print(own, taken("VmHWM") - before)
"""


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def test_the_networks_hold_the_files_values_in_float32(originals):
    model = load.load(originals / "a.safetensors", **CPU)
    stored = weights_of(originals / "a.safetensors")
    for name, tensor in model.unet.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, stored[f"model.diffusion_model.{name}"].float()), name
    assert model.dtype == torch.float32 and model.device == torch.device("cpu") and model.vae_name == ""
    assert picture(model).isfinite().all()


@pytest.mark.parametrize("form", ["zip", "legacy", "float32", "bfloat16", "module.", "EMA", "float position ids", "no buffers"])
def test_the_same_weights_in_another_form_give_the_same_picture(originals, tmp_path, form):
    stored = weights_of(originals / "a.safetensors")
    path = tmp_path / "x.ckpt"
    if form in ("zip", "legacy"):
        torch.save({"state_dict": stored, "global_step": 1}, path, _use_new_zipfile_serialization=form == "zip")
    elif form in ("float32", "bfloat16"):
        path = tmp_path / "x.safetensors"
        dtype = getattr(torch, form)
        save_file({name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in stored.items()}, path)
    else:
        if form == "module.":
            stored = {form + name: tensor for name, tensor in stored.items()}
        if form == "EMA":
            shadows = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor * float("nan") for name, tensor in stored.items()
                       if name.startswith("model.diffusion_model.")}
            stored = stored | shadows | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}
        if form == "float position ids":
            stored = {name: tensor.float() + 0.4 if name.endswith("position_ids") else tensor for name, tensor in stored.items()}
        if form == "no buffers":
            stored = {name: tensor for name, tensor in stored.items() if name not in dict(tiny.schedule_buffers())}
        torch.save(stored, path)
    expected, found = picture(load.load(originals / "a.safetensors", **CPU)), picture(load.load(path, **CPU))
    assert torch.allclose(found, expected, atol=0.3 if form == "bfloat16" else 0)
    assert not torch.allclose(found, picture(load.load(originals / "b.safetensors", **CPU)), atol=0.3)


def test_half_precision_halves_the_memory(originals):
    model = load.load(originals / "a.safetensors", device="cpu", dtype=torch.float16)
    assert model.dtype == torch.float16
    assert {tensor.dtype for network in load.networks(model) for tensor in network.parameters()} == {torch.float16}


@pytest.mark.parametrize("name, prefix", [
    ("v.safetensors", ""), ("full.safetensors", "first_stage_model."), ("b.safetensors", "first_stage_model.")])
def test_a_vae_file_takes_the_place_of_the_own_one_whatever_its_prefix(originals, name, prefix):
    model = load.load(originals / "a.safetensors", **CPU, vae_path=originals / name)
    stored = weights_of(originals / name)
    for key, tensor in model.vae.state_dict().items():
        assert torch.equal(tensor, stored[prefix + key].float()), key
    assert model.vae_name == name
    alone = load.load(originals / "a.safetensors", **CPU)
    alone.vae = load.load_vae(originals / name, alone)
    assert torch.equal(picture(model), picture(alone))


def test_a_pickled_vae_as_its_trainer_left_it_is_read(originals, tmp_path):
    stored = weights_of(originals / "v.safetensors")
    extra = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.tensor(1.0), "model_ema.num_updates": torch.tensor(1)}
    torch.save({"state_dict": stored | extra}, tmp_path / "v.vae.pt")
    found = picture(load.load(originals / "a.safetensors", **CPU, vae_path=tmp_path / "v.vae.pt"))
    assert torch.equal(found, picture(load.load(originals / "a.safetensors", **CPU, vae_path=originals / "v.safetensors")))


def test_a_checkpoint_without_vae_asks_for_one_and_takes_it(originals, tmp_path):
    stored = weights_of(originals / "a.safetensors")
    save_file({name: tensor for name, tensor in stored.items() if not name.startswith("first_stage_model.")}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="VAE"):
        load.load(tmp_path / "x.safetensors", **CPU)
    assert load.load(tmp_path / "x.safetensors", **CPU, vae_path=originals / "v.safetensors").vae_name == "v.safetensors"


@pytest.mark.parametrize("source, prediction, kind", [
    ("nothing", "Auto", "eps"), ("nothing", "v", "v"), ("metadata", "Auto", "v"), ("metadata", "eps", "eps"), ("yaml", "Auto", "v"),
    ("other yaml", "Auto", "eps")])
def test_what_the_model_predicts_is_chosen_or_told_or_guessed(originals, tmp_path, source, prediction, kind):
    path = tmp_path / "x.safetensors"
    save_file(weights_of(originals / "a.safetensors"), path, metadata={"modelspec.prediction_type": "v"} if source == "metadata" else None)
    if source == "yaml":
        (tmp_path / "x.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    if source == "other yaml":
        (tmp_path / "x.yaml").write_bytes(b"\xff\xfe")
    assert load.load(path, **CPU, prediction=prediction).prediction.kind == kind


KEY = "model.diffusion_model.middle_block.1.proj_in.weight"


def damaged(stored: dict[str, torch.Tensor], fault: str) -> dict[str, torch.Tensor]:
    tensor = stored[KEY]
    changes = {"shape": tensor[:-1], "integers": torch.ones(tensor.shape, dtype=torch.int64), "nan": tensor.clone().fill_(float("nan"))}
    if fault == "missing":
        return {name: tensor for name, tensor in stored.items() if name != KEY}
    if fault == "unknown":
        return stored | {"model.diffusion_model.extra.weight": torch.ones(2)}
    if fault == "packed otherwise":
        return stored | {KEY.replace("weight", "comfy_quant"): torch.ones(2, dtype=torch.uint8)}
    return stored | {KEY: changes[fault].contiguous()}


@pytest.mark.parametrize("fault, said", [
    ("missing", "proj_in.weight"), ("shape", "proj_in.weight"), ("integers", "proj_in.weight"), ("nan", "proj_in.weight"),
    ("unknown", "extra.weight"), ("packed otherwise", "16-bit")])
def test_a_damaged_model_is_a_sentence_naming_file_and_tensor(originals, tmp_path, fault, said):
    save_file(damaged(weights_of(originals / "a.safetensors"), fault), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=said) as error:
        load.load(tmp_path / "x.safetensors", **CPU)
    assert "x.safetensors" in str(error.value) and "\n" not in str(error.value)
    if fault != "nan":                                      # the header alone tells
        with pytest.raises(CheckpointError):
            load.verify(tmp_path / "x.safetensors")
    else:
        assert load.verify(tmp_path / "x.safetensors") > 0
        with pytest.raises(CheckpointError, match=said):
            load.check_values(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["a LoRA", "a picture", "a vae", "two channels", "gone", "a pickle that runs"])
def test_what_is_no_vae_for_this_model_is_refused_naming_its_file(originals, tmp_path, name):
    path = tmp_path / "odd.safetensors"
    kind = CheckpointError
    if name == "a LoRA":
        save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, path)
    if name == "a picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    if name == "a vae":                                     # one tensor short
        stored = weights_of(originals / "v.safetensors")
        save_file({key: tensor for key, tensor in stored.items() if key != "decoder.conv_out.bias"}, path)
    if name == "two channels":
        tiny.save_vae(path, latent=2)
    if name == "a pickle that runs":
        path, kind = tmp_path / "odd.pt", UnsafeFileError
        torch.save(torch.nn.Linear(1, 1), path)
    with pytest.raises(kind, match=path.name):
        load.load(originals / "a.safetensors", **CPU, vae_path=path)
    with pytest.raises(kind, match=path.name):
        load.load_vae(path, load.load(originals / "a.safetensors", **CPU))


def test_the_model_lives_on_after_its_file_was_truncated(originals, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((originals / "a.safetensors").read_bytes())
    model = load.load(path, **CPU)
    before = picture(model)
    os.truncate(path, 100)
    assert torch.equal(picture(model), before)


def test_loading_never_needs_much_more_than_the_model(tmp_path):
    """A float16 file of 110 MB becomes a float32 model of 220 MB: the peak is nowhere near the sum of both."""
    tiny.save_sd1(tmp_path / "x.safetensors", width=96, vae_width=32, text_width=192)
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path / "x.safetensors")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own, taken = map(int, done.stdout.split())
    assert own > 150e6 and taken < 1.4 * own, (own, taken)   # the sum of both is 1.5
