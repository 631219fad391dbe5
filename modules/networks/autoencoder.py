"""The KL autoencoder of latent diffusion. Rombach et al. 2022, arXiv:2112.10752; Esser et al. 2021, arXiv:2012.09841 for its blocks."""
from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.attention import attend
from modules.networks.layers import GroupNorm

EPS = 1e-6                                                  # of every GroupNorm here


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """All sizes of an autoencoder. One latent cell is 2 ** (levels - 1) pixels wide."""

    channels: int                                           # after the first convolution
    levels: tuple[int, ...]                                 # channels at each resolution, the finest first
    res_blocks: int                                         # of the encoder at each level; the decoder has one more
    z: int                                                  # channels between encoder and decoder
    latent: int                                             # channels of the latent outside (equal to z in all shipped models)
    groups: int = 32

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.levels) - 1)


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, before, eps=EPS)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = GroupNorm(groups, after, eps=EPS)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Every cell looks at every other, one head as wide as the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).permute(0, 2, 3, 1).flatten(1, 2)[:, None] for part in (self.q, self.k, self.v))
        seen = attend(q, k, v)[:, 0].unflatten(1, x.shape[-2:]).permute(0, 3, 1, 2)
        return x + self.proj_out(seen)


class Downsample(nn.Module):
    """Half the resolution; padded by one at the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution by nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """The blocks at the coarsest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution."""

    def __init__(self, before: int, after: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(before if index == 0 else after, after, groups) for index in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class DownLevel(Level):
    """A level of the encoder; `change`: half the resolution behind it."""

    def __init__(self, before: int, after: int, blocks: int, groups: int, change: bool) -> None:
        super().__init__(before, after, blocks, groups)
        self.downsample = Downsample(after) if change else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class UpLevel(Level):
    """A level of the decoder; `change`: twice the resolution behind it."""

    def __init__(self, before: int, after: int, blocks: int, groups: int, change: bool) -> None:
        super().__init__(before, after, blocks, groups)
        self.upsample = Upsample(after) if change else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class Encoder(nn.Module):
    """pixels (B, 3, H, W) -> (B, 2 z, H / f, W / f), before quant_conv."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        last, top = len(config.levels) - 1, config.levels[-1]
        befores = (config.channels, *config.levels)
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList(DownLevel(befores[index], channels, config.res_blocks, config.groups, index < last)
                                  for index, channels in enumerate(config.levels))
        self.mid = Middle(top, config.groups)
        self.norm_out = GroupNorm(config.groups, top, eps=EPS)
        self.conv_out = nn.Conv2d(top, 2 * config.z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, z, h, w), after post_quant_conv -> pixels (B, 3, h f, w f). up.0 is the finest level, the last to run."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        top = config.levels[-1]
        befores = (*config.levels[1:], top)
        self.conv_in = nn.Conv2d(config.z, top, 3, padding=1)
        self.mid = Middle(top, config.groups)
        self.up = nn.ModuleList(UpLevel(befores[index], channels, config.res_blocks + 1, config.groups, index > 0)
                                for index, channels in enumerate(config.levels))
        self.norm_out = GroupNorm(config.groups, config.levels[0], eps=EPS)
        self.conv_out = nn.Conv2d(config.levels[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AutoencoderKL(nn.Module):
    """Pixels to the mean and variance of a latent, and a latent to pixels. Knows nothing of the scale that a U-Net expects."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z, 2 * config.latent, 1)
        self.post_quant_conv = nn.Conv2d(config.latent, config.z, 1)

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) in -1..1, H and W multiples of config.downscale -> mean and log variance, each (B, latent, H / f, W / f)."""
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent, h, w), unscaled -> pixels (B, 3, h f, w f), about -1..1, not clamped."""
        return self.decoder(self.post_quant_conv(z))
