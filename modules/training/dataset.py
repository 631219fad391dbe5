"""Captioned pictures: what a source of them is, a folder as a source, and the order in which batches take from it."""
from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from modules.core.errors import NotFoundError, SettingsError, WebUIError
from modules.imaging import metadata
from modules.imaging.convert import to_pixels

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
STEP = 64                                                   # pixels between the edges of two buckets
LEAST, MOST = 0.5, 2.0                                      # edges of a bucket, as a part of the square's edge


@runtime_checkable
class Source(Protocol):
    """Pictures by number; the same number gives the same picture. Any object of this form can be trained on.

    It may also have, each used where it is there: `caption(i) -> str` without drawing the picture; `identity(i) -> str`, words that change
    with the picture and its size; `groups() -> sequences of numbers` whose pictures have one size; `epoch(n) -> Source`, another look at
    the same pictures each time around; `concat(i) -> Tensor (C, h, w)`, what a network is shown beside the latent.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, str]:
        """pixels (3, H, W) float32 in -1..1, and their caption."""
        ...


def caption_of(source: Source, index: int) -> str:
    """The caption alone; the picture is drawn only if the source knows no other way."""
    caption = getattr(source, "caption", None)
    return caption(index) if caption else source[index][1]


def identity_of(source: Source, index: int) -> str:
    """Words that change when the picture changes; of its pixels, if the source has none."""
    identity = getattr(source, "identity", None)
    return identity(index) if identity else hashlib.sha256(source[index][0].contiguous().numpy().tobytes()).hexdigest()


def groups_of(source: Source) -> tuple[tuple[int, ...], ...]:
    """Numbers of pictures by size; one group if the source does not say. Raises SettingsError for a source without pictures."""
    groups = getattr(source, "groups", None)
    found = tuple(tuple(group) for group in (groups() if groups else (range(len(source)),)) if len(group))
    if not found:
        raise SettingsError("There is no picture to train on; name a folder with pictures.")
    return found


def at_epoch(source: Source, number: int) -> Source:
    """The source as it is at this time around."""
    epoch = getattr(source, "epoch", None)
    return epoch(number) if epoch else source


class Remembered:
    """A source whose pictures are drawn once and then kept as bytes; exact for pictures that were made of bytes."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._kept: dict[int, tuple[np.ndarray, str]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> tuple[Tensor, str]:
        if index not in self._kept:
            pixels, caption = self.source[index]
            self._kept[index] = (((pixels + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8).numpy(), caption)
        kept, caption = self._kept[index]
        return torch.from_numpy(kept).float().div_(127.5).sub_(1), caption

    def __getattr__(self, name: str) -> Any:
        if name in ("caption", "identity", "groups", "concat"):
            return getattr(self.source, name)
        raise AttributeError(name)


@dataclass(frozen=True)
class _Picture:
    path: Path
    bucket: tuple[int, int]                                 # width, height in pixels


class Folder:
    """Pictures in a folder and below, each with its caption in the first line of a .txt file of the same name ("" where there is none).

    Each is made to cover its bucket, the size of about size x size pixels whose shape is nearest to its own, and cut to it from the middle.
    """

    def __init__(self, path: str | Path, size: int, *, buckets: bool = True, step: int = STEP) -> None:
        """size: edge of the square in pixels. buckets False: every picture is cut to the square. step: of the buckets' edges, in pixels.

        Raises NotFoundError for a folder that is missing or without pictures, ImageMetaError for a picture that cannot be read.
        """
        self.path, self.size = Path(path), size
        files = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        if not files:
            raise NotFoundError(f"{self.path} holds no pictures ({', '.join(ENDINGS)}); name a folder of pictures with .txt captions.")
        sizes = bucket_sizes(size, step) if buckets else ((size, size),)
        self._pictures = tuple(_Picture(file, nearest_bucket(_turned_size(file), sizes)) for file in files)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int, /) -> tuple[Tensor, str]:
        picture = self._pictures[index]
        image = ImageOps.exif_transpose(metadata.pixels(picture.path)).convert("RGB")
        return to_pixels(covering(image, *picture.bucket))[0], self.caption(index)

    def caption(self, index: int) -> str:
        """The first line of the .txt file beside the picture. Raises WebUIError if it is no text in UTF-8."""
        file = self._pictures[index].path.with_suffix(".txt")
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise WebUIError(f"The caption {file} cannot be read as UTF-8 text; save it as such.") from error
        return lines[0].strip() if lines else ""

    def identity(self, index: int) -> str:
        """Hash of the file's bytes and the size it is cut to."""
        picture = self._pictures[index]
        return f"{hashlib.sha256(picture.path.read_bytes()).hexdigest()} {picture.bucket}"

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of pictures by bucket."""
        found: dict[tuple[int, int], list[int]] = {}
        for index, picture in enumerate(self._pictures):
            found.setdefault(picture.bucket, []).append(index)
        return tuple(tuple(found[bucket]) for bucket in sorted(found))


def bucket_sizes(size: int, step: int = STEP) -> tuple[tuple[int, int], ...]:
    """(width, height) of the buckets for a square of this edge: all multiples of `step` from half to twice the edge, each as high as keeps
    the area no larger than the square's; and their turned ones."""
    found = {(size, size)}
    for width in range(step * max(1, round(size * LEAST / step)), int(size * MOST) + 1, step):
        height = min(int(size * MOST), size * size // width) // step * step
        if height >= size * LEAST:
            found |= {(width, height), (height, width)}
    return tuple(sorted(found))


def nearest_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket of this very size, else the one whose aspect ratio differs least; of equals the largest."""
    if size in buckets:
        return size
    aspect = size[0] / size[1]
    return min(buckets, key=lambda bucket: (abs(aspect - bucket[0] / bucket[1]), -bucket[0] * bucket[1]))


def covering(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture resized until it just covers width x height pixels, and cut to it from the middle."""
    scale = max(width / image.width, height / image.height)
    across, down = max(width, int(image.width * scale + 0.5)), max(height, int(image.height * scale + 0.5))
    if (across, down) != image.size:
        image = image.resize((across, down), Image.Resampling.LANCZOS)
    left, top = (across - width) // 2, (down - height) // 2
    return image.crop((left, top, left + width, top + height))


def _turned_size(file: Path) -> tuple[int, int]:
    """Width and height as the picture is looked at, which a camera's mark may turn; read without the pixels."""
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise WebUIError(f"The picture {file} cannot be read; take it out of the folder or save it again.") from error


@dataclass(frozen=True)
class Batch:
    """Members of one group, by their place in it."""

    epoch: int
    group: int
    rows: tuple[int, ...]


class Order:
    """Which pictures the n-th batch holds: a function of the seed and n alone, so that a run can begin anywhere.

    Each time around every picture comes once; the last batch of a group is filled up with its first ones.
    """

    def __init__(self, sizes: Sequence[int], batch: int, seed: int) -> None:
        """sizes: how many members each group has."""
        self.sizes, self.batch, self.seed = tuple(sizes), batch, seed
        self.per_epoch = sum(math.ceil(size / batch) for size in sizes)
        self._epoch, self._batches = -1, list[Batch]()

    def __call__(self, number: int) -> Batch:
        epoch, place = divmod(number, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._drawn(epoch)
        return self._batches[place]

    def _drawn(self, epoch: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(mixed(self.seed, epoch, 1))
        found = []
        for group, size in enumerate(self.sizes):
            rows = torch.randperm(size, generator=generator).tolist()
            for first in range(0, size, self.batch):
                found.append(Batch(epoch, group, tuple(rows[(first + n) % size] for n in range(self.batch))))
        return [found[place] for place in torch.randperm(len(found), generator=generator).tolist()]


def mixed(*numbers: int) -> int:
    """One seed out of several numbers, 0..2^63-1; near numbers give unrelated seeds."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "little") >> 1
