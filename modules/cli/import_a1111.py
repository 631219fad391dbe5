"""`launch.py import-a1111 FOLDER`: settings, page defaults, styles and model folders of A1111's web UI, and what of them was left."""
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modules.cli.makers import say
from modules.cli.words import print_json
from modules.core.paths import Paths
from modules.errands import import_a1111
from modules.pipeline import parameters
from modules.pipeline.request import Request

WHAT = ("settings", "page", "styles", "models")
SHOWN = 12                                                  # names of a list that are printed


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the folder with webui.py in it; nothing in it is changed")
    parser.add_argument("--only", action="append", choices=WHAT, help="take only this; may be given again (default: all of it)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be taken")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON")


def moved(flags: argparse.Namespace, paths: Paths) -> int:
    found = import_a1111(paths, flags.folder, meant, what=tuple(flags.only or WHAT), dry=flags.dry_run)
    if flags.json:
        print_json(dataclasses.asdict(found))
        return 0
    for line in found.taken:
        print(f"{'Would take' if flags.dry_run else 'Took'} {line}")
    if not found.taken:
        print("There was nothing to take.")
    for line in found.left:
        say(line)
    if found.unknown:
        say(f"{len(found.unknown)} settings are not known here: {_some(found.unknown)}.")
    return 0


def meant(label: str, value: Any) -> tuple[str, Any] | None:
    """What a control of A1111's txt2img page is called here, and its value; ("", None) for the usual value, None for none of ours.

    Raises RequestError for a value that does not fit.
    """
    row = next((row for row in parameters.PARAMETERS if row.label.lower() == label.strip().lower()), None)
    if row is None:
        return None
    taken = parameters.coerce(row, value)
    parameters.check_value(row, taken)
    return ("", None) if taken == getattr(Request(), row.field) else (row.field, taken)


def _some(names: Iterable[str]) -> str:
    names = tuple(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
