"""What a kind of model is (Family), where its latents live (LatentFormat), and the networks in memory (Model)."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from modules.sampling.conditioning import Conditioning
from modules.sampling.prediction import Prediction

if TYPE_CHECKING:
    import torch

Weights = Mapping[str, Tensor]
Header = Mapping[str, tuple[int, ...]]                      # tensor name -> shape, read without loading


@dataclass(frozen=True, kw_only=True)
class LatentFormat:
    """latent given to the U-Net = (z - shift) * scale, alike for all channels or a number for each; a cell is `downscale` pixels wide."""

    channels: int
    downscale: int
    scale: float | tuple[float, ...]
    shift: float | tuple[float, ...] = 0.0

    def to_model(self, z: Tensor) -> Tensor:
        """What a VAE gave (B, C, h, w) -> what the U-Net knows."""
        return (z - _channels(self.shift, z)) * _channels(self.scale, z)

    def from_model(self, latent: Tensor) -> Tensor:
        """The U-Net's latent (B, C, h, w) -> what a VAE decodes."""
        return latent / _channels(self.scale, latent) + _channels(self.shift, latent)


def _channels(numbers: float | tuple[float, ...], like: Tensor) -> float | Tensor:
    return like.new_tensor(numbers)[:, None, None] if isinstance(numbers, tuple) else numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Framing:
    """What some models are told of a picture beside its words.

    width, height, crop (top, left): pixels. aesthetic: a score of 1 to 10 for prompt and negative prompt.
    image (1, 3, H, W) in -1..1 and mask (1, 1, H, W), 1 = to be painted anew: what is begun from; None = nothing, all of it.
    """

    width: int
    height: int
    crop: tuple[int, int] = (0, 0)
    aesthetic: tuple[float, float] = (6.0, 2.5)
    image: Tensor | None = None
    mask: Tensor | None = None
    mask_weight: float = 1.0                                # how much of the masked part is not shown, 0..1
    depth: Tensor | None = None                             # (1, 1, h, w) in latent cells, larger = nearer
    noise_level: int = 20                                   # that the x4 upscaler adds to its picture, 0..350
    noise: Tensor | None = None                             # for it, (1, 3, h, w) of the picture's own seed


@dataclass(frozen=True, kw_only=True)
class Family:
    """Facts of one kind of model, read top to bottom."""

    name: str
    native_size: int                                        # pixels
    latent: LatentFormat
    recognises: Callable[[Header], bool]
    build: Callable[..., Model]                             # (weights, hints: Mapping[str, str]) -> Model, on the CPU
    zero_empty_negative: bool = False                       # an empty negative prompt is told as zeros, not as the text ""
    sdxl_ladder: bool = False                               # measured schedules have tables of their own for it
    averaged: bool = False                                  # it is meant to be drawn with averaged weights, where a file has them
    beside: Callable[[Model, Framing, bool], Conditioning] | None = None    # (.., negative) -> a vector behind that of the words, one row
    around: Callable[[Model, Framing], Conditioning] | None = None          # what stands around the picture: concat, label, a vector


@dataclass(kw_only=True)
class Model:
    """Networks in memory. `text` is a tuple of towers; each is a prompts.encode.TextTower.

    latent: as the weights say it (channels and downscale are read from the VAE's shapes).
    hints: what was guessed or read beside the tensors ("prediction": "eps (guessed)"), to be shown.
    variant: what it takes beside words: "inpaint" a picture and a mask, "edit" a picture, "depth", "upscale", "unclip"; "" nothing.
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
    variant: str = ""
    guided: bool = True                                     # False: there is no "without words" to tell it, so a CFG scale means nothing
    hints: Mapping[str, str] = field(default_factory=dict)
    title: str = ""                                         # "name.safetensors [10 hex]"
    sha256: str = ""
    vae_name: str = ""                                      # "" = the checkpoint's own
    vae_sha256: str = ""
    layers: str = "plain"                                   # which implementations of layers run, see networks/layers.py
    colours: Tensor | None = None                           # latent to colours for previews; fitted when first wanted
    apart: bool = False                                     # its networks wait in main memory, since the device cannot hold all at once

    @contextmanager
    def at_work(self, *networks: Any) -> Iterator[None]:
        """Inside, these of its networks are on the device. Costs nothing unless the model is `apart`. Raises torch.OutOfMemoryError."""
        if not self.apart:
            yield
            return
        try:
            for network in networks:
                network.to(self.device)
            yield
        finally:
            for network in networks:
                network.to("cpu")

