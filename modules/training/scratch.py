"""Networks from scratch: their sizes from a recipe, their first weights from a seed."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from modules.families.shapes import HEAD_DIM_OF_CLIP
from modules.networks.autoencoder import AutoencoderConfig, AutoencoderKL
from modules.networks.clip import ClipConfig, ClipText
from modules.networks.unet import Level, ResBlock, SpatialTransformer, UNet, UNetConfig
from modules.training.recipe import Recipe

VOCABULARY, POSITIONS = 49408, 77                           # of CLIP's tokeniser, which every prompt goes through


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch draws from this seed on the CPU; afterwards from where it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def unet(recipe: Recipe, *, context: int, latent: int) -> UNet:
    """A U-Net that at first gives zero: the last layer of each block and of the whole begins at zero, as in Ho et al. 2020.

    context: width of a text token; latent: channels of the latent.
    """
    sizes = recipe.unet
    levels = tuple(Level(channels=sizes.channels * factor, down=(depth,) * sizes.res_blocks, up=(depth,) * (sizes.res_blocks + 1))
                   for factor, depth in zip(sizes.multiply, sizes.depths, strict=True))
    made = UNet(UNetConfig(
        in_channels=latent + sizes.concat_channels, out_channels=latent, channels=sizes.channels, levels=levels,
        middle_depth=sizes.middle_depth, context=context, heads=sizes.heads, groups=recipe.model.norm_groups))
    for module in made.modules():
        if isinstance(module, ResBlock):
            _zero(module.out_layers[3])
        elif isinstance(module, SpatialTransformer):
            _zero(module.proj_out)
    _zero(made.out[2])
    return made


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def text(recipe: Recipe) -> ClipText:
    """A CLIP text tower, first weights as in Radford et al. 2021: layers that add to the residual are the quieter, the more they are."""
    width, layers = recipe.text.width, recipe.text.layers
    heads = max(1, width // HEAD_DIM_OF_CLIP)
    made = ClipText(ClipConfig(width=width, layers=layers, inner=4 * width, vocabulary=VOCABULARY, positions=POSITIONS,
                               heads=heads if width % heads == 0 else 1))
    nn.init.normal_(made.text_model.embeddings.token_embedding.weight, std=0.02)
    nn.init.normal_(made.text_model.embeddings.position_embedding.weight, std=0.01)
    inner = width ** -0.5
    for name, parameter in made.named_parameters():
        if name.endswith("bias") and "layer_norm" not in name:
            nn.init.zeros_(parameter)
        elif name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            nn.init.normal_(parameter, std=inner)
        elif name.endswith(("out_proj.weight", "fc2.weight")):
            nn.init.normal_(parameter, std=inner * (2 * layers) ** -0.5)
        elif name.endswith("fc1.weight"):
            nn.init.normal_(parameter, std=(2 * width) ** -0.5)
    return made


def vae(recipe: Recipe) -> AutoencoderKL:
    """A KL autoencoder in torch's own draws."""
    sizes = recipe.vae
    return AutoencoderKL(AutoencoderConfig(
        channels=sizes.channels, levels=tuple(sizes.channels * factor for factor in sizes.multiply), res_blocks=sizes.res_blocks,
        z=sizes.latent, latent=sizes.latent, groups=recipe.model.norm_groups))
