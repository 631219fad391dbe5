"""Between the U-Net's latents and pixels, whole or tile by tile.

A tile is no small picture: what looks at the whole picture (attention, and the means and variances of the norms) looks at all of it. The
coarse part of a VAE runs undivided. Near the pixels it is a row of segments; each runs over tiles of the map that the one before it left,
with as much around a tile as the segment can see, and once more for each of its norms, whose statistics are gathered from all tiles first.
So the picture is the undivided one but for rounding, and tiles have no edges. It takes about twice the time.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from modules.core import hardware
from modules.core.errors import CheckpointError, NanError, OutOfMemoryError
from modules.families.base import LatentFormat
from modules.networks.autoencoder import REACH, AutoencoderConfig, Norm, Segment, through

log = logging.getLogger("easel.pipeline")

TILES = (64, 32, 16, 8)                                     # latent cells: edges that are tried in turn when memory does not suffice
MAPS = 4.5                                                  # of the largest feature map, in memory at once when nothing is divided
LACK = ("out of memory", "allocate memory", "enough memory")            # how the allocators of CPU and MPS say it
SPARE = 0.9                                                 # of the free memory that may be planned with
Tell = Callable[[str], None]
T = TypeVar("T")


class Model(Protocol):
    """What is looked at here of a families.base.Model."""

    @property
    def vae(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def latent(self) -> LatentFormat: ...


@torch.no_grad()
def decode(model: Model, latent: Tensor, *, tile: int = 0, tell: Tell = log.warning) -> Tensor:
    """Pixels (B, 3, H, W) in -1..1, not clamped, of a latent (B, C, h, w) as the U-Net knows it; in the VAE's type, each picture alone.

    tile: edge of a tile in latent cells; 0 = none, unless memory does not suffice. tell: hears a sentence when tiles or float32 were taken.
    Half precision that overflows is tried once more in float32. Raises NanError when even that gives values that are no numbers,
    OutOfMemoryError when the smallest tiles do not fit.
    """
    _check(latent, "The latent holds")
    found, = _in_full(model, partial(_decoded, tile=tile, tell=tell), model.latent.from_model(latent), tell)
    return found


@torch.no_grad()
def encode(model: Model, pixels: Tensor, noise: Tensor | torch.Generator | None = None, *, tile: int = 0,
           tell: Tell = log.warning) -> Tensor:
    """The latent (B, C, h, w) that the U-Net knows, float32, of pixels (B, 3, H, W) in -1..1, H and W multiples of model.latent.downscale.

    noise: standard normal (B, C, h, w), or a CPU generator to draw it from, for a sample of what the VAE takes for possible;
    None = its mean. tile and tell as in `decode`, the tile's edge in latent cells too. Raises as `decode`, and CheckpointError for a VAE
    that only decodes.
    """
    assert not any(edge % model.latent.downscale for edge in pixels.shape[-2:]), "the caller chooses the size"
    if not encodes(model.vae):
        raise CheckpointError("This VAE only decodes; choose a whole one for pictures to begin with.")
    _check(pixels, "The picture holds")
    mean, logvar = (part.float() for part in _in_full(model, partial(_encoded, tile=tile, tell=tell), pixels, tell))
    if isinstance(noise, torch.Generator):
        noise = torch.randn(mean.shape, generator=noise)
    if noise is not None:
        mean = mean + (0.5 * logvar).exp() * noise.to(mean)
    return model.latent.to_model(mean)


def encodes(vae: nn.Module) -> bool:
    """False for the decoder of a tiny autoencoder alone."""
    return bool(getattr(vae.config, "down", True))


def _check(values: Tensor, what: str) -> None:
    if not bool(values.isfinite().all()):
        raise NanError(f"{what} values that are not numbers; try another checkpoint, or full precision.")


def _in_full(model: Model, work: Callable[[Any, Tensor], tuple[Tensor, ...]], rows: Tensor, tell: Tell) -> tuple[Tensor, ...]:
    """work(vae, row) of each row alone; where the first that it gives holds what is no number, all rows again in float32."""
    vae = model.vae
    made = [work(vae, row.to(model.device, _dtype(vae))) for row in rows.split(1)]
    if all(bool(first.isfinite().all()) for first, *_ in made):
        return tuple(map(torch.cat, zip(*made, strict=True)))
    if _dtype(vae) != torch.float32:
        tell("The VAE overflowed in half precision; it runs in float32 from here on.")
        vae.float()
        return _in_full(model, work, rows, tell)
    raise NanError("The VAE gave values that are not numbers; choose another VAE for this checkpoint.")


def _dtype(vae: nn.Module) -> torch.dtype:
    """Layers that hide their weights, see networks/layers.py, are float32."""
    return next((weight.dtype for weight in vae.parameters()), torch.float32)


def _decoded(vae: Any, z: Tensor, *, tile: int, tell: Tell) -> tuple[Tensor]:
    size = z.shape[-2:]

    def divided(edge: int) -> tuple[Tensor]:
        return in_tiles(vae, vae.decode_fine(), vae.decode_coarse(z), _grid(size, edge), size).to(z.device),

    need = memory_needed(vae.config, size.numel(), z.element_size())
    return _as_memory_allows(lambda: (vae.decode(z),), divided, tile, need, z.device, tell)


def _encoded(vae: Any, pixels: Tensor, *, tile: int, tell: Tell) -> tuple[Tensor, Tensor]:
    size = torch.Size(edge // vae.config.downscale for edge in pixels.shape[-2:])

    def divided(edge: int) -> tuple[Tensor, Tensor]:
        return vae.encode_coarse(in_tiles(vae, vae.encode_fine(), pixels, _grid(size, edge), size).to(pixels.device))

    need = memory_needed(vae.config, size.numel(), pixels.element_size())
    return _as_memory_allows(lambda: vae.encode(pixels), divided, tile, need, pixels.device, tell)


# ---- memory

def memory_needed(config: Any, cells: int, width: int) -> int:
    """About as many bytes as an undivided decode or encode of a latent of so many cells takes, in numbers of `width` bytes."""
    pixels = cells * config.downscale ** 2
    levels = config.levels if isinstance(config, AutoencoderConfig) else (config.width,)
    largest = max(max(levels[index:index + 2]) * pixels // 4 ** index for index in range(len(levels)))
    return int(MAPS * largest * width)


def _as_memory_allows(whole: Callable[[], T], divided: Callable[[int], T], tile: int, need: int, device: torch.device, tell: Tell) -> T:
    """Undivided or with the tiles that were asked for; in (smaller) tiles where that takes more memory than there is."""
    free = hardware.memory_free(device) if device.type == "cpu" else None     # an accelerator says so itself, a CPU begins to swap
    short = free is not None and need > SPARE * free
    for edge in (tile, *(edge for edge in TILES if not tile or edge < tile)):
        if edge or not short:
            if edge != tile:
                tell(f"Memory did not suffice for the whole picture; its VAE runs in tiles of {edge} latent cells.")
            found = _unless_out_of_memory(whole if not edge else partial(divided, edge))
            if found is not None:
                return found
            if device.type != "cpu":
                torch.accelerator.empty_cache()
    raise OutOfMemoryError("There is not enough memory for a picture of this size; make it smaller, or close other programs.")


def _unless_out_of_memory(make: Callable[[], T]) -> T | None:
    """None where memory ran out; behind the except, so that nothing that failed is still held."""
    try:
        return make()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(word in str(error).lower() for word in LACK):
            raise
    return None


# ---- tiles

class Tile(NamedTuple):
    """A rectangle in latent cells."""

    top: int
    bottom: int
    left: int
    right: int


def _grid(size: torch.Size, edge: int) -> list[Tile]:
    """Tiles of nearly one size, none larger than `edge`, that lie side by side on (height, width) and cover it."""
    rows, columns = (([total * part // parts for part in range(parts + 1)]) for total in size for parts in [-(-total // edge)])
    return [Tile(*row, *column) for row in pairwise(rows) for column in pairwise(columns)]


class _Gathered(Exception):
    """Leaves a segment at the norm whose statistics are not yet known."""


class _Statistics:
    """Means and variances of whole maps (B, groups), put together from tiles. Chan et al. 1983, The American Statistician 37."""

    def __init__(self) -> None:
        self.known: dict[Norm, tuple[Tensor, Tensor]] = {}
        self.inside = (slice(None), slice(None))            # which part of the present tile is its own
        self.width = 1                                      # of the present tile, with what is around it
        self._asked: Norm | None = None
        self._parts: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, norm: Norm, x: Tensor) -> Tensor:
        if norm not in self.known:
            self._gather(norm, x)
            raise _Gathered
        mean, variance = self.known[norm]
        each = norm.num_channels // norm.num_groups
        scale = (variance + norm.eps).rsqrt().repeat_interleave(each, dim=1) * norm.weight
        mean = mean.repeat_interleave(each, dim=1)[:, :, None, None]
        return ((x - mean) * scale[:, :, None, None] + norm.bias[:, None, None]).to(x.dtype)

    def _gather(self, norm: Norm, x: Tensor) -> None:
        rows, columns = (_scaled(part, x.shape[-1], self.width) for part in self.inside)
        own = x[..., rows, columns]
        variance, mean = torch.var_mean(own.unflatten(1, (norm.num_groups, -1)).float(), dim=(2, 3, 4), correction=0)
        self._asked = norm
        self._parts.append((own[0, 0].numel(), mean.double(), variance.double()))

    def settle(self) -> None:
        """After all tiles, each of which came to the same norm: from now on its statistics are known."""
        assert self._asked is not None
        total = sum(count for count, _, _ in self._parts)
        mean = torch.stack([count * part for count, part, _ in self._parts]).sum(0) / total
        variance = torch.stack([count * (spread + (part - mean) ** 2) for count, part, spread in self._parts]).sum(0) / total
        self.known[self._asked] = (mean.float(), variance.float())
        self._asked, self._parts = None, []


def in_tiles(vae: nn.Module, segments: tuple[Segment, ...], x: Tensor, tiles: list[Tile], size: torch.Size) -> Tensor:
    """What the segments make of x (1, C, h, w), run tile by tile; maps between them lie in main memory.

    tiles: cover the latent; size: its (height, width), of which the sizes of x and of all maps are multiples.
    """
    device = x.device
    for segment in segments:
        statistics = _Statistics()
        with _sharing(vae, statistics):
            while (answer := _pass(segment, x, tiles, size, statistics, device)) is None:
                statistics.settle()
        x = answer
    return x


def _pass(segment: Segment, x: Tensor, tiles: list[Tile], size: torch.Size, statistics: _Statistics, device: torch.device) -> Tensor | None:
    """All tiles once; None where a norm did not yet know its statistics."""
    answer: Tensor | None = None
    each = x.shape[-1] // size[1]                           # cells of x in a latent cell's edge
    for tile in tiles:
        rows, own_rows = _around(tile.top * each, tile.bottom * each, x.shape[-2])
        columns, own_columns = _around(tile.left * each, tile.right * each, x.shape[-1])
        statistics.inside, statistics.width = (own_rows, own_columns), columns.stop - columns.start
        try:
            made = through(segment, x[..., rows, columns].to(device))
        except _Gathered:
            continue
        if answer is None:
            height, width = (edge * made.shape[-1] // statistics.width for edge in x.shape[-2:])
            answer = made.new_empty((*made.shape[:2], height, width), device="cpu")
        there_rows, there_columns, here_rows, here_columns = (
            _scaled(part, made.shape[-1], statistics.width) for part in (
                slice(tile.top * each, tile.bottom * each), slice(tile.left * each, tile.right * each), own_rows, own_columns))
        answer[..., there_rows, there_columns] = made[..., here_rows, here_columns]
    return answer


def _scaled(part: slice, width: int, before: int) -> slice:
    """The same stretch where what was `before` cells wide is `width` cells wide: twice, half or as many."""
    return slice(part.start * width // before, part.stop * width // before)


def _around(start: int, stop: int, end: int) -> tuple[slice, slice]:
    """A stretch of 0..end with what a segment sees around it, and where in that it lies itself."""
    first, last = max(0, start - REACH), min(end, stop + REACH)
    return slice(first, last), slice(start - first, stop - first)


@contextmanager
def _sharing(vae: nn.Module, statistics: _Statistics) -> Iterator[None]:
    norms = [module for module in vae.modules() if isinstance(module, Norm)]
    for norm in norms:
        norm.statistics = statistics
    try:
        yield
    finally:
        for norm in norms:
            norm.statistics = None
