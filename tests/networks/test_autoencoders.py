"""Every published first stage against diffusers' networks with the same weights; deliberate mistakes must fail the same comparison."""
import math

import pytest
import torch
from torch import nn

from modules.families.autoencoders import autoencoder_config, autoencoder_from
from modules.families.shapes import shapes_of
from modules.networks import autoencoder as ours
from modules.networks.layers import KINDS, chooser, replace
from modules.networks.tiny_autoencoder import TinyAutoencoder, TinyConfig
from tests.oracles import published_vae
from tests.oracles.published import relative_error

BOUND = 1e-4                                                # of the oracle's standard deviation
GATE = f"<= {BOUND}"
CELLS = {"square": (4, 4), "wide": (3, 6)}                  # of a latent
ZOO = published_vae.ZOO
NARROW = {name: sizes | {"width": 32} | ({"codes": min(sizes["codes"], 500)} if "codes" in sizes else {}) for name, sizes in ZOO.items()}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def pair(name, seed=2):
    """Our network and diffusers' with the same weights."""
    weights = published_vae.draw(published_vae.shapes(**NARROW[name]), seed)
    return autoencoder_from(weights, {}), published_vae.vae(weights, **NARROW[name])


def encoded(oracle, pixels):
    answer = oracle.encode(pixels)
    return torch.cat([answer.latent_dist.mean, answer.latent_dist.logvar], 1) if hasattr(answer, "latent_dist") else answer.latents


@pytest.fixture(scope="module", params=ZOO, ids=lambda name: name.replace(" ", "-"))
def both(request):
    return request.param, *pair(request.param)


@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS)
@torch.inference_mode()
def test_a_first_stage_gives_what_diffusers_gives(both, cells, figure):
    name, vae, oracle = both
    pixels = noise(2, 3, *(vae.config.downscale * edge for edge in cells)).clamp(-1, 1)
    mean, logvar = vae.encode(pixels)
    there = relative_error(mean if vae.config.codes else torch.cat([mean, logvar], 1), encoded(oracle, pixels))
    z = mean + 0.3 * noise(*mean.shape) if vae.config.codes else 5 * noise(*mean.shape)
    back = relative_error(vae.decode(z), oracle.decode(z).sample)
    figure("first stages, encode against diffusers, standard deviations", there, GATE)
    figure("first stages, decode against diffusers, standard deviations", back, GATE)
    assert there <= BOUND and back <= BOUND


@pytest.mark.parametrize("name", ZOO)
def test_a_first_stage_of_the_published_size_has_as_many_parameters_as_that_of_diffusers(name):
    with torch.device("meta"):
        mine = ours.autoencoder(autoencoder_config(published_vae.shapes(**ZOO[name]), {}))
        theirs = published_vae.network(**ZOO[name])
    assert sum(map(torch.Tensor.numel, mine.parameters())) == sum(map(torch.Tensor.numel, theirs.parameters()))
    assert published_vae.to_diffusers(mine.state_dict()).keys() == theirs.state_dict().keys()
    assert mine.config.downscale == 2 ** (len(ZOO[name]["mult"]) - 1)


def test_the_kl_autoencoder_of_stable_diffusion_has_83_653_863_parameters():
    with torch.device("meta"):
        vae = ours.autoencoder(autoencoder_config(published_vae.shapes(**ZOO["kl-f8"]), {}))
    assert sum(map(torch.Tensor.numel, vae.parameters())) == 83_653_863


def test_sizes_read_from_shapes_make_a_network_of_just_these_shapes(both):
    name, vae, _ = both
    assert shapes_of(vae.state_dict()) == published_vae.shapes(**NARROW[name])


def each(model, kind):
    return (module for module in model.modules() if isinstance(module, kind))


def attention_behind_all_blocks(vae):
    for level in each(vae.encoder, ours.Level):
        if level.attn:
            level.forward = lambda x, level=level: level.attn[1](level.attn[0](level.block[1](level.block[0](x))))


def q_and_v_exchanged(vae):
    for attention in each(vae.encoder, ours.AttnBlock):
        attention.q, attention.v = attention.v, attention.q


def wrong_epsilon(vae):
    for norm in each(vae.encoder, nn.GroupNorm):
        norm.eps = 1e-3


@pytest.mark.parametrize("spoil", [attention_behind_all_blocks, q_and_v_exchanged, wrong_epsilon])
@torch.inference_mode()
def test_a_first_stage_with_this_mistake_fails_the_comparison(spoil):
    vae, oracle = pair("vq-f16")
    spoil(vae)
    pixels = noise(1, 3, 64, 64).clamp(-1, 1)
    assert relative_error(vae.encode(pixels)[0], oracle.encode(pixels).latents) > BOUND


@torch.inference_mode()
def test_a_vq_quantises_when_it_decodes_and_not_when_it_encodes():
    vae, oracle = pair("vq-f4")
    pixels = noise(1, 3, 32, 32).clamp(-1, 1)
    z, logvar = vae.encode(pixels)
    codes = vae.quantize.embedding.weight
    near = codes[((z.permute(0, 2, 3, 1)[..., None, :] - codes) ** 2).sum(-1).argmin(-1)].permute(0, 3, 1, 2)
    assert not torch.equal(z, near)
    assert torch.equal(vae.decode(z), vae.decode(near))
    assert relative_error(vae.decode(z), oracle.decode(z, force_not_quantize=True).sample) > BOUND
    assert torch.equal(z + (0.5 * logvar).exp() * noise(*z.shape), z)


@pytest.mark.parametrize("at_once", [1, 700, 10 ** 6])
def test_the_nearest_code_is_the_same_however_many_distances_are_held_at_once(at_once, monkeypatch):
    book = ours.Codebook(300, 5)
    z = noise(2, 5, 6, 7)
    expected = book(z)
    monkeypatch.setattr(ours, "AT_ONCE", at_once)
    assert torch.equal(book(z), expected)


def test_of_equally_near_codes_the_first_is_taken():
    book = ours.Codebook(4, 1)
    book.embedding.weight.data = torch.tensor([[2.0], [1.0], [-1.0], [1.0]])
    assert book(torch.tensor([0.0, 1.2, -3.0]).reshape(1, 1, 1, 3)).flatten().tolist() == [1.0, 1.0, -1.0]


def test_the_codebook_of_half_precision_is_searched_in_float32():
    book = ours.Codebook(3, 1).half()
    book.embedding.weight.data = torch.tensor([[300.0], [301.0], [0.0]]).half()
    assert book(torch.tensor([300.75]).half().reshape(1, 1, 1, 1)).item() == 301.0


@torch.inference_mode()
def test_fine_and_coarse_parts_put_together_are_the_whole_bit_for_bit(both):
    _, vae, _ = both
    pixels = noise(1, 3, 2 * vae.config.downscale, 3 * vae.config.downscale)
    mean, logvar = vae.encode(pixels)
    fine, back = pixels, vae.decode_coarse(mean)
    for segment in vae.encode_fine():
        fine = ours.through(segment, fine)
    for segment in vae.decode_fine():
        back = ours.through(segment, back)
    assert torch.equal(vae.encode_coarse(fine)[0], mean) and torch.equal(vae.encode_coarse(fine)[1], logvar)
    assert torch.equal(back, vae.decode(mean))
    assert not any(isinstance(module, ours.AttnBlock) for level in range(vae.config.fine_levels)
                   for half in (vae.encoder.down, vae.decoder.up) for module in half[level].modules())


def test_an_autoencoder_without_variance_and_quant_convs_gives_its_encoders_answer():
    """sgm's AutoencodingEngine leaves the two 1x1 convolutions out."""
    weights = published_vae.draw(published_vae.shapes(width=32, mult=(1, 2), latent=4, codes=9))
    vae = autoencoder_from({name: tensor for name, tensor in weights.items() if "quant" not in name}, {})
    pixels = noise(1, 3, 32, 32)
    with torch.inference_mode():
        mean, logvar = vae.encode(pixels)
        last = []
        vae.encoder.conv_out.register_forward_hook(lambda _, given, answer: last.append(answer))
        assert torch.equal(vae.encode(pixels)[0], last[0]) and torch.equal(mean, last[0]) and bool((logvar == -math.inf).all())
        vae.decoder.conv_in.register_forward_pre_hook(lambda _, given: last.append(given[0]))
        vae.decode(mean)
        assert torch.equal(last[-1], mean)


# ---- tiny autoencoders

@pytest.fixture(scope="module")
def small():
    """diffusers' AutoencoderTiny, and the same weights under the original names."""
    oracle = published_vae.tiny_vae(width=16)
    return oracle, published_vae.original_tiny(oracle.state_dict())


@pytest.mark.parametrize("layers", KINDS)
@pytest.mark.parametrize("scale", [0.18215, 0.13025])
@pytest.mark.parametrize("size", [(32, 32), (24, 56)], ids=str)
@torch.inference_mode()
def test_a_tiny_autoencoder_gives_what_diffusers_gives_in_the_latents_of_its_family(small, size, scale, layers, figure):
    oracle, weights = small
    vae, pixels = autoencoder_from(weights, {}, scale=scale), noise(1, 3, *size).clamp(-1, 1)
    replace(vae, chooser(layers))
    mean, logvar = vae.encode(pixels)
    latent = 2 * noise(1, 4, size[0] // 8, size[1] // 8)
    there = relative_error(mean * scale, oracle.encode(pixels).latents)
    back = relative_error(vae.decode(latent / scale), oracle.decode(latent).sample)
    figure("tiny autoencoder against diffusers, standard deviations", max(there, back), GATE)
    assert there <= BOUND and back <= BOUND and bool((logvar == -math.inf).all())


def test_a_tiny_autoencoder_of_the_published_size_has_as_many_parameters_as_that_of_diffusers():
    with torch.device("meta"):
        mine = TinyAutoencoder(TinyConfig(latent=4))
        theirs = published_vae.open_oracles().diffusers.AutoencoderTiny()
    assert shapes_of(mine.state_dict()) == shapes_of(published_vae.original_tiny(theirs.state_dict()))
    assert mine.config.downscale == 8


@torch.inference_mode()
def test_a_tiny_autoencoder_without_its_soft_limit_fails_the_comparison(small):
    oracle, weights = small
    vae, latent = autoencoder_from(weights, {}, scale=1.0), 2 * noise(1, 4, 4, 4)
    theirs = oracle.decode(latent).sample
    assert relative_error(vae.decode(latent), theirs) <= BOUND
    vae.taesd_decoder[0] = nn.Identity()
    assert relative_error(vae.decode(latent), theirs) > BOUND
