"""Miniatures of every family beside Stable Diffusion 1, in the published single-file names, built as tests/tiny.py builds that one.

    sd2(...), sdxl(...), refiner(...), ldm_text(...), ldm_class(...), ldm(...)   -> dict of tensors
    FAMILIES                                                                  -> name -> such a function
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from tests import tiny
from tests.oracles import published_vae
from tests.tiny import POSITIONS, VOCABULARY, Shapes, _affine

Weights = dict[str, Tensor]
SIZE = 16                                                   # numbers for each size of a picture that SDXL is told


def open_clip_shapes(*, width: int = 64, layers: int = 4, projection: int = 0) -> Shapes:
    """A text tower in OpenCLIP's names; projection: numbers for the whole text."""
    shapes: Shapes = {"token_embedding.weight": (VOCABULARY, width), "positional_embedding": (POSITIONS, width)}
    for layer in (f"transformer.resblocks.{index}" for index in range(layers)):
        shapes |= _affine(f"{layer}.ln_1", width) | _affine(f"{layer}.ln_2", width)
        shapes |= {f"{layer}.attn.in_proj_weight": (3 * width, width), f"{layer}.attn.in_proj_bias": (3 * width,)}
        shapes |= _affine(f"{layer}.attn.out_proj", width, width)
        shapes |= _affine(f"{layer}.mlp.c_fc", 4 * width, width) | _affine(f"{layer}.mlp.c_proj", width, 4 * width)
    return shapes | _affine("ln_final", width) | {"text_projection": (width, projection or width)}


def bert_shapes(*, width: int = 64, layers: int = 3, inner: int = 128, vocabulary: int = 30522, positions: int = 77) -> Shapes:
    """The first models' text encoder in x-transformers' names, its unused head among them."""
    shapes: Shapes = {"token_emb.weight": (vocabulary, width), "pos_emb.emb.weight": (positions, width)}
    for layer in range(layers):
        attention, feed = f"attn_layers.layers.{2 * layer}", f"attn_layers.layers.{2 * layer + 1}"
        shapes |= _affine(f"{attention}.0", width) | _affine(f"{feed}.0", width)
        shapes |= {f"{attention}.1.{part}.weight": (inner, width) for part in ("to_q", "to_k", "to_v")}
        shapes |= _affine(f"{attention}.1.to_out", width, inner)
        shapes |= _affine(f"{feed}.1.net.0.0", 4 * width, width) | _affine(f"{feed}.1.net.2", width, 4 * width)
    return shapes | _affine("norm", width)


def _placed(shapes: Shapes, prefix: str) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _drawn(shapes: Shapes, seed: int, dtype: torch.dtype) -> Weights:
    return {name: tiny._drawn(name, shape, seed).to(dtype) for name, shape in shapes.items()}


def _vq(seed: int, *, mult: tuple[int, ...] = (1, 2, 3), latent: int = 3, codes: int = 64, **sizes: Any) -> Weights:
    found = published_vae.draw(published_vae.shapes(width=32, mult=mult, latent=latent, codes=codes, **sizes), seed)
    return {f"first_stage_model.{name}": tensor for name, tensor in found.items()}


def sd2(seed: int = 0, *, dtype: torch.dtype = torch.float32, in_channels: int = 4, label: int = 0, text_width: int = 64,
        prefix: str = "cond_stage_model.model.", buffers: bool = True) -> Weights:
    """in_channels 9 inpainting, 5 depth; label: unCLIP. prefix "conditioner.embedders.0.model.": SD-Turbo."""
    shapes = {
        **_placed(tiny.unet_shapes(context=text_width, linear=True, in_channels=in_channels, label=label), "model.diffusion_model."),
        **_placed(tiny.vae_shapes(), "first_stage_model."), **_placed(open_clip_shapes(width=text_width), prefix),
    }
    extra = dict(tiny.schedule_buffers()) if buffers else {}
    return {**_drawn(shapes, seed, dtype), f"{prefix}logit_scale": torch.tensor(4.6), **extra}


def upscaler(seed: int = 0, *, dtype: torch.dtype = torch.float32, text_width: int = 48) -> Weights:
    """The x4 upscaler of SD2: seven channels, a table of noise levels, first attentions that read the text on three levels."""
    shapes = {
        **_placed(tiny.unet_shapes(mult=(1, 2, 2, 4), depths=(0, 1, 1, 1), context=text_width, linear=True, in_channels=7, classes=1000,
                                   text_only=(True, True, True, False)), "model.diffusion_model."),
        **_placed(tiny.vae_shapes(mult=(1, 2, 4)), "first_stage_model."),
        **_placed(open_clip_shapes(width=text_width), "cond_stage_model.model."),
    }
    return _drawn(shapes, seed, dtype)


def sdxl(seed: int = 0, *, dtype: torch.dtype = torch.float32, in_channels: int = 4, markers: Mapping[str, Tensor] = MappingProxyType({}),
         text: tuple[int, int] = (64, 128), text_layers: tuple[int, int] = (4, 4), pooled: int = 96, size: int = SIZE,
         vae: Mapping[str, Any] = MappingProxyType({}), **unet: Any) -> Weights:
    """markers: root tensors such as v_pred. text, text_layers: of both towers. size: numbers for each size that it is told.
    unet: sizes of a distilled form. FULL_SDXL has the published sizes."""
    sizes = {"mult": (1, 2, 4), "depths": (0, 1, 2), "middle_depth": 2, **unet}
    shapes = {
        **_placed(tiny.unet_shapes(context=sum(text), linear=True, label=pooled + 6 * size, in_channels=in_channels, **sizes),
                  "model.diffusion_model."),
        **_placed(tiny.vae_shapes(**vae), "first_stage_model."),
        **_placed(tiny.text_shapes(width=text[0], layers=text_layers[0]), "conditioner.embedders.0.transformer."),
        **_placed(open_clip_shapes(width=text[1], layers=text_layers[1], projection=pooled), "conditioner.embedders.1.model."),
    }
    return {**_drawn(shapes, seed, dtype), **markers}


FULL_SDXL = MappingProxyType({
    "text": (768, 1280), "text_layers": (12, 32), "pooled": 1280, "size": 256, "vae": {"width": 128, "mult": (1, 2, 4, 4)},
    "width": 320, "depths": (0, 2, 10), "middle_depth": 10,
})


def refiner(seed: int = 0, *, dtype: torch.dtype = torch.float32) -> Weights:
    shapes = {
        **_placed(tiny.unet_shapes(context=128, linear=True, label=96 + 5 * SIZE, depths=(0, 2, 2, 0), middle_depth=2),
                  "model.diffusion_model."),
        **_placed(tiny.vae_shapes(), "first_stage_model."),
        **_placed(open_clip_shapes(width=128, projection=96), "conditioner.embedders.0.model."),
    }
    return _drawn(shapes, seed, dtype)


def ldm_text(seed: int = 0, *, dtype: torch.dtype = torch.float32, large: bool = True, boxes: bool = False) -> Weights:
    """text2img-large with a KL VAE, text2img256 or (boxes) layout2img with a VQ one."""
    text = bert_shapes(**({"vocabulary": 8192, "positions": 92} if boxes else {}))
    sizes = {} if large else {"mult": (1, 2, 3, 4), "depths": (0, 1, 1, 1), "in_channels": 3, "out_channels": 3}
    weights = _drawn({**_placed(tiny.unet_shapes(**sizes), "model.diffusion_model."), **_placed(text, "cond_stage_model.transformer."),
                      **(_placed(tiny.vae_shapes(), "first_stage_model.") if large else {})}, seed, dtype)
    head = {"cond_stage_model.transformer.to_logits.weight": torch.zeros(8, 64)}
    return {**weights, **head, **({} if large else _vq(seed))}


def ldm_class(seed: int = 0, *, dtype: torch.dtype = torch.float32, classes: int = 1001) -> Weights:
    """cin256-v2."""
    sizes = {"mult": (1, 2, 3), "depths": (0, 1, 1), "in_channels": 3, "out_channels": 3}
    weights = _drawn({**_placed(tiny.unet_shapes(**sizes), "model.diffusion_model."), "cond_stage_model.embedding.weight": (classes, 64)},
                     seed, dtype)
    return {**weights, **_vq(seed)}


def ldm(seed: int = 0, *, dtype: torch.dtype = torch.float32, kind: str = "faces") -> Weights:
    """Without words: "faces", "churches", "larger" (bsr_sr), "holes" (inpainting_big, its VAE repeated as the published file does)."""
    unet = {
        "faces": {"mult": (1, 2, 3), "depths": (0, 1, 1), "in_channels": 3, "out_channels": 3},
        "churches": {"mult": (1, 2, 2, 4), "depths": (1, 1, 1, 1), "scale_shift": True, "updown": True},
        "larger": {"mult": (1, 2, 4), "depths": (0, 0, 1), "in_channels": 6, "out_channels": 3},
        "holes": {"mult": (1, 2, 3), "depths": (0, 1, 1), "in_channels": 7, "out_channels": 3, "updown": True},
    }[kind]
    weights = _drawn(_placed(tiny.unet_shapes(context=0, **unet), "model.diffusion_model."), seed, dtype)
    if kind == "churches":
        return {**weights, **_drawn(_placed(tiny.vae_shapes(), "first_stage_model."), seed, dtype), "scale_factor": torch.tensor(0.22)}
    vae = _vq(seed, **({"middle": False} if kind == "holes" else {}))
    again = {name.replace("first_stage_model.", "cond_stage_model."): tensor.clone() for name, tensor in vae.items()} if kind == "holes" else {}
    return {**weights, **vae, **again}


FAMILIES: Mapping[str, Callable[..., Weights]] = MappingProxyType({
    "SD1": tiny.sd1, "SD1 inpainting": partial(tiny.sd1, in_channels=9), "SD1 edit": partial(tiny.sd1, in_channels=8),
    "SD2": sd2, "SD2 inpainting": partial(sd2, in_channels=9), "SD2 depth": partial(sd2, in_channels=5), "SD2 unCLIP": partial(sd2, label=96),
    "SD-Turbo": partial(sd2, prefix="conditioner.embedders.0.model."), "SD2 x4 upscaler": upscaler,
    "SDXL": sdxl, "SDXL inpainting": partial(sdxl, in_channels=9), "SDXL edit": partial(sdxl, in_channels=8), "SDXL refiner": refiner,
    "SDXL v": partial(sdxl, markers={"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}),
    "CosXL": partial(sdxl, markers={"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)}),
    "Playground 2.5": partial(sdxl, markers={"edm_mean": torch.tensor([-1.6574, 1.886, -1.383, 2.5155])[None, :, None, None],
                                             "edm_std": torch.tensor([8.4927, 5.9022, 6.5498, 5.2299])[None, :, None, None]}),
    "SSD-1B": partial(sdxl, middle_depth=-1, up_depths=((0, 0, 0), (1, 1, 2), (3, 2, 2))),
    "KOALA": partial(sdxl, middle_depth=-2, res_blocks=1),
    "LDM text2img-large": ldm_text, "LDM text2img256": partial(ldm_text, large=False), "LDM layout2img": partial(ldm_text, large=False, boxes=True),
    "LDM cin256": ldm_class, "LDM faces": ldm, "LDM churches": partial(ldm, kind="churches"),
    "LDM bsr_sr": partial(ldm, kind="larger"), "LDM inpainting_big": partial(ldm, kind="holes"),
})
