"""What a kind of model is (Family), where its latents live (LatentFormat), and the networks in memory (Model)."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from modules.sampling.prediction import Prediction

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, Tensor]
Header = Mapping[str, tuple[int, ...]]                      # tensor name -> shape, read without loading


@dataclass(frozen=True, kw_only=True)
class LatentFormat:
    """latent given to the U-Net = (z - shift) * scale; one latent cell is `downscale` pixels wide."""

    channels: int
    downscale: int
    scale: float
    shift: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """Facts of one kind of model, read top to bottom."""

    name: str
    native_size: int                                        # pixels
    latent: LatentFormat
    recognises: Callable[[Header], bool]
    build: Callable[..., Model]                             # (weights, hints: Mapping[str, str]) -> Model, on the CPU
    last_layer_norm_after_skip: bool = True                 # clip skip > 1 still passes the final layer norm (SD1)


@dataclass(kw_only=True)
class Model:
    """Networks in memory. `text` is a tuple of towers; each has `.encode(ids (B, 77), skip) -> (B, 77, C)` and `.pad_id`.

    latent: as the weights say it (channels and downscale are read from the VAE's shapes).
    hints: what was guessed or read beside the tensors ("prediction": "eps (guessed)"), to be shown.
    """

    family: Family
    unet: nn.Module
    vae: nn.Module
    text: tuple[Any, ...]
    prediction: Prediction
    latent: LatentFormat
    native_size: int
    device: torch.device
    dtype: torch.dtype
    hints: Mapping[str, str] = field(default_factory=dict)
    title: str = ""                                         # "name.safetensors [10 hex]"
    sha256: str = ""
    vae_name: str = ""                                      # "" = the checkpoint's own
    vae_sha256: str = ""
    layers: str = "plain"                                   # which implementations of layers run, see networks/layers.py
    colours: Tensor | None = None                           # latent to colours for previews; fitted when first wanted
