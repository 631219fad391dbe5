"""Our networks against diffusers and transformers with identical weights; deliberate mistakes must fail the same comparison."""
import pytest
import torch
from torch import nn

from modules.families.parts import unet_from
from modules.families.sd1 import build
from modules.networks import unet as our_unet
from modules.networks.layers import KINDS, chooser, replace
from tests import tiny
from tests.oracles import published

BOUND = 1e-4                                                # of the oracle's standard deviation
GATE = f"<= {BOUND}"
SIZES = {"text_width": 128, "text_layers": 3}               # two heads in the text tower
SQUARE, WIDE, TALL = (16, 16), (8, 24), (24, 16)            # latent cells


@pytest.fixture(scope="module")
def weights():
    return tiny.sd1(seed=3, **SIZES)


@pytest.fixture(scope="module")
def oracle_unet(weights):
    return published.unet(weights, published.unet_settings(width=32, mult=tiny.MULT, context=128))


@pytest.fixture(scope="module")
def oracle_vae(weights):
    return published.vae(weights, published.vae_settings(width=32, mult=tiny.MULT))


@pytest.fixture(scope="module")
def oracle_text(weights):
    return published.text(weights, published.clip_settings(width=128, layers=3, heads=2))


def draws(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def tokens(rows=2):
    return torch.randint(0, 49406, (rows, 77), generator=torch.Generator().manual_seed(rows))


@torch.inference_mode()
def unet_error(model, oracle, size):
    """Two rows at different noise levels, one of them between two training indices."""
    x, context, timesteps = draws(2, 4, *size), draws(2, 77, 128), torch.tensor([981.0, 20.5])
    return published.relative_error(model.unet(x, timesteps, context), oracle(x, timesteps, context).sample)


@torch.inference_mode()
def decode_error(model, oracle, size):
    z = 5 * draws(1, 4, *size)
    return published.relative_error(model.vae.decode(z), oracle.decode(z).sample)


@torch.inference_mode()
def text_error(model, oracle, skip=1):
    ids = tokens()
    theirs = oracle(ids, output_hidden_states=True)
    norm = getattr(oracle, "text_model", oracle).final_layer_norm
    return published.relative_error(model.text[0].encode(ids, skip)[0], norm(theirs.hidden_states[-skip]))


@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL, (9, 15)], ids=str)
def test_the_unet_gives_what_diffusers_gives(weights, oracle_unet, size, layers, figure):
    """(9, 15) halves to odd sizes on every level."""
    model = build(weights)
    replace(model.unet, chooser(layers))
    found = unet_error(model, oracle_unet, size)
    figure("U-Net against diffusers, standard deviations", found, GATE)
    assert found <= BOUND


def test_the_unet_with_linear_projections_and_narrow_heads_gives_what_diffusers_gives():
    """The layout of SD2: heads are 64 channels wide where that divides, here 64 of 64 and one head else."""
    parts = tiny.draw(tiny.unet_shapes(width=64, mult=(1, 2, 2, 2), context=32, linear=True), seed=1)
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in parts.items()}
    ours = unet_from(prefixed, {})
    oracle = published.unet(prefixed, published.unet_settings(width=64, mult=(1, 2, 2, 2), context=32, heads=(1, 2, 2, 2), linear=True))
    x, context, timesteps = draws(1, 4, 8, 16), draws(1, 77, 32), torch.tensor([500.0])
    with torch.inference_mode():
        assert published.relative_error(ours(x, timesteps, context), oracle(x, timesteps, context).sample) <= BOUND


@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("size", [SQUARE, WIDE, (5, 7)], ids=str)
def test_the_vae_decodes_what_diffusers_decodes(weights, oracle_vae, size, layers, figure):
    model = build(weights)
    replace(model.vae, chooser(layers))
    found = decode_error(model, oracle_vae, size)
    figure("VAE decode against diffusers, standard deviations", found, GATE)
    assert found <= BOUND


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (120, 56)], ids=str)
@torch.inference_mode()
def test_the_vae_encodes_what_diffusers_encodes(weights, oracle_vae, size, figure):
    pixels = draws(1, 3, *size).clamp(-1, 1)
    mean, logvar = build(weights).vae.encode(pixels)
    theirs = oracle_vae.encode(pixels).latent_dist
    found = max(published.relative_error(mean, theirs.mean), published.relative_error(logvar, theirs.logvar))
    figure("VAE encode against diffusers, standard deviations", found, GATE)
    assert found <= BOUND


@pytest.mark.parametrize("skip", [1, 2, 3, 4])
def test_the_text_tower_gives_what_transformers_gives_at_every_clip_skip(weights, oracle_text, skip, figure):
    found = text_error(build(weights), oracle_text, skip)
    figure("text tower against transformers, standard deviations", found, GATE)
    assert found <= BOUND


@torch.inference_mode()
def test_the_oldest_names_of_the_text_tower_give_the_same_text(weights):
    oldest = {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in weights.items()}
    assert oldest.keys() == tiny.sd1(legacy_text=True, **SIZES).keys()
    assert torch.equal(build(oldest).text[0].encode(tokens())[0], build(weights).text[0].encode(tokens())[0])


def each(model, kind):
    return (module for module in model.modules() if isinstance(module, kind))


def wrong_heads(unet, monkeypatch):
    for module in each(unet, our_unet.Attention):
        module.heads //= 2


def k_and_v_exchanged(unet, monkeypatch):
    for block in each(unet, our_unet.TransformerBlock):
        block.attn2.to_k, block.attn2.to_v = block.attn2.to_v, block.attn2.to_k


def timestep_shifted(unet, monkeypatch):
    right = our_unet.timestep_embedding
    monkeypatch.setattr(our_unet, "timestep_embedding", lambda timesteps, width: right(timesteps + 1, width))


def wrong_epsilon_of_blocks(unet, monkeypatch):
    for block in each(unet, our_unet.ResBlock):
        block.in_layers[0].eps = block.out_layers[0].eps = 1e-3


def wrong_epsilon_of_transformers(unet, monkeypatch):
    for block in each(unet, our_unet.SpatialTransformer):
        block.norm.eps = 1e-3


def wrong_groups(unet, monkeypatch):
    for norm in each(unet, nn.GroupNorm):
        norm.num_groups = 16


def sines_first(unet, monkeypatch):
    right = our_unet.timestep_embedding
    monkeypatch.setattr(our_unet, "timestep_embedding", lambda timesteps, width: right(timesteps, width).roll(width // 2, -1))


@pytest.mark.parametrize("spoil", [
    wrong_heads, k_and_v_exchanged, timestep_shifted, wrong_epsilon_of_blocks, wrong_epsilon_of_transformers, wrong_groups, sines_first,
])
def test_a_unet_with_this_mistake_fails_the_comparison(weights, oracle_unet, spoil, monkeypatch):
    model = build(weights)
    spoil(model.unet, monkeypatch)
    assert unet_error(model, oracle_unet, SQUARE) > BOUND


@pytest.mark.parametrize("spoil", ["none", "blocks", "transformers"])
def test_where_the_signal_is_quiet_the_two_published_epsilons_of_the_unet_cannot_be_exchanged(weights, spoil):
    """1e-5 in residual blocks, 1e-6 before transformers; with activations near 0.001 one in place of the other shows."""
    quiet = {name: tensor * 1e-3 if "out_layers.3" in name or "input_blocks.0.0" in name else tensor for name, tensor in weights.items()}
    oracle = published.unet(quiet, published.unet_settings(width=32, mult=tiny.MULT, context=128))
    model = build(quiet)
    for block in each(model.unet, our_unet.ResBlock if spoil == "blocks" else our_unet.SpatialTransformer):
        if spoil == "blocks":
            block.in_layers[0].eps = 1e-6
        elif spoil == "transformers":
            block.norm.eps = 1e-5
    error = unet_error(model, oracle, SQUARE)
    assert error <= BOUND if spoil == "none" else error > BOUND


@pytest.mark.parametrize("spoil", ["heads", "k and v", "epsilon", "activation", "no causal mask"])
def test_a_text_tower_with_this_mistake_fails_the_comparison(weights, oracle_text, spoil, monkeypatch):
    model = build(weights)
    for layer in model.text[0].text_model.encoder.layers:
        attention = layer.self_attn
        if spoil == "heads":
            attention.heads = 1
        elif spoil == "k and v":
            attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
        elif spoil == "epsilon":
            layer.layer_norm1.eps = 1e-3
        elif spoil == "activation":
            layer.mlp.quick = False
        else:
            monkeypatch.setattr(type(attention), "forward", lambda self, x: self.out_proj(self.v_proj(x)))
    assert text_error(model, oracle_text) > BOUND


@pytest.mark.parametrize("spoil", ["q and v", "epsilon", "symmetric padding"])
@torch.inference_mode()
def test_a_vae_with_this_mistake_fails_the_comparison(weights, oracle_vae, spoil):
    vae = build(weights).vae
    attention = vae.encoder.mid.attn_1
    if spoil == "q and v":
        attention.q, attention.v = attention.v, attention.q
    elif spoil == "epsilon":
        for norm in each(vae, nn.GroupNorm):
            norm.eps = 1e-3
    else:
        for level in list(vae.encoder.down)[:-1]:
            level.downsample.forward = lambda x, conv=level.downsample.conv: nn.functional.conv2d(x, conv.weight, conv.bias, 2, 1)
    pixels = draws(1, 3, 64, 64).clamp(-1, 1)
    assert published.relative_error(vae.encode(pixels)[0], oracle_vae.encode(pixels).latent_dist.mean) > BOUND


@pytest.mark.parametrize("eps, fits", [(1e-6, True), (1e-5, False)])
@torch.inference_mode()
def test_where_the_signal_is_quiet_the_epsilon_of_the_vae_shows(weights, eps, fits):
    quiet = {name: tensor * 1e-3 if "encoder.conv_in" in name else tensor for name, tensor in weights.items()}
    vae, oracle = build(quiet).vae, published.vae(quiet, published.vae_settings(width=32, mult=tiny.MULT))
    for norm in each(vae, nn.GroupNorm):
        norm.eps = eps
    pixels = draws(1, 3, 64, 64).clamp(-1, 1)
    assert (published.relative_error(vae.encode(pixels)[0], oracle.encode(pixels).latent_dist.mean) <= BOUND) is fits
