"""Names of tensors between the layouts in which the same networks are published."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")

WRAPPERS = ("module.", "_orig_mod.")                        # DataParallel and torch.compile put these before every name
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
OPEN_TEXT = "cond_stage_model.model."                       # OpenCLIP's tower of SD2
XL_FIRST, XL_SECOND, XL_ALONE = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model."
TEXT_WITHOUT_WRAPPER = tuple(TEXT + part for part in ("embeddings.", "encoder.", "final_layer_norm."))
NOT_IN_TEXT = re.compile(r".*\.position_ids$|logit_scale$|attn_mask$")
PROJECTION = "text_projection.weight"
VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")

DIFFUSERS_VAE = "decoder.up_blocks.0.resnets.0.norm1.weight"
DIFFUSERS_VAE_PARTS = MappingProxyType({
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
})


def plain_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """The names of a single file as the original trainers wrote them: no wrapper in front, `text_model.` in the text tower."""
    return {_plain(name): tensor for name, tensor in tensors.items()}


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return f"{TEXT}text_model.{name.removeprefix(TEXT)}" if name.startswith(TEXT_WITHOUT_WRAPPER) else name


def part(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The tensors whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def unet_part(tensors: Mapping[str, T]) -> dict[str, T]:
    """The U-Net of a checkpoint with plain names."""
    return part(tensors, UNET)


def text_part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The CLIP tower under this prefix in HF's names, without what is no weight of it; no number is copied."""
    found = {name: tensor for name, tensor in part(tensors, prefix).items() if not NOT_IN_TEXT.match(name)}
    return dict(_from_open_clip(found)) if in_open_clip_names(found) else found


def in_open_clip_names(names: Iterable[str]) -> bool:
    return any(name.startswith("transformer.resblocks.") for name in names)


OPEN_CLIP = MappingProxyType({
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj",
})
OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)$")


def _from_open_clip(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """OpenCLIP's names -> HF's. q, k and v are the thirds of one tensor there; the projection stands the other way round."""
    for name, tensor in tensors.items():
        found = OPEN_CLIP_LAYER.match(name)
        if found:
            layer = f"text_model.encoder.layers.{found[1]}"
            if found[2] == "attn.in_proj":
                for part_, third in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"{layer}.self_attn.{part_}_proj.{found[3]}", third
            else:
                yield f"{layer}.{OPEN_CLIP.get(found[2], found[2])}.{found[3]}", tensor
        elif name == "text_projection":
            yield PROJECTION, tensor.t()
        elif name == "positional_embedding":
            yield "text_model.embeddings.position_embedding.weight", tensor
        else:
            yield name.replace("token_embedding.", "text_model.embeddings.token_embedding.").replace(
                "ln_final.", "text_model.final_layer_norm."), tensor


def vae_part(tensors: Mapping[str, T]) -> dict[str, T]:
    """The VAE of a checkpoint, or of a file that holds a VAE alone, without what only its training needed; {} where there is none."""
    for prefix in (VAE, "vae."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = part(tensors, prefix)
            break
    if DIFFUSERS_VAE in tensors:
        tensors = dict(_vae_from_diffusers(tensors))
    return {name: tensor for name, tensor in tensors.items() if name.startswith(VAE_PARTS)}


def _vae_from_diffusers(tensors: Mapping[str, T]) -> Iterator[tuple[str, T]]:
    """Names of diffusers' AutoencoderKL -> the original ones; the decoder counts its levels from the other end."""
    levels = 1 + max(int(found[1]) for found in map(re.compile(r"decoder\.up_blocks\.(\d+)\.").match, tensors) if found)
    for name, tensor in tensors.items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda found: f"up.{levels - 1 - int(found[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda found: f"up.{levels - 1 - int(found[1])}.upsample.", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{1 + int(found[1])}", name)
        name = re.sub(r"mid_block\.attentions\.0\.(.+)\.(weight|bias)$", _attention_from_diffusers, name)
        yield name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out"), tensor


def _attention_from_diffusers(found: re.Match[str]) -> str:
    return f"mid.attn_1.{DIFFUSERS_VAE_PARTS.get(found[1], found[1])}.{found[2]}"


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same numbers as a linear layer [C, D] or a 1x1 convolution [C, D, 1, 1], whichever is asked for; unchanged if neither fits."""
    bare = tuple(tensor.shape)
    if bare != shape and bare[:2] == shape[:2] and set(bare[2:]) <= {1} and set(shape[2:]) <= {1}:
        return tensor.reshape(shape)
    return tensor
