"""Latents to pixels and back: the same picture whole or in tiles, alone or in a batch, and a clear end where memory or numbers run out."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modules.core import hardware
from modules.core.errors import CheckpointError, NanError, OutOfMemoryError
from modules.families.autoencoders import autoencoder_from
from modules.families.base import LatentFormat
from modules.networks.autoencoder import Norm
from modules.networks.layers import KINDS, chooser, replace
from modules.pipeline import latents
from tests import tiny
from tests.oracles import published_vae

SIZE = (13, 22)                                             # latent cells: no multiple of a tile
FIRST_STAGES = {
    "kl-f8": {"mult": tiny.MULT, "latent": 4}, "attention in levels": {"mult": (1, 1, 2), "latent": 8, "attention": (1, 2)},
    "attention in all levels": {"mult": (1, 2), "latent": 4, "attention": (0, 1)}, "vq-f4": {"mult": (1, 1, 2), "latent": 3, "codes": 60},
    "no attention": {"mult": (1, 2), "latent": 3, "codes": 60, "middle": False}, "one level": {"mult": (1,), "latent": 4},
}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def model_with(vae, scale=0.18215, shift=0.0):
    """What latents.py looks at of a Model."""
    config = vae.config
    return SimpleNamespace(vae=vae, device=torch.device("cpu"), dtype=torch.float32,
                           latent=LatentFormat(channels=config.latent, downscale=config.downscale, scale=scale, shift=shift))


def model_of(kind="kl-f8"):
    if kind == "tiny":
        return model_with(autoencoder_from(published_vae.original_tiny(published_vae.tiny_vae(width=16).state_dict()), {}))
    return model_with(autoencoder_from(published_vae.draw(published_vae.shapes(width=32, **FIRST_STAGES[kind])), {}))


@pytest.fixture(params=[*FIRST_STAGES, "tiny"], ids=lambda name: name.replace(" ", "-"))
def model(request):
    return model_of(request.param)


@pytest.fixture
def said():
    return []


def far(one, other):
    """The largest difference in standard deviations of the first."""
    return float((one - other).abs().max() / one.std())


@torch.inference_mode()
def test_whole_pictures_are_decoded_as_the_vae_decodes_them_bit_for_bit_each_alone(model):
    latent = noise(3, model.latent.channels, 4, 6)
    expected = torch.cat([model.vae.decode(row / 0.18215 + 0.0) for row in latent.split(1)])
    assert torch.equal(latents.decode(model, latent), expected)


@pytest.mark.parametrize("tile", [3, 8, 13])
def test_a_picture_decoded_in_tiles_is_the_undivided_one_but_for_rounding(model, tile, figure):
    latent = noise(1, model.latent.channels, *SIZE)
    found = far(latents.decode(model, latent), latents.decode(model, latent, tile=tile))
    figure("decoded in tiles against undivided, standard deviations", found, "<= 1e-4")
    assert found <= 1e-4


@pytest.mark.parametrize("tile", [3, 8, 13])
def test_a_picture_encoded_in_tiles_gives_the_undivided_latent_but_for_rounding(model, tile, figure):
    pixels = noise(1, 3, *(edge * model.latent.downscale for edge in SIZE)).clamp(-1, 1)
    found = far(latents.encode(model, pixels), latents.encode(model, pixels, tile=tile))
    figure("encoded in tiles against undivided, standard deviations", found, "<= 1e-4")
    assert found <= 1e-4


@pytest.mark.parametrize("layers", KINDS)
def test_tiles_run_with_every_implementation_of_layers(layers):
    model, latent = model_of(), noise(1, 4, *SIZE)
    expected = latents.decode(model, latent)
    replace(model.vae, chooser(layers))
    assert far(expected, latents.decode(model, latent, tile=8)) <= 1e-4


def test_a_tile_that_saw_only_itself_would_fail_the_comparison(monkeypatch):
    """Twice: with nothing around the tiles, and with norms that know one tile only."""
    model, latent = model_of(), noise(1, 4, *SIZE)
    expected = latents.decode(model, latent)
    with monkeypatch.context() as patch:
        patch.setattr(latents, "REACH", 0)
        assert far(expected, latents.decode(model, latent, tile=8)) > 1e-2
    with monkeypatch.context() as patch:
        patch.setattr(latents, "_sharing", lambda vae, statistics: torch.no_grad())
        assert far(expected, latents.decode(model, latent, tile=8)) > 1e-2


def test_after_tiles_the_vae_is_as_it_was_also_when_they_failed(monkeypatch):
    model, latent = model_of(), noise(1, 4, *SIZE)
    expected = latents.decode(model, latent)
    latents.decode(model, latent, tile=8)
    monkeypatch.setattr(latents, "through", fails(RuntimeError("the card fell off the bus")))
    with pytest.raises(RuntimeError, match="bus"):
        latents.decode(model, latent, tile=8)
    assert all(norm.statistics is None for norm in model.vae.modules() if isinstance(norm, Norm))
    assert torch.equal(latents.decode(model, latent), expected)


def fails(error):
    def call(*args, **named):
        raise error
    return call


@pytest.mark.parametrize("size, edge", [((13, 22), 8), ((64, 64), 64), ((1, 1), 8), ((65, 7), 8), ((5, 129), 64)])
def test_the_tiles_cover_every_cell_once_and_none_is_larger_than_asked(size, edge):
    covered = torch.zeros(size, dtype=torch.int32)
    for tile in latents._grid(torch.Size(size), edge):
        covered[tile.top:tile.bottom, tile.left:tile.right] += 1
        assert 0 < tile.bottom - tile.top <= edge and 0 < tile.right - tile.left <= edge
    assert bool((covered == 1).all())


# ---- encoding

def test_without_noise_the_mean_of_the_latent_is_given_scaled_and_shifted():
    model = model_of()
    model.latent = LatentFormat(channels=4, downscale=8, scale=0.5, shift=0.25)
    pixels = noise(2, 3, 32, 48).clamp(-1, 1)
    expected = torch.cat([(model.vae.encode(row)[0] - 0.25) * 0.5 for row in pixels.split(1)])
    assert torch.equal(latents.encode(model, pixels), expected)


def test_noise_moves_each_number_by_its_own_standard_deviation_and_a_generator_draws_the_same_noise():
    model, pixels = model_of(), noise(1, 3, 32, 32).clamp(-1, 1)
    mean, logvar = model.vae.encode(pixels)
    drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(9))
    found = latents.encode(model, pixels, drawn)
    assert torch.allclose(found / 0.18215, mean + drawn * logvar.exp().sqrt(), atol=1e-5)
    assert torch.equal(latents.encode(model, pixels, torch.Generator().manual_seed(9)), found)


@pytest.mark.parametrize("kind", ["vq-f4", "tiny"])
def test_a_latent_without_variance_is_not_moved_by_noise(kind):
    model = model_of(kind)
    pixels = noise(1, 3, 32, 32).clamp(-1, 1)
    assert torch.equal(latents.encode(model, pixels, torch.Generator().manual_seed(1)), latents.encode(model, pixels))


def test_numbers_for_each_channel_scale_and_shift_there_and_back():
    model = model_of()
    model.latent = LatentFormat(channels=4, downscale=8, scale=(0.1, 0.2, 0.3, 0.4), shift=(1.0, 2.0, 3.0, 4.0))
    pixels = noise(1, 3, 32, 32).clamp(-1, 1)
    latent = latents.encode(model, pixels)
    z = model.vae.encode(pixels)[0]
    assert torch.allclose(latent[0, 2], (z[0, 2] - 3.0) * 0.3, atol=1e-5)
    assert far(latents.decode(model, latent), model.vae.decode(z)) <= 1e-4


def test_a_tiny_decoder_without_encoder_is_not_asked_to_encode():
    halves = published_vae.original_tiny(published_vae.tiny_vae(width=8).state_dict())
    model = model_with(autoencoder_from({name: tensor for name, tensor in halves.items() if "decoder" in name}, {}))
    with pytest.raises(CheckpointError, match="only decodes"):
        latents.encode(model, noise(1, 3, 16, 16))


# ---- numbers and memory that run out

class Overflowing(nn.Module):
    """A VAE that gives no numbers unless it runs in float32, or never."""

    def __init__(self, config, hopeless=False):
        super().__init__()
        self.config, self.hopeless = config, hopeless
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float16), requires_grad=False)

    def decode(self, z):
        pixels = torch.zeros(1, 3, 8 * z.shape[-2], 8 * z.shape[-1], dtype=z.dtype)
        pixels[0, 1, 3, 5] = float("inf") if self.hopeless or self.weight.dtype != torch.float32 else 0.5
        return pixels

    def encode(self, pixels):
        mean = self.decode(pixels[:, :, ::8, ::8])[:, :, ::8, ::8] + self.weight * float("nan" if self.decode(pixels).isinf().any() else 1)
        return mean, torch.full_like(mean, float("-inf"))


def test_a_single_value_that_is_no_number_makes_the_vae_run_once_more_in_float32_and_says_so(said):
    model = model_with(Overflowing(model_of().vae.config))
    pixels = latents.decode(model, noise(2, 4, 4, 4), tell=said.append)
    assert pixels.dtype == torch.float32 and bool(pixels.isfinite().all()) and len(said) == 1 and "float32" in said[0]
    latents.decode(model, noise(2, 4, 4, 4), tell=said.append)
    assert len(said) == 1


def test_an_encoder_that_overflows_runs_once_more_in_float32(said):
    model = model_with(Overflowing(model_of().vae.config))
    assert bool(latents.encode(model, noise(1, 3, 32, 32), tell=said.append).isfinite().all()) and len(said) == 1


def test_a_vae_that_gives_no_numbers_in_float32_either_ends_in_one_sentence():
    with pytest.raises(NanError, match="another VAE"):
        latents.decode(model_with(Overflowing(model_of().vae.config, hopeless=True)), noise(1, 4, 4, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_latent_that_is_no_number_is_not_blamed_on_the_vae(value):
    model, latent = model_with(Overflowing(model_of().vae.config)), noise(1, 4, 4, 4)
    latent[0, 0, 0, 0] = value
    with pytest.raises(NanError, match="latent"):
        latents.decode(model, latent)
    assert model.vae.weight.dtype == torch.float16


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_tiles_are_taken_when_the_whole_picture_does_not_fit(error, said, monkeypatch):
    model, latent = model_of(), noise(1, 4, *SIZE)
    expected = latents.decode(model, latent)
    monkeypatch.setattr(model.vae, "decode", fails(error))
    assert far(expected, latents.decode(model, latent, tell=said.append)) <= 1e-4
    assert len(said) == 1 and "64" in said[0]


def test_smaller_tiles_are_taken_when_large_ones_do_not_fit_and_in_the_end_a_sentence(said, monkeypatch):
    model, latent = model_of(), noise(1, 4, 20, 20)
    sizes, right = [], latents.in_tiles

    def small_only(vae, segments, x, tiles, size):
        sizes.append(max(tile.bottom - tile.top for tile in tiles))
        if sizes[-1] > fits:
            raise torch.OutOfMemoryError("out of memory")
        return right(vae, segments, x, tiles, size)

    monkeypatch.setattr(latents, "in_tiles", small_only)
    fits = 10
    latents.decode(model, latent, tile=20, tell=said.append)
    assert sizes == [20, 10] and len(said) == 1
    fits = 0
    with pytest.raises(OutOfMemoryError):
        latents.decode(model, latent, tile=20)


def test_on_a_cpu_tiles_are_taken_before_the_memory_is_gone(said, monkeypatch):
    model, latent = model_of(), noise(1, 4, *SIZE)
    need = latents.memory_needed(model.vae.config, 13 * 22, 4)
    monkeypatch.setattr(hardware, "memory_free", lambda device: 2 * need)
    expected = latents.decode(model, latent, tell=said.append)
    assert said == []
    monkeypatch.setattr(hardware, "memory_free", lambda device: need // 2)
    monkeypatch.setattr(model.vae, "decode", fails(AssertionError("the whole picture was tried")))
    assert far(expected, latents.decode(model, latent, tell=said.append)) <= 1e-4 and len(said) == 1


def test_the_memory_of_sd1_at_1024_pixels_is_guessed_within_reason():
    """Four to five maps of 256 channels at full resolution in float32."""
    with torch.device("meta"):
        config = autoencoder_from(tiny.draw(tiny.vae_shapes()), {}).config
    full = type(config)(channels=128, levels=(128, 256, 512, 512), res_blocks=2, z=4, latent=4)
    assert 4 <= latents.memory_needed(full, 128 * 128, 4) / (256 * 1024 * 1024 * 4) <= 5


@pytest.mark.parametrize("words", ["shapes differ", "CUDA error: an illegal memory access was encountered"])
def test_a_mistake_that_is_no_lack_of_memory_is_not_hidden(words, monkeypatch):
    model = model_of()
    monkeypatch.setattr(model.vae, "decode", fails(RuntimeError(words)))
    with pytest.raises(RuntimeError, match=words):
        latents.decode(model, noise(1, 4, 4, 4))


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
def test_tiles_on_an_accelerator_give_the_undivided_picture_there():
    device, model, latent = torch.accelerator.current_accelerator(), model_of(), noise(1, 4, *SIZE)
    model.vae.to(device)
    model.device = device
    whole, tiled = latents.decode(model, latent.to(device)), latents.decode(model, latent.to(device), tile=8)
    assert tiled.device.type == device.type and far(whole, tiled) <= 1e-3
