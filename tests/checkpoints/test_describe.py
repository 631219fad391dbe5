"""A description says what the header says: sizes, parts and types, who says what is predicted, and what a file is that is no checkpoint."""
import dataclasses
import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import save_file

from modules.checkpoints.convert import convert
from modules.checkpoints.describe import describe
from modules.core.errors import CheckpointError
from modules.core.hashing import Hashes
from modules.families import sd2
from tests import tiny, tiny_families

UNET, VAE = "model.diffusion_model.", "first_stage_model."
SMALL = {"mult": (1, 1, 1, 1), "text_layers": 3}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.save_sd1(tmp_path_factory.mktemp("describe") / "a.safetensors", seed=1, metadata={"modelspec.title": "A"}, **SMALL)


def values(prefix):
    return sum(math.prod(shape) for name, shape in tiny.sd1_shapes(**SMALL).items() if name.startswith(prefix))


def test_a_checkpoint_is_described_by_its_shapes(path):
    found = describe(path)
    assert (found.kind, found.family, found.form, found.size, found.fault) == ("checkpoint", "SD1", "safetensors", path.stat().st_size, "")
    assert (found.in_channels, found.latent_channels, found.downscale, found.context, found.native_size) == (4, 4, 8, 64, 512)
    [tower] = found.towers
    assert (tower.width, tower.layers) == (64, 3)
    assert {part.name: part.values for part in found.parts if part.name != "other"} == {
        "U-Net": values(UNET), "VAE": values(VAE), "text encoder": values("cond_stage_model.")}
    assert all(part.dtypes == {"float16": part.values} and part.size == 2 * part.values for part in found.parts if part.name != "other")
    assert found.metadata == {"modelspec.title": "A"} and not found.ema and found.sha256 == ""


def test_who_says_what_is_predicted(tmp_path):
    for name, metadata, beside, prediction, by in (
            ("a", {}, "", "eps", "guessed"), ("b", {"modelspec.prediction_type": "v"}, "", "v", "metadata"),
            ("c", {}, "model:\n  params:\n    parameterization: v\n", "v", "metadata")):
        file = tiny.save_sd1(tmp_path / f"{name}.safetensors", metadata=metadata, **SMALL)
        if beside:
            file.with_suffix(".yaml").write_text(beside)
        found = describe(file)
        assert (found.prediction, found.prediction_by) == (prediction, by)
        assert bool(found.guessed) == (by == "guessed") and all("prediction" in guess for guess in found.guessed)


def test_markers_averages_and_mixed_types_are_seen(tmp_path):
    tensors = tiny.sd1(2, **SMALL) | {"v_pred": torch.zeros(0), "scale_factor": torch.tensor(0.3), "model_ema.decay": torch.tensor(0.9),
                                      "model_ema.diffusion_modeloutweight": torch.ones(5)}
    tensors = {name: tensor.bfloat16() if name.startswith(VAE) else tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    found = describe(tmp_path / "a.safetensors")
    assert found.ema and set(found.markers) == {"v_pred", "scale_factor", "alphas_cumprod"}
    dtypes = {part.name: tuple(part.dtypes) for part in found.parts}
    assert dtypes["VAE"] == ("bfloat16",) and dtypes["U-Net"] == ("float32",) and "averages (EMA)" in dtypes


def test_hashes_are_computed_only_when_asked_for(path, tmp_path):
    found = describe(path, Hashes(tmp_path / "hashes.json").sha256)
    raw = path.read_bytes()
    assert found.sha256 == hashlib.sha256(raw).hexdigest() and found.shorthash == found.sha256[:10]
    assert found.legacy_hash == hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8] == describe(path).legacy_hash


def test_a_vae_alone_is_a_vae(tmp_path):
    found = describe(tiny.save_vae(tmp_path / "v.safetensors", mult=(1, 1, 1), latent=8))
    assert (found.kind, found.family, found.latent_channels, found.downscale) == ("VAE", "", 8, 4)
    assert [part.name for part in found.parts] == ["VAE"] and "VAE" in found.fault


def test_what_is_no_checkpoint_says_why(tmp_path):
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, tmp_path / "l.safetensors")
    found = describe(tmp_path / "l.safetensors")
    assert (found.kind, found.family) == ("other", "") and "LoRA" in found.fault
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        describe(tmp_path / "empty.safetensors")


def test_a_file_without_its_vae_is_still_described(tmp_path):
    save_file({name: tensor for name, tensor in tiny.sd1(2, **SMALL).items() if not name.startswith(VAE)}, tmp_path / "a.safetensors")
    found = describe(tmp_path / "a.safetensors")
    assert found.kind == "checkpoint" and found.latent_channels == 4 and "VAE" in found.fault


def test_a_pickle_is_described_like_its_conversion(tmp_path):
    torch.save({"state_dict": tiny.sd1(2, **SMALL)}, tmp_path / "a.ckpt")
    one, two = describe(tmp_path / "a.ckpt"), describe(convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors"))
    assert (one.form, two.form) == ("pickle", "safetensors")
    for name in ("kind", "family", "prediction", "towers", "latent_channels", "downscale", "markers"):
        assert getattr(one, name) == getattr(two, name)
    assert {part.name: part.values for part in one.parts} == {part.name: part.values for part in two.parts}


def test_a_description_is_plain_values(path):
    assert json.loads(json.dumps(dataclasses.asdict(describe(path))))["family"] == "SD1"


def test_a_second_version_that_predicts_v_is_told_by_the_values_of_its_telling_bias(tmp_path, monkeypatch):
    monkeypatch.setattr(sd2, "PUBLISHED_WIDTH", 32)
    weights = tiny_families.sd2(dtype=torch.float16)
    for spread, kind, size in ((0.2, "v", 768), (0.02, "eps", 512)):
        weights[sd2.TELLING] = torch.tensor([spread, -spread] * 16, dtype=torch.float16)
        save_file(weights, tmp_path / "second.safetensors")
        found = describe(tmp_path / "second.safetensors")
        assert (found.prediction, found.native_size) == (kind, size)
