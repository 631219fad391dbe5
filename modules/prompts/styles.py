"""Styles: texts kept under a name and merged into prompts. The file is the styles.csv that A1111 writes and reads."""
from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modules.core import files
from modules.core.errors import PromptError, SettingsError
from modules.prompts.grammar import LONGEST

PLACE = "{prompt}"                                          # where a style wants the user's words
COLUMNS = ("name", "prompt", "negative_prompt")


@dataclass(frozen=True)
class Style:
    name: str
    prompt: str = ""
    negative_prompt: str = ""


def read(path: str | Path) -> tuple[Style, ...]:
    """The styles of a file in its order; none if there is no file. Rows without a name and rows whose name begins with # are left out.

    UTF-8 with or without a byte order mark; columns name, prompt (old: text), negative_prompt in any order.
    Raises SettingsError if the file cannot be read as that.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restval=""))
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path.name} is not UTF-8 text (byte {error.start}); save it as UTF-8 in a text editor.") from error
    except csv.Error as error:
        raise SettingsError(f"{path.name} is not a table of styles ({error}); repair it or move it away.") from error
    except OSError as error:
        raise SettingsError(f"{path.name} cannot be read ({error.strerror}); check its permissions.") from error
    return tuple(
        Style(row["name"], row.get("prompt", row.get("text", "")), row.get("negative_prompt", ""))
        for row in rows if row.get("name") and not row["name"].startswith("#"))


def write(path: str | Path, styles: Iterable[Style]) -> None:
    """Replace the file, whole or not at all; `read` gives the styles back. UTF-8 with a byte order mark, as spreadsheets want it.

    Raises SettingsError for a name that could not be read back, SaveError if the file cannot be written.
    """
    lines = io.StringIO(newline="")
    table = csv.writer(lines)
    table.writerow(COLUMNS)
    for style in styles:
        if not style.name or style.name.startswith("#"):
            raise SettingsError(f"A style cannot be named “{style.name}”; choose a name that does not begin with #.")
        table.writerow((style.name, style.prompt, style.negative_prompt))
    try:
        data = lines.getvalue().encode("utf-8-sig")
    except UnicodeEncodeError as error:
        raise SettingsError(f"A style holds half a character (a lone surrogate: {error.object[error.start]!a}); delete it.") from error
    files.write_atomically(path, data)


def apply(prompt: str, negative: str, styles: Sequence[Style]) -> tuple[str, str]:
    """(prompt, negative prompt) with the styles merged in, one after the other. Raises PromptError if it grows beyond 64 KiB."""
    for style in styles:
        prompt = _merged(prompt, style.prompt, style.name, "prompt")
        negative = _merged(negative, style.negative_prompt, style.name, "negative_prompt")
    return prompt, negative


def _merged(text: str, style: str, name: str, field: str) -> str:
    """The style with the text at every {prompt}; without one both, trimmed, with a comma between if neither is empty."""
    places = style.count(PLACE)
    if len(style) + places * len(text) > LONGEST + places * len(PLACE):    # before it is built: two places double the text
        raise PromptError(f"Style “{name}” makes the field {field} longer than {LONGEST:,} bytes; use fewer styles.", field)
    if places:
        return style.replace(PLACE, text)
    return ", ".join(filter(None, (text.strip(), style.strip())))
