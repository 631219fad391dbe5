"""Forms in which weights are kept: 8 bits, with and without scales; averages over training beside the last ones; extras of other types."""
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from modules.checkpoints import load, read
from modules.checkpoints.layout import shadow_of
from modules.core.errors import CheckpointError
from tests.checkpoints.conftest import picture

CPU = {"device": "cpu", "dtype": torch.float32}
PLAIN = CPU | {"kind": "plain"}
UNET = "model.diffusion_model."


@pytest.fixture(scope="session")
def stored(originals) -> dict[str, torch.Tensor]:
    return load_file(originals / "a.safetensors")


@pytest.fixture(scope="session")
def last(originals) -> torch.Tensor:
    """The picture of the weights as they are."""
    return picture(load.load(originals / "a.safetensors", **PLAIN))


def layers_of(stored):
    """The weights of the U-Net's convolutions and linear layers: what 8-bit files hold in 8 bits."""
    return {name: tensor for name, tensor in stored.items() if name.startswith(UNET) and name.endswith(".weight") and tensor.dim() > 1}


def saved(tensors, path, form):
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("dtype, form, kind", [
    ("float8_e4m3fn", "safetensors", "packed"), ("float8_e5m2", "safetensors", "channels_last"), ("float8_e4m3fn", "pickle", "plain")])
def test_eight_bits_are_widened_to_the_very_values_that_they_stand_for(stored, tmp_path, dtype, form, kind):
    eight = {name: tensor.to(getattr(torch, dtype)) for name, tensor in layers_of(stored).items()}
    rounded = saved(stored | {name: tensor.float().half() for name, tensor in eight.items()}, tmp_path / "rounded.safetensors", "safetensors")
    path = saved(stored | eight, tmp_path / "x.safetensors" if form == "safetensors" else tmp_path / "x.ckpt", form)
    assert load.verify(path) == load.verify(rounded)
    assert torch.equal(picture(load.load(path, **CPU, kind=kind)), picture(load.load(rounded, **CPU, kind=kind)))


@pytest.mark.parametrize("each, kind", [("one number", "plain"), ("one for each output", "packed"), ("a number without dimension", "channels_last")])
def test_scaled_eight_bits_are_multiplied_out_in_float32(stored, last, tmp_path, each, kind):
    eight, wide = {}, {}
    for name, tensor in layers_of(stored).items():
        scale = tensor.float().abs().amax() / 448 if each != "one for each output" else tensor.float().abs().flatten(1).amax(1) / 448
        shaped = scale.reshape(-1, *(1,) * (tensor.dim() - 1))
        eight[name] = (tensor.float() / shaped).to(torch.float8_e4m3fn)
        eight[name.replace(".weight", ".scale_weight")] = scale.reshape(1) if each == "one number" else scale
        eight[name.replace(".weight", ".scale_input")] = torch.ones(1)
        wide[name] = eight[name].float() * shaped
    eight[f"{UNET}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    path, expected = saved(stored | eight, tmp_path / "x.safetensors", "safetensors"), saved(stored | wide, tmp_path / "w.safetensors", "safetensors")
    found = picture(load.load(path, **CPU, kind=kind))
    assert torch.equal(found, picture(load.load(expected, **CPU, kind=kind))) and not torch.allclose(found, last, atol=1e-3)
    load.check_values(path)


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(1, dtype=torch.int64), torch.tensor([float("nan")])], ids=["three", "whole", "nan"])
def test_a_scale_that_fits_no_layer_is_a_sentence(stored, tmp_path, scale):
    path = saved(stored | {f"{UNET}time_embed.0.scale_weight": scale}, tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*time_embed\.0"):
        load.load(path, **PLAIN)


def test_a_value_that_is_no_number_is_found_in_eight_bits_too(stored, tmp_path):
    eight = stored[f"{UNET}time_embed.0.weight"].to(torch.float8_e4m3fn)
    eight.view(torch.uint8)[0, 0] = 0x7F                    # the one NaN of this type
    path = saved(stored | {f"{UNET}time_embed.0.weight": eight}, tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(CheckpointError, match=r"time_embed\.0\.weight"):
        load.load(path, **PLAIN)


@pytest.mark.parametrize("name", ["comfy_quant", "absmax", "quant_state.bitsandbytes__nf4", "weight_scale", "qweight"])
def test_weights_packed_in_an_unknown_way_are_a_sentence(stored, tmp_path, name):
    path = saved(stored | {f"{UNET}time_embed.0.{name}": torch.ones(2)}, tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors.*packed.*16-bit"):
        load.verify(path)


def with_averages(stored, other):
    """A file of the trainer's: the U-Net of `stored`, and beside it that of `other` as the average."""
    shadows = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor.clone() for name, tensor in other.items()
               if name.startswith(UNET)}
    return stored | shadows | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}


def test_the_name_of_an_average_is_the_published_one():
    assert shadow_of("model.diffusion_model.input_blocks.0.0.weight") == "model_ema.diffusion_modelinput_blocks00weight"


def test_averaged_weights_take_the_place_of_the_last_ones_where_that_is_chosen(stored, last, originals, tmp_path):
    other = load_file(originals / "b.safetensors")
    path = saved(with_averages(stored, other), tmp_path / "x.ckpt", "pickle")
    averaged = saved(stored | {name: tensor for name, tensor in other.items() if name.startswith(UNET)}, tmp_path / "y.ckpt", "pickle")
    found = load.load(path, **PLAIN, ema=True)
    assert torch.equal(picture(found), picture(load.load(averaged, **PLAIN))) and found.hints["easel.ema"] == "true"
    assert torch.equal(picture(load.load(path, **PLAIN)), last)
    assert load.verify(path, ema=True) == load.verify(path)


def test_of_both_kinds_of_weights_only_the_wanted_one_is_read(stored, tmp_path):
    """The other's values are no numbers, which reading would notice."""
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in stored.items() if name.startswith(UNET)}
    load.load(saved(with_averages(stored | broken, stored), tmp_path / "x.safetensors", "safetensors"), **PLAIN, ema=True)
    path = saved(with_averages(stored, broken), tmp_path / "y.safetensors", "safetensors")
    load.load(path, **PLAIN)
    load.check_values(path)
    with pytest.raises(CheckpointError, match=r"y\.safetensors"):
        load.check_values(path, ema=True)


@pytest.mark.parametrize("kept", [0, 100])
def test_a_file_without_averages_says_so_where_they_are_wanted(stored, tmp_path, kept):
    path = saved(stored | dict(list(with_averages({}, stored).items())[:kept]), tmp_path / "x.safetensors", "safetensors")
    for ask in (load.verify, lambda path, ema: load.load(path, **PLAIN, ema=ema)):
        with pytest.raises(CheckpointError, match=r"x\.safetensors.*no averaged \(EMA\) weights"):
            ask(path, ema=True)


def test_a_vae_as_its_training_left_it_gives_its_averages_too(originals, tmp_path):
    own, other = load_file(originals / "v.safetensors"), load_file(originals / "full.safetensors")
    averages = {f"model_ema.{name.removeprefix('first_stage_model.').replace('.', '')}": tensor for name, tensor in other.items()}
    path = saved({"state_dict": own | averages | {"loss.logvar": torch.zeros(1)}}, tmp_path / "v.ckpt", "pickle")
    model = load.load(originals / "a.safetensors", **PLAIN)
    latent = torch.ones(1, 4, 8, 8)
    averaged, last = load.load_vae(path, model, ema=True).decode(latent), load.load_vae(path, model).decode(latent)
    assert torch.equal(averaged, load.load_vae(originals / "full.safetensors", model).decode(latent))
    assert torch.equal(last, load.load_vae(originals / "v.safetensors", model).decode(latent))
    assert torch.equal(last, load.load_vae(originals / "v.safetensors", model, ema=True).decode(latent))      # it has none


IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


@pytest.mark.parametrize("extra", [
    {IDS: torch.arange(77)[None].half()}, {IDS: torch.arange(77)[None] + 0.4}, {IDS: torch.arange(77, dtype=torch.int32)},
    {"cond_stage_model.logit_scale": torch.tensor(4.6)}, {"flag": torch.tensor(True)}, {"global_step": torch.tensor(3)},
    {"model.not_the_network": torch.ones(2, dtype=torch.bool)}, {"optimizer.state": torch.ones(2)},
], ids=["half ids", "fractional ids", "short ids", "logit scale", "bool", "count", "beside the network", "optimizer"])
def test_what_stands_beside_the_weights_changes_nothing(stored, last, tmp_path, extra):
    path = saved(stored | extra, tmp_path / "x.safetensors", "safetensors")
    assert torch.equal(picture(load.load(path, **PLAIN)), last)


def test_a_file_may_lack_its_position_ids(stored, last, tmp_path):
    path = saved({name: tensor for name, tensor in stored.items() if name != IDS}, tmp_path / "x.safetensors", "safetensors")
    assert torch.equal(picture(load.load(path, **PLAIN)), last)


@pytest.mark.parametrize("names, said", [
    (("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"), "LoRA"),
    (("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",), "LoRA"),
    (("decoder.conv_in.weight", "encoder.conv_in.weight", "quant_conv.weight"), "VAE"),
    (("decoder.up_blocks.0.resnets.0.norm1.weight", "encoder.conv_in.weight"), "VAE"),
    (("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",), "SD3"),
    (("double_blocks.0.img_attn.qkv.weight", "img_in.weight"), "Flux"),
    (("transformer_blocks.0.attn.to_q.weight", "context_embedder.weight", "x_embedder.weight"), "Flux"),
    (("model.diffusion_model.double_blocks.0.img_mod.lin.weight",), "Flux"),
    (("control_model.input_blocks.0.0.weight",), "ControlNet"),
    (("controlnet_cond_embedding.conv_in.weight", "conv_in.weight", "down_blocks.0.resnets.0.norm1.weight"), "ControlNet"),
    (("emb_params",), "textual inversion"), (("text_model.encoder.layers.0.mlp.fc1.weight",), "text encoder"),
    (("weight",), "no model of a known kind"),
])
def test_a_file_of_another_kind_is_named_for_what_it_is_and_left_alone(tmp_path, names, said):
    path = saved({name: torch.ones(2, 2) for name in names}, tmp_path / "odd.safetensors", "safetensors")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=rf"odd\.safetensors.*{said}") as error:
        load.verify(path)
    assert "\n" not in str(error.value) and path.read_bytes() == before and os.listdir(tmp_path) == ["odd.safetensors"]


def test_the_header_of_an_eight_bit_file_keeps_every_name(stored, tmp_path):
    path = saved(stored | {f"{UNET}scaled_fp8": torch.ones(0)}, tmp_path / "x.safetensors", "safetensors")
    assert set(read.header(path)) == {*stored, f"{UNET}scaled_fp8"}
