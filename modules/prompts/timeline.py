"""Which text at which step: [from:to:when], [a|b], and the parts of AND. Linear in the text, no recursion, no torch.

The text is read into a flat program: a list of literal texts in reading order in which the opening bracket of every
construct that parses becomes a choice of places to go on at, and its separators become jumps behind its end.
"""
from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import NamedTuple

from modules.core.errors import PromptError
from modules.prompts import grammar

Schedule = tuple[tuple[int, str], ...]                      # (last call that uses the text, the text), ends rising

SPECIAL = re.compile(r"[\\()\[\]:|]")
MOST_PARTS = 128                                            # each AND is a row of the network's batch


class Choice(NamedTuple):
    """An opening bracket. when: the NUMBER as written, None for [a|b]; starts: where each option begins."""

    when: str | None
    starts: tuple[int, ...]


class Jump(NamedTuple):
    """The end of an option: go on at `to`."""

    to: int


class _Open(NamedTuple):
    """A bracket that is not closed yet, and the : and | directly inside it."""

    mark: str
    at: int
    separators: list[int]


def schedule(text: str, calls: int, *, hires_after: int | None = None, old: bool = False) -> Schedule:
    """The text for each stretch of a pass of `calls` denoiser calls (>= 1), the last end being `calls`.

    hires_after: None in the first pass; in a second one the calls of the first, after which whole numbers count on
    and fractions count from 1.0. old: numbers below 1 are fractions, others calls, and the second pass uses the first's.
    Text that is not of the grammar stands for every step as it is. Never raises.
    """
    if old and hires_after is not None:
        calls, hires_after = hires_after, None
    code = _read(text)
    if code is None:
        return ((calls, text),)
    whens: dict[str, int] = {}
    ends = {calls}
    for item in code:
        if isinstance(item, Choice):
            if item.when is None:
                ends.update(range(1, calls + 1))
            elif item.when not in whens:
                whens[item.when] = _call_of(item.when, calls, hires_after, old)
    ends.update(end for end in whens.values() if end >= 1)
    return tuple((end, _text_at(code, end, whens)) for end in sorted(ends))


def at(times: Schedule, call: int) -> str:
    """The text of one denoiser call, counted from 0 in every pass: that of the first entry whose end is not before it.

    So an entry that ends at 5 serves the six calls 0..5. Beyond the last end the last text stays.
    """
    return times[index(times, call)][1]


def index(times: Schedule, call: int) -> int:
    """Which entry of the schedule serves this call."""
    return min(bisect_left(times, call, key=lambda entry: entry[0]), len(times) - 1)


def _call_of(number: str, calls: int, hires_after: int | None, old: bool) -> int:
    """The last call before the switch, at most `calls`; below 1 = the switch lies behind us."""
    value = float(number)
    if old:
        value = value * calls if value < 1 else value
    elif "." in number:
        value = (value - (0 if hires_after is None else 1)) * calls
    else:
        value -= hires_after or 0
    return int(max(-1.0, min(float(calls), value)))


def _text_at(code: list[str | Choice | Jump], step: int, whens: dict[str, int]) -> str:
    """The text of a step (1-based)."""
    out = []
    place = 0
    while place < len(code):
        item = code[place]
        if isinstance(item, str):
            out.append(item)
            place += 1
        elif isinstance(item, Jump):
            place = item.to
        elif item.when is None:
            place = item.starts[(step - 1) % len(item.starts)]
        else:
            place = item.starts[step > whens[item.when]]
    return "".join(out)


def _read(text: str) -> list[str | Choice | Jump] | None:
    """The program of a text; None if it cannot be read (a | outside brackets, a backslash at the end).

    A bracket means something only if all between it and its partner does; otherwise both, and every bracket around
    them, are plain text, while complete constructs inside keep their meaning.
    """
    code: list[str | Choice | Jump] = []
    opened: list[_Open] = []
    bars = 0                                                # | that belong to no alternation yet
    position = 0
    while position < len(text):
        end = _plain_end(text, position)
        if end < 0:
            return None
        if end > position:
            code.append(text[position:end])
        if end == len(text):
            break
        mark = text[end]
        code.append(mark)
        if mark in "([":
            opened.append(_Open(mark, len(code) - 1, []))
        elif mark in ":|":
            bars += mark == "|"
            if opened:
                opened[-1].separators.append(len(code) - 1)
        elif opened and opened[-1].mark == {")": "(", "]": "["}[mark]:
            claimed = _close(code, opened.pop())
            if claimed is None:
                opened.clear()
            else:
                bars -= claimed
        else:
            opened.clear()
        position = end + 1
    return None if bars else code


def _plain_end(text: str, position: int) -> int:
    """Where plain text ends; a backslash takes the next character along. -1 if there is none to take."""
    while special := SPECIAL.search(text, position):
        if special[0] != "\\":
            return special.start()
        position = special.end() + 1
        if position > len(text):
            return -1
    return len(text)


def _close(code: list[str | Choice | Jump], group: _Open) -> int | None:
    """Give the group that ends with the last item of code its meaning. Returns the | it uses, None if it has no meaning."""
    marks = [code[place] for place in group.separators]
    last = len(code) - 1
    if not marks or (group.mark == "(" and marks == [":"]):
        return 0                                            # emphasis: stays as written, for the stage that weighs
    if group.mark == "(":
        return None
    if "|" in marks and ":" not in marks:
        _choose(code, group, None, (group.at, *group.separators), last)
        return len(marks)
    number = _number(code[last - 1]) if group.separators[-1] == last - 2 else None
    if number is None or "|" in marks or len(marks) > 2:
        return None
    starts = (last, group.at) if len(marks) == 1 else (group.at, group.separators[0])
    _choose(code, group, number, starts, last)
    return 0


def _choose(code: list[str | Choice | Jump], group: _Open, when: str | None, marks: tuple[int, ...], last: int) -> None:
    """Turn the group's brackets and separators into a choice; each option begins behind its mark."""
    code[group.at] = Choice(when, tuple(mark + 1 for mark in marks))
    for place in (*group.separators, last):
        code[place] = Jump(last + 1)


def _number(item: str | Choice | Jump) -> str | None:
    """The NUMBER in a text, without the space around it: 5, .5, 5., -1.5e3; None if it is something else."""
    if not isinstance(item, str):
        return None
    number = item.strip()
    mantissa, e, exponent = number.lower().partition("e")
    if e and not _digits(exponent.removeprefix("-") if exponent[:1] == "-" else exponent.removeprefix("+")):
        return None
    whole, dot, fraction = (mantissa[1:] if mantissa[:1] in ("+", "-") else mantissa).partition(".")
    if not all(_digits(part) or (dot and not part) for part in (whole, fraction)[:1 + bool(dot)]) or not whole + fraction:
        return None
    return number


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


@dataclass(frozen=True)
class Part:
    """One side of AND: its weight and its text at every step."""

    weight: float
    times: Schedule


@dataclass(frozen=True)
class PromptProgram:
    """All texts of one picture's pass, ready to be encoded. A value: equal programs give equal conditioning."""

    parts: tuple[Part, ...]                                 # never empty
    negative: Schedule
    calls: int

    def at(self, call: int) -> tuple[tuple[tuple[float, str], ...], str]:
        """((weight, text) of each part, negative text) of one denoiser call."""
        return tuple((part.weight, at(part.times, call)) for part in self.parts), at(self.negative, call)

    @property
    def texts(self) -> frozenset[str]:
        return frozenset(text for times in (*(part.times for part in self.parts), self.negative) for _, text in times)


def program(prompt: str, negative: str, calls: int, *, hires_after: int | None = None, old: bool = False) -> PromptProgram:
    """What a prompt (styles, comments and tags done) says at each of `calls` denoiser calls; AND is read in the prompt only.

    calls: steps, or twice as many for samplers of second order. Raises PromptError for text that cannot be used.
    """
    grammar.check(prompt, "prompt")
    grammar.check(negative, "negative_prompt")
    parts = grammar.split_and(prompt)
    if len(parts) > MOST_PARTS:
        raise PromptError(f"The prompt has {len(parts):,} parts joined by AND; at most {MOST_PARTS} can be used.", "prompt")
    return PromptProgram(
        tuple(Part(weight, schedule(text, calls, hires_after=hires_after, old=old)) for text, weight in parts),
        schedule(negative, calls, hires_after=hires_after, old=old), calls)
