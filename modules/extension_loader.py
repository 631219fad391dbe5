"""Find extensions, put them in order, import each, and say of the rest why they are not there. Nothing outside this file imports one.

An extension is a folder with extension.py, in which one subclass of pipeline.extension.Extension stands. The user's lie in extensions/,
those that come with Easel in modules/extensions-builtin/, whose name no import can reach. Each is imported as a module of its own, once
a start.
"""
from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from modules.core.options import BY_KEY, Option
from modules.core.paths import Paths
from modules.pipeline.extension import Control, Entry, Extension

log = logging.getLogger("easel.extensions")
FILE = "extension.py"
TABS = ("txt2img", "img2img")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _./+-]{0,59}")
PACKAGE = "easel_extensions"                                # what the modules' names in sys.modules begin with


def load(paths: Paths, settings: Mapping[str, Any], *, disable: str = "none") -> tuple[Entry, ...]:
    """Every extension folder as an Entry, those that work in the order in which they are asked, then the others.

    disable: "none", "extra" (only built-in ones run) or "all", from a launch flag; the stricter of it and the settings holds.
    Never raises for what an extension does.
    """
    levels = ("none", "extra", "all")
    level = max(disable, settings["disable_all_extensions"], key=levels.index)
    entries: list[Entry] = []
    for folder, builtin in _folders(paths):
        off = folder.name in settings["disabled_extensions"] or level == "all" or (level == "extra" and not builtin)
        entry = Entry(folder=folder.name, builtin=builtin, enabled=False) if off else _entry(folder, builtin, entries)
        if entry.trouble:
            log.warning("%s", entry.trouble)
        entries.append(entry)
    working = [entry for entry in entries if entry.extension]
    return (*_ordered(working), *(entry for entry in entries if not entry.extension))


def _folders(paths: Paths) -> Iterator[tuple[Path, bool]]:
    """(folder, whether it is built in), sorted by name, the built-in ones first."""
    for root, builtin in ((paths.builtin_extensions, True), (paths.extensions, False)):
        found: list[Path] = []
        with contextlib.suppress(OSError):                  # a folder that is not there, or may not be read, holds none
            found = sorted(folder for folder in root.iterdir() if (folder / FILE).is_file())
        yield from ((folder, builtin) for folder in found)


def _entry(folder: Path, builtin: bool, before: Sequence[Entry]) -> Entry:
    """The extension in this folder, or why it is left out."""
    try:
        extension = _made(_module(folder))
        controls, options = _described(extension)
    except (Exception, SystemExit) as error:
        return Entry(folder=folder.name, builtin=builtin, trouble=f"The extension {folder.name} was left out: {_why(error, folder)}.")
    for other in before:
        if other.extension and other.name.casefold() == extension.name.casefold():
            return Entry(folder=folder.name, builtin=builtin, trouble=f"The extension {folder.name} was left out: its name, "
                                                                      f"{extension.name}, is taken by the one in {other.folder}.")
        for option in options:
            if option.key in (known.key for known in other.options):
                return Entry(folder=folder.name, builtin=builtin, trouble=f"The extension {folder.name} was left out: its setting "
                                                                          f"{option.key} is one of {other.name}.")
    return Entry(folder=folder.name, builtin=builtin, extension=extension, controls=controls, options=options)


def _module(folder: Path) -> ModuleType:
    """The extension's file, run as a module; its folder may hold more, found with a relative import."""
    name = f"{PACKAGE}.{re.sub(r'[^A-Za-z0-9_]', '_', folder.name)}"
    spec = importlib.util.spec_from_file_location(name, folder / FILE, submodule_search_locations=[str(folder)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _made(module: ModuleType) -> Extension:
    """An instance of the one class that the module defines."""
    classes = [value for value in vars(module).values()
               if isinstance(value, type) and issubclass(value, Extension) and value.__module__ == module.__name__]
    if len(classes) != 1:
        raise ValueError(f"{FILE} must define one subclass of Extension, and defines {len(classes)}")
    made = classes[0]()
    if not isinstance(made.name, str) or not NAME.fullmatch(made.name):
        raise ValueError("its class needs a `name` of letters, digits and spaces")
    return made


def _described(extension: Extension) -> tuple[tuple[Control, ...], tuple[Option, ...]]:
    """Its controls, each tab's once, and its options. Raises where one does not hold together."""
    controls: dict[str, Control] = {}
    for tab in TABS:
        for control in extension.controls(tab):
            controls.setdefault(control.name, control)
    options = tuple(extension.settings())
    keys = [option.key for option in options]
    for control in controls.values():
        if control.taken(control.default) != control.default:
            raise ValueError(f"the default of its control {control.name} does not fit the control")
        if control.setting and control.setting not in (*keys, *BY_KEY):
            raise ValueError(f"its control {control.name} follows the setting {control.setting}, which is not there")
    for option in options:
        if not isinstance(option, Option) or option.key in BY_KEY or keys.count(option.key) > 1:
            raise ValueError(f"its setting {getattr(option, 'key', option)} is no option of its own")
    return tuple(controls.values()), options


def _why(error: BaseException, folder: Path) -> str:
    """What went wrong, and where in the extension's own files."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} of {Path(error.filename or FILE).name} is no Python ({error.msg})"
    line, trace = 0, error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).parent == folder:
            line = trace.tb_lineno
        trace = trace.tb_next
    said = (str(error).strip().splitlines() or [""])[0][:200] or type(error).__name__
    kind = "" if isinstance(error, ValueError) and not line else f"{type(error).__name__}: "
    return f"{kind}{said}" + (f" (line {line} of {FILE})" if line else "")


def _ordered(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Each behind those that its `after` names; else as they stand. Names that are not here, and circles, are passed over."""
    left, done = list(entries), []
    names = {entry.name for entry in entries}
    while left:
        waiting = {entry.name for entry in left}
        free = (entry for entry in left if entry.extension and not (set(entry.extension.after) & names & waiting - {entry.name}))
        chosen = next(free, left[0])
        left.remove(chosen)
        done.append(chosen)
    return tuple(done)
