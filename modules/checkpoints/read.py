"""Any model file or folder -> header, metadata, weights. safetensors is read here, by its published format; pickles by pickles.py; what
has diffusers' names is given under those of the single files.

Reading is strict: a header that leaves a byte unexplained, twice explained or unnamed belongs to no sound file.
"""
from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import torch
from torch import Tensor

from modules.checkpoints import folder, pickles
from modules.checkpoints.layout import MOST_DIMENSIONS, SIZES, Contents, Slot, Storage, cleaned
from modules.core import hardware, hashing
from modules.core.errors import CheckpointError, UnsafeFileError
from modules.families.diffusers_names import to_plain

LONGEST_HEADER = 32 << 20                                   # bytes; the largest published ones have less than 1 MiB
OWN_PAGES = 1 << 20                                         # bytes from which on a tensor gets pages of its own
PIECE = 16 << 20                                            # bytes that a Slab takes at once
LINE = 64                                                   # bytes; tensors begin on a multiple, as torch's own do
NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
         "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
         "U16": "uint16", "U32": "uint32", "U64": "uint64"}
SCHEDULE = frozenset({                                      # tables of the training schedule: some are infinite at zero terminal SNR
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "scale_factor",
})
Path_ = str | os.PathLike[str]


def contents(path: Path_) -> Contents:
    """Names, shapes and metadata, without loading a value. path: a file, or a folder in diffusers' layout; either's names are those of
    single files. Raises CheckpointError (UnsafeFileError for a pickle) naming file and cause."""
    with _opened(Path(path)) as sources:
        return _merged(Path(path), sources)


def header(path: Path_) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape. Raises as `contents`."""
    return contents(path).header


def metadata(path: Path_) -> dict[str, str]:
    """The texts in the file's header; of a pickle only `global_step`, if it has one; of a folder what `folder.hints` finds in it.
    Raises as `contents`."""
    return dict(contents(path).metadata)


def weights(path: Path_, keep: Callable[[str], bool] = lambda name: True,
            change: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor) -> dict[str, Tensor]:
    """Tensor name -> tensor on the CPU in the file's own type, each a private copy; those that `keep` refuses are not read.

    change(name, tensor): what is kept of a tensor once it is read, for instance a copy in another type; a few are worked
    on side by side, and so held twice at a time.
    Raises CheckpointError also for a value that is no finite number, naming the tensor, and for a file that shrinks meanwhile.
    """
    with _opened(Path(path)) as sources:
        order = _merged(Path(path), sources).slots
        found: dict[str, Tensor] = {}
        for source in sources:
            found |= _load(source.file, source.shown, {name: slot for name, slot in source.slots.items() if keep(name)}, change)
        return {name: found[name] for name in order if name in found}


@dataclass(frozen=True, slots=True)
class Source:
    """One open file of a model. shown: its name in sentences; slots: by the names of single files."""

    file: BinaryIO
    shown: str
    slots: Mapping[str, Slot]
    metadata: Mapping[str, str]
    stamp: hashing.Stamp


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Source, ...]]:
    """All files of a model, open, with plain names. Never waits: what is no ordinary file is refused before it is opened."""
    with ExitStack() as stack:
        if folder.holds_model(path):
            with _named(path):
                files = folder.files(path)
        else:
            files = (folder.Part("", path),)
        yield _plain(tuple(_source(path, part, stack) for part in files), path.name)


def _source(model: Path, part: folder.Part, stack: ExitStack) -> Source:
    """One file, its names behind the name of the part that it holds."""
    shown = f"{model.name}/{part.part}/{part.path.name}" if part.part else model.name
    file, stamp = stack.enter_context(_open(part.path, shown))
    found = _contents(file, shown, stamp)
    missing = next(iter((part.names or frozenset()) - found.slots.keys()), None)
    if missing:
        raise CheckpointError(f"{shown} lacks the tensor {ascii(missing)[1:-1][:100]}, which its index places there; download it again.")
    return Source(file, shown, {f"{part.part}.{name}" if part.part else name: slot for name, slot in found.slots.items()},
                  found.metadata, stamp)


def _plain(sources: tuple[Source, ...], model: str) -> tuple[Source, ...]:
    """The same under plain names; what has them already stays as it is. Raises CheckpointError for two tensors of one name."""
    own = [(name, slot.shape) for source in sources for name, slot in source.slots.items()]
    try:
        names = to_plain(dict(own))
    except CheckpointError as error:
        raise CheckpointError(f"{model} cannot be used: {error}") from error
    if not names:
        return sources
    given = sorted(names[name] for name, _ in own if name in names)
    twice = next((name for name, other in pairwise(given) if name == other), None)
    if twice:
        raise CheckpointError(f"{model} holds the tensor {ascii(twice)[1:-1][:100]} twice; it is damaged.")
    return tuple(Source(source.file, source.shown, {names[name]: slot for name, slot in source.slots.items() if name in names},
                        source.metadata, source.stamp) for source in sources)


def _merged(path: Path, sources: tuple[Source, ...]) -> Contents:
    slots = {name: slot for source in sources for name, slot in source.slots.items()}
    if not folder.holds_model(path):
        return Contents(slots=slots, metadata=sources[0].metadata, stamp=sources[0].stamp)
    with _named(path):
        return Contents(slots=slots, metadata=folder.hints(path), stamp=folder.stamp(path))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What is wrong with a small file of a folder is said with the folder's name."""
    try:
        yield
    except CheckpointError as error:
        if path.name in str(error):
            raise
        kind = UnsafeFileError if isinstance(error, UnsafeFileError) else CheckpointError
        raise kind(f"{path.name} cannot be used: {error}") from error


@contextmanager
def _open(path: Path, shown: str) -> Iterator[tuple[BinaryIO, hashing.Stamp]]:
    """The open file and its stamp."""
    hashing.stamp(path)
    try:
        with open(path, "rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            yield file, (facts.st_size, facts.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{shown} cannot be read ({error.strerror or error}).") from error


def _contents(file: BinaryIO, name: str, stamp: hashing.Stamp) -> Contents:
    size = stamp[0]
    first = file.read(256)
    kind = _kind(first, size)
    if kind.startswith("It"):
        raise CheckpointError(f"{name} is no model file. {kind}")
    named_safe = name.lower().endswith((".safetensors", ".sft"))
    if named_safe and kind != "safetensors":
        raise CheckpointError(f"{name} is not what its ending says: it is a pickle, or damaged. Download it again from its source.")
    file.seek(0)
    slots, texts = _safetensors(file, name, size) if kind == "safetensors" else pickles.read(file, name, size, zipped=kind == "zip")
    slots = cleaned(slots, name)
    if not slots:
        raise CheckpointError(f"{name} holds no tensors, so it is no model.")
    return Contents(slots=slots, metadata=texts, stamp=stamp)


def _kind(first: bytes, size: int) -> str:
    """safetensors, zip, pickle; or a sentence that begins with "It"."""
    text = first.lstrip().lower()
    if not size:
        return "It is empty."
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "It is a web page, saved under this name; download the file itself."
    if first.startswith(b"version https://git-lfs"):
        return "It is a git-lfs pointer, not the file it points to; run “git lfs pull” or download the file itself."
    if first.startswith(b"PK\x03\x04"):
        return "zip"
    if first[8:9] == b"{":
        return "safetensors"
    if first[:1] == b"\x80":
        return "pickle"
    if first[:4] == b"GGUF":
        return "It is a GGUF file, a format that Easel does not read."
    return "It begins like none of the formats that hold models, or was cut off."


def _safetensors(file: BinaryIO, name: str, size: int) -> tuple[dict[str, Slot], dict[str, str]]:
    length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
    if not 2 <= length <= size - 8:
        raise CheckpointError(f"{name} is cut off or damaged: its header claims {length} bytes and the file has {size}.")
    if length > LONGEST_HEADER:
        raise CheckpointError(f"{name} is damaged: its header claims {length} bytes, more than any model needs.")
    table = _json(file.read(length), name)
    texts = _texts(table.pop("__metadata__", {}), name)
    slots = {key: _slot(entry, key, 8 + length, name) for key, entry in table.items()}
    _check_cover(slots, 8 + length, size, name)
    return slots, texts


def _json(raw: bytes, name: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
            raise CheckpointError(f"{name} is damaged: its header names {ascii(twice)[:100]} twice.")
        return found

    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is damaged: its header is not JSON.") from error
    if not isinstance(table, dict):
        raise CheckpointError(f"{name} is damaged: its header is no table.")
    return table


def _texts(found: Any, name: str) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{name} is damaged: its metadata are not texts.")
    return found


def _slot(entry: Any, key: str, base: int, name: str) -> Slot:
    """One line of the header. Every number is checked before it is used."""
    shown = ascii(key)[:100]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{name} is damaged: the header's entry {shown} is incomplete.")
    dtype, shape, span = NAMES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise CheckpointError(f"{name} stores {shown} as {ascii(entry['dtype'])[:30]}, a type that Easel does not read.")
    if not _counts(shape) or len(shape) > MOST_DIMENSIONS or not _counts(span) or len(span) != 2:
        raise CheckpointError(f"{name} is damaged: shape or place of {shown} is senseless.")
    slot = Slot(Storage(base + span[0], span[1] - span[0]), dtype, tuple(shape))
    need = slot.count * SIZES[dtype]
    if slot.storage.size != need:
        raise CheckpointError(f"{name} is damaged: {shown} has {slot.storage.size} bytes where its shape needs {need}.")
    return slot


def _counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in found)


def _check_cover(slots: Mapping[str, Slot], base: int, size: int, name: str) -> None:
    """The tensors' bytes lie end to end from the header to the last byte."""
    at = base
    for key, slot in sorted(slots.items(), key=lambda item: (item[1].storage.start, item[1].storage.size)):
        if slot.storage.start != at:
            fault = "overlaps another tensor" if slot.storage.start < at else "leaves bytes before it unexplained"
            raise CheckpointError(f"{name} is damaged: {ascii(key)[:100]} {fault}.")
        at += slot.storage.size
    if at > size:
        raise CheckpointError(f"{name} is cut off: it should have {at} bytes and has {size}. Download it again.")
    if at < size:
        raise CheckpointError(f"{name} is damaged: {size - at} bytes follow the last tensor.")


def _load(file: BinaryIO, name: str, slots: Mapping[str, Slot], change: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Storages in the order of the file, so that a disk reads forward; the result in the order of the slots."""
    sharing: dict[Storage, list[str]] = {}
    for key, slot in slots.items():
        sharing.setdefault(slot.storage, []).append(key)
    found: dict[str, Tensor] = {}
    rooms, turn = Rooms(), Lock()

    def fill(storage: Storage) -> None:
        raw = _bytes(file, name, storage, rooms, turn)
        for key in sharing[storage]:
            tensor = _tensor(raw, slots[key], alone=len(sharing[storage]) == 1)
            _check_finite(tensor, key, name)
            found[key] = change(key, tensor)
            if _share(raw, found[key]):
                found[key] = found[key].clone()
        rooms.give_back(raw)

    with hardware.side_by_side() as pool:
        for _ in pool.map(fill, sorted(sharing, key=lambda storage: storage.start)):
            pass
    return {key: found[key] for key in slots}


def _share(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _bytes(file: BinaryIO, name: str, storage: Storage, rooms: Rooms, turn: Lock) -> Tensor:
    """(size,) uint8, filled from the file. turn: one thread reads at a time."""
    raw = rooms.take(storage.size)
    view = memoryview(raw.numpy())                          # type: ignore[arg-type]  # arrays have the buffer protocol
    with turn:
        file.seek(storage.start)
        at = 0
        while at < storage.size:
            read = file.readinto(view[at:at + (64 << 20)])      # type: ignore[attr-defined]
            if not read:
                raise CheckpointError(f"{name} is cut off: it ended while it was read. Download it again.")
            at += read
    if storage.crc is not None and zlib.crc32(view) != storage.crc:
        raise CheckpointError(f"{name} is damaged: a check sum inside it does not agree. Download it again.")
    return raw


class Rooms:
    """Memory for what is soon read over: the system need not clear a page for every byte that passes through."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """(size,) uint8, uninitialised."""
        with suppress(IndexError):                          # none is free
            place = self._free.pop()
            if size <= len(place):
                return place[:size]
        return room(size)

    def give_back(self, place: Tensor) -> None:
        """place: what `take` gave; nobody else may use it any more."""
        self._free.append(torch.empty(0, dtype=torch.uint8).set_(place.untyped_storage()))


class Slab:
    """Memory for many tensors that live about equally long, taken in large pieces, which core/pages.py can put into pages of 2 MiB.
    Safe for many threads."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)
        self._turn = Lock()

    def take(self, size: int) -> Tensor:
        """(size,) uint8, uninitialised; it is given back when no tensor of its piece is left."""
        if size >= PIECE:
            return room(size)
        with self._turn:
            if size > len(self._rest):
                self._rest = room(PIECE)
            taken, self._rest = self._rest[:size], self._rest[-(-size // LINE) * LINE:]
            return taken


def room(size: int) -> Tensor:
    """(size,) uint8 of private memory, uninitialised. Large ones go back to the system the moment they are let go of: torch's own are
    cut from a heap that cannot reuse an aligned block for one of the same size, so it grows by every tensor that is read and turned
    into another type."""
    if size < OWN_PAGES:
        return torch.empty(size, dtype=torch.uint8)
    if not hasattr(mmap, "MAP_ANONYMOUS"):                  # Windows
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _tensor(raw: Tensor, slot: Slot, alone: bool) -> Tensor:
    flat = raw.view(getattr(torch, slot.dtype))
    if slot.stride is None:
        return flat[slot.offset:slot.offset + slot.count].view(slot.shape)
    view = torch.as_strided(flat, slot.shape, slot.stride, slot.offset)
    return view if alone and view.is_contiguous() and slot.count == len(flat) else view.clone(memory_format=torch.contiguous_format)


def _check_finite(tensor: Tensor, key: str, file: str) -> None:
    """The smallest and the largest value tell: either is NaN if any is. They are found in half precision too without a wider copy."""
    if not tensor.is_floating_point() or key in SCHEDULE or not tensor.numel():
        return
    ends = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    if not (torch.isfinite(ends.min) and torch.isfinite(ends.max)):
        raise CheckpointError(f"{file} holds values that are no finite numbers in {key[:100]}; the file is damaged or was merged wrongly.")
