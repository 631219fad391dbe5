"""Read and write the settings file; a job gets a frozen snapshot. No file, however broken, keeps the program from starting."""
from __future__ import annotations

import difflib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modules.core.errors import SettingsError
from modules.core.files import write_atomically
from modules.core.options import BY_KEY, Option

LONGEST_TEXT = 65536                                        # bytes of UTF-8 in one value


class Settings(Mapping[str, Any]):
    """A value for every option, by A1111's key. Never changes; `with_` gives another."""

    def __init__(self, values: Mapping[str, Any] | None = None, more: Sequence[Option] = ()) -> None:
        """values: key -> value, coerced. more: options of extensions.

        Raises SettingsError for an unknown key or a value that does not fit.
        """
        self._more = tuple(more)
        self.table = MappingProxyType({**BY_KEY, **{option.key: option for option in more}})
        given = {key: coerce(key, value, self.table) for key, value in (values or {}).items()}
        self._values = MappingProxyType({key: given.get(key, option.default) for key, option in self.table.items()})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Settings({self.changed()})"

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {key: self[key] for key, option in self.table.items() if self[key] != option.default}

    def with_(self, changes: Mapping[str, Any], *, restricted: bool = False) -> Settings:
        """These settings with others laid over. Restricted keys are passed over in silence unless `restricted` allows them."""
        allowed = {key: value for key, value in changes.items() if restricted or not (key in self.table and self.table[key].restricted)}
        return Settings({**self._values, **allowed}, self._more)


def option(key: str, table: Mapping[str, Option] = BY_KEY) -> Option:
    """The option of this key. Raises SettingsError that offers the nearest keys."""
    if key in table:
        return table[key]
    near = difflib.get_close_matches(str(key), table, n=3)
    raise SettingsError(f"There is no setting “{str(key)[:60]}”" + (f"; did you mean {', '.join(near)}?" if near else "."))


def coerce(key: str, value: Any, table: Mapping[str, Option] = BY_KEY) -> Any:
    """`value` in the type of this option's default: numeric strings for numbers, numbers for texts.

    Raises SettingsError for booleans as numbers, fractions as integers, what is no choice or out of range.
    """
    entry = option(key, table)
    try:
        found = _typed(entry.default, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"The setting {key} takes {_kind(entry.default)}, not {_shown(value)}.") from error
    if entry.choices is not None and found not in entry.choices:
        raise SettingsError(f"The setting {key} is one of {', '.join(map(str, entry.choices))}, not {_shown(value)}.")
    low, high = entry.minimum, entry.maximum
    if (low is not None and found < low) or (high is not None and found > high):
        raise SettingsError(f"The setting {key} lies between {low:g} and {high:g}, not at {_shown(value)}.")
    return found


def _typed(default: Any, value: Any) -> Any:
    if isinstance(default, bool):
        return _boolean(value)
    if isinstance(default, int):
        return _integer(value)
    if isinstance(default, float):
        number = float(_number(value))
        if not math.isfinite(number):
            raise ValueError("not finite")
        return number
    if isinstance(default, tuple):
        if not isinstance(value, (list, tuple)):
            raise TypeError("not a list")
        return tuple(_text(item) for item in value)
    return _text(value)


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if value in (0, 1):                                     # also True and False
        return bool(value)
    raise TypeError("not a boolean")


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)) or (isinstance(value, str) and len(value) > 64):
        raise TypeError("not a number")
    return value


def _integer(value: Any) -> int:
    value = _number(value)
    if isinstance(value, str):
        text = value.strip()
        value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    if value != int(value):
        raise ValueError("a fraction")
    return int(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise TypeError("not a text")
    text = str(value)
    if len(text.encode("utf-8")) > LONGEST_TEXT:            # a lone surrogate raises UnicodeEncodeError, a ValueError
        raise ValueError("too long")
    return text


def _kind(default: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", tuple: "a list of texts", str: "a text"}
    return names[type(default)]


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class SettingsFile:
    """The settings on disk. One object a process; safe for many threads. The file holds only what differs from the defaults.

    Keys of other versions and of extensions are kept. Beside it lies the last good copy, `settings.json.last`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._none = Settings()
        self._lock = threading.RLock()
        self._settings: Settings | None = None
        self._foreign: dict[str, Any] = {}
        self._warnings: list[str] = []

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences for the user about what was found broken; empty when all was well."""
        with self._lock:
            return tuple(self._warnings)

    def join(self, more: Sequence[Option]) -> None:
        """Take the options of extensions into the table: from now on their keys are settings like all others."""
        with self._lock:
            found = self._current().changed()
            self._none = Settings(more=more)
            self._settings, self._foreign = self._sorted({**self._foreign, **found})

    def read(self) -> Settings:
        """The settings as the file has them. Never raises: a broken file is kept as `.bad` and the last good one or the defaults stand."""
        with self._lock:
            self._warnings = []
            self._settings, self._foreign = self._parsed()
            return self._settings

    def write(self, changes: Mapping[str, Any], *, restricted: bool = False) -> Settings:
        """Change settings and save them, all or nothing. Restricted keys are passed over unless `restricted`.

        Raises SettingsError (nothing changed), or SaveError when the file cannot be written (nothing changed either).
        """
        with self._lock:
            settings = self._current().with_(changes, restricted=restricted)
            if settings != self._current() or not self._path.exists():
                body = json.dumps({**self._foreign, **settings.changed()}, indent=4, ensure_ascii=False).encode("utf-8")
                write_atomically(self._path, body)
                write_atomically(self._beside("last"), body)
            self._settings = settings
            return settings

    def snapshot(self, overrides: Mapping[str, Any] | None = None) -> Settings:
        """The settings of this moment with a job's overrides; never saved. Raises SettingsError."""
        with self._lock:
            return self._current().with_(overrides or {})

    def _current(self) -> Settings:
        return self._settings if self._settings is not None else self.read()

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{ending}")

    def _parsed(self) -> tuple[Settings, dict[str, Any]]:
        found = self._load(self._path)
        if isinstance(found, dict):
            return self._sorted(found)
        if not found:                                       # no such file yet
            return self._none, {}
        last = self._load(self._beside("last"))
        stand = "the last good settings are used" if isinstance(last, dict) else "the defaults are used"
        self._warnings.append(f"The settings in {self._path.name} could not be read ({found}); {stand}{self._keep()}.")
        return self._sorted(last) if isinstance(last, dict) else (self._none, {})

    def _keep(self) -> str:
        """Move the broken file aside as `.bad`; the older one of that name gives way."""
        try:
            os.replace(self._path, self._beside("bad"))
        except OSError as error:
            return f" and it could not be put aside ({error.strerror})"
        return f", and the file is kept as {self._beside('bad').name}"

    @staticmethod
    def _load(path: Path) -> dict[str, Any] | str:
        """The object in the file, or why there is none; "" when there is no file."""
        try:
            if path.exists() and not path.is_file():
                return "it is no file"
            found = json.loads(path.read_bytes().decode("utf-8-sig"))
        except FileNotFoundError:
            return ""
        except OSError as error:
            return error.strerror or "it cannot be opened"
        except UnicodeDecodeError:
            return "it is not UTF-8"
        except (ValueError, RecursionError):
            return "it is not whole JSON"
        return found if isinstance(found, dict) else "it holds no table of settings"

    def _sorted(self, found: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
        """Known keys as settings, others as they are. A value that does not fit is left at its default, with a warning."""
        known: dict[str, Any] = {}
        for key in (key for key in found if key in self._none.table):
            try:
                known[key] = coerce(key, found[key], self._none.table)
            except SettingsError as error:
                self._warnings.append(f"{error} Its default is used.")
        return self._none.with_(known, restricted=True), {key: value for key, value in found.items() if key not in self._none.table}


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON values, tuples as lists, in the order of the table."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}


