"""The blocks of a U-Net under the names that people who merge give them: BASE, IN00, IN01, ..., M00, OUT00, ..."""
from __future__ import annotations

import math
import re
from collections.abc import Mapping

from modules.core.errors import RequestError
from modules.families.keys import UNET

BASE, MIDDLE = "BASE", "M00"                                # BASE: all that is not the U-Net: text encoders and VAE
BLOCK = re.compile(re.escape(UNET) + r"(input_blocks|output_blocks)\.(\d+)\.")
TERM = re.compile(r"(BASE|(?:IN|OUT|M)(?:\d\d)?)(?:-((?:IN|OUT|M)\d\d))?[=:](.+)", re.IGNORECASE)


def names(inputs: int) -> tuple[str, ...]:
    """All blocks of a U-Net with so many input blocks (as many are output blocks), in the order in which people list weights."""
    return (BASE, *(f"IN{index:02}" for index in range(inputs)), MIDDLE, *(f"OUT{index:02}" for index in range(inputs)))


def block_of(name: str, shares: Mapping[str, object]) -> str:
    """The block of a tensor, one of `shares`' keys. Time and label embeddings go with the first block, the last layer with the last."""
    if not name.startswith(UNET):
        return BASE
    found = BLOCK.match(name)
    if found:
        return f"{'IN' if found[1] == 'input_blocks' else 'OUT'}{int(found[2]):02}"
    if name.startswith(f"{UNET}middle_block."):
        return MIDDLE
    return list(shares)[-1] if name.startswith(f"{UNET}out.") else "IN00"


def block_weights(text: str, weight: float, inputs: int) -> dict[str, float]:
    """The weight of every block. text: "" = `weight` for all; else one of

    numbers with commas: for IN00 to the last OUT (25 in SD1 and SD2, 19 in SDXL), or with one for BASE before them (26, 20);
    names with commas: "IN00=0.2, IN04-IN08=0.5, OUT=1, M00=0, BASE=0.3"; what is not named has `weight`, and of two the later stands.
    Raises RequestError saying which word cannot be read.
    """
    blocks = names(inputs)
    shares = dict.fromkeys(blocks, weight)
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        return shares
    if not any(re.search("[=:]", word) for word in words):
        return shares | _listed([_number(word) for word in words], blocks)
    for word in words:
        found = TERM.fullmatch(word)
        if not found:
            raise RequestError(f"“{word[:40]}” cannot be read as a weight of blocks; write for instance IN04-IN08=0.5.", field="blocks")
        shares |= dict.fromkeys(_range(found[1].upper(), found[2] and found[2].upper(), blocks, word), _number(found[3].strip()))
    return shares


def _listed(numbers: list[float], blocks: tuple[str, ...]) -> dict[str, float]:
    if len(numbers) == len(blocks) - 1:
        return dict(zip(blocks[1:], numbers, strict=True))
    if len(numbers) == len(blocks):
        return dict(zip(blocks, numbers, strict=True))
    raise RequestError(f"There are {len(numbers)} weights of blocks; this model takes {len(blocks) - 1}, or {len(blocks)} with BASE first.",
                       field="blocks")


def _range(first: str, last: str | None, blocks: tuple[str, ...], word: str) -> tuple[str, ...]:
    if last is None and first in ("IN", "OUT", "M"):
        return tuple(block for block in blocks if block.rstrip("0123456789") == first)
    ends = [name for name in (first, last) if name is not None]
    fault = next((name for name in ends if name not in blocks), "") or (
        "blocks in the wrong order" if blocks.index(ends[0]) > blocks.index(ends[-1]) else "")
    if fault:
        raise RequestError(f"“{word[:40]}” names {fault}; this model has {', '.join(blocks[:2])} to {blocks[-1]}.", field="blocks")
    return blocks[blocks.index(ends[0]):blocks.index(ends[-1]) + 1]


def _number(text: str) -> float:
    try:
        found = float(text) if len(text) < 40 else math.nan
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise RequestError(f"“{text[:40]}” is no weight; write a number.", field="blocks")
    return found
