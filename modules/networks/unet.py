"""The latent-diffusion U-Net. Rombach et al. 2022, arXiv:2112.10752; its blocks are those of Dhariwal and Nichol 2021, arXiv:2105.05233.

input_blocks go down, middle_block stands at the bottom, output_blocks go up again; each output block takes back what one input block left.
Published models differ in what stands behind a residual block (nothing, cells looking at each other, or a transformer that reads a text),
in how the resolution changes, and in what joins the time: nothing, a vector, or the number of a class. UNetConfig says all of it.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.networks.attention import Attention, attend
from modules.networks.layers import GroupNorm


@dataclass(frozen=True, kw_only=True)
class Level:
    """One resolution. down and up: the transformer depth behind each residual block, 0 = no attention; up has one block more.

    text_only: attention of cells to cells is replaced by a second one to the text (the x4 upscaler).
    """

    channels: int
    down: tuple[int, ...]
    up: tuple[int, ...]
    text_only: bool = False


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """All sizes of a U-Net. Either `heads` is the number of heads everywhere, or `head_dim` the width of each."""

    in_channels: int
    out_channels: int
    channels: int                                           # after the first convolution
    levels: tuple[Level, ...]                               # the finest first
    middle_depth: int                                       # 0 = two residual blocks without attention, -1 = only one, -2 = nothing at all
    context: int                                            # width of a text token; 0 = no text, cells look at cells only
    linear: bool = False                                    # proj_in and proj_out are linear layers, not 1x1 convolutions
    label: int = 0                                          # inputs of the label MLP (pooled text and sizes), 0 = none
    classes: int = 0                                        # rows of the label table, 0 = none
    heads: int = 8
    head_dim: int = 0
    groups: int = 32                                        # of every GroupNorm
    scale_shift: bool = False                               # the time scales and shifts the second norm instead of being added
    updown: bool = False                                    # residual blocks change the resolution, not single convolutions

    def heads_at(self, channels: int) -> int:
        """Number of heads of an attention this wide; 1 where the rule does not divide the channels."""
        heads = channels // self.head_dim if self.head_dim else self.heads
        return heads if heads and channels % heads == 0 and (not self.head_dim or channels % self.head_dim == 0) else 1


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of the training index at `width // 2` frequencies from 1 down to almost 1 / 10000.

    timesteps (B,), whole or not -> (B, width) float32.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=timesteps.device) * (-math.log(10000) / half))
    angles = timesteps.float()[:, None] * frequencies
    return F.pad(torch.cat((angles.cos(), angles.sin()), dim=-1), (0, width % 2))


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut, with the time told between them."""

    def __init__(self, before: int, after: int, time: int, groups: int, scale_shift: bool = False) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(GroupNorm(groups, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        # The SiLU before this layer is taken once for all blocks.
        self.emb_layers = nn.Sequential(nn.Identity(), nn.Linear(time, 2 * after if scale_shift else after))
        self.out_layers = nn.Sequential(GroupNorm(groups, after), nn.SiLU(), nn.Identity(), nn.Conv2d(after, after, 3, padding=1))
        self.skip_connection = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, before, h, w), time (B, T) behind its SiLU -> (B, after, h, w)."""
        return self.skip_connection(x) + self._timed(self.in_layers(x), time)

    def _timed(self, h: Tensor, time: Tensor) -> Tensor:
        told = self.emb_layers(time)[:, :, None, None]
        if not self.scale_shift:
            return self.out_layers(h + told)
        scale, shift = told.chunk(2, dim=1)
        norm, *rest = self.out_layers
        h = norm(h) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        return h


class DownBlock(ResBlock):
    """A residual block behind which the resolution is half: a mean of two by two cells on both ways; an odd edge is rounded up."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h, x = (F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in (silu(norm(x)), x))
        return self.skip_connection(x) + self._timed(conv(h), time)


class UpBlock(ResBlock):
    """A residual block behind which the resolution is that of `size`: the nearest cell on both ways."""

    def forward(self, x: Tensor, time: Tensor, size: torch.Size | None = None) -> Tensor:     # type: ignore[override]
        norm, silu, conv = self.in_layers
        h, x = (F.interpolate(part, size=size, mode="nearest") for part in (silu(norm(x)), x))
        return self.skip_connection(x) + self._timed(conv(h), time)


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another. Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Each token by itself through a layer four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Tokens look at each other (or, text_only, at the text), then at the text, then each thinks for itself."""

    def __init__(self, width: int, context: int, heads: int, text_only: bool = False) -> None:
        super().__init__()
        self.text_only = text_only
        self.attn1 = Attention(width, context if text_only else width, heads)
        self.ff = FeedForward(width)
        self.attn2 = Attention(width, context, heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, h * w, width), context (B, T, D) -> (B, h * w, width)."""
        h = self.norm1(x)
        x = x + self.attn1(h, context if self.text_only else h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Cells of the latent as tokens, through transformer blocks, beside a shortcut."""

    def __init__(self, channels: int, depth: int, config: UNetConfig, text_only: bool = False) -> None:
        super().__init__()
        project = nn.Linear if config.linear else _conv1
        self.linear = config.linear
        self.norm = GroupNorm(config.groups, channels, eps=1e-6)
        self.proj_in = project(channels, channels)
        heads = config.heads_at(channels)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, config.context, heads, text_only) for _ in range(depth))
        self.proj_out = project(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, h, w), context (B, T, D) -> (B, C, h, w)."""
        h = self.norm(x)
        tokens = self.proj_in(_tokens(h)) if self.linear else _tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        size = x.shape[-2:]
        return x + (_cells(self.proj_out(tokens), size) if self.linear else self.proj_out(_cells(tokens, size)))


class AttentionBlock(nn.Module):
    """Every cell looks at every other, beside a shortcut: the attention of models without a text.

    The layer qkv gives each head's q, k and v one behind the other.
    """

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.heads = config.heads_at(channels)
        self.norm = GroupNorm(config.groups, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, h, w) -> (B, C, h, w)."""
        parts = self.qkv(self.norm(x).flatten(2)).unflatten(1, (self.heads, 3, -1)).transpose(-1, -2)
        seen = attend(parts[:, :, 0], parts[:, :, 1], parts[:, :, 2])       # (B, heads, h * w, D)
        return x + self.proj_out(seen.transpose(-1, -2).flatten(1, 2)).unflatten(2, x.shape[-2:])


def _conv1(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 1)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C); a view where channels are innermost in memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _cells(tokens: Tensor, size: torch.Size) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w), a view with channels innermost."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Half the resolution; an odd edge is rounded up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest neighbour to a given size (twice the resolution, or one less where that was odd), then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Stage(nn.ModuleList):
    """The layers of one block in a row, each given what it asks for."""

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None, size: torch.Size | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, UpBlock):
                x = layer(x, time, size)
            elif isinstance(layer, ResBlock):
                x = layer(x, time)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Noisy latent, training index and what it is told -> what the network was trained to predict (noise, velocity or the picture)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        time = 4 * config.channels
        self.time_embed = nn.Sequential(nn.Linear(config.channels, time), nn.SiLU(), nn.Linear(time, time))
        if config.label:
            self.label_emb = nn.Sequential(nn.Sequential(nn.Linear(config.label, time), nn.SiLU(), nn.Linear(time, time)))
        elif config.classes:
            self.label_emb = nn.Embedding.from_pretrained(torch.empty(config.classes, time), freeze=False)
        skips = [config.channels]
        self.input_blocks = nn.ModuleList(_input_stages(config, time, skips))
        if config.middle_depth > -2:
            self.middle_block = Stage(_middle_layers(config, time))
        self.output_blocks = nn.ModuleList(_output_stages(config, time, skips))
        finest = config.levels[0].channels
        self.out = nn.Sequential(GroupNorm(config.groups, finest), nn.SiLU(), nn.Conv2d(finest, config.out_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, vector: Tensor | None = None,
                label: Tensor | None = None) -> Tensor:
        """x (B, in_channels, h, w) of any h and w, timesteps (B,) 0..999 whole or not, context (B, T, D) where config.context,
        vector (B, config.label) where that is not 0, label (B,) int64 below config.classes where that is not 0.

        Returns (B, out_channels, h, w).
        """
        time = self.time_embed(timestep_embedding(timesteps, self.config.channels).to(x.dtype))
        if self.config.label:
            time = time + self.label_emb(vector)
        elif self.config.classes:
            time = time + self.label_emb(label)
        time = F.silu(time)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, time, context)
            skips.append(x)
        if self.config.middle_depth > -2:
            x = self.middle_block(x, time, context)
        for stage in self.output_blocks:
            x = self.join(x, skips.pop())
            x = stage(x, time, context, skips[-1].shape[-2:] if skips else None)
        return self.out(x)

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """What comes from below, and what a stage downwards left, side by side."""
        return torch.cat((x, skip), dim=1)


def _attention(channels: int, depth: int, config: UNetConfig, text_only: bool = False) -> nn.Module:
    return SpatialTransformer(channels, depth, config, text_only) if config.context else AttentionBlock(channels, config)


def _block(before: int, level: Level, depth: int, time: int, config: UNetConfig) -> list[nn.Module]:
    block: list[nn.Module] = [ResBlock(before, level.channels, time, config.groups, config.scale_shift)]
    return [*block, _attention(level.channels, depth, config, level.text_only)] if depth else block


def _middle_layers(config: UNetConfig, time: int) -> list[nn.Module]:
    bottom, depth = config.levels[-1].channels, config.middle_depth
    first, last = (ResBlock(bottom, bottom, time, config.groups, config.scale_shift) for _ in range(2))
    if depth < 0:
        return [first]
    return [first, _attention(bottom, depth, config), last] if depth else [first, last]


def _input_stages(config: UNetConfig, time: int, skips: list[int]) -> Iterator[Stage]:
    """Stages downwards; appends to `skips` the channels that each leaves behind."""
    channels = config.channels
    yield Stage([nn.Conv2d(config.in_channels, channels, 3, padding=1)])
    for levels_done, level in enumerate(config.levels, 1):
        for depth in level.down:
            yield Stage(_block(channels, level, depth, time, config))
            channels = level.channels
            skips.append(channels)
        if levels_done < len(config.levels):
            yield Stage([DownBlock(channels, channels, time, config.groups, config.scale_shift) if config.updown else Downsample(channels)])
            skips.append(channels)


def _output_stages(config: UNetConfig, time: int, skips: list[int]) -> Iterator[Stage]:
    """Stages upwards; takes from `skips` what the stages downwards left."""
    channels = config.levels[-1].channels
    for above, level in reversed(list(enumerate(config.levels))):
        for index, depth in enumerate(level.up, 1):
            layers = _block(channels + skips.pop(), level, depth, time, config)
            channels = level.channels
            if above and index == len(level.up):
                layers.append(UpBlock(channels, channels, time, config.groups, config.scale_shift) if config.updown else Upsample(channels))
            yield Stage(layers)
