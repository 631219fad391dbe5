"""Words that were learned as vectors (textual inversion, Gal et al. 2022, arXiv:2208.01618), as this room sees them. No torch here."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Learned(Protocol):
    """One such word."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str:
        """Of its file."""
        ...

    @property
    def count(self) -> int:
        """How many vectors it is, each in the place of one token."""
        ...

    def rows(self, tower: int, width: int) -> Tensor:
        """(count, width) for the text tower of this number and width."""
        ...


class Words(Protocol):
    """The words that one model knows."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        ...

    def at(self, ids: Sequence[int], place: int) -> tuple[Learned, int] | None:
        """The word whose tokens begin at this place, and how many tokens that are; the longest, None where there is none."""
        ...


class Spellings:
    """Names as tokens, found by their first one. A name matches whatever its case, since the tokeniser knows none."""

    def __init__(self, names: Iterable[str], ids_of: Callable[[str], Sequence[int]]) -> None:
        """Of two names with the same tokens the first counts."""
        known: dict[tuple[int, ...], str] = {}
        for name in names:
            known.setdefault(tuple(ids_of(name)), name)
        known.pop((), None)
        self._by_first: dict[int, list[tuple[tuple[int, ...], str]]] = {}
        for ids in sorted(known, key=len, reverse=True):
            self._by_first.setdefault(ids[0], []).append((ids, known[ids]))

    def __bool__(self) -> bool:
        return bool(self._by_first)

    def at(self, ids: Sequence[int], place: int) -> Iterator[tuple[str, int]]:
        """(name, tokens) of every name that stands at this place, the longest first."""
        for tokens, name in self._by_first.get(ids[place], ()):
            if tuple(ids[place:place + len(tokens)]) == tokens:
                yield name, len(tokens)
