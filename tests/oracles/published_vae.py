"""The published first stages, their names and shapes written out from the architecture, and the same weights in diffusers' networks.

The names of diffusers are derived here a second time, in the other direction and apart from ours, so that a mistake in either shows.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests import tiny
from tests.oracles.published import loaded, open_oracles

Shapes = dict[str, tuple[int, ...]]

ZOO: Mapping[str, dict[str, Any]] = {                       # Rombach et al. 2022, arXiv:2112.10752, table 8 and the published configurations
    "kl-f4": {"mult": (1, 2, 4), "latent": 3},
    "kl-f4 of the x4 upscaler": {"mult": (1, 2, 4), "latent": 4},
    "kl-f8": {"mult": (1, 2, 4, 4), "latent": 4},
    "kl-f16": {"mult": (1, 1, 2, 2, 4), "latent": 16, "attention": (4,)},
    "kl-f32": {"mult": (1, 1, 2, 2, 4, 4), "latent": 64, "attention": (4, 5)},
    "vq-f4": {"mult": (1, 2, 4), "latent": 3, "codes": 8192},
    "vq-f4-noattn": {"mult": (1, 2, 4), "latent": 3, "codes": 8192, "middle": False},
    "vq-f8": {"mult": (1, 2, 2, 4), "latent": 4, "codes": 16384, "attention": (3,)},
    "vq-f8-n256": {"mult": (1, 2, 2, 4), "latent": 4, "codes": 256, "attention": (3,)},
    "vq-f16": {"mult": (1, 1, 2, 2, 4), "latent": 8, "codes": 16384, "attention": (4,)},
}


def _attention(name: str, width: int) -> Shapes:
    shapes: Shapes = {f"{name}.norm.weight": (width,), f"{name}.norm.bias": (width,)}
    for part in ("q", "k", "v", "proj_out"):
        shapes |= {f"{name}.{part}.weight": (width, width, 1, 1), f"{name}.{part}.bias": (width,)}
    return shapes


def shapes(*, width: int = 128, mult: tuple[int, ...], latent: int, codes: int = 0, attention: tuple[int, ...] = (),
           middle: bool = True, res_blocks: int = 2) -> Shapes:
    """One of the zoo in the original names, 128 channels wide as published or narrower. attention: levels that have it."""
    found = tiny.vae_shapes(width=width, mult=mult, res_blocks=res_blocks, latent=latent)
    if not middle:
        found = {name: shape for name, shape in found.items() if ".mid.attn_1." not in name}
    for level in attention:
        for block in range(res_blocks):
            found |= _attention(f"encoder.down.{level}.attn.{block}", width * mult[level])
        for block in range(res_blocks + 1):
            found |= _attention(f"decoder.up.{level}.attn.{block}", width * mult[level])
    if codes:
        found |= {"encoder.conv_out.weight": (latent, width * mult[-1], 3, 3), "encoder.conv_out.bias": (latent,),
                  "quant_conv.weight": (latent, latent, 1, 1), "quant_conv.bias": (latent,), "quantize.embedding.weight": (codes, latent)}
    return found


def draw(names: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights none of which is zero; those of a VQ's encoder are spread about its codebook."""
    gaussian = "quantize.embedding.weight" not in names
    special = () if gaussian else ("encoder.conv_out.", "quant_conv.", "quantize.")
    found = tiny.draw({name: shape for name, shape in names.items() if not name.startswith(special) or not special}, seed)
    for number, name in enumerate(name for name in names if special and name.startswith(special)):
        noise = torch.randn(names[name], generator=torch.Generator().manual_seed(1000 + number + seed))
        inputs = max(1, noise[0].numel()) if noise.dim() == 4 else 1
        found[name] = noise * ({"weight": 1.6, "bias": 0.1}[name.rsplit(".", 1)[-1]] / inputs ** 0.5)
    return found


def to_diffusers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names -> those of diffusers' AutoencoderKL and VQModel; linear layers in place of 1x1 convolutions in the attention."""
    top = max(int(found[1]) for found in (re.match(r"decoder\.up\.(\d+)", name) for name in weights) if found)
    return {_name(name, top): tensor.flatten(1) if re.search(r"attn(_1)?\.(\d\.)?(q|k|v|proj_out)\.weight", name) else tensor
            for name, tensor in weights.items()}


def _name(name: str, top: int) -> str:
    words, made = name.split("."), []
    while words:
        word = words.pop(0)
        if word in ("down", "up"):
            level = int(words.pop(0))
            made += [f"{word}_blocks", str(level if word == "down" else top - level)]
        elif word in ("block", "attn"):
            made += [{"block": "resnets", "attn": "attentions"}[word], words.pop(0)]
        elif word in ("downsample", "upsample"):
            made += [f"{word}rs", "0"]
        elif word in ("block_1", "block_2"):
            made += ["resnets", str(int(word[-1]) - 1)]
        elif word == "attn_1":
            made += ["attentions", "0"]
        else:
            made.append({"mid": "mid_block", "nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out", "q": "to_q", "k": "to_k",
                         "v": "to_v", "proj_out": "to_out.0"}.get(word, word))
    return ".".join("group_norm" if word == "norm" and "attentions" in made else word for word in made)


def settings(*, width: int = 128, mult: tuple[int, ...], latent: int, codes: int = 0, attention: tuple[int, ...] = (),
             middle: bool = True) -> dict[str, Any]:
    """diffusers' configuration of one of the zoo."""
    downs = tuple("AttnDownEncoderBlock2D" if level in attention else "DownEncoderBlock2D" for level in range(len(mult)))
    ups = tuple("AttnUpDecoderBlock2D" if level in attention else "UpDecoderBlock2D" for level in reversed(range(len(mult))))
    return {
        "sample_size": 256, "latent_channels": latent, "layers_per_block": 2, "block_out_channels": tuple(width * factor for factor in mult),
        "down_block_types": downs, "up_block_types": ups, "mid_block_add_attention": middle,
        **({"num_vq_embeddings": codes} if codes else {}),
    }


def network(**sizes: Any) -> nn.Module:
    """diffusers' network with random weights; on the meta device under torch.device("meta")."""
    them = open_oracles().diffusers
    made: nn.Module = (them.VQModel if sizes.get("codes") else them.AutoencoderKL)(**settings(**sizes))
    return made


def vae(weights: Mapping[str, Tensor], **sizes: Any) -> nn.Module:
    """diffusers' network with these weights, whose names are the original ones."""
    return loaded(lambda: network(**sizes), to_diffusers(weights))


def tiny_vae(*, width: int = 64, latent: int = 4, seed: int = 0) -> nn.Module:
    """diffusers' AutoencoderTiny with weights drawn so that nothing dies behind its ReLUs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made: nn.Module = open_oracles().diffusers.AutoencoderTiny(
            encoder_block_out_channels=(width,) * 4, decoder_block_out_channels=(width,) * 4, latent_channels=latent)
    return made.eval().requires_grad_(False)


def original_tiny(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of Bohan's own files, both halves in one: their decoder begins with a layer that has no weights."""
    found = {}
    for name, tensor in theirs.items():
        half, _, index, rest = name.split(".", 3)
        found[f"taesd_{half}.{int(index) + (half == 'decoder')}.{rest}"] = tensor
    return found
