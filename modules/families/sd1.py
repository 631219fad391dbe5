"""Stable Diffusion 1.x: one CLIP-L tower, a U-Net with 8 heads, 512 px. Rombach et al. 2022, arXiv:2112.10752."""
from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from modules.core.errors import CheckpointError
from modules.families.autoencoders import autoencoder_from
from modules.families.base import Family, Header, LatentFormat, Model, Weights
from modules.families.keys import TEXT, UNET, VAE, plain_names
from modules.families.parts import tower_from, unet_from
from modules.families.shapes import shapes_of, size
from modules.sampling.prediction import Prediction, scaled_linear_alphas

NO_HINTS: Mapping[str, str] = MappingProxyType({})
KINDS: Mapping[str, Literal["eps", "v"]] = MappingProxyType({
    "eps": "eps", "epsilon": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v", "v_pred": "v",
})
SPECIAL = MappingProxyType({8: "an instruct-pix2pix model", 9: "an inpainting model"})


def recognises(header: Header) -> bool:
    """A U-Net beside a CLIP tower in HF names; or a U-Net alone whose transformers have convolutions before and behind them."""
    if not any(name.startswith(UNET) for name in header):
        return False
    if any(name.startswith(TEXT + "text_model.") for name in header):
        return True
    other_text = any(name.startswith(("cond_stage_model.", "conditioner.")) for name in header)
    conv = len(header.get(f"{UNET}middle_block.1.proj_in.weight", ())) == 4
    return conv and not other_text and not any(name.startswith(f"{UNET}label_emb.") for name in header)


def build(weights: Weights, hints: Mapping[str, str] = NO_HINTS) -> Model:
    """Networks that hold these very tensors, on the CPU, in the file's own float type.

    hints: what a person or the file's metadata says beside the tensors. "prediction" ("eps", "v" or "Auto"), "modelspec.prediction_type",
    "easel.heads", "easel.norm_groups".
    Raises CheckpointError naming the first missing tensor or the missing part.
    """
    weights = plain_names(weights)
    _check_parts(weights)
    unet, vae, tower = unet_from(weights, hints), autoencoder_from(weights, hints), tower_from(weights, hints)
    if vae.config.latent != unet.config.out_channels:
        raise CheckpointError(f"The VAE makes latents of {vae.config.latent} channels and the U-Net of {unet.config.out_channels}; "
                              "choose another VAE.")
    if tower.width != unet.config.context:
        raise CheckpointError(f"The text encoder gives {tower.width} numbers a token and the U-Net reads {unet.config.context}; "
                              "the file was put together from parts that do not fit.")
    kind, source = prediction_kind(hints)
    return Model(
        family=SD1, unet=unet, vae=vae, text=(tower,),
        prediction=Prediction(kind, alphas_of(weights)),
        latent=LatentFormat(channels=vae.config.latent, downscale=vae.config.downscale, scale=scale_of(weights)),
        native_size=SD1.native_size,
        device=torch.device("cpu"), dtype=next(unet.parameters()).dtype,
        hints={"prediction": f"{kind} ({source})", **{name: said for name, said in hints.items() if name.startswith("easel.")}},
    )


def _check_parts(weights: Weights) -> None:
    channels = size(shapes_of(weights), f"{UNET}input_blocks.0.0.weight", 1)
    if channels != 4:
        what = SPECIAL.get(channels, f"a variant with {channels} input channels")
        raise CheckpointError(f"This file seems to be {what} of Stable Diffusion 1, which cannot be used yet; choose a plain checkpoint.")
    if not any(name.startswith((VAE, "vae.")) for name in weights):
        raise CheckpointError("This file holds no VAE (first_stage_model.*); choose one under SD VAE, or a full checkpoint.")
    if not any(name.startswith(TEXT) for name in weights):
        raise CheckpointError("This file holds no text encoder (cond_stage_model.*); choose a full checkpoint.")


def prediction_kind(hints: Mapping[str, str]) -> tuple[Literal["eps", "v"], str]:
    """What the network predicts, and who says so: "chosen", "metadata" or "guessed". Raises CheckpointError for an unknown kind."""
    for source, name in (("chosen", "prediction"), ("metadata", "modelspec.prediction_type")):
        said = hints.get(name, "").strip().lower()
        if said not in ("", "auto"):
            if said not in KINDS:
                raise CheckpointError(f"The prediction type {said[:40]!r} is not known; choose eps or v.")
            return KINDS[said], source
    return "eps", "guessed"


def alphas_of(weights: Weights) -> Tensor:
    """The schedule that the file carries, or the family's where it carries none, in too few bits, or no falling one; (1000,) float32."""
    stored = weights.get("alphas_cumprod")
    if stored is None or stored.dtype != torch.float32 or stored.shape != (1000,):
        return scaled_linear_alphas()
    falling = bool(((stored > 0) & (stored < 1)).all()) and bool((stored.diff() < 0).all())      # false for NaN as well
    return stored if falling else scaled_linear_alphas()


def scale_of(weights: Weights) -> float:
    """What latents are multiplied by: the file's own number where it carries one in full, else the family's."""
    stored = weights.get("scale_factor")
    scale = float(stored) if stored is not None and stored.dtype == torch.float32 and stored.numel() == 1 else math.nan
    return scale if 0 < scale < math.inf else SD1.latent.scale


SD1 = Family(
    name="SD1",
    native_size=512,                                        # pixels
    latent=LatentFormat(channels=4, downscale=8, scale=0.18215),
    recognises=recognises,
    build=build,
)
