"""`launch.py models`: list the models, say what one is, and convert, prune, merge or fetch them."""
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modules.cli.makers import say
from modules.cli.words import print_json, shower, watched
from modules.core.paths import Paths
from modules.engine import Library
from modules.errands import convert_model, describe_model, fetch_model, merge_models

DTYPES = ("float32", "float16", "bfloat16")
METHODS = ("weighted_sum", "add_difference", "no_interpolation")
KINDS = ("checkpoint", "vae", "lora", "embedding")
LONGEST = 100                                               # letters of a metadata text that are printed


def add(parser: argparse.ArgumentParser) -> None:
    """The flags of `models` and of what may stand behind it."""
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    info = _action(actions, "info", info_, "say what a model file is: family, prediction, sizes, types, hashes, and what was guessed")
    info.add_argument("file", help="a path, or a name of the list")
    info.add_argument("--json", action="store_true", help="print all of it as JSON")
    info.add_argument("--no-hash", action="store_true", help="leave out the SHA-256, for which the whole file is read")
    change = _action(actions, "convert", convert, "write a model as a safetensors file, also in another precision")
    change.add_argument("--prune", action="store_true", help="leave out what no picture needs: averages, training's state, tables")
    change.add_argument("--ema", choices=("keep", "drop", "only"), default="keep", help="the averaged weights: keep them beside the others "
                        "(default), drop them, or put them in place of the others")
    prune_ = _action(actions, "prune", prune, "write a model without what no picture needs: averages, training's state, tables")
    prune_.add_argument("--ema-only", action="store_true", help="the averaged weights in place of the others")
    for action in (change, prune_):
        action.add_argument("source", help="a path, or a name of the list")
        action.add_argument("target", nargs="?", type=Path, help="a new .safetensors file, or a folder (default: beside the source)")
    mix = _action(actions, "merge", merge, "make one model of several: A * (1 - m) + B * m, or A + (B - C) * m")
    mix.add_argument("models", nargs="+", metavar="MODEL", help="A, B and C: paths, or names of the list")
    mix.add_argument("--out", type=Path, required=True, metavar="FILE", help="the new .safetensors file")
    mix.add_argument("--method", default="", metavar="{" + ",".join(METHODS) + "}", help="default: by the number of models, "
                     "of three add_difference, of one no_interpolation (to bake a VAE)")
    mix.add_argument("--weight", type=float, default=0.5, metavar="M", help="m (default: 0.5)")
    mix.add_argument("--blocks", default="", metavar="WEIGHTS", help="m for single blocks of the U-Net: IN00=0.2,IN04-IN08=0.5,OUT=1,M00=0,"
                     "BASE=0.3, or one number for each, 25 (26 with BASE first) for SD1 and SD2, 19 (20) for SDXL")
    mix.add_argument("--vae", default="", metavar="FILE", help="take this VAE into the new file")
    mix.add_argument("--discard", default="", metavar="REGEX", help="leave out tensors in whose names this is found")
    bring = _action(actions, "get", get, "fetch a model file; it gets its name only when its hash is right")
    bring.add_argument("url", metavar="URL")
    bring.add_argument("--sha256", required=True, metavar="HEX", help="64 hex digits, as the page that offers the file shows them")
    bring.add_argument("--kind", choices=KINDS, default="checkpoint", help="which folder it goes into (default: checkpoint)")
    bring.add_argument("--name", default="", help="the file's name (default: the last part of the address)")
    for action in (change, prune_, mix):
        action.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: as it is)")
        action.add_argument("--force", action="store_true", help="replace the new file if it exists")
    for action in (change, prune_, mix, bring):
        action.add_argument("--quiet", action="store_true", help="no progress line")


def _action(actions: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
    made.set_defaults(run=run)
    return made


def listed(flags: argparse.Namespace, paths: Paths) -> int:
    shelf = Library(paths).shelf
    for notice in paths.notices:
        say(notice)
    found = [(kind, entry) for kind, entries in (("checkpoint", shelf.checkpoints()), ("vae", shelf.vaes())) for entry in entries]
    if flags.json:
        print_json([{"kind": kind, "title": entry.title, "name": entry.name, "path": str(entry.path), "sha256": entry.sha256}
                    for kind, entry in found])
        return 0
    for kind, entry in found:
        print(f"{kind:<12}{entry.title}  ({entry.path})")
    if not found:
        print(f"No model was found; put a .safetensors checkpoint into {paths.checkpoints[0]}.")
    return 0


def info_(flags: argparse.Namespace, paths: Paths) -> int:
    found = describe_model(paths, flags.file, hashed=not flags.no_hash)
    if flags.json:
        print_json(dataclasses.asdict(found))
    else:
        for label, text in _lines(found):
            print(f"{label:<12}{text}")
    return 0


def convert(flags: argparse.Namespace, paths: Paths) -> int:
    return _converted(flags, paths, prune=flags.prune, ema=flags.ema)


def prune(flags: argparse.Namespace, paths: Paths) -> int:
    return _converted(flags, paths, prune=True, ema="only" if flags.ema_only else "drop")


def _converted(flags: argparse.Namespace, paths: Paths, **how: Any) -> int:
    print(watched(lambda progress: convert_model(paths, flags.source, flags.target, progress, dtype=flags.dtype, force=flags.force, **how),
                  shower(flags)))
    return 0


def merge(flags: argparse.Namespace, paths: Paths) -> int:
    how = {name: getattr(flags, name) for name in ("method", "weight", "blocks", "vae", "discard", "dtype", "force")}
    path, notes = watched(lambda progress: merge_models(paths, flags.models, flags.out, progress, **how), shower(flags))
    for note in notes:
        say(note)
    print(path)
    return 0


def get(flags: argparse.Namespace, paths: Paths) -> int:
    try:
        print(watched(lambda progress: fetch_model(paths, flags.url, flags.sha256, flags.kind, progress, flags.name), shower(flags)))
    except KeyboardInterrupt:
        say("What arrived is kept; the same command goes on from there.")
        raise
    return 0


# ---- words

def _lines(found: Any) -> Iterator[tuple[str, str]]:
    """(label, text) of each line; what the file does not tell is left out."""
    yield "File", f"{found.path} ({found.form}, {_bytes(found.size)})"
    yield "Kind", f"{found.kind}{f', {found.family}' if found.family else ''}{f' ({found.variant})' if found.variant else ''}"
    if found.fault:
        yield "Not usable", found.fault
    if found.prediction:
        yield "Prediction", f"{found.prediction}{f' ({found.prediction_by})' if found.prediction_by else ''}"
    sizes = [(found.native_size, f"{found.native_size} px"), (found.in_channels, f"{found.in_channels} channels in"),
             (found.latent_channels, f"{found.latent_channels} latent channels of {found.downscale} px"),
             (found.latent_scale, f"scale {found.latent_scale}"), (found.context, f"{found.context} numbers a token")]
    if any(value for value, _ in sizes):
        yield "Sizes", ", ".join(text for value, text in sizes if value)
    for tower in found.towers:
        yield "Text", f"{tower.prefix or 'at the root'}: width {tower.width}, {tower.layers} layers"
    for part in found.parts:
        yield "Part", f"{part.name}: {part.values:,} values, {_bytes(part.size)}, {' and '.join(part.dtypes)}"
    if found.markers:
        yield "Markers", ", ".join(found.markers)
    hashes = [(found.sha256, f"sha256 {found.sha256}"), (found.shorthash, f"short {found.shorthash}"),
              (found.legacy_hash, f"old {found.legacy_hash}")]
    if any(value for value, _ in hashes):
        yield "Hashes", ", ".join(text for value, text in hashes if value)
    for guess in found.guessed:
        yield "Guessed", guess
    for name, text in found.metadata.items():
        plain = " ".join(text.split())
        yield "Says", f"{name} = {plain if len(plain) <= LONGEST else plain[:LONGEST] + '...'}"


def _bytes(count: int) -> str:
    """1234567 -> "1.2 MB"."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
