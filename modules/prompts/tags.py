"""<lora:name:0.8> and its kin: what a prompt asks to be put on the model."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tag:
    """<kind:arg:arg:name=value>. Everything is text as written; who puts it on the model knows what it means."""

    kind: str                                               # letters, digits, underscore
    args: tuple[str, ...]                                   # positional, in order
    named: tuple[tuple[str, str], ...] = ()                 # of two values for one name the last counts

    def get(self, name: str, position: int, default: str = "") -> str:
        """The named value, else the positional one, else the default."""
        positional = self.args[position] if position < len(self.args) else default
        return dict(self.named).get(name, positional)


def extract(text: str) -> tuple[str, tuple[Tag, ...]]:
    """(the text without its tags, the tags in order). Every well-formed tag goes, known or not; nothing else does."""
    kept: list[str] = []
    found: list[Tag] = []
    position = begin = 0
    close = -1
    while (begin := text.find("<", begin)) >= 0:
        colon = begin + 1
        while colon < len(text) and (text[colon].isalnum() or text[colon] == "_"):
            colon += 1
        if colon == begin + 1 or text[colon:colon + 1] != ":":
            begin = colon
            continue
        if close <= colon:
            close = text.find(">", colon)
            if close < 0:
                break
        if close == colon + 1:                              # <word:> says nothing and stays
            begin = close
            continue
        kept.append(text[position:begin])
        found.append(_tag(text[begin + 1:colon], text[colon + 1:close]))
        position = begin = close + 1
    return "".join((*kept, text[position:])), tuple(found)


def _tag(kind: str, inside: str) -> Tag:
    args, named = [], []
    for item in inside.split(":"):
        if item.count("=") == 1:
            name, _, value = item.partition("=")
            named.append((name, value))
        else:
            args.append(item)
    return Tag(kind, tuple(args), tuple(named))


def written(tag: Tag) -> str:
    """The tag as text; `extract` reads it back (named values come last)."""
    return f"<{':'.join((tag.kind, *tag.args, *(f'{name}={value}' for name, value in tag.named)))}>"
