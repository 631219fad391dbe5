"""The VAE in a file, whatever its kind and its names: KL or VQ, with or without attention, or a tiny one; all read from its tensors."""
from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from modules.core.errors import CheckpointError
from modules.families.base import Header, Weights
from modules.families.keys import VAE, part
from modules.families.parts import fitted
from modules.families.shapes import check_groups, count, number, shapes_of, size
from modules.networks.autoencoder import Autoencoder, AutoencoderConfig, AutoencoderKL, autoencoder
from modules.networks.tiny_autoencoder import TinyAutoencoder, TinyConfig

T = TypeVar("T")

SD1_SCALE = 0.18215
PREFIXES = (VAE, "vae.")
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")
TINY_ENCODER, TINY_DECODER = "taesd_encoder.", "taesd_decoder."
BARE = re.compile(r"\d+\.(conv\.\d\.)?(weight|bias)$")      # names of one half of a tiny autoencoder, in a file of its own
DIFFUSERS = re.compile(r"(en|de)coder\.(down|up)_blocks\.\d")
DIFFUSERS_TINY = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(.+)$")
DIFFUSERS_BLOCK = re.compile(r"(encoder\.down|decoder\.up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$")
DIFFUSERS_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)$")
DIFFUSERS_ATTENTION = MappingProxyType({
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
})


def autoencoder_from(weights: Weights, hints: Mapping[str, str], *, scale: float = SD1_SCALE) -> Autoencoder | TinyAutoencoder:
    """The VAE of a checkpoint or of a file that holds a VAE alone, with these very tensors.

    hints: "easel.norm_groups" where it is not 32. scale: of the latents of the family that it shall serve; only a tiny one must know it.
    Raises CheckpointError naming the first missing tensor.
    """
    found = vae_part(weights)
    config = autoencoder_config(shapes_of(found), hints, scale=_own_scale(weights, scale))
    if isinstance(config, TinyConfig):
        return fitted(lambda: TinyAutoencoder(config), found)
    return fitted(lambda: autoencoder(config), found)


def kl_from(weights: Weights, hints: Mapping[str, str]) -> AutoencoderKL:
    """The same where only a VAE with a normal distribution will do, as in training. Raises CheckpointError for any other."""
    found = autoencoder_from(weights, hints)
    if not isinstance(found, AutoencoderKL):
        raise CheckpointError("The VAE in this file gives no mean and variance (it is a VQ or a tiny one); choose a KL VAE.")
    return found


def autoencoder_config(shapes: Header, hints: Mapping[str, str], *, scale: float = SD1_SCALE) -> AutoencoderConfig | TinyConfig:
    """Sizes of the VAE with these tensors (names as vae_part gives them). Raises CheckpointError naming the tensor that is missing."""
    if _has(shapes, TINY_ENCODER) or _has(shapes, TINY_DECODER):
        return _tiny_config(shapes, scale)
    levels = [size(shapes, f"encoder.down.{level}.block.0.conv1.weight") for level in range(count(shapes, "encoder.down."))]
    channels, z = size(shapes, "encoder.conv_in.weight"), size(shapes, "decoder.conv_in.weight", 1)
    if not levels:
        raise CheckpointError("The VAE in this file has no residual blocks (encoder.down.*); it is damaged or of an unknown kind.")
    groups = number(hints, "easel.norm_groups", 32)
    check_groups([channels, *levels], groups)
    post, codebook = _has(shapes, "post_quant_conv."), _has(shapes, "quantize.embedding.")
    double_z = size(shapes, "encoder.conv_out.weight") == 2 * z
    if codebook and double_z:
        raise CheckpointError("The VAE in this file has a codebook as a VQ has it and a variance as a KL has it; it is of an unknown kind.")
    return AutoencoderConfig(
        channels=channels,
        levels=tuple(levels),
        res_blocks=count(shapes, "encoder.down.0.block."),
        z=z,
        latent=size(shapes, "post_quant_conv.weight", 1) if post else z,
        groups=groups,
        attention=tuple(_has(shapes, f"encoder.down.{level}.attn.") for level in range(len(levels))),
        middle_attention=_has(shapes, "encoder.mid.attn_1."),
        codes=size(shapes, "quantize.embedding.weight") if codebook else 0,
        double_z=double_z,
        quant_conv=_has(shapes, "quant_conv."),
        post_quant_conv=post,
    )


def _has(shapes: Header, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in shapes)


def _tiny_config(shapes: Header, scale: float) -> TinyConfig:
    """The first convolution, then blocks and convolutions by turns: a convolution that follows begins the next resolution."""
    if not _has(shapes, TINY_DECODER):
        raise CheckpointError("This file holds only the encoder of a tiny VAE, which makes no pictures; choose the one with the decoder.")
    return TinyConfig(
        latent=size(shapes, f"{TINY_DECODER}1.weight", 1),
        width=size(shapes, f"{TINY_DECODER}1.weight"),
        down=_stages(part(shapes, TINY_ENCODER)), up=_stages(part(shapes, TINY_DECODER)), scale=scale,
    )


def _stages(shapes: Header) -> tuple[int, ...]:
    """How many blocks stand behind each convolution but the last; () where there is no layer."""
    kinds = {int(name.split(".")[0]): name.split(".")[1] == "conv" for name in shapes if name.split(".")[0].isdigit()}
    stages: list[int] = []
    for _, block in sorted(kinds.items()):
        if not block:
            stages.append(0)
        elif stages:
            stages[-1] += 1
    return tuple(stages[:-1])


def _own_scale(weights: Weights, scale: float) -> float:
    """What a tiny autoencoder's file says about the scale it was made for, else the caller's number."""
    stored = next((tensor for name, tensor in weights.items() if name.rsplit(".", 1)[-1] == "vae_scale"), None)
    if stored is None or stored.is_meta or stored.numel() != 1:
        return scale
    said = float(stored)
    return said if 0 < said < float("inf") else scale


# ---- names

def vae_part(tensors: Mapping[str, T]) -> dict[str, T]:
    """The VAE of a checkpoint, or of a file that holds a VAE alone, in the names of networks/autoencoder.py or tiny_autoencoder.py,
    without what only its training needed; {} where there is none."""
    prefix = next((prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in tensors)), "")
    tensors = part(tensors, prefix)
    if any(name.startswith((TINY_ENCODER, TINY_DECODER)) for name in tensors):
        return {name: tensor for name, tensor in tensors.items() if name.startswith((TINY_ENCODER, TINY_DECODER))}
    if any(map(DIFFUSERS_TINY.match, tensors)):
        return {_tiny_from_diffusers(name): tensor for name, tensor in tensors.items() if DIFFUSERS_TINY.match(name)}
    if any(map(DIFFUSERS.match, tensors)):
        levels = 1 + max((int(found[2]) for found in map(DIFFUSERS_BLOCK.match, tensors) if found), default=0)
        tensors = {_from_diffusers(name, levels): tensor for name, tensor in tensors.items()}
    elif tensors and all(map(BARE.match, tensors)):
        half = TINY_ENCODER if "0.weight" in tensors else TINY_DECODER
        return {half + name: tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in tensors.items() if name.startswith(PARTS)}


def _tiny_from_diffusers(name: str) -> str:
    """Their decoder does not count the soft limit before its first convolution as a layer."""
    found = DIFFUSERS_TINY.match(name)
    assert found
    half, index, rest = found.groups()
    return f"{TINY_ENCODER}{index}.{rest}" if half == "encoder" else f"{TINY_DECODER}{int(index) + 1}.{rest}"


def _from_diffusers(name: str, levels: int) -> str:
    """diffusers' AutoencoderKL and VQModel -> the original names; their decoder counts its levels from the coarsest."""
    if found := DIFFUSERS_BLOCK.match(name):
        way, level, kind, index, rest = found.groups()
        place = f"{way}.{levels - 1 - int(level) if way == 'decoder.up' else level}"
        if kind == "resnets":
            return f"{place}.block.{index}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{place}.attn.{index}.{_attention(rest)}" if kind == "attentions" else f"{place}.{kind.removesuffix('rs')}.{rest}"
    if found := DIFFUSERS_MIDDLE.match(name):
        half, kind, index, rest = found.groups()
        if kind == "resnets":
            return f"{half}.mid.block_{1 + int(index)}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{half}.mid.attn_{1 + int(index)}.{_attention(rest)}"
    return name.replace("conv_norm_out", "norm_out")


def _attention(rest: str) -> str:
    layer, _, leaf = rest.rpartition(".")
    return f"{DIFFUSERS_ATTENTION.get(layer, layer)}.{leaf}"
