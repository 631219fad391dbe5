"""A merge is its formula in float32, for every tensor; what does not fit is named, and what is not computed is A's to the bit."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoints import convert as pieces_room
from modules.checkpoints import read
from modules.checkpoints.blocks import block_of, block_weights, names
from modules.checkpoints.load import load
from modules.checkpoints.merge import merge
from modules.core.errors import Cancelled, CheckpointError, RequestError, SaveError
from modules.core.hashing import Hashes
from modules.core.progress import Progress
from tests import tiny

UNET, VAE = "model.diffusion_model.", "first_stage_model."
FIRST = f"{UNET}input_blocks.0.0.weight"
SMALL = {"mult": (1, 1, 1, 1), "text_layers": 1}
TABLES = ("betas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """a, b, c: three checkpoints in float32, float16 and float32; inpaint: nine channels; vae: another VAE."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_sd1(folder / "a.safetensors", seed=1, dtype=torch.float32, metadata={"modelspec.title": "A", "sshs_model_hash": "x"}, **SMALL)
    tiny.save_sd1(folder / "b.safetensors", seed=2, dtype=torch.float16, **SMALL)
    tiny.save_sd1(folder / "c.safetensors", seed=3, dtype=torch.float32, **SMALL)
    tiny.save_sd1(folder / "inpaint.safetensors", seed=4, dtype=torch.float32, in_channels=9, **SMALL)
    tiny.save_vae(folder / "vae.safetensors", seed=5, mult=SMALL["mult"])
    return folder


@pytest.fixture
def sha256(tmp_path):
    return Hashes(tmp_path / "hashes.json").sha256


def values(path):
    return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}


def computed(name):
    return name not in TABLES and not name.endswith("position_ids")


def changed(source, target, change):
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, target)
    return target


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 1.5])
def test_a_weighted_sum_is_its_formula_in_float32(models, sha256, tmp_path, weight):
    made = values(merge([models / "a.safetensors", models / "b.safetensors"], tmp_path / "m.safetensors", sha256, weight=weight).path)
    a, b = values(models / "a.safetensors"), values(models / "b.safetensors")
    assert made.keys() == a.keys()
    for name in made:
        wanted = a[name] * np.float32(1 - weight) + b[name] * np.float32(weight) if computed(name) else a[name]
        assert np.array_equal(made[name], wanted), name


def test_a_difference_that_is_added_is_its_formula_in_float32(models, sha256, tmp_path):
    sources = [models / f"{name}.safetensors" for name in "abc"]
    made = values(merge(sources, tmp_path / "m.safetensors", sha256, method="Add difference", weight=0.7).path)
    a, b, c = (values(source) for source in sources)
    for name in made:
        wanted = a[name] + (b[name] - c[name]) * np.float32(0.7) if computed(name) else a[name]
        assert np.array_equal(made[name], wanted), name


def test_the_result_is_the_same_however_the_tensors_come_in_pieces(models, sha256, tmp_path, monkeypatch):
    sources = [models / "a.safetensors", models / "b.safetensors"]
    whole = merge(sources, tmp_path / "m.safetensors", sha256).path.read_bytes()
    monkeypatch.setattr(pieces_room, "AT_ONCE", 500_000)
    assert merge(sources, tmp_path / "m.safetensors", sha256, force=True).path.read_bytes() == whole


def test_a_merged_model_loads_and_a_type_is_taken_by_weights_alone(models, sha256, tmp_path):
    made = merge([models / "a.safetensors", models / "b.safetensors"], tmp_path / "m.safetensors", sha256, dtype="float16").path
    tensors = load_file(made)
    assert tensors[FIRST].dtype == torch.float16 and tensors["alphas_cumprod"].dtype == torch.float32
    exact = values(merge([models / "a.safetensors", models / "b.safetensors"], tmp_path / "n.safetensors", sha256).path)
    assert np.array_equal(tensors[FIRST].numpy(), exact[FIRST].astype(np.float16))
    assert load(made, device="cpu", dtype=torch.float32).family.name == "SD1"


# ---- blocks

@pytest.mark.parametrize("inputs, numbers", [(12, 25), (9, 19)])
def test_as_many_numbers_as_blocks_with_or_without_the_base(inputs, numbers):
    assert len(names(inputs)) == numbers + 1
    values_ = [index / 100 for index in range(numbers)]
    shares = block_weights(",".join(map(str, values_)), 0.9, inputs)
    assert shares["BASE"] == 0.9 and shares["IN00"] == 0.0 and shares["M00"] == inputs / 100 and shares[f"OUT{inputs - 1:02}"] == (numbers - 1) / 100
    shares = block_weights(",".join(map(str, [0.5, *values_])), 0.9, inputs)
    assert shares["BASE"] == 0.5 and shares["IN01"] == 0.01


def test_named_blocks_ranges_and_groups():
    shares = block_weights("OUT=1, IN04-in06=0.25, M00:0, OUT11=-0.5", 0.5, 12)
    assert (shares["BASE"], shares["IN03"], shares["IN04"], shares["IN06"], shares["IN07"]) == (0.5, 0.5, 0.25, 0.25, 0.5)
    assert (shares["M00"], shares["OUT00"], shares["OUT11"]) == (0, 1, -0.5)


@pytest.mark.parametrize("text, said", [("1,2,3", "3 weights"), ("IN12=1", "IN12"), ("IN05-IN03=1", "wrong order"), ("HEAD=1", "HEAD"),
                                        ("IN00=much", "much"), ("IN00=nan", "nan"), ("IN00=0.5,0.3", "0.3"), (",".join(["1"] * 24 + ["x"]), "x")])
def test_weights_of_blocks_that_cannot_be_read_are_a_sentence(text, said):
    with pytest.raises(RequestError, match=said):
        block_weights(text, 0.5, 12)


def test_every_tensor_belongs_to_one_block():
    shares = block_weights("", 0.5, 12)
    for name, block in ((f"{UNET}time_embed.0.weight", "IN00"), (f"{UNET}label_emb.0.0.bias", "IN00"), (f"{UNET}input_blocks.11.0.in_layers.0.weight", "IN11"),
                        (f"{UNET}middle_block.1.norm.weight", "M00"), (f"{UNET}output_blocks.2.1.conv.weight", "OUT02"),
                        (f"{UNET}out.2.bias", "OUT11"), (f"{VAE}decoder.conv_in.weight", "BASE"), ("cond_stage_model.x", "BASE")):
        assert block_of(name, shares) == block
    assert {block_of(name, shares) for name in tiny.sd1_shapes()} == set(shares)


def test_each_block_has_its_own_weight(models, sha256, tmp_path):
    made = values(merge([models / "a.safetensors", models / "c.safetensors"], tmp_path / "m.safetensors", sha256, weight=0.0,
                        blocks="IN00=1,M00=0.5,OUT11=0.25").path)
    a, c = values(models / "a.safetensors"), values(models / "c.safetensors")
    for name in made:
        share = 1.0 if "input_blocks.0." in name or "time_embed" in name else 0.5 if "middle_block" in name else (
            0.25 if "output_blocks.11." in name or f"{UNET}out." in name else 0.0)
        wanted = a[name] * np.float32(1 - share) + c[name] * np.float32(share) if computed(name) else a[name]
        assert np.array_equal(made[name], wanted), name


# ---- what is not computed

def test_a_baked_vae_is_the_file_s_and_all_else_is_a_s(models, sha256, tmp_path):
    made = load_file(merge([models / "a.safetensors"], tmp_path / "m.safetensors", sha256, method="no_interpolation", vae=models / "vae.safetensors").path)
    a, vae = load_file(models / "a.safetensors"), load_file(models / "vae.safetensors")
    for name, tensor in made.items():
        assert torch.equal(tensor, vae[name.removeprefix(VAE)] if name.startswith(VAE) else a[name]), name
    assert {name.removeprefix(VAE) for name in made if name.startswith(VAE)} == vae.keys()


def test_a_vae_with_other_latents_or_none_at_all_is_not_baked(models, sha256, tmp_path):
    tiny.save_vae(tmp_path / "wide.safetensors", mult=SMALL["mult"], latent=8)
    save_file({"a": torch.ones(1)}, tmp_path / "none.safetensors")
    for vae, said in (("wide", "8 channels"), ("none", "holds no VAE")):
        with pytest.raises(CheckpointError, match=said):
            merge([models / "a.safetensors"], tmp_path / "m.safetensors", sha256, method="no_interpolation", vae=tmp_path / f"{vae}.safetensors")


def test_markers_tables_and_numbers_are_a_s_and_averages_go(models, sha256, tmp_path):
    def mark(tensors):
        tensors |= {"v_pred": torch.zeros(0), "scale_factor": torch.tensor(0.25), "model_ema.diffusion_modeloutweight": torch.ones(2)}
    marked = changed(models / "a.safetensors", tmp_path / "marked.safetensors", mark)
    made = merge([marked, models / "c.safetensors"], tmp_path / "m.safetensors", sha256)
    tensors = load_file(made.path)
    assert tensors["v_pred"].numel() == 0 and float(tensors["scale_factor"]) == 0.25
    assert not any(name.startswith("model_ema.") for name in tensors)
    assert any("v_pred" in note and "marked" in note for note in made.notes)


def test_of_an_inpainting_model_the_first_four_channels_are_mixed(models, sha256, tmp_path):
    made = values(merge([models / "inpaint.safetensors", models / "a.safetensors", models / "c.safetensors"], tmp_path / "m.safetensors",
                        sha256, method="add_difference", weight=1.0).path)
    p, a, c = (values(models / f"{name}.safetensors") for name in ("inpaint", "a", "c"))
    assert np.array_equal(made[FIRST][:, 4:], p[FIRST][:, 4:])
    assert np.array_equal(made[FIRST][:, :4], p[FIRST][:, :4] + (a[FIRST] - c[FIRST]))
    other = f"{UNET}input_blocks.1.0.in_layers.2.weight"
    assert np.array_equal(made[other], p[other] + (a[other] - c[other]))
    with pytest.raises(CheckpointError, match="must be the first"):
        merge([models / "a.safetensors", models / "inpaint.safetensors"], tmp_path / "n.safetensors", sha256)


def test_what_the_expression_finds_is_discarded(models, sha256, tmp_path):
    made = merge([models / "a.safetensors"], tmp_path / "m.safetensors", sha256, method="no_interpolation", discard=r"^first_stage_model\.|position_ids").path
    assert read.header(made).keys() == {name for name in read.header(models / "a.safetensors") if not name.startswith(VAE) and "position_ids" not in name}
    for wrong, said in (("(", "regular expression"), (".", "every tensor")):
        with pytest.raises(RequestError, match=said):
            merge([models / "a.safetensors"], tmp_path / "n.safetensors", sha256, method="no_interpolation", discard=wrong)


def test_a_part_that_b_lacks_is_a_s_and_is_told(models, sha256, tmp_path):
    bare = changed(models / "c.safetensors", tmp_path / "bare.safetensors", lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(VAE)])
    made = merge([models / "a.safetensors", bare], tmp_path / "m.safetensors", sha256)
    a = load_file(models / "a.safetensors")
    assert all(torch.equal(tensor, a[name]) for name, tensor in load_file(made.path).items() if name.startswith(VAE))
    assert made.notes == ("bare.safetensors holds no VAE; a.safetensors's is used.",)
    assert "left out" in merge([bare, models / "a.safetensors"], tmp_path / "n.safetensors", sha256).notes[0]


# ---- what does not fit

def test_a_tensor_that_one_model_lacks_or_has_otherwise_is_named(models, sha256, tmp_path):
    lost, odd = f"{UNET}middle_block.0.in_layers.0.weight", f"{UNET}out.0.weight"
    lacking = changed(models / "c.safetensors", tmp_path / "lacking.safetensors", lambda tensors: tensors.pop(lost))
    other = changed(models / "c.safetensors", tmp_path / "other.safetensors", lambda tensors: tensors.update({odd: torch.ones(7)}))
    for pair, name in (((models / "a.safetensors", lacking), lost), ((lacking, models / "a.safetensors"), lost), ((models / "a.safetensors", other), odd)):
        with pytest.raises(CheckpointError) as said:
            merge(pair, tmp_path / "m.safetensors", sha256)
        assert name in str(said.value) and "one kind" in str(said.value)
    assert not (tmp_path / "m.safetensors").exists()


def test_what_cannot_be_asked_is_a_sentence(models, sha256, tmp_path):
    a, b = models / "a.safetensors", models / "b.safetensors"
    for asked, error in (({"method": "sigmoid"}, RequestError), ({"method": "add_difference"}, RequestError), ({"weight": float("nan")}, RequestError),
                         ({"dtype": "int8"}, RequestError), ({"blocks": "x=1"}, RequestError)):
        with pytest.raises(error):
            merge([a, b], tmp_path / "m.safetensors", sha256, **asked)
    with pytest.raises(CheckpointError, match="no U-Net"):
        merge([a, models / "vae.safetensors"], tmp_path / "m.safetensors", sha256)
    for target in (a, b):
        with pytest.raises(SaveError):
            merge([a, b], target, sha256, force=True)
    assert not (tmp_path / "m.safetensors").exists()


def test_stopped_in_the_middle_nothing_is_left(models, sha256, tmp_path):
    progress = Progress()
    progress.interrupt()
    with pytest.raises(Cancelled):
        merge([models / "a.safetensors", models / "b.safetensors"], tmp_path / "m.safetensors", sha256, progress=progress)
    assert {path.name for path in tmp_path.iterdir()} <= {"hashes.json"}


# ---- the recipe

def test_the_recipe_stands_in_the_metadata_and_a_merge_of_merges_knows_all_its_models(models, sha256, tmp_path):
    first = merge([models / "a.safetensors", models / "b.safetensors"], tmp_path / "first.safetensors", sha256, weight=0.3, dtype="half").path
    metadata = read.metadata(first)
    recipe, parents = json.loads(metadata["sd_merge_recipe"]), json.loads(metadata["sd_merge_models"])
    digests = [sha256(models / f"{name}.safetensors") for name in "ab"]
    assert [recipe[f"{which}_model_hash"] for which in ("primary", "secondary", "tertiary")] == [*digests, None]
    assert (recipe["interp_method"], recipe["multiplier"], recipe["save_as_half"], recipe["custom_name"]) == ("Weighted sum", 0.3, True, "first")
    assert [parents[digest]["name"] for digest in digests] == ["a.safetensors", "b.safetensors"] and len(parents[digests[0]]["legacy_hash"]) == 8
    assert metadata["modelspec.title"] == "A" and "sshs_model_hash" not in metadata and metadata["modelspec.merged_from"] == "a, b"
    second = read.metadata(merge([first, models / "c.safetensors"], tmp_path / "second.safetensors", sha256).path)
    assert {entry["name"] for entry in json.loads(second["sd_merge_models"]).values()} == {f"{name}.safetensors" for name in ("a", "b", "c", "first")}
    assert json.loads(second["sd_merge_models"])[sha256(first)]["sd_merge_recipe"] == recipe
