"""Miniature models of the true topology, in the published single-file key layout, for tests that need a model in a second.

Names and shapes are written out here from the published architecture alone (Rombach et al. 2022, arXiv:2112.10752; Radford et al. 2021,
arXiv:2103.00020), not taken from our networks, so that a test against them can fail. Every tensor is drawn from its own seed
(its name and `seed`), none is zero, and sizes of the draws keep block outputs near a standard deviation of one.

    sd1(seed)                 -> dict of tensors: U-Net, VAE, text tower, and the buffers that such files carry
    save_sd1(path, seed=...)  -> the same as a .safetensors file
    save_vae(path, seed=...)  -> a VAE alone, names at the root
"""
from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
VOCABULARY, POSITIONS = 49408, 77
MULT = (1, 2, 3, 3)                                         # published 1, 2, 4, 4: the same names, half the size
QUIET = 0.4                                                 # gain of the last layer of a residual branch
VAE_MEAN, VAE_LOGVAR = 4.0, -6.0                            # spread of the encoder's mean; its log variance


def _affine(name: str, *shape: int) -> Shapes:
    """A weight of this shape and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _resblock(name: str, before: int, after: int, time: int, scale_shift: bool = False) -> Shapes:
    shapes = {
        **_affine(f"{name}.in_layers.0", before), **_affine(f"{name}.in_layers.2", after, before, 3, 3),
        **_affine(f"{name}.emb_layers.1", 2 * after if scale_shift else after, time),
        **_affine(f"{name}.out_layers.0", after), **_affine(f"{name}.out_layers.3", after, after, 3, 3),
    }
    return shapes if before == after else {**shapes, **_affine(f"{name}.skip_connection", after, before, 1, 1)}


def _attention(name: str, width: int, context: int) -> Shapes:
    return {
        f"{name}.to_q.weight": (width, width), f"{name}.to_k.weight": (width, context), f"{name}.to_v.weight": (width, context),
        **_affine(f"{name}.to_out.0", width, width),
    }


def _transformer(name: str, width: int, context: int, depth: int, linear: bool, text_only: bool = False) -> Shapes:
    projection = (width, width) if linear else (width, width, 1, 1)
    shapes = {**_affine(f"{name}.norm", width), **_affine(f"{name}.proj_in", *projection)}
    for block in (f"{name}.transformer_blocks.{index}" for index in range(depth)):
        shapes |= _attention(f"{block}.attn1", width, context if text_only else width) | _attention(f"{block}.attn2", width, context)
        shapes |= _affine(f"{block}.ff.net.0.proj", 8 * width, width) | _affine(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _affine(f"{block}.{norm}", width)
    return shapes | _affine(f"{name}.proj_out", *projection)


def _cells(name: str, width: int) -> Shapes:
    """The attention of models without a text."""
    return {**_affine(f"{name}.norm", width), **_affine(f"{name}.qkv", 3 * width, width, 1), **_affine(f"{name}.proj_out", width, width, 1)}


def unet_shapes(
    *, width: int = 32, mult: tuple[int, ...] = MULT, res_blocks: int = 2, depths: tuple[int, ...] = (1, 1, 1, 0),
    middle_depth: int = 1, context: int = 64, in_channels: int = 4, out_channels: int = 4, linear: bool = False, label: int = 0,
    up_depths: tuple[tuple[int, ...], ...] = (), text_only: tuple[bool, ...] = (), classes: int = 0, scale_shift: bool = False,
    updown: bool = False,
) -> Shapes:
    """The U-Net's names without prefix. depths: transformer blocks of each level; label: inputs of the label MLP, classes: rows of the
    label table, 0 = none. context 0: attention of cells only. up_depths: of each output block where they differ from depths, finest
    level first, its first block first. middle_depth -1: one residual block only; -2: nothing. updown: residual blocks change the size."""
    time, channels = 4 * width, width

    def attention(name: str, level: int, depth: int) -> Shapes:
        only = bool(text_only) and text_only[level]
        return _transformer(name, channels, context, depth, linear, only) if context else _cells(name, channels)

    shapes = {**_affine("time_embed.0", time, width), **_affine("time_embed.2", time, time)}
    if label:
        shapes |= _affine("label_emb.0.0", time, label) | _affine("label_emb.0.2", time, time)
    if classes:
        shapes |= {"label_emb.weight": (classes, time)}
    shapes |= _affine("input_blocks.0.0", width, in_channels, 3, 3)
    skips, index = [width], 1
    for level, factor in enumerate(mult):
        for _ in range(res_blocks):
            shapes |= _resblock(f"input_blocks.{index}.0", channels, width * factor, time, scale_shift)
            channels = width * factor
            if depths[level]:
                shapes |= attention(f"input_blocks.{index}.1", level, depths[level])
            skips.append(channels)
            index += 1
        if level < len(mult) - 1:
            shapes |= (_resblock(f"input_blocks.{index}.0", channels, channels, time, scale_shift) if updown
                       else _affine(f"input_blocks.{index}.0.op", channels, channels, 3, 3))
            skips.append(channels)
            index += 1
    if middle_depth > -2:
        shapes |= _resblock("middle_block.0", channels, channels, time, scale_shift)
    if middle_depth >= 0:
        shapes |= _transformer("middle_block.1", channels, context, middle_depth, linear) if context else _cells("middle_block.1", channels)
        shapes |= _resblock("middle_block.2", channels, channels, time, scale_shift)
    index = 0
    for level, factor in reversed(list(enumerate(mult))):
        for block in range(res_blocks + 1):
            depth = up_depths[level][block] if up_depths else depths[level]
            shapes |= _resblock(f"output_blocks.{index}.0", channels + skips.pop(), width * factor, time, scale_shift)
            channels = width * factor
            if depth:
                shapes |= attention(f"output_blocks.{index}.1", level, depth)
            if level and block == res_blocks:
                last = f"output_blocks.{index}.{2 if depth else 1}"
                shapes |= _resblock(last, channels, channels, time, scale_shift) if updown else _affine(f"{last}.conv", channels, channels, 3, 3)
            index += 1
    return shapes | _affine("out.0", channels) | _affine("out.2", out_channels, channels, 3, 3)


def _vae_block(name: str, before: int, after: int) -> Shapes:
    shapes = {
        **_affine(f"{name}.norm1", before), **_affine(f"{name}.conv1", after, before, 3, 3),
        **_affine(f"{name}.norm2", after), **_affine(f"{name}.conv2", after, after, 3, 3),
    }
    return shapes if before == after else {**shapes, **_affine(f"{name}.nin_shortcut", after, before, 1, 1)}


def _vae_middle(name: str, width: int) -> Shapes:
    shapes = {**_vae_block(f"{name}.block_1", width, width), **_affine(f"{name}.attn_1.norm", width)}
    for part in ("q", "k", "v", "proj_out"):
        shapes |= _affine(f"{name}.attn_1.{part}", width, width, 1, 1)
    return shapes | _vae_block(f"{name}.block_2", width, width)


def vae_shapes(*, width: int = 32, mult: tuple[int, ...] = MULT, res_blocks: int = 2, latent: int = 4) -> Shapes:
    """The KL autoencoder's names without prefix."""
    top = width * mult[-1]
    shapes, channels = {**_affine("encoder.conv_in", width, 3, 3, 3)}, width
    for level, factor in enumerate(mult):
        for block in range(res_blocks):
            shapes |= _vae_block(f"encoder.down.{level}.block.{block}", channels, width * factor)
            channels = width * factor
        if level < len(mult) - 1:
            shapes |= _affine(f"encoder.down.{level}.downsample.conv", channels, channels, 3, 3)
    shapes |= _vae_middle("encoder.mid", top) | _affine("encoder.norm_out", top) | _affine("encoder.conv_out", 2 * latent, top, 3, 3)
    shapes |= _affine("decoder.conv_in", top, latent, 3, 3) | _vae_middle("decoder.mid", top)
    for level, factor in reversed(list(enumerate(mult))):
        for block in range(res_blocks + 1):
            shapes |= _vae_block(f"decoder.up.{level}.block.{block}", channels, width * factor)
            channels = width * factor
        if level:
            shapes |= _affine(f"decoder.up.{level}.upsample.conv", channels, channels, 3, 3)
    shapes |= _affine("decoder.norm_out", width) | _affine("decoder.conv_out", 3, width, 3, 3)
    return shapes | _affine("quant_conv", 2 * latent, 2 * latent, 1, 1) | _affine("post_quant_conv", latent, latent, 1, 1)


def text_shapes(*, width: int = 64, layers: int = 4, projection: str = "text_model.") -> Shapes:
    """The CLIP text tower's names; `projection` is the wrapper's name before them ("" in the oldest files)."""
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (VOCABULARY, width), "embeddings.position_embedding.weight": (POSITIONS, width),
    }
    for layer in (f"encoder.layers.{index}" for index in range(layers)):
        for part in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes |= _affine(f"{layer}.self_attn.{part}", width, width)
        shapes |= _affine(f"{layer}.layer_norm1", width) | _affine(f"{layer}.layer_norm2", width)
        shapes |= _affine(f"{layer}.mlp.fc1", 4 * width, width) | _affine(f"{layer}.mlp.fc2", width, 4 * width)
    shapes |= _affine("final_layer_norm", width)
    return {projection + name: shape for name, shape in shapes.items()}


def _gain(name: str) -> float:
    """How much larger than 1 / sqrt(inputs) the draws of this layer are; behind a SiLU 1.6 keeps the spread."""
    if name.endswith(("out_layers.3.weight", "to_out.0.weight", "ff.net.2.weight", "fc2.weight", "out_proj.weight")):
        return QUIET
    if name.endswith("skip_connection.weight"):
        return 0.9                                          # blocks add up; their joints take a little away
    if name.endswith("conv2.weight"):
        return 2 * QUIET
    if name.endswith("attn_1.proj_out.weight"):
        return 3 * QUIET                                    # a mean over all pixels is small
    if name.endswith(("to_q.weight", "q_proj.weight", "attn_1.q.weight")):
        return 2.0                                          # attention that attends to something
    if name.endswith("decoder.conv_in.weight"):
        return 0.25                                         # latents come unscaled, with a spread of about 5
    if name.endswith("decoder.conv_out.weight"):
        return 0.8
    if name.endswith(("out.2.weight", "conv_out.weight", "emb_layers.1.weight", "time_embed.2.weight", "norm_out.weight")):
        return 1.6
    return 1.0


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One tensor, float32, the same for the same name, shape and seed."""
    generator = torch.Generator().manual_seed((zlib.crc32(name.encode()) << 16) + seed)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("quant_conv.bias") and "post_" not in name:
        return 0.05 * noise + torch.tensor([0.0, VAE_LOGVAR]).repeat_interleave(shape[0] // 2)
    if name.endswith(".bias"):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise                              # the weight of a norm
    if "embedding.weight" in name:
        return noise if "token" in name else 0.3 * noise
    if name.endswith("quant_conv.weight"):
        return torch.eye(shape[0])[:, :, None, None] + 0.05 * noise
    if name.endswith("encoder.conv_out.weight"):
        noise *= torch.tensor([1.6 * VAE_MEAN, 0.3]).repeat_interleave(shape[0] // 2)[:, None, None, None]
    return noise * (_gain(name) / math.sqrt(math.prod(shape[1:])))


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights of these shapes, float32, none of them zero."""
    return {name: _drawn(name, shape, seed) for name, shape in shapes.items()}


def sd1_shapes(
    *, width: int = 32, vae_width: int = 32, text_width: int = 64, text_layers: int = 4, in_channels: int = 4,
    mult: tuple[int, ...] = MULT, legacy_text: bool = False,
) -> Shapes:
    """All trained tensors of a Stable Diffusion 1 file; the published sizes are width 320, vae_width 128, text_width 768,
    text_layers 12, mult (1, 2, 4, 4)."""
    return {
        **{f"model.diffusion_model.{name}": shape
           for name, shape in unet_shapes(width=width, mult=mult, context=text_width, in_channels=in_channels).items()},
        **{f"first_stage_model.{name}": shape for name, shape in vae_shapes(width=vae_width, mult=mult).items()},
        **{f"cond_stage_model.transformer.{name}": shape
           for name, shape in text_shapes(width=text_width, layers=text_layers, projection="" if legacy_text else "text_model.").items()},
    }


def schedule_buffers() -> Iterator[tuple[str, Tensor]]:
    """The noise schedule as such files carry it, float32 (1000,): square roots of beta evenly from 0.00085 to 0.012."""
    betas = torch.linspace(0.00085 ** 0.5, 0.0120 ** 0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = torch.cumprod(1 - betas, 0)
    yield "betas", betas.float()
    yield "alphas_cumprod", alphas_cumprod.float()
    yield "sqrt_alphas_cumprod", alphas_cumprod.sqrt().float()
    yield "sqrt_one_minus_alphas_cumprod", (1 - alphas_cumprod).sqrt().float()


def sd1(
    seed: int = 0, *, dtype: torch.dtype = torch.float32, buffers: bool = True, position_ids: bool = True, legacy_text: bool = False,
    width: int = 32, vae_width: int = 32, text_width: int = 64, text_layers: int = 4, in_channels: int = 4,
    mult: tuple[int, ...] = MULT,
) -> dict[str, Tensor]:
    """A Stable Diffusion 1 checkpoint: name -> tensor. Schedule buffers stay float32 and position_ids int64 whatever the dtype."""
    shapes = sd1_shapes(width=width, vae_width=vae_width, text_width=text_width, text_layers=text_layers, in_channels=in_channels,
                        mult=mult, legacy_text=legacy_text)
    weights = {name: _drawn(name, shape, seed).to(dtype) for name, shape in shapes.items()}
    if position_ids:
        wrapper = "" if legacy_text else "text_model."
        weights[f"cond_stage_model.transformer.{wrapper}embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    return weights | dict(schedule_buffers()) if buffers else weights


def save_sd1(
    path: str | Path, *, metadata: Mapping[str, str] | None = None, seed: int = 0, dtype: torch.dtype = torch.float16, **sizes,
) -> Path:
    """Write `sd1(seed, **sizes)` as a safetensors file; metadata becomes its `__metadata__`."""
    save_file(sd1(seed, dtype=dtype, **sizes), path, metadata=dict(metadata or {}))
    return Path(path)


def save_vae(path: str | Path, *, seed: int = 1, dtype: torch.dtype = torch.float16, prefix: str = "", **sizes) -> Path:
    """Write a KL autoencoder alone as a safetensors file."""
    save_file({prefix + name: tensor.to(dtype) for name, tensor in draw(vae_shapes(**sizes), seed).items()}, path)
    return Path(path)
