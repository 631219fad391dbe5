"""Moving in from A1111: its settings, its page's defaults, its styles, and its folders of models, which stay where they are."""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.core import model_folders
from modules.core.errors import NotFoundError, RequestError, SettingsError, WebUIError
from modules.core.files import write_atomically
from modules.core.options import BY_KEY
from modules.core.paths import Paths
from modules.core.settings import SettingsFile, coerce
from modules.prompts import styles

WHAT = ("settings", "page", "styles", "models")
SIGNS = ("webui.py", "config.json", "ui-config.json", "styles.csv", "models/Stable-diffusion")    # one of these, and a folder is A1111's
FOLDERS = (                                                 # key in extra_model_paths.yaml, and where A1111 keeps such files
    ("checkpoints", ("models/Stable-diffusion",)), ("vae", ("models/VAE",)), ("loras", ("models/Lora", "models/LyCORIS")),
    ("embeddings", ("embeddings",)),
)
LONGEST = 16 << 20                                          # bytes of a JSON file
HEAD = "# Written by import-a1111; delete a part to forget it.\n"
PAGE = "page_defaults.json"                                 # in the data folder: {"txt2img": {field: value}}

ReadPage = Callable[[str, Any], tuple[str, Any] | None]     # (label, value) -> (field, value), "" for the usual value, None = not known


@dataclass(frozen=True)
class Moved:
    """What was done with an installation: sentences about what was taken and what was left, and keys that Easel does not know."""

    taken: tuple[str, ...]
    left: tuple[str, ...]
    unknown: tuple[str, ...]


def import_a1111(folder: Path, paths: Paths, read_page: ReadPage, *, what: Sequence[str] = WHAT, dry: bool = False) -> Moved:
    """Take over what `what` names (settings, page, styles, models) of A1111's folder, in which nothing is changed.

    read_page: what a label of the page means here; raises RequestError for a value that does not fit. dry: only say what would be done.
    What is here already stays: styles of the same name, and folders that are known. Raises NotFoundError, RequestError, SaveError.
    """
    folder = Path(folder).absolute()
    if not any((folder / sign).exists() for sign in SIGNS):
        raise NotFoundError(f"{folder} is no folder of A1111's web UI; give the one that has webui.py or config.json in it.")
    strange = next((word for word in what if word not in WHAT), None)
    if strange:
        raise RequestError(f"“{strange[:40]}” is nothing that can be taken over; choose {', '.join(WHAT)}.", field="what")
    steps = {"settings": lambda: _settings(folder, paths, dry), "page": lambda: _page(folder, paths, read_page, dry),
             "styles": lambda: _styles(folder, paths, dry), "models": lambda: _models(folder, paths, dry)}
    done = [steps[word]() for word in WHAT if word in what]
    return Moved(taken=tuple(line for moved in done for line in moved.taken), left=tuple(line for moved in done for line in moved.left),
                 unknown=tuple(line for moved in done for line in moved.unknown))


def _settings(folder: Path, paths: Paths, dry: bool) -> Moved:
    """Its config.json: every setting of ours that it has, those of paths and of the API excepted."""
    found, fault = _table(folder / "config.json")
    changes: dict[str, Any] = {}
    left = [fault] if fault else []
    for key, value in found.items():
        if key in BY_KEY and BY_KEY[key].restricted:
            left.append(f"The setting {key} is left, since it names a place or a permission; set it here if you want it.")
        elif key in BY_KEY:
            try:
                changes[key] = coerce(key, value)
            except SettingsError as error:
                left.append(str(error))
    if changes and not dry:
        SettingsFile(paths.settings_file).write(changes)
    taken = tuple(f"setting {key} = {_json(value)}" for key, value in changes.items() if value != BY_KEY[key].default)
    if changes and not taken:
        taken = (f"{len(changes)} settings, all of them the usual ones",)
    return Moved(taken, tuple(left), tuple(key for key in found if key not in BY_KEY))


def _page(folder: Path, paths: Paths, read_page: ReadPage, dry: bool) -> Moved:
    """Its ui-config.json: values of the txt2img page, as "txt2img/Width/value" and "customscript/sampler.py/txt2img/Width/value"."""
    found, fault = _table(folder / "ui-config.json")
    values: dict[str, Any] = {}
    left, unknown = [fault] if fault else [], []
    for key, value in found.items():
        parts = key.split("/")
        if len(parts) < 3 or parts[-1] != "value" or parts[-3] != "txt2img":
            continue                                        # ranges, other tabs, accordions
        try:
            meant = read_page(parts[-2], value)
        except RequestError as error:
            left.append(f"{key}: {error}")
            continue
        if meant is None:
            unknown.append(key)
        elif meant[0]:
            values[meant[0]] = meant[1]
    if values and not dry:
        write_atomically(paths.data / PAGE, json.dumps({"txt2img": values}, indent=4, ensure_ascii=False).encode("utf-8"))
    return Moved(tuple(f"default of the page {name} = {_json(value)}" for name, value in values.items()), tuple(left), tuple(unknown))


def _styles(folder: Path, paths: Paths, dry: bool) -> Moved:
    """Its styles.csv: the styles whose names are free here, behind those that are here."""
    file = folder / "styles.csv"
    if not file.exists():
        return Moved((), (), ())
    try:
        theirs, ours = styles.read(file), styles.read(paths.styles_file)
    except WebUIError as error:
        return Moved((), (str(error),), ())
    known = {style.name: style for style in ours}
    fresh = {style.name: style for style in theirs if style.name not in known}
    left = [f"The style {style.name} is left, since there is another one of this name here." for style in theirs
            if style.name in known and known[style.name] != style]
    if fresh and not dry:
        styles.write(paths.styles_file, (*ours, *fresh.values()))
    return Moved(tuple(f"style {name}" for name in fresh), tuple(left), ())


def _models(folder: Path, paths: Paths, dry: bool) -> Moved:
    """Its folders of models, noted in a list of our own; their files are used where they lie."""
    entries = [(key, tuple(path for path in places if (folder / path).is_dir())) for key, places in FOLDERS]
    entries = [(key, places) for key, places in entries if places]
    sections, _ = model_folders.read(paths.imported_folders)
    if not entries or any(section.base == folder for section in sections):
        return Moved((), (f"The model folders of {folder} are known already.",) if entries else (), ())
    if '"' in str(folder) or "\n" in str(folder):
        return Moved((), (f"The folder {folder} has a name that no list can hold; name it with --ckpt-dir.",), ())
    name = "a1111" if not sections else f"a1111-{len(sections) + 1}"
    if not dry:
        before = paths.imported_folders.read_text(encoding="utf-8-sig") if sections else HEAD
        write_atomically(paths.imported_folders, (before + model_folders.section(name, folder, entries)).encode("utf-8"))
    return Moved(tuple(f"folder {folder / place} ({key})" for key, places in entries for place in places), (), ())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _table(file: Path) -> tuple[Mapping[str, Any], str]:
    """The table in a JSON file, or {} and a sentence; {} and "" where there is no such file."""
    try:
        if not file.exists():
            return {}, ""
        if file.stat().st_size > LONGEST:
            return {}, f"{file.name} is too long; it is left."
        found = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        return {}, f"{file.name} cannot be read ({error.strerror}); it is left."
    except (ValueError, RecursionError):
        return {}, f"{file.name} is not whole JSON; it is left."
    return (found, "") if isinstance(found, dict) else ({}, f"{file.name} holds no table; it is left.")
