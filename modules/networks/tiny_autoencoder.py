"""Tiny autoencoders that were trained to imitate a large one: TAESD and its kin, by Ollin Boer Bohan (2023, github.com/madebyollin/taesd).

Convolutions and ReLUs alone: no norm, no attention, nothing that looks further than a few cells. Their latent is the one that the U-Net
knows, scaled already; so that they can stand where a large VAE stands, they are told its scale and undo it.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.autoencoder import Segment, through

SOFT_LIMIT = 3.0                                            # latents are bent into -3..3 before they are decoded


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    """All sizes of a tiny autoencoder. One latent cell is 2 ** (stages - 1) pixels wide."""

    latent: int
    width: int = 64                                         # channels inside
    down: tuple[int, ...] = (1, 3, 3, 3)                    # blocks of the encoder at each resolution, the finest first; () = no encoder
    up: tuple[int, ...] = (3, 3, 3, 1)                      # blocks of the decoder, the coarsest first
    scale: float = 0.18215                                  # of the large VAE that it imitates
    shift: float = 0.0

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.up) - 1)


class Block(nn.Module):
    """Three convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class SoftLimit(nn.Module):
    """Bent so that no latent is larger than SOFT_LIMIT."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / SOFT_LIMIT) * SOFT_LIMIT


class TinyAutoencoder(nn.Module):
    """Pixels to a latent and a latent to pixels, as networks/autoencoder.py does it, in a fraction of its time."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.taesd_encoder = _encoder(config)
        self.taesd_decoder = _decoder(config)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) in -1..1, H and W multiples of config.downscale -> mean (B, latent, H / f, W / f) and log variance -inf."""
        return self.encode_coarse(through(chain(*self.encode_fine()), pixels))

    def encode_fine(self) -> tuple[Segment, ...]:
        return (_to_unit, self.taesd_encoder[0]), *((layer,) for layer in list(self.taesd_encoder)[1:])

    def encode_coarse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x / self.config.scale + self.config.shift
        return mean, torch.full_like(mean, -math.inf)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent, h, w), unscaled -> pixels (B, 3, h f, w f), about -1..1, not clamped."""
        return through(chain(*self.decode_fine()), self.decode_coarse(z))

    def decode_coarse(self, z: Tensor) -> Tensor:
        return (z - self.config.shift) * self.config.scale

    def decode_fine(self) -> tuple[Segment, ...]:
        return *((layer,) for layer in self.taesd_decoder), (_from_unit,)


def _to_unit(pixels: Tensor) -> Tensor:
    return (pixels + 1.0) / 2.0


def _from_unit(pixels: Tensor) -> Tensor:
    return pixels * 2.0 - 1.0


def _conv(before: int, after: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, stride=stride, bias=bias)


def _encoder(config: TinyConfig) -> nn.Sequential:
    """Numbered as published: 0 the first convolution, then blocks, with a convolution of stride 2 before each coarser resolution."""
    layers: list[nn.Module] = []
    for stage, blocks in enumerate(config.down):
        layers.append(_conv(config.width, config.width, stride=2, bias=False) if stage else _conv(3, config.width))
        layers += [Block(config.width) for _ in range(blocks)]
    return nn.Sequential(*layers, *([_conv(config.width, config.latent)] if layers else []))


def _decoder(config: TinyConfig) -> nn.Sequential:
    """Numbered as published: 1 the first convolution; doubling and a convolution behind the blocks of each coarser resolution."""
    layers: list[nn.Module] = [SoftLimit(), _conv(config.latent, config.width), nn.ReLU()]
    for stage, blocks in enumerate(config.up):
        if stage:
            layers += [nn.Upsample(scale_factor=2), _conv(config.width, config.width, bias=False)]
        layers += [Block(config.width) for _ in range(blocks)]
    return nn.Sequential(*layers, _conv(config.width, 3))
