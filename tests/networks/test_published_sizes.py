"""The published architectures at full size, on the meta device: parameters counted, names loaded strictly by diffusers' converters."""
import math

import pytest
import torch

from modules.families import autoencoders, shapes
from modules.networks.autoencoder import AutoencoderKL
from modules.networks.clip import ClipText
from modules.networks.unet import UNet
from tests import tiny
from tests.oracles import published

SD1 = {"width": 320, "mult": (1, 2, 4, 4), "context": 768}
SD2 = {**SD1, "context": 1024, "linear": True}
SDXL = {"width": 320, "mult": (1, 2, 4), "context": 2048, "linear": True, "label": 2816, "depths": (0, 2, 10), "middle_depth": 10}


def on_meta(names):
    return {name: torch.empty(shape, device="meta") for name, shape in names.items()}


def ours(make, config):
    with torch.device("meta"):
        return make(config)


def parameters(network):
    return sum(math.prod(tensor.shape) for tensor in network.state_dict().values())


@pytest.mark.parametrize("sizes, count", [(SD1, 859_520_964), (SD2, 865_910_724), (SDXL, 2_567_463_684)], ids=["SD1", "SD2", "SDXL"])
def test_the_unet_has_the_published_number_of_parameters(sizes, count):
    assert parameters(ours(UNet, shapes.unet_config(tiny.unet_shapes(**sizes), {}))) == count


def test_the_vae_has_the_published_number_of_parameters():
    network = ours(AutoencoderKL, autoencoders.autoencoder_config(tiny.vae_shapes(width=128, mult=(1, 2, 4, 4)), {}))
    assert parameters(network) == 83_653_863
    assert network.config.downscale == 8


def test_the_text_tower_has_the_published_number_of_parameters():
    network = ours(ClipText, shapes.clip_config(tiny.text_shapes(width=768, layers=12)))
    assert parameters(network) == 123_060_480
    assert network.config.heads == 12


@pytest.mark.parametrize("sizes, settings", [
    (SD1, published.unet_settings()),
    (SD2, published.unet_settings(context=1024, heads=(5, 10, 20, 20), linear=True)),
    (SDXL, published.sdxl_settings()),
], ids=["SD1", "SD2", "SDXL"])
def test_the_names_of_the_unet_are_those_that_diffusers_converts_and_loads_strictly(sizes, settings):
    names = ours(UNet, shapes.unet_config(tiny.unet_shapes(**sizes), {})).state_dict()
    published.unet({f"model.diffusion_model.{name}": tensor for name, tensor in names.items()},
                   {"class_embed_type": None, "addition_embed_type": None, **settings})


def test_the_names_of_the_vae_are_those_that_diffusers_converts_and_loads_strictly():
    names = ours(AutoencoderKL, autoencoders.autoencoder_config(tiny.vae_shapes(width=128, mult=(1, 2, 4, 4)), {})).state_dict()
    published.vae({f"first_stage_model.{name}": tensor for name, tensor in names.items()}, published.vae_settings())


def test_the_names_of_the_text_tower_are_those_of_transformers():
    config = shapes.clip_config(tiny.text_shapes(width=768, layers=12))
    them = published.open_oracles().transformers
    with torch.device("meta"):
        theirs = them.CLIPTextModel(them.CLIPTextConfig(**published.clip_settings())).state_dict()
    bare = {name.removeprefix("text_model."): tensor.shape for name, tensor in theirs.items() if not name.endswith("position_ids")}
    assert {name.removeprefix("text_model."): tensor.shape for name, tensor in ours(ClipText, config).state_dict().items()} == bare


@pytest.mark.parametrize("sizes", [SD1, SD2, SDXL, {}], ids=["SD1", "SD2", "SDXL", "miniature"])
def test_sizes_read_from_shapes_make_a_network_of_just_these_shapes(sizes):
    names = tiny.unet_shapes(**sizes)
    network = ours(UNet, shapes.unet_config(names, {}))
    assert {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()} == names
