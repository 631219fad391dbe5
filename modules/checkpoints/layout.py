"""Where each tensor's bytes lie in a file, whatever its format; read without loading a single value."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from modules.core.errors import CheckpointError

SIZES = MappingProxyType({                                  # bytes of one value, by torch's name
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "uint16": 2, "uint32": 4, "uint64": 8,
})
MOST_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes in the file, `start` and `size` in bytes; several tensors may look into one. crc: of the zip member, or None."""

    start: int
    size: int
    crc: int | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """One tensor: a view into a storage. offset and stride in values, not bytes; stride None = row after row."""

    storage: Storage
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    stride: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file says it holds: slots by tensor name, text beside them, and the identity of the file that was read."""

    slots: Mapping[str, Slot]
    metadata: Mapping[str, str] = field(default_factory=dict)
    stamp: tuple[int, int] = (0, 0)

    @property
    def header(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: slot.shape for name, slot in self.slots.items()}


def cleaned(slots: Mapping[str, Slot], file: str) -> dict[str, Slot]:
    """Names as the published layouts have them: wrappers' prefixes off, the discriminator of VAE training left out.

    Raises CheckpointError when two tensors would then share a name.
    """
    found: dict[str, Slot] = {}
    for name, slot in slots.items():
        plain = _bare(name)
        if plain.startswith(("loss.", "first_stage_model.loss.")):
            continue
        if plain in found:
            raise CheckpointError(f"{file} holds the tensor {plain[:100]} twice; the file is damaged.")
        found[plain] = slot
    return found


def shadow_of(name: str) -> str:
    """Under which name a trainer keeps the average of this weight over its steps (EMA): all dots gone, so that it can only be found
    forwards."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _bare(name: str) -> str:
    """Without what DataParallel and torch.compile put before a name."""
    while name.startswith(("module.", "_orig_mod.")):
        name = name.removeprefix("module.").removeprefix("_orig_mod.")
    return name.replace("._orig_mod.", ".")
