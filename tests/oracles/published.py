"""The same weights in other people's networks: diffusers' U-Net and VAE, transformers' CLIP tower, through diffusers' own converters.

`open_oracles()` gives the modules; import diffusers through it, so that a torchvision built for another torch does not stop the import.
"""
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from modules.core.vision_operators import declare


@cache
def open_oracles() -> SimpleNamespace:
    """diffusers and transformers, imported."""
    declare()
    import diffusers
    import transformers
    from diffusers.loaders import single_file_utils
    return SimpleNamespace(diffusers=diffusers, transformers=transformers, convert=single_file_utils)


def unet_settings(
    *, width: int = 320, mult: tuple[int, ...] = (1, 2, 4, 4), context: int = 768, heads: int | tuple[int, ...] = 8, linear: bool = False,
) -> dict[str, Any]:
    """diffusers' configuration of an SD1 or SD2 U-Net; the defaults are the published SD1.5. Its `attention_head_dim` means heads."""
    return {
        "sample_size": 64, "in_channels": 4, "out_channels": 4, "block_out_channels": tuple(width * factor for factor in mult),
        "layers_per_block": 2, "cross_attention_dim": context, "attention_head_dim": heads, "use_linear_projection": linear,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    }


def sdxl_settings() -> dict[str, Any]:
    """diffusers' configuration of the SDXL base U-Net."""
    return {
        "sample_size": 128, "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
        "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10), "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    }


def vae_settings(*, width: int = 128, mult: tuple[int, ...] = (1, 2, 4, 4)) -> dict[str, Any]:
    """diffusers' configuration of a KL-f8 VAE; the defaults are the published one."""
    return {
        "sample_size": 256, "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "block_out_channels": tuple(width * factor for factor in mult),
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }


def clip_settings(*, width: int = 768, layers: int = 12, heads: int = 12, activation: str = "quick_gelu") -> dict[str, Any]:
    """transformers' configuration of a CLIP text tower; the defaults are CLIP-L."""
    return {
        "vocab_size": 49408, "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": 77, "hidden_act": activation,
        "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407,
    }


def loaded(make, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network of theirs made on the meta device, then filled strictly with these tensors."""
    with torch.device("meta"):
        network = make()
    network.load_state_dict(dict(weights), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def unet(checkpoint: Mapping[str, Tensor], settings: Mapping[str, Any]) -> nn.Module:
    """UNet2DConditionModel with the weights of a single-file checkpoint (names with prefix)."""
    them = open_oracles()
    converted = them.convert.convert_ldm_unet_checkpoint(dict(checkpoint), config=dict(settings))
    return loaded(lambda: them.diffusers.UNet2DConditionModel(**settings), converted)


def vae(checkpoint: Mapping[str, Tensor], settings: Mapping[str, Any]) -> nn.Module:
    """diffusers' AutoencoderKL with the weights of a single-file checkpoint (names with prefix)."""
    them = open_oracles()
    converted = them.convert.convert_ldm_vae_checkpoint(dict(checkpoint), config=dict(settings))
    return loaded(lambda: them.diffusers.AutoencoderKL(**settings), converted)


def text(checkpoint: Mapping[str, Tensor], settings: Mapping[str, Any]) -> nn.Module:
    """transformers' CLIPTextModel with the weights of a single-file checkpoint (names with prefix).

    Not on the meta device: its position_ids and masks are computed when it is made.
    """
    them = open_oracles()
    found = {name.removeprefix("cond_stage_model.transformer."): tensor for name, tensor in checkpoint.items()
             if name.startswith("cond_stage_model.transformer.") and not name.endswith("position_ids")}
    model = them.transformers.CLIPTextModel(them.transformers.CLIPTextConfig(**settings)).eval().requires_grad_(False)
    names = model.state_dict().keys()
    if not any(name.startswith("text_model.") for name in names):           # transformers from 5.6 on has no wrapper
        found = {name.removeprefix("text_model."): tensor for name, tensor in found.items()}
    model.load_state_dict(found, strict=True)
    return model


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest absolute difference, in standard deviations of the oracle's answer."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().std())
