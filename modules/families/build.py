"""The steps that building a model of any family ends with: parts there and fitting, put together."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from modules.core.errors import CheckpointError
from modules.families.autoencoders import autoencoder_from
from modules.families.base import Family, LatentFormat, Model, Weights
from modules.families.keys import VAE
from modules.families.noise import scale_of
from modules.families.parts import unet_from
from modules.sampling.prediction import Prediction


def check_parts(weights: Weights, *text: str) -> None:
    """Raises CheckpointError if the file has no VAE, or lacks one of the text encoders under these prefixes."""
    if not any(name.startswith((VAE, "vae.")) for name in weights):
        raise CheckpointError("This file holds no VAE (first_stage_model.*); choose one under SD VAE, or a full checkpoint.")
    for prefix in text:
        if not any(name.startswith(prefix) for name in weights):
            raise CheckpointError(f"This file holds no text encoder ({prefix}*); choose a full checkpoint.")


def assembled(family: Family, weights: Weights, hints: Mapping[str, str], *, text: tuple[Any, ...], prediction: tuple[Prediction, str],
              variant: str = "", latent: LatentFormat | None = None, native_size: int = 0, guided: bool = True,
              heads: Mapping[str, int] | None = None, notes: Mapping[str, str] | None = None) -> Model:
    """The model of these plain names, with U-Net and VAE made here.

    latent: the family's format if left out, with the file's scale. heads: as parts.unet_from takes them. notes: further guesses to show.
    Raises CheckpointError when parts do not fit each other.
    """
    unet = unet_from(weights, hints, heads)
    format_ = latent or replace(family.latent, scale=scale_of(weights, hints, float(family.latent.scale)))     # type: ignore[arg-type]
    scale = format_.scale if isinstance(format_.scale, float) else 1.0
    vae = autoencoder_from(weights, hints, scale=scale)
    if vae.config.latent != unet.config.out_channels:
        raise CheckpointError(f"The VAE makes latents of {vae.config.latent} channels and the U-Net of {unet.config.out_channels}; "
                              "choose another VAE.")
    width = sum(tower.width for tower in text)
    if width != unet.config.context:
        raise CheckpointError(f"The text encoder gives {width} numbers a token and the U-Net reads {unet.config.context}; "
                              "the file was put together from parts that do not fit.")
    return Model(
        family=family, unet=unet, vae=vae, text=text, prediction=prediction[0],
        latent=replace(format_, channels=vae.config.latent, downscale=vae.config.downscale),
        native_size=native_size or family.native_size, device=torch.device("cpu"), dtype=next(unet.parameters()).dtype,
        variant=variant, guided=guided,
        hints={"prediction": prediction[1], **(notes or {}),
               **{name: said for name, said in hints.items() if name.startswith("easel.")}})
