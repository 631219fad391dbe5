"""What brackets, BREAK, AND and # mean inside one prompt. Scanners in linear time; nothing here imports torch."""
from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from modules.core.errors import PromptError

LONGEST = 64 * 1024                                         # bytes of UTF-8
ROUND, SQUARE = 1.1, 1 / 1.1                                # what a bracket without a number multiplies by
HEAVIEST = 1e6                                              # a weight beyond it would only make NaN of the embedding
SPECIAL = re.compile(r"[\\()\[\]:]")


class Piece(NamedTuple):
    """A run of text with one weight (finite). Pieces are tokenised one by one."""

    text: str
    weight: float


BREAK = Piece("BREAK", math.inf)                            # no text has this weight


def check(text: str, field: str = "prompt") -> str:
    """The text itself, if it can be stored and tokenised. Raises PromptError naming the field otherwise."""
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The field {field} holds half a character (a lone surrogate) at position {error.start}; delete it.", field
        ) from error
    if size > LONGEST:
        raise PromptError(f"The field {field} is {size:,} bytes long; at most {LONGEST:,} can be used: shorten it.", field)
    if "\0" in text:
        raise PromptError(f"The field {field} holds a NUL character at position {text.index(chr(0))}; delete it.", field)
    return text


def attention(text: str) -> tuple[Piece, ...]:
    """Pieces of text with their weights, BREAK between chunks; neighbours of equal weight are one piece.

    (a) 1.1, [a] 1/1.1, (a:1.3) 1.3; nested groups multiply; round and square groups need not be nested in each other.
    A backslash makes a bracket or a backslash text. Groups left open end with the text; closing marks without a group
    and numbers that are none are text. BREAK counts only where the weight around it is 1. Never empty, never raises.
    """
    scan = _Attention()
    position = 0
    while position < len(text):
        special = SPECIAL.search(text, position)
        end = special.start() if special else len(text)
        scan.run(text[position:end])
        position = end if special is None else _mark(scan, text, end)
    return scan.pieces()


def _mark(scan: _Attention, text: str, at: int) -> int:
    """Read the special character at `at`; returns the position behind what was read."""
    mark = text[at]
    if mark == "\\":
        escaped = text[at + 1:at + 2]
        if escaped and escaped in "\\()[]":
            scan.literal(escaped)
            return at + 2
        return at + 1                                       # a backslash before anything else disappears
    if mark == ":":
        number, end = _explicit_weight(text, at)
        if end and not scan.close_round(number):
            scan.literal(text[at:end])
        elif not end:
            scan.literal(":")
        return end or at + 1
    if mark in "([":
        scan.open(mark)
    elif not (scan.close_round(ROUND) if mark == ")" else scan.close_square()):
        scan.literal(mark)
    return at + 1


def _explicit_weight(text: str, colon: int) -> tuple[float, int]:
    """(number, position behind the bracket) of ":1.3)" that begins at the colon; (0, 0) if there is none."""
    begin = _skip_space(text, colon + 1)
    end = begin + (text[begin:begin + 1] in ("+", "-"))
    while end < len(text) and (text[end] == "." or text[end].isdecimal()):
        end += 1
    close = _skip_space(text, end)
    number = _finite(text[begin:end])
    if number is None or text[close:close + 1] != ")":
        return 0.0, 0
    return number, close + 1


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _finite(text: str) -> float | None:
    """The number a text of digits and dots stands for; None for 1.2.3, a lone sign, or a number beyond all floats."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class _Attention:
    """Pieces in reading order, each with the groups it lies in.

    A group knows the group around it, so that all weights come out of one pass at the end, however deep the nesting.
    Group 0 is the text itself; round and square groups have chains of their own.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, int, int, str]] = []    # text, round group, square group, text if BREAK does not count
        self.around = [0]                                   # the group around each group
        self.factor = [1.0]
        self.round = [0]                                    # open groups, innermost last
        self.square = [0]

    def literal(self, text: str) -> None:
        if text:
            self.found.append((text, self.round[-1], self.square[-1], ""))

    def run(self, text: str) -> None:
        """Plain text: BREAK stands apart and takes the white space around it along."""
        position = 0
        for word in whole_words(text, "BREAK"):
            begin, end = word, _skip_space(text, word + len("BREAK"))
            while begin > position and text[begin - 1].isspace():
                begin -= 1
            self.literal(text[position:begin])
            self.found.append(("", self.round[-1], self.square[-1], text[begin:end]))
            position = end
        self.literal(text[position:])

    def open(self, mark: str) -> None:
        stack, factor = (self.round, ROUND) if mark == "(" else (self.square, SQUARE)
        self.around.append(stack[-1])
        self.factor.append(factor)
        stack.append(len(self.factor) - 1)

    def close_round(self, factor: float) -> bool:
        """Close the innermost round group with this weight. False: there is none."""
        if len(self.round) == 1:
            return False
        self.factor[self.round.pop()] = factor
        return True

    def close_square(self) -> bool:
        if len(self.square) == 1:
            return False
        self.square.pop()
        return True

    def pieces(self) -> tuple[Piece, ...]:
        total = [1.0]
        for around, factor in zip(self.around[1:], self.factor[1:], strict=True):
            total.append(_bounded(total[around] * factor, 1e150))
        joined: list[tuple[list[str], float]] = []
        for text, in_round, in_square, broken in self.found:
            weight = _rounded(_bounded(total[in_round] * total[in_square], HEAVIEST))
            if broken and weight == 1:
                joined.append(([BREAK.text], BREAK.weight))
            elif joined and joined[-1][1] == weight:
                joined[-1][0].append(text or broken)
            else:
                joined.append(([text or broken], weight))
        return tuple(Piece("".join(texts), weight) for texts, weight in joined) or (Piece("", 1.0),)


def _bounded(number: float, most: float) -> float:
    return max(-most, min(most, number))


def _rounded(weight: float) -> float:
    """Twelve digits: 1.1 * (1 / 1.1) is 1 in whatever order it was multiplied, and neighbours of one weight join."""
    return float(f"{weight:.12g}")


def whole_words(text: str, word: str) -> Iterator[int]:
    """Positions of the word where no letter, digit or underscore touches it."""
    at = text.find(word)
    while at >= 0:
        end = at + len(word)
        if not (at and _wordly(text[at - 1])) and not (end < len(text) and _wordly(text[end])):
            yield at
        at = text.find(word, end)


def _wordly(character: str) -> bool:
    return character.isalnum() or character == "_"


def split_and(text: str) -> tuple[tuple[str, float], ...]:
    """The parts between upper-case ANDs, each with the weight behind its last colon ("cat :1.5 AND dog"); 1 without one.

    White space at a part's end and before its weight goes. Never empty; identical parts stay apart.
    """
    parts = []
    begin = 0
    for at in whole_words(text, "AND"):
        parts.append(_weighed(text[begin:at]))
        begin = at + len("AND")
    parts.append(_weighed(text[begin:]))
    return tuple(parts)


def split_towers(text: str) -> tuple[str, str | None]:
    """(what the first text tower reads, what the others read): the text before TE2: and the one behind it; None without a TE2:."""
    for at in whole_words(text, "TE2"):
        if text[at + 3:at + 4] == ":":
            return text[:at].rstrip(), text[at + 4:].lstrip()
    return text, None


def _weighed(part: str) -> tuple[str, float]:
    part = part.rstrip()
    before, colon, number = part.rpartition(":")
    number = number.strip()
    digits = number[1:] if number[:1] in ("+", "-") else number
    if colon and digits and all(c == "." or c.isdecimal() for c in digits):
        weight = _finite(number)
        if weight is not None:
            return before.rstrip(), weight
    return part, 1.0


def without_comments(text: str) -> str:
    """From # to the end of the line goes. A line that is all comment goes with one of its line ends; no escape exists.

    "a\\n# x\\nb" -> "a\\nb"; "C# code" -> "C\\n".
    """
    return _cut_comments(_cut_comments(text, whole_lines=True), whole_lines=False)


def _cut_comments(text: str, *, whole_lines: bool) -> str:
    """Each comment, its line end and, for whole lines, the line end before it become one line end."""
    kept: list[str] = []
    position = 0
    while True:
        if not whole_lines:
            begin = mark = text.find("#", position)
        elif position == 0 and text.startswith("#"):
            begin = mark = 0
        else:
            begin = text.find("\n#", position)
            mark = begin + 1
        if begin < 0:
            return "".join((*kept, text[position:]))
        kept.append(text[position:begin] + "\n")
        end = text.find("\n", mark)
        if end < 0:
            return "".join(kept)
        position = end + 1
