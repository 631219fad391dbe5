"""A folder in diffusers' layout is a model like a file; folders are written by diffusers and transformers themselves."""
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoints import folder, load, read
from modules.checkpoints.shelf import Shelf
from modules.core.errors import CheckpointError, UnsafeFileError
from modules.core.hashing import Hashes
from modules.core.paths import Paths
from modules.families import diffusers_names
from modules.families.keys import text_part
from tests import tiny_families
from tests.checkpoints.conftest import picture
from tests.oracles import published

CPU = {"device": "cpu", "dtype": torch.float32, "kind": "plain"}
UNET = published.unet_settings(width=32, mult=(1, 1, 1, 1), context=64)
INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}


@pytest.fixture(scope="session")
def stored(originals) -> dict[str, torch.Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(originals / "a.safetensors").items()}


@pytest.fixture(scope="session")
def networks(stored):
    """The U-Net, VAE and text tower of checkpoint "a" as other people's networks."""
    vae = published.vae(stored, published.vae_settings(width=32, mult=(1, 1, 1, 1)))
    return {"unet": published.unet(stored, UNET), "vae": vae,
            "text_encoder": published.text(stored, published.clip_settings(width=64, layers=2, heads=1))}


@pytest.fixture(scope="session")
def written(networks, tmp_path_factory) -> Path:
    """The model as diffusers leaves it on disk."""
    path = tmp_path_factory.mktemp("written") / "dream v1.5"
    for part, network in networks.items():
        network.save_pretrained(path / part)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon", "beta_start": 0.00085}))
    (path / "model_index.json").write_text(json.dumps(INDEX))
    return path


@pytest.fixture
def model(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / written.name))


@pytest.fixture(scope="session")
def expected(originals) -> torch.Tensor:
    return picture(load.load(originals / "a.safetensors", **CPU))


def test_a_folder_gives_the_picture_of_the_file_that_it_was_made_of(written, expected):
    assert torch.equal(picture(load.load(written, **CPU)), expected)


def test_its_tensors_have_the_names_that_the_single_file_has(written, stored):
    found = read.header(written)
    tables = {name for name in stored if name in read.SCHEDULE or name.endswith("position_ids")}
    assert set(found) == set(stored) - tables
    assert {name for name, shape in found.items() if shape != tuple(stored[name].shape)} == {       # a linear layer there
        f"first_stage_model.{side}.mid.attn_1.{part}.weight" for side in ("encoder", "decoder") for part in ("q", "k", "v", "proj_out")}
    weights = read.weights(written, lambda name: name.startswith("model."))
    assert set(weights) == {name for name in found if name.startswith("model.")}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in weights.items())


@pytest.mark.parametrize("form", ["shards", "pickles", "variant", "sharded variant", "old names in the VAE", "wrapped tower"])
def test_every_way_of_writing_it_gives_the_same_picture(model, networks, expected, form):
    for part, network in networks.items():
        shutil.rmtree(model / part)
        network.save_pretrained(model / part, variant="fp16" if "variant" in form else None, safe_serialization=form != "pickles",
                                **({"max_shard_size": "2MB"} if "shard" in form else {}))
        if form == "pickles":
            name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
            for path in (model / part).glob("*.safetensors"):           # transformers writes no pickle any more
                torch.save(load_file(path), model / part / name)
                path.unlink()
            assert (model / part / name).is_file()
    if form == "wrapped tower":
        path = model / "text_encoder" / "model.safetensors"
        save_file({f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}, path)
    if form.startswith("old names"):
        path = model / "vae" / "diffusion_pytorch_model.safetensors"
        old = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
        renamed = load_file(path)
        for new, former in old:
            renamed = {name.replace(f".{new}.", f".{former}."): tensor for name, tensor in renamed.items()}
        save_file(renamed, path)
    if "shard" in form:
        assert len(list((model / "unet").glob("*.safetensors"))) > 2
    assert torch.equal(picture(load.load(model, **CPU)), expected)


def test_safetensors_come_before_pickles_and_pickles_that_run_are_refused(model, expected):
    class Runs:
        def __reduce__(self):
            return os.system, ("exit 3",)
    torch.save({"x": Runs()}, model / "unet" / "diffusion_pytorch_model.bin")
    assert torch.equal(picture(load.load(model, **CPU)), expected)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UnsafeFileError, match=r"dream v1\.5.*unet/diffusion_pytorch_model\.bin"):
        load.load(model, **CPU)


def test_the_vae_of_a_folder_serves_another_checkpoint(written, originals):
    with_it = load.load(originals / "b.safetensors", **CPU, vae_path=written)
    own = load.load(originals / "a.safetensors", **CPU)
    latent = torch.ones(1, 4, 8, 8)
    assert torch.equal(with_it.vae.decode(latent), own.vae.decode(latent))


def test_one_file_with_the_parts_names_before_its_tensors_is_read(networks, tmp_path, expected):
    tensors = {f"{part}.{name}": tensor.contiguous() for part, network in networks.items() for name, tensor in network.state_dict().items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert torch.equal(picture(load.load(tmp_path / "x.safetensors", **CPU)), expected)


OPEN = ("cond_stage_model.model.", "conditioner.embedders.0.model.", "conditioner.embedders.1.model.")
TOWERS = ("text_model.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


@pytest.mark.parametrize("family", ["SD2", "SD2 inpainting", "SD2 x4 upscaler", "SDXL", "SDXL refiner", "SSD-1B", "KOALA"])
def test_every_family_is_the_same_in_the_names_of_diffusers(tmp_path, family):
    stored = {name: tensor.contiguous() for name, tensor in tiny_families.FAMILIES[family](dtype=torch.float16).items()}
    plain = {name: tensor for name, tensor in stored.items() if not name.startswith(OPEN)}
    for prefix in OPEN:                                     # towers as transformers has them
        tower = text_part({name: tensor for name, tensor in stored.items() if name[len(prefix):].startswith(TOWERS)}, prefix)
        plain |= {prefix + name: tensor.contiguous() for name, tensor in tower.items()}
    names = diffusers_names.to_diffusers(plain)
    assert {name for name in plain if name not in names and name.startswith((*OPEN, "model.", "first_stage_model."))} == set()
    save_file(stored, tmp_path / "plain.safetensors")
    save_file({names[name]: tensor for name, tensor in plain.items() if name in names}, tmp_path / "theirs.safetensors")
    ours, theirs = (load.load(tmp_path / f"{which}.safetensors", **CPU, prediction="eps") for which in ("plain", "theirs"))
    assert ours.family is theirs.family
    for one, other in zip(load.networks(ours), load.networks(theirs), strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_a_unet_alone_says_what_it_lacks(networks, tmp_path):
    save_file({name: tensor.contiguous() for name, tensor in networks["unet"].state_dict().items()}, tmp_path / "x.safetensors")
    assert all(name.startswith("model.diffusion_model.") for name in read.header(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match=r"x\.safetensors"):
        load.load(tmp_path / "x.safetensors", **CPU)


def edited(model: Path, place: str, **changes) -> Path:
    path = model / place
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return model


@pytest.mark.parametrize("place, changes, hints", [
    ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, {"modelspec.prediction_type": "v_prediction"}),
    ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, {"easel.zero_terminal_snr": "true"}),
    ("scheduler/scheduler_config.json", {"beta_end": 0.02}, {"easel.beta_start": "0.00085", "easel.beta_end": "0.02"}),
    ("unet/config.json", {"attention_head_dim": 4}, {"easel.heads": "4"}),
    ("unet/config.json", {"attention_head_dim": [4, 4, 4, 1]}, {"easel.heads": "4"}),       # no attention at the last level
    ("unet/config.json", {"use_linear_projection": True, "attention_head_dim": [1, 2, 4, 4], "block_out_channels": [64, 128, 256, 256]}, {}),
    ("unet/config.json", {"use_linear_projection": True, "attention_head_dim": [2, 4, 8, 8], "block_out_channels": [64, 128, 256, 256]},
     {"easel.head_dim": "32"}),
    ("unet/config.json", {"attention_head_dim": 32, "num_attention_heads": 8}, {}),
    ("vae/config.json", {"scaling_factor": 0.5, "latents_mean": [1, -0.5]}, {"easel.scale_factor": "0.5", "easel.latents_mean": "1 -0.5"}),
    ("model_index.json", {"_class_name": "Other"}, {"easel.pipeline": "Other"}),
])
def test_what_the_small_files_say_is_told_as_hints(model, place, changes, hints):
    found = read.metadata(edited(model, place, **changes))
    usual = {"modelspec.prediction_type": "epsilon", "easel.pipeline": "StableDiffusionPipeline", "easel.beta_start": "0.00085",
             "easel.scale_factor": found["easel.scale_factor"]}
    assert found == usual | hints


def test_a_prediction_that_the_scheduler_tells_is_the_models(model):
    edited(model, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert load.load(model, **CPU).prediction.kind == "v"
    (model.parent / f"{model.name}.json").write_text(json.dumps({"easel.prediction": "eps"}))        # what the user wrote beside it
    assert load.load(model, **CPU).prediction.kind == "eps"


def spoil(model: Path, fault: str) -> None:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    index = model / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    if fault in ("no U-Net", "another kind", "missing shard", "shard elsewhere", "index of nothing", "shard without its tensor", "shard twice"):
        weights.rename(model / "unet" / "part.safetensors")
    if fault == "another kind":
        (model / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}))
    place = {"missing shard": {"x": "gone.safetensors"}, "shard elsewhere": {"x": "../vae/diffusion_pytorch_model.safetensors"},
             "index of nothing": {}, "shard without its tensor": {"x": "part.safetensors"}}
    if fault in place:
        index.write_text(json.dumps({"weight_map": place[fault]}))
    if fault == "shard twice":
        shutil.copy(model / "unet" / "part.safetensors", model / "unet" / "copy.safetensors")
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": "part.safetensors", "conv_in.bias": "copy.safetensors"}}))
    if fault == "cut":
        os.truncate(weights, weights.stat().st_size - 1)
    if fault == "pointer":
        weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    if fault == "index no JSON":
        (model / "model_index.json").write_text("{")
    if fault == "index a list":
        (model / "model_index.json").write_text("[]")
    if fault == "deep":
        (model / "unet" / "config.json").write_text("[" * 200_000)
    if fault == "heads":
        edited(model, "unet/config.json", attention_head_dim=[1, 2, 5, 7])
    if fault == "heads are words":
        edited(model, "unet/config.json", attention_head_dim="many")
    if fault == "plain attention":
        save_file(load_file(weights) | {"down_blocks.1.attentions.0.group_norm.weight": torch.ones(32)}, weights)


@pytest.mark.parametrize("fault, said", [
    ("no U-Net", "no weights of a U-Net"), ("another kind", "FluxPipeline"), ("missing shard", r"gone\.safetensors is missing"),
    ("shard elsewhere", "no file of weights beside it"), ("index of nothing", "names no files"),
    ("shard without its tensor", "lacks the tensor x"), ("shard twice", "twice"), ("cut", "cut off"), ("pointer", "git-lfs"),
    ("index no JSON", "not JSON"), ("index a list", "no table"), ("deep", "not JSON"), ("heads", "heads"), ("heads are words", "heads"),
    ("plain attention", "without text")])
def test_a_damaged_folder_is_a_sentence_naming_it_and_is_left_alone(model, fault, said):
    spoil(model, fault)
    before = {path: path.read_bytes() for path in sorted(model.rglob("*")) if path.is_file()}
    with pytest.raises(CheckpointError, match=said) as error:
        load.verify(model)
    assert model.name in str(error.value) and "\n" not in str(error.value) and str(model.parent) not in str(error.value)
    assert {path: path.read_bytes() for path in sorted(model.rglob("*")) if path.is_file()} == before


@pytest.fixture
def shelf(written, tmp_path) -> Shelf:
    paths = Paths.of(tmp_path / "house")
    paths.make()
    shutil.copytree(written, paths.checkpoints[0] / "Anime" / written.name)
    (paths.checkpoints[0] / "file.safetensors").write_bytes(b"x")
    return Shelf(paths, Hashes(paths.hashes_file))


def test_the_shelf_lists_the_folder_and_nothing_in_it(shelf):
    assert [entry.name for entry in shelf.checkpoints()] == ["Anime/dream v1.5", "file.safetensors"]
    entry = shelf.find_checkpoint("dream v1.5")
    assert entry.base == "dream v1.5" and entry.model_name == "Anime_dream v1.5" and entry.is_folder
    assert entry.metadata["easel.pipeline"] == "StableDiffusionPipeline"


def test_its_hash_is_that_of_its_files_and_changes_with_each(shelf):
    entry = shelf.hashed(shelf.find_checkpoint("dream v1.5"))
    names = ["model_index.json", "scheduler/scheduler_config.json", "text_encoder/model.safetensors", "unet/config.json",
             "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    lines = [f"{name} {hashlib.sha256((entry.path / name).read_bytes()).hexdigest()}\n" for name in names]
    assert entry.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert shelf.find_checkpoint(entry.title) == shelf.find_sha256(entry.sha256) == entry
    before = shelf.stamp(entry)
    edited(entry.path, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert shelf.stamp(entry) != before and shelf.find_checkpoint("dream v1.5").sha256 is None
    assert shelf.hashed(entry).sha256 != entry.sha256


def test_a_folder_without_an_index_is_a_folder_of_files(shelf):
    path = shelf.find_checkpoint("dream v1.5").path
    (path / "model_index.json").unlink()
    shelf.refresh()
    assert "Anime/dream v1.5/unet/diffusion_pytorch_model.safetensors" in [entry.name for entry in shelf.checkpoints()]
    assert not folder.holds_model(path)
    with pytest.raises(CheckpointError, match="is a folder"):
        read.header(path)
