"""Another form of the same model: what is kept is kept to the bit, what goes is named, and no half file is ever left."""
import hashlib
import json
import struct
import tracemalloc

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modules.checkpoints import convert as room
from modules.checkpoints import read, write
from modules.checkpoints.convert import convert
from modules.core.errors import Cancelled, CheckpointError, RequestError, SaveError, UnsafeFileError
from modules.core.progress import Progress
from tests import tiny

UNET = "model.diffusion_model."
SMALL = {"mult": (1, 1, 1, 1), "text_layers": 1}


def shadow_of(name):
    """LitEma's rule as published: the name inside the wrapper, its dots deleted."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


@pytest.fixture(scope="module")
def full():
    """A checkpoint as training leaves it: float32, EMA beside the weights, tables, markers, an optimizer's state."""
    tensors = tiny.sd1(3, **SMALL)
    tensors |= {shadow_of(name): tensor + 1 for name, tensor in tensors.items() if name.startswith(UNET)}
    tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
                "optimizer.step": torch.ones(3), "scale_factor": torch.tensor(0.2), "v_pred": torch.zeros(0), "ztsnr": torch.ones(1)}
    return tensors


@pytest.fixture(scope="module")
def source(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("full") / "full.safetensors"
    save_file(full, path, metadata={"modelspec.title": "Full", "modelspec.hash_sha256": "0xold", "sshs_model_hash": "old", "easel.heads": "8"})
    return path


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


def test_without_any_wish_every_value_and_type_stays(source, full, tmp_path):
    assert same(load_file(convert(source, tmp_path / "b.safetensors")), full)


def test_a_pickle_becomes_a_safetensors_file_of_the_same_values(full, tmp_path):
    torch.save({"state_dict": {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in full.items()},
                "global_step": 12}, tmp_path / "a.ckpt")
    made = convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert same(load_file(made), {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in full.items()})
    assert read.metadata(made)["global_step"] == "12"


def test_a_pickle_that_asks_for_more_than_tensors_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    torch.save({"state_dict": {"a": Evil(), "b": torch.ones(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(UnsafeFileError):
        convert(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt"}


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_weights_take_the_type_and_tables_markers_and_numbers_keep_theirs(source, full, tmp_path, name):
    made = load_file(convert(source, tmp_path / "b.safetensors", dtype=name))
    for key, tensor in full.items():
        stays = key in ("betas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "scale_factor", "v_pred", "ztsnr",
                        "model_ema.decay", "model_ema.num_updates") or key.endswith("position_ids")
        assert torch.equal(made[key], tensor if stays else tensor.to(getattr(torch, name))), key
        assert made[key].dtype == (tensor.dtype if stays else getattr(torch, name)), key


def test_pruning_leaves_the_model_its_markers_and_its_schedule(source, full, tmp_path):
    made = load_file(convert(source, tmp_path / "b.safetensors", prune=True))
    gone = {"optimizer.step", "betas", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
            "cond_stage_model.transformer.text_model.embeddings.position_ids"}
    assert made.keys() == {name for name in full if name not in gone and not name.startswith("model_ema.")}
    assert {"alphas_cumprod", "scale_factor", "v_pred", "ztsnr"} <= made.keys()


def test_only_the_averages_stand_where_the_weights_stood(source, full, tmp_path):
    made = load_file(convert(source, tmp_path / "b.safetensors", ema="only"))
    assert made.keys() == {name for name in full if not name.startswith("model_ema.")}
    for name, tensor in made.items():
        assert torch.equal(tensor, full[name] + 1 if name.startswith(UNET) else full[name]), name


def test_averages_can_be_dropped_and_everything_else_kept(source, full, tmp_path):
    made = load_file(convert(source, tmp_path / "b.safetensors", ema="drop"))
    assert same(made, {name: tensor for name, tensor in full.items() if not name.startswith("model_ema.")})


def test_averages_that_are_missing_ambiguous_or_of_another_shape_are_a_sentence(tmp_path):
    plain = {f"{UNET}a.weight": torch.ones(2), f"{UNET}b.weight": torch.ones(2)}
    twins = {f"{UNET}1.10.weight": torch.ones(2), f"{UNET}11.0.weight": torch.ones(2), "model_ema.diffusion_model110weight": torch.ones(2)}
    for tensors, said in ((plain, "no EMA weights"), (twins, "share the name"),
                          (plain | {shadow_of(f"{UNET}a.weight"): torch.ones(3)}, "another shape"),
                          (plain | {shadow_of(f"{UNET}a.weight"): torch.ones(2), "model_ema.diffusion_modelc": torch.ones(2)}, "incomplete")):
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=said):
            convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", ema="only")
    assert not (tmp_path / "b.safetensors").exists()


def test_metadata_stay_old_hashes_go_and_the_new_one_is_that_of_the_bytes(source, tmp_path):
    made = convert(source, tmp_path / "b.safetensors", dtype="float16")
    raw = made.read_bytes()
    behind = raw[8 + struct.unpack("<Q", raw[:8])[0]:]
    found = read.metadata(made)
    assert found["modelspec.title"] == "Full" and found["easel.heads"] == "8" and "sshs_model_hash" not in found
    assert found["modelspec.hash_sha256"] == "0x" + hashlib.sha256(behind).hexdigest()


def test_linear_attention_of_a_diffusers_vae_becomes_the_convolution_of_single_files(tmp_path):
    vae = {f"first_stage_model.{name}": tensor for name, tensor in tiny.draw(tiny.vae_shapes(mult=(1, 1)), 3).items()}
    linear = {name: tensor[:, :, 0, 0].contiguous() if ".attn_1." in name and tensor.dim() == 4 else tensor for name, tensor in vae.items()}
    save_file(linear, tmp_path / "a.safetensors")
    assert linear["first_stage_model.encoder.mid.attn_1.q.weight"].dim() == 2
    assert same(load_file(convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")), vae)


def test_what_lies_beside_the_file_is_taken_into_it(full, tmp_path):
    save_file(full, tmp_path / "a.safetensors", metadata={"modelspec.title": "Full"})
    (tmp_path / "a.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    (tmp_path / "a.json").write_text('{"easel.heads": 4, "notes": "mine"}')
    found = read.metadata(convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert (found["modelspec.prediction_type"], found["easel.heads"], found["modelspec.title"]) == ("v", "4", "Full") and "notes" not in found


def test_every_tensor_begins_at_a_multiple_of_its_values_size(tmp_path):
    save_file({"a": torch.ones(3, dtype=torch.float16), "b": torch.ones(5), "c": torch.ones(3, dtype=torch.uint8),
               "d": torch.ones(1, dtype=torch.float64)}, tmp_path / "a.safetensors")
    raw = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    entries = json.loads(raw[8:8 + length])
    assert length % 8 == 0
    for name, size in (("a", 2), ("b", 4), ("c", 1), ("d", 8)):
        assert entries[name]["data_offsets"][0] % size == 0


def test_another_reader_finds_the_same(source, full, tmp_path):
    with safe_open(convert(source, tmp_path / "b.safetensors"), framework="pt") as file:
        assert set(file.keys()) == full.keys()


def test_a_value_too_large_for_half_precision_is_named(tmp_path):
    save_file({"big.weight": torch.tensor([1.0, 1e6])}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="big.weight.*float16"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert load_file(convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="bfloat16"))["big.weight"].isfinite().all()


def test_scaled_eight_bit_weights_are_not_widened_without_their_scales(tmp_path):
    save_file({"scaled_fp8": torch.zeros(1), "a.weight": torch.ones(4, dtype=torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="scaled 8-bit"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="float16")
    made = load_file(convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors"))
    assert made["a.weight"].dtype == torch.float8_e4m3fn


def test_neither_the_source_nor_a_file_that_stands_there_is_replaced_unasked(source, tmp_path):
    target = tmp_path / "b.safetensors"
    target.write_bytes(b"mine")
    before = source.read_bytes()
    for wrong in (source, target, tmp_path / "b.ckpt", tmp_path / "b"):
        with pytest.raises(SaveError):
            convert(source, wrong)
    (tmp_path / "link.safetensors").symlink_to(source)
    with pytest.raises(SaveError):
        convert(source, tmp_path / "link.safetensors", force=True)
    assert target.read_bytes() == b"mine" and source.read_bytes() == before
    assert read.header(convert(source, target, force=True)) == read.header(source)


def test_a_type_or_a_wish_that_does_not_exist_is_a_sentence(source, tmp_path):
    with pytest.raises(RequestError, match="float32, float16 or bfloat16"):
        convert(source, tmp_path / "b.safetensors", dtype="int4")
    with pytest.raises(RequestError, match="keep, drop or only"):
        convert(source, tmp_path / "b.safetensors", ema="both")


def test_stopped_in_the_middle_nothing_is_left(source, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "AT_ONCE", 100_000)

    class Impatient(Progress):
        def at(self, **changes):
            super().at(**changes)
            if changes.get("step") == 3:
                self.interrupt()

    progress = Impatient()
    with pytest.raises(Cancelled):
        convert(source, tmp_path / "b.safetensors", progress=progress)
    assert list(tmp_path.iterdir()) == [] and 0 < progress.view().fraction < 1


def test_a_disk_that_fills_up_leaves_no_file(source, small_disk):
    with pytest.raises(SaveError, match="room"):
        convert(source, small_disk / "b.safetensors")
    assert list(small_disk.iterdir()) == []


def test_what_is_held_at_once_is_a_piece_and_not_the_file(monkeypatch):
    """Runs of names stay below the limit, a larger tensor stands alone, and order and number are kept."""
    monkeypatch.setattr(room, "AT_ONCE", 100)
    sizes = {f"n{index}": size for index, size in enumerate([60, 60, 30, 10, 500, 1, 99, 1])}
    runs = list(room.pieces(sizes))
    assert [name for run in runs for name in run] == list(sizes)
    assert all(sum(sizes[name] for name in run) <= 100 or len(run) == 1 for run in runs)


def test_a_stream_lets_go_of_each_tensor(tmp_path):
    """Sixteen tensors of 1 MiB pass while Python never holds more than a few of them."""
    places = {f"t{index}": (torch.uint8, (1 << 20,)) for index in range(16)}
    tracemalloc.start()
    write.stream(tmp_path / "a.safetensors", places, ((name, torch.frombuffer(bytearray(1 << 20), dtype=torch.uint8)) for name in places))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20 and len(read.header(tmp_path / "a.safetensors")) == 16
