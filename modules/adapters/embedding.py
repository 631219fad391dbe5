"""Textual inversions: words of a prompt that are vectors, from .safetensors, .pt, .bin and pictures. Gal et al. 2022, arXiv:2208.01618."""
from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.adapters import embedding_pictures
from modules.core import hashing
from modules.core.errors import CheckpointError
from modules.core.hashing import Hashes
from modules.prompts.learned import Learned, Spellings
from modules.prompts.tokens import CHUNK, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

FILES = (".safetensors", ".pt", ".bin")
LARGEST = 64 << 20                                          # bytes; 75 vectors of SDXL are 600 kB
TWO_TOWERS = ("clip_l", "clip_g")
USUAL = "*"                                                 # what the vectors are called where one file may hold several


@dataclass(frozen=True, kw_only=True, eq=False)
class Embedding:
    """A learned word. parts: (count, width), one for each text tower."""

    name: str
    sha256: str
    parts: tuple[Tensor, ...]
    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None

    @property
    def count(self) -> int:
        return self.parts[0].shape[0]

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(part.shape[1] for part in self.parts)

    def fits(self, towers: Sequence[int]) -> bool:
        """Whether it has a part for each text tower of these widths; SDXL's second one may stand alone, as in the refiner."""
        return tuple(towers) in (self.widths, self.widths[-1:])

    def rows(self, tower: int, width: int) -> Tensor:
        """(count, width) for the tower of this number; of parts of one width that of the number."""
        return next(part for part in (*self.parts[tower:tower + 1], *self.parts) if part.shape[1] == width)


class Embeddings:
    """The files below the embeddings folders. Nothing is read before somebody asks for its name; what was read is kept while its file stays
    the same. Safe for many threads."""

    def __init__(self, folders: Iterable[Path], hashes: Hashes) -> None:
        self._folders = tuple(folders)
        self._hashes = hashes
        self._lock = threading.RLock()
        self._kept: dict[Path, tuple[hashing.Stamp, Embedding | None]] = {}
        self._spelled: tuple[int, tuple[str, ...], Spellings] | None = None

    def files(self) -> dict[str, Path]:
        """Path by name, as the folders are now; of two files with one name the first. A picture may say its own name, so it is read."""
        named: dict[str, Path] = {}
        pictures = []
        for path in _below(self._folders):
            if path.suffix.lower() in FILES:
                named.setdefault(path.stem, path)
            elif not path.stem.endswith(".preview"):
                pictures.append(path)
        for path in pictures:
            if path.stem not in named:                      # else it shows what the embedding does
                found = self._picture(path)
                if found is not None:
                    named.setdefault(found.name, path)
        return named

    def refresh(self) -> None:
        """Forget what was read."""
        with self._lock:
            self._kept.clear()

    def get(self, name: str, path: Path) -> Embedding | None:
        """The embedding in this file; None for a picture that holds none. Raises CheckpointError (UnsafeFileError) with the cause."""
        with self._lock:
            stamp = hashing.stamp(path)
            known = self._kept.get(path)
            if known is None or known[0] != stamp:
                if stamp[0] > LARGEST:
                    raise CheckpointError(f"{path.name} is larger than {LARGEST >> 20} MiB, so it is no embedding.")
                known = stamp, self._read(name, path)
                self._kept[path] = known
            return known[1]

    def listed(self, towers: Sequence[int]) -> tuple[dict[str, Embedding], dict[str, Embedding | str]]:
        """(those for text towers of these widths, the others: an embedding of another width, or the sentence why it cannot be used)."""
        loaded: dict[str, Embedding] = {}
        skipped: dict[str, Embedding | str] = {}
        for name, path in self.files().items():
            try:
                found = self.get(name, path)
            except CheckpointError as error:
                skipped[name] = str(error)
                continue
            if found is not None:
                (loaded if found.fits(towers) else skipped)[name] = found
        return loaded, skipped

    def words(self, tokenizer: Tokenizer, towers: Sequence[int] | None = None) -> Known:
        """The embeddings as words for text towers of these widths; None = of any, for counting."""
        files = self.files()
        with self._lock:
            names = tuple(sorted(files))
            if self._spelled is None or self._spelled[:2] != (id(tokenizer), names):
                self._spelled = id(tokenizer), names, Spellings(names, tokenizer.ids)
            return Known(self, files, self._spelled[2], towers)

    def _picture(self, path: Path) -> Embedding | None:
        try:
            return self.get(path.stem, path)
        except CheckpointError:
            return None                                     # a picture that cannot be read is not missed here

    def _read(self, name: str, path: Path) -> Embedding | None:
        if path.suffix.lower() in FILES:
            told, tensors = _from_file(path)
        else:
            found = embedding_pictures.read(path)
            if found is None:
                return None
            told, tensors = found
            name = str(told.get("name") or name)
        step = str(told.get("step", ""))
        return Embedding(
            name=name, sha256=self._hashes.sha256(path), parts=_parts(tensors, path.name), step=int(step) if step.isdecimal() else None,
            sd_checkpoint=told.get("sd_checkpoint"), sd_checkpoint_name=told.get("sd_checkpoint_name"))


class Known:
    """The embeddings that one model can use: a prompts.learned.Words. skipped: sentences about those that were named and could not be."""

    def __init__(self, home: Embeddings, files: Mapping[str, Path], spellings: Spellings, towers: Sequence[int] | None) -> None:
        self._home, self._files, self._spellings, self._towers = home, files, spellings, towers
        self.skipped: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._spellings)

    def at(self, ids: Sequence[int], place: int) -> tuple[Learned, int] | None:
        for name, tokens in self._spellings.at(ids, place):
            found = self._usable(name)
            if found is not None:
                return found, tokens
        return None

    def _usable(self, name: str) -> Embedding | None:
        if name in self.skipped:
            return None
        try:
            found = self._home.get(name, self._files[name])
        except CheckpointError as error:
            self.skipped[name] = f"The embedding {name} was left out: {error}"
            return None
        if found is not None and self._towers is not None and not found.fits(self._towers):
            wide = " + ".join(str(width) for width in found.widths)
            self.skipped[name] = (f"The embedding {name} was left out: its vectors have {wide} numbers, and the checkpoint's text encoder "
                                  f"takes {' + '.join(str(width) for width in self._towers)}.")
            return None
        return found


def _below(folders: Iterable[Path]) -> Iterator[Path]:
    """Ordinary files of the right endings below the folders, in order; hidden ones are left out, a folder is entered once."""
    entered: set[str] = set()
    for root in folders:
        for home, subfolders, files in os.walk(root, followlinks=True):
            real = os.path.realpath(home)
            subfolders[:] = [] if real in entered else sorted(name for name in subfolders if not name.startswith("."))
            if real in entered:
                continue
            entered.add(real)
            for file in sorted(files):
                if file.lower().endswith((*FILES, *embedding_pictures.ENDINGS)) and not file.startswith("."):
                    yield Path(home, file)


def _from_file(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    from modules.checkpoints import read  # torch: kept off the start
    return read.metadata(path), read.weights(path)


def _parts(tensors: Mapping[str, Tensor], file: str) -> tuple[Tensor, ...]:
    """(count, width) float32 of each tower. Raises CheckpointError."""
    if all(name in tensors for name in TWO_TOWERS):
        chosen = [tensors[name] for name in TWO_TOWERS]
    else:
        chosen = [tensors[USUAL]] if USUAL in tensors else list(tensors.values())
    parts = tuple((tensor[None] if tensor.dim() == 1 else tensor).float() for tensor in chosen)
    if not parts or any(part.dim() != 2 or not part.shape[1] or not 1 <= part.shape[0] <= CHUNK for part in parts):
        raise CheckpointError(f"{file} is no embedding: it should hold 1 to {CHUNK} vectors.")
    if len({part.shape[0] for part in parts}) > 1 or len(parts) > 2:
        raise CheckpointError(f"{file} is no embedding: its parts are not of one length.")
    return parts
