"""Changes inside a U-Net for one call: something else stands in the place of a layer's forward, and afterwards the layer is as it was.

A change is (unet, size) -> context manager, size being the (height, width) of the latent. See Rows.changes in sampling/guidance.py.
"""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from modules.networks.attention import Attention, split_heads
from modules.networks.unet import SpatialTransformer, TransformerBlock, UNet

Change = Callable[[nn.Module, torch.Size], contextlib.AbstractContextManager[None]]
Swap = tuple[nn.Module, str, Callable[..., Tensor]]         # (layer, name of its method, what stands in its place)


@contextlib.contextmanager
def instead(swaps: Iterable[Swap]) -> Iterator[None]:
    """Inside, each layer's method is another function; afterwards, also after an error, nothing of it is left."""
    before: list[tuple[nn.Module, str, object]] = []
    try:
        for layer, name, function in swaps:
            before.append((layer, name, layer.__dict__.get(name)))
            layer.__dict__[name] = function
        yield
    finally:
        for layer, name, own in reversed(before):
            if own is None:
                layer.__dict__.pop(name, None)
            else:
                layer.__dict__[name] = own


def transformers(network: nn.Module) -> list[SpatialTransformer]:
    """Those of a U-Net or of a part of it, in order."""
    return [layer for layer in network.modules() if isinstance(layer, SpatialTransformer)]


# ---- worse on purpose: what guidance leads away from

def without_looking(unet: nn.Module, size: torch.Size) -> contextlib.AbstractContextManager[None]:
    """In the middle block each cell sees itself alone: its map of attention is the identity. Ahn et al. 2024, arXiv:2403.17377, eq. 15."""
    return instead((block.attn1, "forward", partial(_own_value, block.attn1)) for block in _middle_blocks(unet))


def _own_value(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    found: Tensor = attention.to_out(attention.to_v(context))
    return found


def without_layers(unet: nn.Module, size: torch.Size) -> contextlib.AbstractContextManager[None]:
    """The transformer of the middle block is passed over. After the skip-layer guidance of Stability AI's SD 3.5."""
    return instead((layer, "forward", lambda x, context: x) for layer in transformers(_middle(unet)))


def _middle(unet: nn.Module) -> nn.Module:
    middle = getattr(unet, "middle_block", None)
    return middle if isinstance(middle, nn.Module) else nn.Module()


def _middle_blocks(unet: nn.Module) -> list[TransformerBlock]:
    return [block for layer in transformers(_middle(unet)) for block in layer.transformer_blocks
            if isinstance(block, TransformerBlock) and not block.text_only]


def watched(unet: nn.Module, size: torch.Size, maps: list[Tensor]) -> contextlib.AbstractContextManager[None]:
    """Appends to `maps` how much each cell of the last middle block is looked at, (B, h, w) with mean 1. Hong et al. 2022,
    arXiv:2210.00939."""
    sizes: list[torch.Size] = []

    def sized(forward: Callable[..., Tensor], x: Tensor, context: Tensor) -> Tensor:
        sizes[:] = [x.shape[-2:]]
        return forward(x, context)

    def looking(attention: Attention, forward: Callable[..., Tensor], x: Tensor, context: Tensor) -> Tensor:
        q, k = (split_heads(part, attention.heads).float() for part in (attention.to_q(x), attention.to_k(context)))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        maps.append(scores.softmax(-1).mean(1).sum(1).unflatten(-1, sizes[0]))      # mean of heads, sum over who looks
        return forward(x, context)

    layers = transformers(_middle(unet))[-1:]
    blocks = _middle_blocks(unet)[-1:]
    return instead([*((layer, "forward", partial(sized, layer.forward)) for layer in layers),
                    *((block.attn1, "forward", partial(looking, block.attn1, block.attn1.forward)) for block in blocks)])


# ---- FreeU

def free_u(b1: float, b2: float, s1: float, s2: float, version: int = 2) -> Change:
    """What comes from below is strengthened, low frequencies of what comes from the side are damped. Si et al. 2023, arXiv:2309.11497.

    b1, s1: where the way from below has four times the finest channels; b2, s2: where twice. version 2 strengthens by where the features
    lie high (the authors' later code), 1 everywhere alike.
    """
    def change(unet: nn.Module, size: torch.Size) -> contextlib.AbstractContextManager[None]:
        if not isinstance(unet, UNet):
            return contextlib.nullcontext()
        factors = {4 * unet.config.channels: (b1, s1), 2 * unet.config.channels: (b2, s2)}

        def join(x: Tensor, skip: Tensor) -> Tensor:
            if x.shape[1] not in factors:
                return torch.cat((x, skip), dim=1)
            strength, damping = factors[x.shape[1]]
            return torch.cat((_strengthened(x, strength, version), low_damped(skip, damping)), dim=1)

        return instead([(unet, "join", join)])

    return change


def _strengthened(x: Tensor, strength: float, version: int) -> Tensor:
    """The first half of the channels times `strength`, or in version 2 by a factor between 1 and it."""
    half = x.shape[1] // 2
    factor: Tensor | float = strength
    if version == 2:
        mean = x.mean(dim=1, keepdim=True)
        low, high = mean.amin(dim=(2, 3), keepdim=True), mean.amax(dim=(2, 3), keepdim=True)
        factor = (strength - 1) * (mean - low) / (high - low).clamp(min=1e-12) + 1
    return torch.cat((x[:, :half] * factor, x[:, half:]), dim=1)


def low_damped(x: Tensor, factor: float) -> Tensor:
    """The two by two lowest frequencies of (B, C, h, w) times `factor`. In float32: half precision has transforms of powers of two only."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    row, column = x.shape[-2] // 2, x.shape[-1] // 2
    spectrum[..., max(row - 1, 0):row + 1, max(column - 1, 0):column + 1] *= factor
    return torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=(-2, -1)), dim=(-2, -1)).real.to(x.dtype)


# ---- fewer tokens

def merged_tokens(ratio: float) -> Change:
    """Like cells are merged before they look at each other, and copied back. Bolya and Hoffman 2023, arXiv:2303.17604.

    ratio: 0..0.9 of the cells; only where the resolution is the latent's own. One cell of each two by two stays as it is.
    """
    def change(unet: nn.Module, size: torch.Size) -> contextlib.AbstractContextManager[None]:
        return instead((block, "forward", partial(_merging, block, ratio, size))
                       for layer in transformers(unet) for block in layer.transformer_blocks
                       if isinstance(block, TransformerBlock) and not block.text_only)
    return change


def _merging(block: TransformerBlock, ratio: float, size: torch.Size, x: Tensor, context: Tensor) -> Tensor:
    h = block.norm1(x)
    if x.shape[1] == size.numel():
        merge, copy_back = matching(x, size, int(size.numel() * ratio))
        fewer = merge(h)
        x = x + copy_back(block.attn1(fewer, fewer))
    else:
        x = x + block.attn1(h, h)
    x = x + block.attn2(block.norm2(x), context)
    return x + block.ff(block.norm3(x))


def matching(x: Tensor, size: torch.Size, count: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(merge, copy back) for the `count` tokens that are likest to a corner of a two by two cell; x (B, h * w, C) decides which.

    merge: (B, h * w, D) -> (B, fewer, D), means of what is merged; copy back: the other way, each merged token a copy of its mean.
    """
    height, width = size
    corner = torch.zeros(height, width, dtype=torch.bool, device=x.device)
    corner[:height // 2 * 2:2, :width // 2 * 2:2] = True
    kept, rest = corner.flatten().nonzero()[:, 0], (~corner).flatten().nonzero()[:, 0]
    count = min(count, len(rest)) if len(kept) else 0
    direction = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    likeness, nearest = (direction[:, rest] @ direction[:, kept].transpose(-1, -2)).max(dim=-1) if len(kept) else (x[:, :, 0], x[:, :, 0])
    order = likeness.argsort(dim=-1, descending=True, stable=True)
    away, stay = order[:, :count], order[:, count:]
    into = nearest.gather(1, away)

    def wide(index: Tensor, channels: int) -> Tensor:
        return index[..., None].expand(-1, -1, channels)

    def merge(tokens: Tensor) -> Tensor:
        others, channels = tokens[:, rest], tokens.shape[-1]
        means = tokens[:, kept].scatter_reduce(1, wide(into, channels), others.gather(1, wide(away, channels)), reduce="mean")
        return torch.cat((others.gather(1, wide(stay, channels)), means), dim=1)

    def copy_back(tokens: Tensor) -> Tensor:
        channels = tokens.shape[-1]
        alone, means = tokens[:, :stay.shape[1]], tokens[:, stay.shape[1]:]
        others = tokens.new_empty(len(tokens), len(rest), channels)
        others.scatter_(1, wide(stay, channels), alone)
        others.scatter_(1, wide(away, channels), means.gather(1, wide(into, channels)))
        whole = tokens.new_empty(len(tokens), size.numel(), channels)
        whole[:, kept], whole[:, rest] = means, others
        return whole

    return (merge, copy_back) if count else ((lambda tokens: tokens), (lambda tokens: tokens))


# ---- tiles

def tiled_attention(tile: int, depth: int = 3) -> Change:
    """Cells look at the cells of their own tile only (HyperTile, tfernd 2023): less work where the latent is large.

    tile: least edge in latent cells at full resolution, half of it one level down, and so on; depth: how many levels down it is done.
    """
    def change(unet: nn.Module, size: torch.Size) -> contextlib.AbstractContextManager[None]:
        return instead((block.attn1, "forward", partial(_in_tiles, block.attn1, block.attn1.forward, size, tile, depth))
                       for layer in transformers(unet) for block in layer.transformer_blocks
                       if isinstance(block, TransformerBlock) and not block.text_only)
    return change


def _in_tiles(attention: Attention, forward: Callable[..., Tensor], size: torch.Size, tile: int, depth: int, x: Tensor,
              context: Tensor) -> Tensor:
    for level in range(depth + 1):
        height, width = (-(-edge // 2 ** level) for edge in size)
        if height * width == x.shape[1]:
            rows, columns = (_parts(edge, max(tile // 2 ** level, 1)) for edge in (height, width))
            tiles = x.unflatten(1, (rows, height // rows, columns, width // columns)).transpose(2, 3)
            each = tiles.flatten(3, 4).flatten(0, 2)
            seen = forward(each, each).unflatten(0, tiles.shape[:3]).unflatten(3, tiles.shape[3:5])
            return seen.transpose(2, 3).flatten(1, 4)
    return forward(x, context)


def _parts(edge: int, least: int) -> int:
    """Into how many equal parts, none shorter than `least`, an edge can be cut at most."""
    return max(parts for parts in range(1, edge + 1) if edge % parts == 0 and (edge // parts >= least or parts == 1))
