"""A VAE is read from its file whatever its kind and its names, and a file that is none is refused in a sentence."""
import pytest
import torch
from safetensors.torch import save_file

from modules.checkpoints import load
from modules.core.errors import CheckpointError
from modules.families.autoencoders import autoencoder_config, autoencoder_from, kl_from, vae_part
from modules.families.shapes import shapes_of
from modules.networks.autoencoder import AutoencoderKL, AutoencoderVQ
from modules.networks.tiny_autoencoder import TinyAutoencoder
from tests import tiny
from tests.oracles import published_vae

SMALL = {
    "kl": {"mult": (1, 2, 3), "latent": 4}, "kl with attention": {"mult": (1, 1, 2), "latent": 8, "attention": (1, 2)},
    "vq": {"mult": (1, 2), "latent": 3, "codes": 50}, "vq without attention": {"mult": (1, 2), "latent": 3, "codes": 50, "middle": False},
    "vq with attention": {"mult": (1, 2), "latent": 3, "codes": 50, "attention": (1,)},
}
KIND = {"kl": AutoencoderKL, "vq": AutoencoderVQ}
PUBLISHED = {                                               # (levels, downscale, latent, codes, levels with attention, attention in the middle)
    "kl-f4": (3, 4, 3, 0, (), True), "kl-f4 of the x4 upscaler": (3, 4, 4, 0, (), True), "kl-f8": (4, 8, 4, 0, (), True),
    "kl-f16": (5, 16, 16, 0, (4,), True), "kl-f32": (6, 32, 64, 0, (4, 5), True), "vq-f4": (3, 4, 3, 8192, (), True),
    "vq-f4-noattn": (3, 4, 3, 8192, (), False), "vq-f8": (4, 8, 4, 16384, (3,), True), "vq-f8-n256": (4, 8, 4, 256, (3,), True),
    "vq-f16": (5, 16, 8, 16384, (4,), True),
}


@pytest.fixture(scope="module", params=SMALL, ids=lambda name: name.replace(" ", "-"))
def named(request):
    return request.param, published_vae.draw(published_vae.shapes(width=32, **SMALL[request.param]))


@pytest.fixture(scope="module")
def small():
    """A tiny autoencoder: diffusers' names and the original ones."""
    theirs = published_vae.tiny_vae(width=8).state_dict()
    return theirs, published_vae.original_tiny(theirs)


def sentence(call, *args):
    with pytest.raises(CheckpointError) as raised:
        call(*args)
    text = str(raised.value)
    assert text.endswith(".") and "\n" not in text
    return text


def half(weights, name):
    """One half of a tiny autoencoder as a file of its own has it."""
    return {key.removeprefix(f"taesd_{name}."): tensor for key, tensor in weights.items() if key.startswith(f"taesd_{name}.")}


def equal(network, weights):
    found = network.state_dict()
    return found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_the_table_of_first_stages_says_is_read_from_shapes_alone(name):
    config = autoencoder_config(published_vae.shapes(**published_vae.ZOO[name]), {})
    attention = tuple(level for level in range(len(config.levels)) if config.attends(level))
    assert (len(config.levels), config.downscale, config.latent, config.codes, attention, config.middle_attention) == PUBLISHED[name]
    assert config.z == config.latent and config.res_blocks == 2 and config.channels == 128 and config.double_z is (config.codes == 0)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_a_vae_is_read_with_and_without_prefix_and_without_its_training(named, prefix):
    name, weights = named
    training = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(1), "model_ema.decay": torch.zeros(())}
    vae = autoencoder_from({prefix + key: tensor for key, tensor in (weights | training).items()}, {})
    assert type(vae) is KIND[name[:2]] and equal(vae, weights)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("old", [False, True], ids=["new names", "old names"])
def test_a_vae_in_the_names_of_diffusers_is_read(named, prefix, old):
    name, weights = named
    theirs = published_vae.to_diffusers(weights)
    assert theirs.keys() != weights.keys()
    if old:
        for new, first in {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}.items():
            theirs = {key.replace(new, first): tensor for key, tensor in theirs.items()}
    assert equal(autoencoder_from({prefix + key: tensor for key, tensor in theirs.items()}, {}), weights)


@pytest.mark.parametrize("gone", ["quant_conv.", "post_quant_conv."])
def test_a_vae_may_lack_either_of_the_1x1_convolutions(gone):
    weights = published_vae.draw(published_vae.shapes(width=32, **SMALL["kl"]))
    left = {name: tensor for name, tensor in weights.items() if not name.startswith(gone)}
    assert equal(autoencoder_from(left, {}), left)


def test_a_tiny_autoencoder_is_read_in_the_original_names_those_of_diffusers_and_behind_a_prefix(small):
    theirs, original = small
    for weights in (original, theirs, {f"first_stage_model.{name}": tensor for name, tensor in original.items()}):
        vae = autoencoder_from(weights, {})
        assert isinstance(vae, TinyAutoencoder) and equal(vae, original)
        assert (vae.config.down, vae.config.up, vae.config.width, vae.config.latent) == ((1, 3, 3, 3), (3, 3, 3, 1), 8, 4)


def test_the_decoder_of_a_tiny_autoencoder_alone_decodes_as_the_whole_does(small):
    alone, whole = autoencoder_from(half(small[1], "decoder"), {}), autoencoder_from(small[1], {})
    latent = torch.randn(1, 4, 3, 5)
    assert torch.equal(alone.decode(latent), whole.decode(latent))
    assert alone.config.down == () and alone.config.downscale == 8


def test_the_encoder_of_a_tiny_autoencoder_alone_is_refused(small):
    assert "only the encoder" in sentence(autoencoder_from, half(small[1], "encoder"), {})


@pytest.mark.parametrize("stored, scale", [(torch.tensor(0.5), 0.5), (torch.tensor(-1.0), 0.13025), (torch.tensor(float("nan")), 0.13025)])
def test_a_tiny_autoencoder_takes_the_scale_of_its_file_before_the_callers(small, stored, scale):
    assert autoencoder_from(small[1] | {"vae_scale": stored}, {}, scale=0.13025).config.scale == scale


def test_a_vae_beside_a_unet_is_found_and_a_file_without_one_has_none():
    weights = tiny.sd1()
    assert vae_part(weights).keys() == tiny.vae_shapes().keys()
    assert vae_part({name: tensor for name, tensor in weights.items() if not name.startswith("first")}) == {}


def test_training_asks_for_a_kl_and_refuses_all_others(named, small):
    name, weights = named
    if name.startswith("kl"):
        assert isinstance(kl_from(weights, {}), AutoencoderKL)
    else:
        assert "KL" in sentence(kl_from, weights, {})
    assert "KL" in sentence(kl_from, small[1], {})


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "decoder.up.0.block.1.conv2.bias", "quant_conv.bias",
                                  "encoder.down.1.attn.1.q.weight", "decoder.up.1.attn.2.norm.bias"])
def test_the_first_missing_tensor_is_named(name):
    weights = published_vae.draw(published_vae.shapes(width=32, **SMALL["vq with attention"]))
    del weights[name]
    assert name in sentence(autoencoder_from, weights, {})


@pytest.mark.parametrize("spoil, part", [
    ({"encoder.down.0.block.0.conv3.weight": torch.zeros(3)}, "conv3"), ({"decoder.conv_in.weight": torch.zeros(3)}, "decoder.conv_in"),
    ({"quantize.embedding.weight": torch.zeros(4, 4)}, "codebook"), ({"post_quant_conv.weight": torch.tensor(1.0)}, "post_quant_conv"),
    ({"encoder.down.0.attn.0.q.weight": torch.zeros(32, 32, 1, 1)}, "encoder.down.0.attn.0.norm.weight"),
])
def test_a_vae_with_what_fits_no_kind_is_refused_by_name(spoil, part):
    assert part in sentence(autoencoder_from, tiny.draw(tiny.vae_shapes()) | spoil, {})


@pytest.mark.parametrize("weights", [{}, {"a": torch.zeros(1)}, {"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)},
                                     {"lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, {"1.weight": torch.zeros(3)}, tiny.draw(tiny.text_shapes())])
def test_a_file_without_a_vae_is_refused_in_a_sentence(weights):
    sentence(autoencoder_from, weights, {})


@pytest.mark.parametrize("layers", ["plain", "packed"])
def test_a_tiny_autoencoder_in_a_file_takes_the_place_of_a_checkpoints_vae(small, tmp_path, layers):
    tiny.save_sd1(tmp_path / "model.safetensors")
    save_file(small[1], tmp_path / "taesd.safetensors")
    model = load.load(tmp_path / "model.safetensors", device="cpu", dtype=torch.float32, vae_path=tmp_path / "taesd.safetensors", kind=layers)
    assert isinstance(model.vae, TinyAutoencoder) and model.latent.downscale == 8
    z = torch.randn(1, 4, 4, 6)
    assert torch.allclose(model.vae.decode(z), autoencoder_from(small[1], {}).decode(z), atol=1e-5)


def test_shapes_of_a_tiny_autoencoder_are_those_of_its_file(small):
    assert shapes_of(autoencoder_from(small[1], {}).state_dict()) == shapes_of(small[1])
