"""The one reader of pickles (.ckpt, .pt, .pth, .bin): torch's zip form and the older form of five pickles in a row.

A pickle is a program. This interpreter runs it with words of our own: every name that a model file needs stands for an inert
description, every other name is refused, and no function of torch or of any other library is called while it runs. The result
says where each tensor lies in the file; the values are then read as plain bytes.
"""
from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from modules.checkpoints.layout import MOST_DIMENSIONS, SIZES, Slot, Storage
from modules.core.errors import CheckpointError, UnsafeFileError

LONGEST_PICKLE = 16 << 20                                   # bytes of data.pkl; a full SD checkpoint with optimizer has 1 MiB
MEMBER = re.compile(r"([^/\\]+)/(data\.pkl|data/\d{1,9}|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment)")
PLAIN_FLAGS = 0x800 | 0x8                                   # UTF-8 names, sizes after the data: what torch writes
LEARNED = "string_to_param"                                 # where a textual inversion has its vectors
TOLD = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")   # what it says of itself
LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError,
          RecursionError, struct.error, UnicodeError, AssertionError)


class Inert:
    """Stands for an object that no tensor depends on: takes any argument, state or item and forgets it."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...
    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...


class Parameters(dict):
    """Stands for torch's ParameterDict, as old textual inversions carry it: its parameters become the dictionary's entries."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            found = state.get("_parameters") or {key: value for key, value in state.items() if isinstance(value, View)}
            self.update(found)


class Word(NamedTuple):                                     # tuples, since a pickle can write into any other object of ours
    """A storage class or a dtype, by torch's name of the values; "" = bytes without a type."""

    dtype: str


class Place(NamedTuple):
    """What a persistent id names: a storage of so many values, not yet looked for in the file."""

    dtype: str
    key: str
    length: int


class View(NamedTuple):
    """A tensor to be: a view into a place. offset, shape and stride in values."""

    place: Place
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(place: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> View:
    """torch's words for a tensor: v2 takes the type from the storage, v3 names it as (requires_grad, hooks, dtype)."""
    dtype = place.dtype or (rest[2].dtype if len(rest) > 2 and isinstance(rest[2], Word) else "")
    shape, stride = tuple(shape), tuple(stride)
    whole = all(type(value) is int and value >= 0 for value in (offset, *shape, *stride))
    if not isinstance(place, Place) or dtype not in SIZES or not whole or len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise pickle.UnpicklingError("a tensor's shape is senseless")
    values = place.length if place.dtype else place.length // SIZES[dtype]
    needed, count = 1 + offset, 1
    for length, step in zip(shape, stride, strict=True):
        needed, count = needed + (length - 1) * step, count * length
    if count and (needed > values or count > values):       # a small storage may not be read as a huge tensor
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return View(place, dtype, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _nothing(*_: Any) -> Inert:
    return Inert()


def _tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _encode(*_: Any) -> bytes:
    return b""


STORAGES = {"Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Int": "int32", "Long": "int64",
            "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
ALLOWED: Mapping[tuple[str, str], Any] = MappingProxyType({
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._utils", "_rebuild_device_tensor_from_numpy"): _nothing,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.nn.modules.container", "ParameterDict"): Parameters,
    ("torch", "Size"): _tuple,
    ("torch", "device"): Inert,
    ("torch.storage", "UntypedStorage"): Word(""),
    ("_codecs", "encode"): _encode,
    **{("torch", f"{name}Storage"): Word(dtype) for name, dtype in STORAGES.items()},
    **{("torch", dtype): Word(dtype) for dtype in SIZES},
    **{(f"numpy.{core}.multiarray", name): Inert for core in ("core", "_core") for name in ("scalar", "_reconstruct")},
    **{("numpy", name): Inert for name in ("dtype", "ndarray")},
    ("numpy.dtypes", "Float64DType"): Inert,
    **{(module, "set"): Inert for module in ("builtins", "__builtin__")},
})
LIGHTNING = re.compile(r"(pytorch_lightning|lightning|lightning_fabric)(\.[A-Za-z_]\w*)*")


REFUSED = tuple(code[0] for code in (
    pickle.DICT, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER,
    pickle.INST, pickle.OBJ, pickle.BYTEARRAY8))


def _refuse(_: Any) -> None:
    raise pickle.UnpicklingError("an instruction that no model needs")


class Reader(pickle._Unpickler):                            # the Python one: its memo and reads stay within the file's size
    """Runs a pickle with the words above only."""

    def __init__(self, file: Any, name: str) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._name = name
        self.places: dict[str, Place] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if LIGHTNING.fullmatch(module) and name.isidentifier():
            return Inert
        wanted = ascii(f"{module}.{name}")[1:-1][:100]
        raise UnsafeFileError(f"{self._name} asks to run {wanted}, which no model needs; it was not opened. Get the .safetensors version.")

    def get_extension(self, code: int) -> Any:
        raise UnsafeFileError(f"{self._name} asks for extension {code} of the pickle format, which no model needs; it was not opened.")

    def persistent_load(self, pid: Any) -> Place:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and isinstance(pid[1], Word)):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if len(pid) == 6 and pid[5] is not None:
            raise pickle.UnpicklingError("a storage that looks into another, as torch wrote before 0.4")
        if not isinstance(pid[2], str) or type(pid[4]) is not int or not 0 <= pid[4] < 1 << 48:
            raise pickle.UnpicklingError("a senseless storage")
        place = Place(pid[1].dtype, pid[2], pid[4])
        if self.places.setdefault(place.key, place) != place:
            raise pickle.UnpicklingError("a storage of two sizes")
        return place

    def load_setitem(self) -> None:
        _check_key(self.stack[-2])                          # type: ignore[attr-defined]
        pickle._Unpickler.load_setitem(self)                # type: ignore[attr-defined]

    def load_setitems(self) -> None:
        for key in self.stack[::2]:                         # type: ignore[attr-defined]
            _check_key(key)
        pickle._Unpickler.load_setitems(self)               # type: ignore[attr-defined]

    dispatch = MappingProxyType({                           # type: ignore[assignment]
        **pickle._Unpickler.dispatch,                       # type: ignore[attr-defined]
        pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems, **dict.fromkeys(REFUSED, _refuse),
    })


def _check_key(key: Any) -> None:
    """A dictionary's key is a word or a number, or a class of ours: hashing a tuple nested a million deep ends the process."""
    if not (isinstance(key, (str, int, float, bytes)) or key is None or key is Inert):
        raise pickle.UnpicklingError("a dictionary with keys that are no names")


class Bounded:
    """A file from its present place to `end`; no read asks the system for more than is there."""

    def __init__(self, file: BinaryIO, end: int) -> None:
        self._file, self._end = file, end

    def read(self, size: int) -> bytes:
        if size < 0 or size > self._end - self._file.tell():
            raise EOFError("cut off")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(4096)                    # a name or a number in decimal; longer ones are hostile
        if not line.endswith(b"\n"):
            raise EOFError("cut off")
        return line


def read(file: BinaryIO, name: str, size: int, *, zipped: bool) -> tuple[dict[str, Slot], dict[str, str]]:
    """Slots by name, unwrapped, and `global_step` if the file says it. file: unbuffered, at its beginning; size in bytes.

    Raises UnsafeFileError for a pickle that asks for more than tensors, CheckpointError for a broken one.
    """
    try:
        top, place = _read_zip(file, name) if zipped else _read_legacy(io.BufferedReader(_Kept(file)), name, size)
        texts = {key: text for key in ("global_step", *TOLD) if (text := _told(top, key))}
        views = {key: view for key, view in _unwrapped(top, name).items() if isinstance(key, str) and isinstance(view, View)}
        return {key: Slot(place(view), view.dtype, view.shape, view.offset, view.stride) for key, view in views.items()}, texts
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{name} is cut off or damaged: its archive cannot be read. Download it again.") from error
    except BROKEN as error:
        raise CheckpointError(f"{name} is cut off or damaged, or holds no model{_cause(error)}.") from error


def _cause(error: BaseException) -> str:
    """A fault's own words in brackets, as far as they are plain text."""
    words = "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in str(error)[:80])
    return f" ({words})" if " " in words else ""


class _Kept(io.RawIOBase):
    """Lends a file to a BufferedReader that will be thrown away without closing it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        return self._file.readinto(buffer)                  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)


def _told(top: Any, key: str) -> str:
    """A number or a short text that stands beside the tensors; "" for anything else, and where a model file has no such word."""
    if not isinstance(top, dict) or (key in TOLD and LEARNED not in top):
        return ""
    value = top.get(key)
    number = type(value) is int and abs(value) < 1 << 62
    return str(value) if number or (key in TOLD and isinstance(value, str) and len(value) < 1024) else ""


def _unwrapped(top: Any, name: str) -> dict[Any, Any]:
    """The dictionary of tensors inside whatever a trainer put around it."""
    for _ in range(2):
        if isinstance(top, dict) and isinstance(top.get("state_dict"), dict):
            top = top["state_dict"]
    if isinstance(top, list) and all(isinstance(one, dict) for one in top):
        top = {f"{number}.{key}": value for number, one in enumerate(top) for key, value in one.items()}
    if isinstance(top, dict) and isinstance(top.get(LEARNED), dict):
        return dict(top[LEARNED])
    if isinstance(top, dict) and len(top) == 1 and isinstance(next(iter(top.values())), dict):
        top = next(iter(top.values()))
    if not isinstance(top, dict):
        raise CheckpointError(f"{name} holds no table of tensors, so it is no model.")
    return top


def _read_zip(file: BinaryIO, name: str) -> tuple[Any, Callable[[View], Storage]]:
    with zipfile.ZipFile(file) as archive:
        members = _members(archive, name)
        program = members["data.pkl"]
        if program.file_size > LONGEST_PICKLE:
            raise CheckpointError(f"{name} is damaged: its table of contents is larger than any model needs.")
        if "byteorder" in members and archive.read(members["byteorder"]).strip() != b"little":
            raise CheckpointError(f"{name} was written on a big-endian machine, which Easel does not read.")
        top = Reader(io.BytesIO(archive.read(program)), name).load()

    def place(view: View) -> Storage:
        member = members.get(f"data/{view.place.key}")
        need = view.place.length * SIZES[view.place.dtype or "uint8"]
        if member is None or member.file_size != need:
            raise CheckpointError(f"{name} is damaged: values of a tensor are missing. Download it again.")
        return Storage(_start(file, member, name), need, member.CRC)

    return top, place


def _members(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """Members by the name inside the archive's one folder. Refuses what torch does not write."""
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for member in archive.infolist():
        match = MEMBER.fullmatch(member.filename)
        if not match:
            raise UnsafeFileError(f"{name} holds {ascii(member.filename)[:80]}, which no file of weights needs; it was not opened.")
        if member.flag_bits & ~PLAIN_FLAGS or member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise UnsafeFileError(f"{name} is packed in a way that torch never does; it was not opened.")
        if match[2] in found:
            raise UnsafeFileError(f"{name} holds {match[2]} twice; it was not opened.")
        folders.add(match[1])
        found[match[2]] = member
    if len(folders) != 1 or "data.pkl" not in found:
        raise UnsafeFileError(f"{name} is an archive, but not one of weights; it was not opened.")
    return found


def _start(file: BinaryIO, member: zipfile.ZipInfo, name: str) -> int:
    """First byte of a stored member's data. The local header must agree with the archive's directory."""
    file.seek(member.header_offset)
    fixed = file.read(30)
    signature, _, flags, method, *_, name_length, extra_length = struct.unpack("<4s5H3L2H", fixed)
    local = file.read(name_length)
    if signature != b"PK\x03\x04" or method != 0 or flags & ~PLAIN_FLAGS or local != member.filename.encode("utf-8"):
        raise UnsafeFileError(f"{name} says two different things about its members; it was not opened.")
    return member.header_offset + 30 + name_length + extra_length


def _read_legacy(file: BinaryIO, name: str, size: int) -> tuple[Any, Callable[[View], Storage]]:
    """Five pickles in a row (magic, protocol, system, the object, storage keys), then each storage: its length, its values."""
    bounded = Bounded(file, min(size, LONGEST_PICKLE))
    if Reader(bounded, name).load() != LEGACY_MAGIC or Reader(bounded, name).load() != LEGACY_PROTOCOL:
        raise UnsafeFileError(f"{name} is a pickle, but none that torch wrote; it was not opened.")
    system = Reader(bounded, name).load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{name} was written on a big-endian machine, which Easel does not read.")
    reader = Reader(bounded, name)
    top = reader.load()
    keys = Reader(bounded, name).load()
    storages = _legacy_storages(file, size, keys, reader.places)
    return top, lambda view: storages[view.place.key]


def _legacy_storages(file: BinaryIO, size: int, keys: Any, places: Mapping[str, Place]) -> dict[str, Storage]:
    """Where each storage lies behind the pickles. Raises ValueError or EOFError when the file says otherwise than its pickle."""
    found: dict[str, Storage] = {}
    at = file.tell()
    if not isinstance(keys, list) or set(keys) != set(places) or len(set(keys)) != len(keys):
        raise ValueError("its storages are not those of its tensors")
    for key in keys:
        file.seek(at)
        place = places[key]
        length = place.length * SIZES[place.dtype or "uint8"]
        if struct.unpack("<q", file.read(8))[0] != place.length or length > size - at - 8:
            raise EOFError("cut off")
        found[key] = Storage(at + 8, length)
        at += 8 + length
    return found
