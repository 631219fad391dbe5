"""The autoencoders of latent diffusion, KL and VQ. Rombach et al. 2022, arXiv:2112.10752; Esser et al. 2021, arXiv:2012.09841 for the
blocks and the codebook.

Each way is made of a coarse part, with all attention, and a fine part near the pixels, a row of segments that look REACH cells around
them and no further, but for the statistics of their norms: so that those who have little memory can run a segment tile by tile.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.attention import attend
from modules.networks.layers import GroupNorm

EPS = 1e-6                                                  # of every GroupNorm here
REACH = 4                                                   # cells that a segment sees to each side at most; even, for halved resolutions
AT_ONCE = 2 ** 24                                           # distances to codebook vectors held in memory


Segment = tuple[Callable[[Tensor], Tensor], ...]            # run one after the other


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """All sizes of an autoencoder. One latent cell is 2 ** (levels - 1) pixels wide."""

    channels: int                                           # after the first convolution
    levels: tuple[int, ...]                                 # channels at each resolution, the finest first
    res_blocks: int                                         # of the encoder at each level; the decoder has one more
    z: int                                                  # channels between encoder and decoder
    latent: int                                             # channels of the latent outside (equal to z in all shipped models)
    groups: int = 32
    attention: tuple[bool, ...] = ()                        # behind each residual block of a level; () = nowhere
    middle_attention: bool = True
    codes: int = 0                                          # vectors in the codebook; 0 = none, the latent is not quantised
    double_z: bool = True                                   # the encoder gives mean and log variance
    quant_conv: bool = True
    post_quant_conv: bool = True

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.levels) - 1)

    @property
    def fine_levels(self) -> int:
        """How many levels, the finest first, look at a neighbourhood only."""
        return next((index for index, attends in enumerate(self.attention) if attends), len(self.levels))

    def attends(self, level: int) -> bool:
        return level < len(self.attention) and self.attention[level]


class Norm(GroupNorm):
    """Group normalisation that can be given the statistics of a picture of which it sees a tile.

    statistics: (norm, x (B, C, h, w)) -> the normalised x; None = the statistics of x itself.
    """

    statistics: Callable[[Norm, Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.statistics is None else self.statistics(self, x)


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm1 = Norm(groups, before, eps=EPS)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = Norm(groups, after, eps=EPS)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Every cell looks at every other, one head as wide as the channels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(groups, channels, eps=EPS)
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

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, each with attention behind it where `attention` says so."""

    def __init__(self, before: int, after: int, blocks: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(before if index == 0 else after, after, groups) for index in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(after, groups) for _ in range(blocks if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x


class DownLevel(Level):
    """A level of the encoder; `change`: half the resolution behind it."""

    def __init__(self, before: int, after: int, blocks: int, groups: int, attention: bool, change: bool) -> None:
        super().__init__(before, after, blocks, groups, attention)
        self.downsample = Downsample(after) if change else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(super().forward(x))


class UpLevel(Level):
    """A level of the decoder; `change`: twice the resolution behind it."""

    def __init__(self, before: int, after: int, blocks: int, groups: int, attention: bool, change: bool) -> None:
        super().__init__(before, after, blocks, groups, attention)
        self.upsample = Upsample(after) if change else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(super().forward(x))


class Encoder(nn.Module):
    """pixels (B, 3, H, W) -> (B, z or 2 z, H / f, W / f), before quant_conv."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        last, top = len(config.levels) - 1, config.levels[-1]
        befores = (config.channels, *config.levels)
        self.fine_levels = config.fine_levels
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(befores[index], channels, config.res_blocks, config.groups, config.attends(index), index < last)
            for index, channels in enumerate(config.levels))
        self.mid = Middle(top, config.groups, config.middle_attention)
        self.norm_out = Norm(config.groups, top, eps=EPS)
        self.conv_out = nn.Conv2d(top, 2 * config.z if config.double_z else config.z, 3, padding=1)

    def fine(self) -> tuple[Segment, ...]:
        segments: list[Segment] = [(self.conv_in,)]
        for level in [level for level in self.down if isinstance(level, DownLevel)][:self.fine_levels]:
            segments += ((block,) for block in level.block)
            segments[-1] = (*segments[-1], level.downsample)
        return tuple(segments)

    def coarse(self, x: Tensor) -> Tensor:
        x = self.mid(through(list(self.down)[self.fine_levels:], x))
        return self.conv_out(F.silu(self.norm_out(x)))



class Decoder(nn.Module):
    """(B, z, h, w), after post_quant_conv -> pixels (B, 3, h f, w f). up.0 is the finest level, the last to run."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        top = config.levels[-1]
        befores = (*config.levels[1:], top)
        self.fine_levels = config.fine_levels
        self.conv_in = nn.Conv2d(config.z, top, 3, padding=1)
        self.mid = Middle(top, config.groups, config.middle_attention)
        self.up = nn.ModuleList(
            UpLevel(befores[index], channels, config.res_blocks + 1, config.groups, config.attends(index), index > 0)
            for index, channels in enumerate(config.levels))
        self.norm_out = Norm(config.groups, config.levels[0], eps=EPS)
        self.conv_out = nn.Conv2d(config.levels[0], 3, 3, padding=1)

    def coarse(self, z: Tensor) -> Tensor:
        return through(reversed(list(self.up)[self.fine_levels:]), self.mid(self.conv_in(z)))

    def fine(self) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        before: Segment = ()
        for level in reversed([level for level in self.up if isinstance(level, UpLevel)][:self.fine_levels]):
            for block in level.block:
                segments.append((*before, block))
                before = ()
            before = (level.upsample,)
        return *segments, (*before, self.norm_out, F.silu, self.conv_out)


def through(layers: Iterable[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """x behind all these layers."""
    for layer in layers:
        x = layer(x)
    return x


class Autoencoder(nn.Module):
    """Pixels to the mean and log variance of a latent, and a latent to pixels. Knows nothing of the scale that a U-Net expects.

    This one has a latent without variance and without codebook; autoencoder(config) makes the kind that a config asks for.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        wide = 2 if config.double_z else 1
        self.quant_conv = nn.Conv2d(wide * config.z, wide * config.latent, 1) if config.quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(config.latent, config.z, 1) if config.post_quant_conv else nn.Identity()

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """pixels (B, 3, H, W) in -1..1, H and W multiples of config.downscale -> mean and log variance, each (B, latent, H / f, W / f).

        A latent without variance has the log variance -inf: mean + exp(logvar / 2) * noise is the mean.
        """
        return self.encode_coarse(through(chain(*self.encode_fine()), pixels))

    def encode_fine(self) -> tuple[Segment, ...]:
        """From pixels to what encode_coarse takes."""
        return self.encoder.fine()

    def encode_coarse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.quant_conv(self.encoder.coarse(x))
        return mean, torch.full_like(mean, -math.inf)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent, h, w), unscaled -> pixels (B, 3, h f, w f), about -1..1, not clamped."""
        return through(chain(*self.decode_fine()), self.decode_coarse(z))

    def decode_coarse(self, z: Tensor) -> Tensor:
        return self.decoder.coarse(self.post_quant_conv(z))

    def decode_fine(self) -> tuple[Segment, ...]:
        """From what decode_coarse gives to pixels."""
        return self.decoder.fine()


class AutoencoderKL(Autoencoder):
    """The latent is a normal distribution. Kingma and Welling 2013, arXiv:1312.6114."""

    def encode_coarse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.quant_conv(self.encoder.coarse(x)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)


class Codebook(nn.Module):
    """The vectors that a quantised latent consists of. van den Oord et al. 2017, arXiv:1711.00937."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def forward(self, z: Tensor) -> Tensor:
        """z (B, C, h, w) -> the same shape, each cell the vector that is nearest to it, of equally near ones the first."""
        codes = self.embedding.weight
        cells = z.permute(0, 2, 3, 1).flatten(0, 2)
        nearest = [torch.cdist(some.float(), codes.float(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
                   for some in cells.split(max(1, AT_ONCE // len(codes)))]
        return self.embedding(torch.cat(nearest)).unflatten(0, (z.shape[0], *z.shape[2:])).permute(0, 3, 1, 2)


class AutoencoderVQ(Autoencoder):
    """The latent is quantised when it is decoded, and not before, so that a U-Net works on what the encoder gave."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.quantize = Codebook(config.codes, config.latent)

    def decode_coarse(self, z: Tensor) -> Tensor:
        return super().decode_coarse(self.quantize(z))


def autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The network of this config, with weights still to be put in."""
    if config.codes:
        return AutoencoderVQ(config)
    return AutoencoderKL(config) if config.double_z else Autoencoder(config)
