"""Chunks of tokens to Conditioning. Each text alone: its means and its length never see another picture's text."""
from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from modules.prompts import timeline
from modules.prompts.chunk import Chunk
from modules.prompts.learned import Learned, Words
from modules.prompts.timeline import PromptProgram, Schedule
from modules.prompts.tokens import Tokenizer, chunks, learned_in
from modules.sampling.conditioning import Conditioning

Text = str | tuple[str, str]                                # of all towers, or (of the first one, of the others)
Times = Sequence[tuple[int, Text]]
AT_ONCE = 64                                                # chunks in one call of a tower; bounds its memory


class TextTower(Protocol):
    """A text encoder of any family."""

    @property
    def vocabulary(self) -> str:
        """What its ids mean, one of those in vocabularies.py."""
        ...

    @property
    def pad_id(self) -> int:
        """What stands behind the first end token."""
        ...

    @property
    def width(self) -> int:
        """How many channels it gives."""
        ...

    def encode(self, ids: Tensor, skip: int) -> tuple[Tensor, Tensor | None]:
        """ids (B, T) int64, T = 77 for CLIP; skip = clip skip, 1 = the last layer. Returns (B, T, width), and (B, P) for the whole text
        where the tower gives such a vector."""
        ...


class VectorTower(TextTower, Protocol):
    """One that also takes vectors of its own width in place of tokens, as CLIP's do."""

    def token_embedding(self, ids: Tensor) -> Tensor:
        """ids (B, T) int64 -> (B, T, width)."""
        ...

    def encode_embeddings(self, vectors: Tensor, ids: Tensor, skip: int) -> tuple[Tensor, Tensor | None]:
        """As `encode`, with vectors (B, T, width) for what the ids stand for."""
        ...


def encode(text: Text, towers: Sequence[TextTower], tokenizer: Tokenizer, *, clip_skip: int = 1, emphasis: str = "Original",
           comma_padding_backtrack: int = 20, device: torch.device | str = "cpu", words: Words | None = None) -> Conditioning:
    """One text (or the first tower's and the others') through every tower, side by side: cross (1, T * chunks, sum of widths), and vector
    (1, sum of P) of the first chunk where towers give one; float32. Nothing at all without a tower.

    Raises PromptError or RequestError as `tokens.chunks` does.
    """
    if not towers:
        return Conditioning()
    crosses: list[Tensor] = []
    vectors: list[Tensor] = []
    with torch.no_grad():
        chunked = [chunks(_of(text, number), tokenizer, emphasis=emphasis, comma_padding_backtrack=comma_padding_backtrack,
                          vocabulary=tower.vocabulary, words=words) for number, tower in enumerate(towers)]
        longest = 0 if isinstance(text, str) else max(len(found) for found in chunked)
        for number, tower in enumerate(towers):
            found = chunked[number]
            found += chunks("", tokenizer, vocabulary=tower.vocabulary) * (longest - len(found))     # of two texts one may be the shorter
            cross, vector = _through(tower, number, found, clip_skip, emphasis, device)
            crosses.append(cross.reshape(1, -1, cross.shape[-1]))
            vectors += [] if vector is None else [vector]
    return Conditioning(cross=torch.cat(crosses, dim=2), vector=torch.cat(vectors, dim=1) if vectors else None)


def _of(text: Text, number: int) -> str:
    """What the tower of this number reads."""
    return text if isinstance(text, str) else text[min(number, 1)]


def _through(tower: TextTower, number: int, found: Sequence[Chunk], clip_skip: int, emphasis: str,
             device: torch.device | str) -> tuple[Tensor, Tensor | None]:
    """(chunks, T, width) weighed, and (1, P) of the first chunk or None; float32."""
    ids = torch.tensor([chunk.padded(tower.pad_id) for chunk in found], dtype=torch.int64, device=device)
    answers = [_answer(tower, number, ids[at:at + AT_ONCE], found[at:at + AT_ONCE], clip_skip) for at in range(0, len(found), AT_ONCE)]
    z, first = torch.cat([seen.float() for seen, _ in answers]), answers[0][1]
    vector = None if first is None else first[:1].float()
    if all(chunk.plain for chunk in found):
        return z, vector
    weights = torch.tensor([chunk.weights for chunk in found], dtype=torch.float32, device=z.device)
    return emphasised(z, weights, emphasis), vector


def _answer(tower: TextTower, number: int, ids: Tensor, found: Sequence[Chunk], skip: int) -> tuple[Tensor, Tensor | None]:
    """What the tower, the number of which is given, says to these chunks."""
    if not any(chunk.learned for chunk in found):
        return tower.encode(ids, skip)
    taking = cast(VectorTower, tower)
    vectors = taking.token_embedding(ids).clone()
    for row, chunk in enumerate(found):
        for place, word, part in chunk.learned:
            vectors[row, place] = word.rows(number, tower.width)[part].to(vectors)
    return taking.encode_embeddings(vectors, ids, skip)


def emphasised(z: Tensor, weights: Tensor, emphasis: str) -> Tensor:
    """z (B, 77, C) times weights (B, 77). "Original" then gives every chunk its former mean back; "Ignore" and "None" leave z."""
    if emphasis in ("Ignore", "None"):
        return z
    weighed = z * weights[:, :, None]
    if emphasis == "No norm":
        return weighed
    ratio = z.mean(dim=(1, 2), keepdim=True) / weighed.mean(dim=(1, 2), keepdim=True)
    return weighed * torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))


def pad_to(cond: Conditioning, tokens: int, empty: Conditioning) -> Conditioning:
    """Fill up to `tokens` (a multiple of 77) with the encoding of the empty text; longer ones stay as they are."""
    assert cond.cross is not None and empty.cross is not None
    missing = (tokens - cond.cross.shape[1]) // empty.cross.shape[1]
    if missing <= 0:
        return cond
    rows = cond.cross.shape[0]
    return replace(cond, cross=torch.cat([cond.cross, empty.cross.expand(rows, -1, -1).repeat(1, missing, 1)], dim=1))


def repeat_last(cond: Conditioning, tokens: int) -> Conditioning:
    """Fill up to `tokens` with the last vector, as the parts of AND are brought to one length."""
    missing = tokens - _tokens(cond)
    if missing <= 0 or cond.cross is None:
        return cond
    return replace(cond, cross=torch.cat([cond.cross, cond.cross[:, -1:].expand(-1, missing, -1)], dim=1))


class EncodeCache:
    """The conditionings used last, found by what they were made of. One owner (the engine); safe in threads."""

    def __init__(self, limit: int = 64 * 2**20) -> None:
        """limit: bytes of tensors kept."""
        self.limit = limit
        self._kept: OrderedDict[Hashable, Conditioning] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, key: Hashable, make: Callable[[], Conditioning]) -> Conditioning:
        """What lies under the key, or make() (not kept if it raises)."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += _bytes(made)
            while self._bytes > self.limit and self._kept:
                self._bytes -= _bytes(self._kept.popitem(last=False)[1])
        return made

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)


def _bytes(cond: Conditioning) -> int:
    return sum(t.nbytes for t in (cond.cross, cond.vector, cond.concat, cond.label) if t is not None)


@dataclass(frozen=True, eq=False)
class Timed:
    """A schedule whose texts are encoded. All have one length; equal texts are one object."""

    ends: tuple[int, ...]
    conds: tuple[Conditioning, ...]

    def at(self, call: int) -> Conditioning:
        return self.conds[min(bisect_left(self.ends, call), len(self.ends) - 1)]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A PromptProgram as conditioning. The parts have one length among them; the negative prompt has its own."""

    parts: tuple[tuple[float, Timed], ...]
    negative: Timed
    learned: tuple[Learned, ...] = ()                       # the learned words in it, each once
    warnings: tuple[str, ...] = ()                          # sentences about those that could not be used

    def at(self, call: int) -> tuple[tuple[tuple[float, Conditioning], ...], Conditioning]:
        """((weight, cond) of each part of AND, uncond) of one denoiser call (from 0), every cross (1, T, C)."""
        return tuple((weight, timed.at(call)) for weight, timed in self.parts), self.negative.at(call)

    def beside(self, prompt: Sequence[Conditioning], negative: Sequence[Conditioning]) -> Encoded:
        """The same texts with what else is told: vectors behind a text's own, everything else as it is. One row each."""
        return replace(self, parts=tuple((weight, _each(timed, lambda cond: _joined(cond, *prompt))) for weight, timed in self.parts),
                       negative=_each(self.negative, lambda cond: _joined(cond, *negative)))


def encode_program(program: PromptProgram, towers: Sequence[TextTower], tokenizer: Tokenizer, *, clip_skip: int = 1,
                   emphasis: str = "Original", comma_padding_backtrack: int = 20, device: torch.device | str = "cpu",
                   cache: EncodeCache | None = None, identity: Hashable = None, zero_empty_negative: bool = False,
                   words: Words | None = None, second: PromptProgram | None = None, padding: str = "") -> Encoded:
    """Every text of the program, each encoded once and alone.

    The steps of one schedule are filled with empty chunks to its own longest, the parts of AND by their last vector.
    identity: what the towers are (checkpoint hash, adapters on it, dtype); part of the cache's key.
    words: the learned ones that these towers know; the hashes of those in a text are part of the key.
    second: what the towers behind the first one read, where that is something else; its parts of AND go with the first's one by one, the
    last with all that are left.
    padding: "empty" fills the shorter of prompt and negative prompt with empty chunks, "v0" brings the negative one to the prompt's length
    by its last vector or by cutting; "" leaves both.
    zero_empty_negative: a negative prompt that is empty at every step becomes zeros, not the encoding of the empty text.
    """
    kept = EncodeCache() if cache is None else cache

    learned: dict[str, Learned] = {}

    def encoded(text: Text) -> Conditioning:
        texts = (text,) if isinstance(text, str) else text
        found = {word.name: word for one in texts for word in learned_in(one, tokenizer, words, emphasis)}
        learned.update(found)
        hashes = tuple((name, word.sha256) for name, word in found.items())
        key = (text, clip_skip, emphasis, comma_padding_backtrack, str(device), identity, hashes)
        return kept.find(key, lambda: encode(
            text, towers, tokenizer, clip_skip=clip_skip, emphasis=emphasis,
            comma_padding_backtrack=comma_padding_backtrack, device=device, words=words))

    other = second.parts if second else program.parts
    parts = [(part.weight, _timed(_paired(part.times, other[min(number, len(other) - 1)].times), encoded))
             for number, part in enumerate(program.parts)]
    tokens = max(_tokens(timed.conds[0]) for _, timed in parts)
    against = _paired(program.negative, second.negative if second else program.negative)
    negative = _timed(against, encoded)
    if zero_empty_negative and all(text == "" for _, text in against):
        negative = _each(negative, _zeros)
    parts = [(weight, _each(timed, lambda cond: repeat_last(cond, tokens))) for weight, timed in parts]
    if padding == "v0":
        negative = _each(negative, lambda cond: _cut(repeat_last(cond, tokens), tokens))
    elif padding and tokens:
        longest = max(tokens, _tokens(negative.conds[0]))
        parts = [(weight, _each(timed, lambda cond: pad_to(cond, longest, encoded("")))) for weight, timed in parts]
        negative = _each(negative, lambda cond: pad_to(cond, longest, encoded("")))
    return Encoded(tuple(parts), negative, tuple(learned.values()))


def _cut(cond: Conditioning, tokens: int) -> Conditioning:
    return cond if cond.cross is None else replace(cond, cross=cond.cross[:, :tokens])


def _paired(times: Schedule, others: Schedule) -> Times:
    """One schedule of both: at every step what the first tower and what the others read; one text where both are the same."""
    if others == times:
        return times
    ends = sorted({end for end, _ in (*times, *others)})
    pairs = [(timeline.at(times, end), timeline.at(others, end)) for end in ends]
    return [(end, pair[0] if pair[0] == pair[1] else pair) for end, pair in zip(ends, pairs, strict=True)]


def _timed(times: Times, encoded: Callable[[Text], Conditioning]) -> Timed:
    """The schedule encoded; shorter texts filled with empty chunks."""
    known = {text: encoded(text) for _, text in times}
    timed = Timed(tuple(end for end, _ in times), tuple(known[text] for _, text in times))
    lengths = {_tokens(cond) for cond in known.values()}
    return timed if len(lengths) == 1 else _each(timed, lambda cond: pad_to(cond, max(lengths), encoded("")))


def _tokens(cond: Conditioning) -> int:
    return 0 if cond.cross is None else cond.cross.shape[1]


def _zeros(cond: Conditioning) -> Conditioning:
    return Conditioning(cross=None if cond.cross is None else torch.zeros_like(cond.cross),
                        vector=None if cond.vector is None else torch.zeros_like(cond.vector))


def _joined(*parts: Conditioning) -> Conditioning:
    """The first one's text, all vectors one behind the other, and what else one of them has."""
    vectors = [part.vector for part in parts if part.vector is not None]
    return Conditioning(cross=parts[0].cross, vector=torch.cat(vectors, dim=1) if vectors else None,
                        concat=next((part.concat for part in parts if part.concat is not None), None),
                        label=next((part.label for part in parts if part.label is not None), None))


def _each(timed: Timed, change: Callable[[Conditioning], Conditioning]) -> Timed:
    """Change every conditioning once, however many steps use it."""
    changed = {id(cond): change(cond) for cond in timed.conds}
    return Timed(timed.ends, tuple(changed[id(cond)] for cond in timed.conds))
