"""Latents of all pictures, encoded once and kept on disk; with them a training step needs neither pictures nor the VAE's encoder."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modules.core.errors import CheckpointError
from modules.networks.autoencoder import AutoencoderKL
from modules.training import tensors
from modules.training.dataset import Source, groups_of, identity_of

SHARD = 2048                                                # latents in one file: 20,000 are ten files
AT_ONCE = 16                                                # pictures through the encoder in one call


@dataclass(frozen=True, eq=False)
class Group:
    """Latents of one size. mean, logvar (N, C, h, w) float16 on the CPU, unscaled; indices: which pictures of the source; flipped: which of
    them are mirrored; captions as the source gave them when they were encoded."""

    mean: Tensor
    logvar: Tensor
    indices: tuple[int, ...]
    flipped: tuple[bool, ...]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)


def digest_of(vae: AutoencoderKL) -> str:
    """32 hex digits that change with any weight of the encoder's side or any size of it."""
    digest = hashlib.sha256(repr(vae.config).encode())
    for name, tensor in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def encoded(source: Source, vae: AutoencoderKL, folder: Path, *, flip: bool = False,
            check: Callable[[int, int], None] = lambda done, of: None) -> tuple[Group, ...]:
    """The latents of every picture, from files under `folder` where they are there, else encoded now and written there.

    A latent is found again by the VAE's weights, the picture's identity, its size and its mirroring, whatever its number. flip: each also
    mirrored. check(done, of) is called between batches and may raise to stop; what was encoded so far is on disk by then.
    Raises CheckpointError, DiskFullError or SaveError.
    """
    home = folder / digest_of(vae)[:16]
    shelf = _Shelf(home)
    groups = groups_of(source)
    wanted = [[(index, turned, _key(source, index, turned)) for index in group for turned in ((False, True) if flip else (False,))]
              for group in groups]
    missing = [item for group in wanted for item in group if item[2] not in shelf.places]
    done, of = 0, len(missing)
    for group in wanted:
        lacking = [item for item in group if item[2] not in shelf.places]
        for first in range(0, len(lacking), SHARD):
            with closing(shelf.filled(lacking[first:first + SHARD], source, vae)) as batches:
                for batch in batches:
                    done += batch
                    check(done, of)
    return tuple(_gathered(group, shelf) for group in wanted)


def _key(source: Source, index: int, turned: bool) -> str:
    """Of a picture's identity (which tells its size too) and mirroring."""
    return hashlib.sha256(f"{identity_of(source, index)}|{turned}".encode()).hexdigest()[:32]


def _gathered(items: list[tuple[int, bool, str]], shelf: _Shelf) -> Group:
    """The latents of these items in their order. Raises CheckpointError if they are of several sizes."""
    rows = [shelf.places[key] for _, _, key in items]
    shards = {shard: shelf.shard(shard) for shard in sorted({shard for shard, _ in rows})}
    if len({tuple(found["mean"].shape[1:]) for found, _ in shards.values()}) > 1:
        raise CheckpointError("Pictures of one group have several sizes; the source must put each size in a group of its own.")
    first = next(iter(shards.values()))[0]["mean"]
    mean, logvar = (first.new_empty((len(items), *first.shape[1:])) for _ in range(2))
    captions = [""] * len(items)
    for shard, (found, texts) in shards.items():
        here = [(place, row) for place, (name, row) in enumerate(rows) if name == shard]
        places, kept = torch.tensor([place for place, _ in here]), torch.tensor([row for _, row in here])
        mean[places], logvar[places] = found["mean"][kept], found["logvar"][kept]
        for place, row in here:
            captions[place] = texts[row]
    return Group(mean, logvar, tuple(item[0] for item in items), tuple(item[1] for item in items), tuple(captions))


class _Shelf:
    """The shard files of one VAE: which key lies in which row of which file."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.places: dict[str, tuple[str, int]] = {}
        for file in sorted(home.glob("*.safetensors")):
            try:
                keys = json.loads(tensors.metadata(file)["keys"])
            except (CheckpointError, KeyError, ValueError):     # a damaged shard is encoded again
                continue
            self.places.update({key: (file.name, row) for row, key in enumerate(keys)})

    def shard(self, name: str) -> tuple[dict[str, Tensor], list[str]]:
        found, said = tensors.read(self.home / name)
        return found, json.loads(said["captions"])

    def filled(self, items: list[tuple[int, bool, str]], source: Source, vae: AutoencoderKL) -> Generator[int]:
        """Encode these items and write them in one file; gives how many were done after each batch. Written also when stopped early."""
        means: list[Tensor] = []
        logvars: list[Tensor] = []
        captions: list[str] = []
        try:
            for first in range(0, len(items), AT_ONCE):
                batch = items[first:first + AT_ONCE]
                pictures = [source[index] for index, _, _ in batch]
                pixels = torch.stack([picture.flip(-1) if turned else picture
                                      for (picture, _), (_, turned, _) in zip(pictures, batch, strict=True)])
                mean, logvar = _encode(vae, pixels)
                means.append(mean)
                logvars.append(logvar)
                captions.extend(caption for _, caption in pictures)
                yield len(batch)
        finally:
            if means:
                self._write([key for _, _, key in items[:len(captions)]], torch.cat(means), torch.cat(logvars), captions)

    def _write(self, keys: list[str], mean: Tensor, logvar: Tensor, captions: list[str]) -> None:
        name = hashlib.sha256("".join(keys).encode()).hexdigest()[:24] + ".safetensors"
        tensors.write(self.home / name, {"mean": mean, "logvar": logvar},
                      {"keys": json.dumps(keys), "captions": json.dumps(captions)})
        self.places.update({key: (name, row) for row, key in enumerate(keys)})


@torch.no_grad()
def _encode(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of each picture as if alone, float16 on the CPU. Raises CheckpointError for a VAE that gives no numbers."""
    weight = next(vae.parameters())
    mean, logvar = vae.encode(pixels.to(weight.device, weight.dtype))
    if not bool(mean.isfinite().all()):
        raise CheckpointError("The VAE gives values that are not numbers; choose another VAE, or float32.")
    return mean.to("cpu", torch.float16), logvar.to("cpu", torch.float16)
