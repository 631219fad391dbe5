"""Folders of models that another program uses too, as ComfyUI's extra_model_paths.yaml names them. Standard library only.

    comfyui:
        base_path: ~/ComfyUI
        checkpoints: models/checkpoints
        loras: |
            models/loras
            models/lycoris
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

NAME = "extra_model_paths.yaml"
LONGEST = 1 << 20                                           # bytes of such a file
KINDS = MappingProxyType({"checkpoints": "checkpoints", "vae": "vae", "loras": "loras", "lora": "loras", "embeddings": "embeddings"})
LINE = re.compile(r"""( *)("[^"]*"|'[^']*'|[^\s:#'"-][^:#]*?) *:(?: +(.*))?""")
BLOCK = re.compile(r"[|>][+-]?\d?")


@dataclass(frozen=True)
class Section:
    """One installation. folders: (kind, absolute path) in the order of the file; kind: a value of KINDS."""

    name: str
    base: Path
    folders: tuple[tuple[str, Path], ...]


def read(file: Path) -> tuple[tuple[Section, ...], tuple[str, ...]]:
    """The sections of a file, and sentences about what in it could not be used. Nothing at all when there is no such file.

    Paths may begin with ~ or hold $VARIABLES; what is relative starts at base_path, and that at the file's own folder. Keys that stand for
    other kinds of model are passed over.
    """
    try:
        if not file.is_file():
            return (), ()
        with open(file, "rb") as opened:
            raw = opened.read(LONGEST + 1)
        if len(raw) > LONGEST:
            return (), (f"{file.name} is too long to be a list of folders; it is left out.",)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return (), (f"{file.name} is not UTF-8 text; it is left out.",)
    except OSError as error:
        return (), (f"{file.name} cannot be read ({error.strerror}); it is left out.",)
    sections = tuple(_section(name, entries, file.parent) for name, entries in _sections(text.expandtabs(4).splitlines()))
    lost = (section.base for section in sections if section.folders and not section.base.is_dir())
    return sections, tuple(f"{file.name} names {base}, which is not there." for base in lost)


def folders(sections: Iterable[Section], kind: str) -> tuple[Path, ...]:
    """The folders of one kind that are there, each once."""
    return tuple(dict.fromkeys(path for section in sections for of, path in section.folders if of == kind and path.is_dir()))


def section(name: str, base: Path, entries: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """The text of a section that `read` gives back. entries: (key, paths below base)."""
    lines = [f"{name}:", f'    base_path: "{base.as_posix()}"']
    for key, paths in entries:
        lines += [f"    {key}: |", *(f"        {path}" for path in paths)]
    return "\n".join(lines) + "\n"


def _sections(lines: list[str]) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """(name, [(key, values)]) of each mapping in the file's mapping."""
    name, found = "", list[tuple[str, list[str]]]()
    at = 0
    while at < len(lines):
        match = LINE.fullmatch(_bare(lines[at]))
        at += 1
        if not match:
            continue
        indent, key, value = len(match[1]), _unquoted(match[2]), (match[3] or "").strip()
        if indent == 0:
            if name:
                yield name, found
            name, found = key, []
            continue
        values, at = _values(value, indent, lines, at)
        found.append((key, values))
    if name:
        yield name, found


def _values(value: str, indent: int, lines: list[str], at: int) -> tuple[list[str], int]:
    """The texts of one key, and the line behind them: a text, a block of lines, or a list."""
    if value.startswith("[") and value.endswith("]"):
        return [_unquoted(item) for item in value[1:-1].split(",") if item.strip()], at
    if value and not BLOCK.fullmatch(value):
        return [_unquoted(value)], at
    block = bool(value)
    values: list[str] = []
    while at < len(lines):
        line = lines[at] if block else _bare(lines[at])
        text, depth = line.strip(), len(line) - len(line.lstrip(" "))
        if text and (depth <= indent if block else depth < indent or not text.startswith("-")):
            break
        if text:
            values.append(text if block else _unquoted(text[1:]))
        at += 1
    return values, at


def _bare(line: str) -> str:
    """Without a comment, which begins the line or stands behind a space, outside of quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter == "#" and (place == 0 or line[place - 1] == " "):
            return line[:place].rstrip()
    return line.rstrip()


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _section(name: str, entries: list[tuple[str, list[str]]], home: Path) -> Section:
    base = next((values[0] for key, values in entries if key == "base_path" and values), "")
    root = _joined(home, base) if base else home
    found = tuple((KINDS[key], _joined(root, text)) for key, values in entries if key in KINDS for text in values if text)
    return Section(name, root, found)


def _joined(root: Path, text: str) -> Path:
    return Path(os.path.abspath(os.path.join(root, os.path.expandvars(os.path.expanduser(text.replace("\0", ""))))))
