"""Stable Diffusion 1 files: recognised by their tensors, built without a copy, refused with a sentence that names the reason."""
import math

import pytest
import torch

from modules.core.errors import CheckpointError
from modules.families import keys
from modules.families.autoencoders import autoencoder_from
from modules.families.catalogue import family_of
from modules.families.sd1 import SD1, build
from modules.families.shapes import shapes_of
from modules.sampling.prediction import scaled_linear_alphas
from tests import tiny
from tests.oracles import published

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def weights():
    return tiny.sd1()


def without(weights, *prefixes):
    return {name: tensor for name, tensor in weights.items() if not name.startswith(prefixes)}


def sentence(call, *args):
    with pytest.raises(CheckpointError) as raised:
        call(*args)
    return str(raised.value)


@pytest.mark.parametrize("sizes", [{}, {"legacy_text": True}, {"position_ids": False, "buffers": False}, {"in_channels": 9}])
def test_a_stable_diffusion_1_file_is_recognised_whatever_it_carries_beside(sizes):
    assert family_of(shapes_of(tiny.sd1(**sizes))) is SD1


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_names_behind_a_wrapper_are_recognised_and_built(weights, wrapper):
    wrapped = {wrapper + name: tensor for name, tensor in weights.items()}
    assert family_of(shapes_of(wrapped)) is SD1
    assert torch.equal(build(wrapped).unet.out[2].weight, weights[f"{UNET}out.2.weight"])


def test_the_built_networks_hold_each_weight_as_it_stands_in_the_file(weights):
    model = build(weights)
    for network, prefix in ((model.unet, UNET), (model.vae, "first_stage_model."), (model.text[0], "cond_stage_model.transformer.")):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, weights[prefix + name]), name
    assert not any(parameter.requires_grad for network in (model.unet, model.vae, model.text[0]) for parameter in network.parameters())
    assert not model.unet.training


def test_building_holds_no_second_copy_of_the_weights(weights):
    """In the order of the file; in channels_last each convolution is moved and its first place let go."""
    model = build(weights)
    assert model.unet.time_embed[0].weight.data_ptr() == weights[f"{UNET}time_embed.0.weight"].data_ptr()
    assert model.unet.out[2].weight.data_ptr() == weights[f"{UNET}out.2.weight"].data_ptr()


def test_facts_of_the_model_are_read_from_its_tensors(weights):
    model = build({name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()})
    assert (model.latent.channels, model.latent.downscale, model.latent.scale, model.native_size) == (4, 8, 0.18215, 512)
    assert model.dtype is torch.float16
    assert model.text[0].pad_id == 49407 and model.text[0].width == 64


@pytest.mark.parametrize("hints, kind, said", [
    ({}, "eps", "eps (guessed)"),
    ({"prediction": "Auto"}, "eps", "eps (guessed)"),
    ({"prediction": "v"}, "v", "v (chosen)"),
    ({"modelspec.prediction_type": "epsilon"}, "eps", "eps (metadata)"),
    ({"prediction": "Auto", "modelspec.prediction_type": "v"}, "v", "v (metadata)"),
    ({"prediction": "eps", "modelspec.prediction_type": "v"}, "eps", "eps (chosen)"),
])
def test_a_persons_choice_of_prediction_goes_before_the_metadata_and_a_guess_is_called_one(weights, hints, kind, said):
    model = build(weights, hints)
    assert (model.prediction.kind, model.hints["prediction"]) == (kind, said)


def test_an_unknown_prediction_is_refused(weights):
    assert "flow" in sentence(build, weights, {"prediction": "flow"})


def test_the_stored_schedule_is_used_where_it_kept_its_bits(weights):
    other = torch.linspace(0.999, 0.01, 1000)
    assert torch.equal(build({**weights, "alphas_cumprod": other}).prediction.alphas_cumprod, other)


@pytest.mark.parametrize("stored", [
    None, scaled_linear_alphas().half(), torch.full((1000,), math.nan), torch.linspace(0.1, 0.9, 1000), torch.linspace(0.9, 0.1, 10),
    torch.linspace(0.9, -0.1, 1000),
], ids=["absent", "half precision", "NaN", "rising", "too short", "negative"])
def test_a_schedule_that_cannot_be_right_is_computed_anew(weights, stored):
    changed = without(weights, "alphas_cumprod") if stored is None else {**weights, "alphas_cumprod": stored}
    assert torch.equal(build(changed).prediction.alphas_cumprod, scaled_linear_alphas())


@pytest.mark.parametrize("name", [
    f"{UNET}input_blocks.0.0.weight", f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", f"{UNET}out.2.bias",
    f"{UNET}output_blocks.8.2.conv.weight", "first_stage_model.encoder.mid.attn_1.q.weight", "first_stage_model.quant_conv.bias",
    "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.weight",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
])
def test_the_first_missing_tensor_is_named(weights, name):
    bare = name.split("model.", 1)[1] if name.startswith("first") else name.removeprefix(UNET).removeprefix("cond_stage_model.transformer.")
    assert bare in sentence(build, without(weights, name))


@pytest.mark.parametrize("name, tensor, part", [
    (f"{UNET}input_blocks.1.0.in_layers.2.weight", torch.zeros(32, 32, 1, 1), "[32, 32, 3, 3]"),
    (f"{UNET}time_embed.0.weight", torch.zeros(128, 32, dtype=torch.int8), "torch.int8"),
    (f"{UNET}out.2.weight", torch.tensor(1.0), "out.2.weight"),
    (f"{UNET}input_blocks.1.0.in_layers.7.weight", torch.zeros(3), "in_layers.7.weight"),
    ("first_stage_model.quantize.embedding.weight", torch.zeros(3, 4), "KL"),
])
def test_a_tensor_that_does_not_fit_is_named(weights, name, tensor, part):
    assert part in sentence(build, {**weights, name: tensor})


@pytest.mark.parametrize("part, word", [("first_stage_model.", "VAE"), ("cond_stage_model.", "text encoder")])
def test_a_file_without_one_of_its_parts_is_recognised_and_the_part_is_named(weights, part, word):
    pruned = without(weights, part)
    assert family_of(shapes_of(pruned)) is SD1
    assert word in sentence(build, pruned)


def test_a_variant_with_inputs_that_nobody_published_is_refused():
    assert "5 input channels" in sentence(build, tiny.sd1(in_channels=5))


def test_a_text_tower_of_another_width_is_refused(weights):
    other = {**without(weights, "cond_stage_model."), **{
        name: tensor for name, tensor in tiny.sd1(text_width=32).items() if name.startswith("cond_stage_model.")}}
    assert "32 numbers" in sentence(build, other)


def test_heads_and_groups_named_in_the_metadata_are_used(weights):
    model = build(weights, {"easel.heads": "4", "easel.norm_groups": "16"})
    assert model.unet.config.heads_at(64) == 4
    assert model.unet.input_blocks[1][0].in_layers[0].num_groups == 16
    assert model.vae.encoder.norm_out.num_groups == 16
    assert model.hints == {"prediction": "eps (guessed)", "easel.heads": "4", "easel.norm_groups": "16"}


@pytest.mark.parametrize("hints", [{"easel.heads": "0"}, {"easel.heads": "eight"}, {"easel.norm_groups": "-1"}, {"easel.norm_groups": "64"},
                                   {"easel.norm_groups": "9" * 5000}])
def test_metadata_that_cannot_be_meant_is_refused(weights, hints):
    assert next(iter(hints)) in sentence(build, weights, hints)


@pytest.mark.parametrize("wrap", [lambda name: name, lambda name: f"first_stage_model.{name}", lambda name: f"vae.{name}"])
def test_a_vae_of_its_own_is_read_with_or_without_prefix_and_without_its_training(wrap):
    weights = {**tiny.draw(tiny.vae_shapes(), 5), "loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    vae = autoencoder_from({wrap(name): tensor for name, tensor in weights.items()}, {})
    assert torch.equal(vae.decoder.conv_in.weight, weights["decoder.conv_in.weight"])


@pytest.mark.parametrize("old", [False, True])
def test_a_vae_in_the_names_of_diffusers_is_read(old):
    """Their converter there, ours back; `old` with the names that their attention had at first."""
    weights = tiny.draw(tiny.vae_shapes(), 5)
    them = published.open_oracles()
    settings = published.vae_settings(width=32, mult=tiny.MULT)
    theirs = them.convert.convert_ldm_vae_checkpoint({f"first_stage_model.{name}": tensor for name, tensor in weights.items()}, settings)
    if old:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for new, first in names.items():
            theirs = {name.replace(new, first): tensor for name, tensor in theirs.items()}
    back = autoencoder_from(theirs, {}).state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_linear_layers_and_1x1_convolutions_are_read_as_each_other():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert keys.reshaped(tensor, (2, 3, 1, 1)).shape == (2, 3, 1, 1)
    assert keys.reshaped(tensor[:, :, None, None], (2, 3)).shape == (2, 3)
    assert keys.reshaped(tensor, (3, 2)).shape == (2, 3)


@pytest.mark.parametrize("stored, scale", [
    (torch.tensor(0.5), 0.5), (torch.tensor([0.75]), 0.75), (torch.tensor(0.5, dtype=torch.float16), 0.18215), (torch.tensor(-1.0), 0.18215),
    (torch.tensor(float("nan")), 0.18215), (torch.tensor(float("inf")), 0.18215), (torch.tensor(0.0), 0.18215),
    (torch.ones(2), 0.18215),
])
def test_the_scale_of_the_latents_is_the_files_where_it_is_one(stored, scale):
    assert build(tiny.sd1() | {"scale_factor": stored}).latent.scale == scale
