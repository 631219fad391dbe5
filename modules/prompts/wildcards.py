"""One text of many: __name__ is a line of a file, {a|b} one of its options, {2$$a|b|c} two of them. The picture's seed chooses.

    __animals__  __places/cities__  __col*__     a line of animals.txt, of places/cities.txt, of any file that fits the pattern
    {a|b|}       {3::a|b}                        an option (here perhaps nothing); one that comes three times as often
    {2$$a|b|c}   {1-2$$a|b|c}   {2$$ and $$a|b|c}    several, none of them twice, joined by ", " or by what is named

Lines and options may hold all of it again. A backslash before a brace, bar or underscore makes it text. Braces without a bar or a number
of options are text. What comes out has nothing left to choose: resolved again it is the same text, without any file.
"""
from __future__ import annotations

import difflib
import hashlib
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from modules.core.errors import PathError, PromptError
from modules.core.paths import safe_join
from modules.prompts.grammar import LONGEST

DEEPEST = 40                                                # files in files and braces in braces
MOST_DRAWS = 20_000                                         # in one text
MOST_FILES = 100_000
LARGEST_FILE = 32 << 20                                     # bytes
ENDING = ".txt"
MARK = re.compile(r"\\.|[{}\[\]|]|(?<!\w)__((?:(?!__)[\w\-./*]){1,200})__(?!\w)", re.DOTALL)
HEAD = re.compile(r"\s*(\d{0,4})(-?)(\d{0,4})\$\$")
WEIGHT = re.compile(r"\s*(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})::")
UNSAFE = re.compile(r"(\\.)|([{}]|__)", re.DOTALL)


class Source(Protocol):
    """Where the lines come from."""

    def lines(self, name: str) -> Sequence[str]:
        """The lines under this name, which may be a pattern. Raises PromptError when there are none."""
        ...


def has_marks(text: str) -> bool:
    """Whether the text has something to choose."""
    marks = _marks(text)
    return any(mark.name or mark.closed for mark in marks)


def resolve(text: str, source: Source, seed: int, field: str = "prompt") -> str:
    """The text with everything chosen; the text itself where there is nothing to choose. field: whose draws are its own.

    The same seed, text and files give the same words. Raises PromptError for a name without a file, and for what is too deep or too long.
    """
    if not has_marks(text):
        return text
    work = _Work(source, Draw(f"{field} {seed}"), field)
    chosen = work.text(text, 0)
    return UNSAFE.sub(lambda found: found[1] or "\\" + found[2], chosen) if has_marks(chosen) else chosen


class Draw:
    """Numbers from a text: the first 8 bytes of SHA-256, so that they are the same on every machine and Python."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.count = 0

    def below(self, number: int) -> int:
        """0..number - 1, each as likely."""
        self.count += 1
        digest = hashlib.sha256(f"{self._key} {self.count}".encode()).digest()
        return int.from_bytes(digest[:8], "big") * number >> 64

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, as likely as its weight says; all alike where no weight is above 0."""
        ends: list[float] = []
        for weight in weights:
            ends.append(weight + (ends[-1] if ends else 0.0))
        if not ends[-1] > 0:
            return self.below(len(weights))
        aim = (self.below(2**53) + 0.5) / 2**53 * ends[-1]
        return min(bisect_left(ends, aim), len(ends) - 1)


class _Mark(NamedTuple):
    """Something that is no plain text. name: of a file; closed: the number of the mark that ends a pair of braces with a choice in it."""

    begin: int
    end: int
    name: str
    closed: int
    bars: tuple[int, ...]                                   # numbers of the bars between its options


@dataclass
class _Open:
    """A brace or bracket that is not closed yet."""

    mark: str
    number: int
    bars: list[int] = field(default_factory=list)


def _marks(text: str) -> list[_Mark]:
    """Every mark in order. Braces that do not close, or have neither bar nor number, are marks without a meaning."""
    found: list[_Mark] = []
    opened: list[_Open] = []
    for match in MARK.finditer(text):
        number, mark = len(found), match[0]
        found.append(_Mark(match.start(), match.end(), match[1] or "", 0, ()))
        if mark in "{[":
            opened.append(_Open(mark, number))
        elif mark == "|" and opened:
            opened[-1].bars.append(number)
        elif mark == "]" and opened and opened[-1].mark == "[":
            opened.pop()                                    # its bars alternate between steps
        elif mark == "}":
            _close(text, found, opened, number)
    return found


def _close(text: str, found: list[_Mark], opened: list[_Open], number: int) -> None:
    """The innermost open brace ends here; brackets that stay open in it give it their bars."""
    stray: list[int] = []
    while opened and opened[-1].mark == "[":
        stray += opened.pop().bars[::-1]
    if not opened:
        return                                              # nor will those brackets ever be closed with a choice in them
    group = opened.pop()
    bars = (*group.bars, *reversed(stray))
    begin = found[group.number]
    if bars or HEAD.match(text, begin.end, found[number].begin):
        found[group.number] = begin._replace(closed=number, bars=bars)


@dataclass
class _Work:
    """One text being resolved."""

    source: Source
    draw: Draw
    field: str

    def text(self, text: str, depth: int) -> str:
        return self.part(text, _marks(text), 0, len(text), 0, depth)

    def part(self, text: str, marks: list[_Mark], begin: int, end: int, number: int, depth: int) -> str:
        """text[begin:end], whose first mark is this number."""
        if depth > DEEPEST:
            raise PromptError(f"The wildcards of the field {self.field} call one another more than {DEEPEST} deep; "
                              "one of them may hold itself.", self.field)
        out: list[str] = []
        length = 0
        while number < len(marks) and marks[number].begin < end:
            mark = marks[number]
            number += 1
            if mark.name:
                word, after = self.line(mark.name, depth), mark.end
            elif mark.closed:
                word, after = self.choice(text, marks, number - 1, depth), marks[mark.closed].end
                number = mark.closed + 1
            else:
                continue
            out += (text[begin:mark.begin], word)
            begin = after
            length += len(out[-2]) + len(word)
            if length > LONGEST or self.draw.count > MOST_DRAWS:
                raise PromptError(f"The wildcards make the field {self.field} longer than {LONGEST:,} bytes, or choose more than "
                                  f"{MOST_DRAWS:,} times; use fewer.", self.field)
        return "".join((*out, text[begin:end]))

    def line(self, name: str, depth: int) -> str:
        lines = self.source.lines(name)
        return self.text(lines[self.draw.below(len(lines))], depth + 1)

    def choice(self, text: str, marks: list[_Mark], number: int, depth: int) -> str:
        """What is chosen of the braces that open with this mark."""
        group = marks[number]
        begin, end = group.end, marks[group.closed].begin
        least, most, joiner = 1, 1, ", "
        head = HEAD.match(text, begin, end)
        if head:
            least, most = _counts(head)
            begin = head.end()
            first = marks[group.bars[0]].begin if group.bars else end
            behind = text.find("$$", begin, first)
            if behind >= 0:
                joiner, begin = text[begin:behind], behind + 2
        options = self.options(text, marks, number, (begin, end))
        if head and len(options) == 1 and marks[options[0][2]:] and _whole(text, marks[options[0][2]], options[0]):
            lines = self.source.lines(marks[options[0][2]].name)
            several = self.several([1.0] * len(lines), least, most)
            return joiner.join(self.text(lines[chosen], depth + 1) for chosen in several)
        several = self.several([option[3] for option in options], least, most)
        return joiner.join(self.part(text, marks, *options[chosen][:3], depth + 1) for chosen in several)

    def options(self, text: str, marks: list[_Mark], number: int, ends: tuple[int, int]) -> list[tuple[int, int, int, float]]:
        """(begin, end, number of the first mark, weight) of each."""
        group = marks[number]
        found = []
        begin, first = ends[0], number + 1
        for bar in (*group.bars, None):
            end = ends[1] if bar is None else marks[bar].begin
            weight = WEIGHT.match(text, begin, end)
            found.append((weight.end() if weight else begin, end, first, float(weight[1]) if weight else 1.0))
            if bar is not None:
                begin, first = marks[bar].end, bar + 1
        return found

    def several(self, weights: list[float], least: int, most: int) -> list[int]:
        """Numbers of the chosen ones in the order they were drawn, none twice."""
        most = min(most, len(weights))
        least = min(least, most)
        wanted = least + (self.draw.below(most - least + 1) if most > least else 0)
        left = list(range(len(weights)))
        alike = all(weight == weights[0] for weight in weights)
        chosen = []
        for _ in range(wanted):
            place = self.draw.below(len(left)) if alike else self.draw.weighted([weights[number] for number in left])
            left[place], left[-1] = left[-1], left[place]
            chosen.append(left.pop())
            if self.draw.count > MOST_DRAWS:
                raise PromptError(f"The field {self.field} chooses more than {MOST_DRAWS:,} times; use fewer options.", self.field)
        return chosen


def _counts(head: re.Match[str]) -> tuple[int, int]:
    """(least, most) of 2$$, 1-3$$, -3$$, 2-$$; a range written backwards is turned round."""
    low = int(head[1] or 0) if head[2] else int(head[1] or 1)
    high = int(head[3] or 9999) if head[2] else low
    return min(low, high), max(low, high)


def _whole(text: str, mark: _Mark, option: tuple[int, int, int, float]) -> bool:
    """Whether an option is one file's name and nothing else."""
    return bool(mark.name) and text[option[0]:option[1]].strip() == text[mark.begin:mark.end]


class Folder:
    """The .txt files below a folder, a line each; empty lines and lines that begin with # are left out. Read when asked, and kept."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[str, ...]] = {}
        self._names: tuple[str, ...] | None = None

    def names(self) -> tuple[str, ...]:
        """Every file's name as a prompt has it, in order; of hidden files and folders none."""
        if self._names is None:
            found: list[str] = []
            for path in self._folder.rglob(f"*{ENDING}"):
                parts = path.relative_to(self._folder).parts
                if len(found) < MOST_FILES and not any(part.startswith(".") for part in parts):
                    found.append("/".join(parts)[:-len(ENDING)])
            self._names = tuple(sorted(found))
        return self._names

    def lines(self, name: str) -> tuple[str, ...]:
        """See Source. Raises PromptError also for a file that cannot be read."""
        if name not in self._read:
            fitting = [known for known in self.names() if _fits(known, name)] if "*" in name else [name]
            lines = tuple(line for one in fitting for line in self._lines(one))
            if not fitting:
                raise PromptError(self._missing(name), "prompt")
            if not lines:
                raise PromptError(f"The wildcard file {name}{ENDING} has no line to choose; write one option on each line.", "prompt")
            self._read[name] = lines
        return self._read[name]

    def _lines(self, name: str) -> tuple[str, ...]:
        try:
            *folders, file = name.split("/")
            path = safe_join(self._folder, *folders, file + ENDING)
            if path.stat().st_size > LARGEST_FILE:
                raise PromptError(f"The wildcard file {name}{ENDING} is larger than {LARGEST_FILE >> 20} MiB; divide it.", "prompt")
            lines = path.read_bytes().decode("utf-8-sig").replace("\0", "").splitlines()
        except (PathError, FileNotFoundError, NotADirectoryError) as error:
            raise PromptError(self._missing(name), "prompt") from error
        except UnicodeDecodeError as error:
            raise PromptError(f"The wildcard file {name}{ENDING} is not UTF-8 text; save it as UTF-8.", "prompt") from error
        except OSError as error:
            raise PromptError(f"The wildcard file {name}{ENDING} cannot be read ({error.strerror}).", "prompt") from error
        stripped = (line.strip() for line in lines)
        return tuple(line for line in stripped if line and not line.startswith("#"))

    def _missing(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names()[:5000], n=3, cutoff=0.4)
        offer = f"the nearest are {', '.join(f'__{one}__' for one in near)}" if near else f"put {name}{ENDING} into {self._folder.name}"
        return f"There is no wildcard file for __{name}__; {offer}, or write \\__ to mean the text."


def _fits(name: str, pattern: str) -> bool:
    """Whether a name is of a pattern whose * stands for anything but a folder's end; each piece is looked for once, from the left."""
    pieces = pattern.split("*")
    if not name.startswith(pieces[0]):
        return False
    at = len(pieces[0])
    for piece in pieces[1:-1]:
        found = name.find(piece, at)
        if found < 0 or "/" in name[at:found]:
            return False
        at = found + len(piece)
    rest = name[at:]
    return rest.endswith(pieces[-1]) and "/" not in rest[:len(rest) - len(pieces[-1])]


class Nothing:
    """A source without files."""

    def lines(self, name: str) -> Sequence[str]:
        raise PromptError(f"There is no wildcard file for __{name}__; write \\__ to mean the text.", "prompt")
