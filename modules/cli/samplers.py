"""`launch.py samplers`: what samplers there are, and all of them side by side in a picture and a CSV file."""
from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from modules.cli.words import print_json, shower
from modules.core.errors import RequestError
from modules.core.files import write_atomically
from modules.core.paths import Paths
from modules.errands import samplers

# (paths, checkpoint, samplers, steps, reference=, prompt=, seed=, cfg_scale=, size=, tell=) -> lines, CSV text, picture; see errands
Grid = Callable[..., tuple[tuple[str, ...], str, Any]]
STEPS = (5, 10, 20, 50)
PROMPT = "a big red house on the left in a meadow at sunset"


def add(parser: argparse.ArgumentParser, grid: Grid) -> None:
    """The flags of `samplers`."""
    parser.add_argument("--grid", action="store_true", help="draw one prompt with each at several step counts, with times and distances")
    parser.add_argument("--sampler", action="append", default=[], metavar="NAME", dest="samplers",
                        help="a sampler; give it once for each (default: all of them)")
    parser.add_argument("--steps", default=",".join(map(str, STEPS)), metavar="LIST", help="step counts (default: 5,10,20,50)")
    parser.add_argument("--reference", type=int, default=500, metavar="N",
                        help="steps of the picture that each is compared with (default: 500)")
    parser.add_argument("--checkpoint", default="", metavar="NAME", help="the model that draws (default: the one chosen at start)")
    parser.add_argument("--prompt", default=PROMPT, help=f"what is drawn (default: {PROMPT})")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="which noise (default: 1)")
    parser.add_argument("--cfg-scale", type=float, default=5.0, metavar="NUMBER", help="how strongly the prompt is followed (default: 5)")
    parser.add_argument("--size", type=int, default=0, metavar="PIXELS", help="width and height (default: the model's own)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the table (default: samplers.csv in the data)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a .png of all pictures (default: samplers.png in the data)")
    parser.add_argument("--json", action="store_true", help="without --grid: print the list as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.set_defaults(run=partial(run, grid=grid))


def run(flags: argparse.Namespace, paths: Paths, *, grid: Grid) -> int:
    """List the samplers, or draw with them, print the table, and write both files."""
    if not flags.grid:
        return _listed(flags)
    show = shower(flags)

    def tell(done: int, of: int) -> None:
        show(done / of, f"step {done} of {of}", None, -1)

    lines, table, sheet = grid(
        paths, flags.checkpoint, flags.samplers, _counts(flags.steps), reference=flags.reference, prompt=flags.prompt, seed=flags.seed,
        cfg_scale=flags.cfg_scale, size=flags.size, tell=tell)
    print("\n".join(lines))
    made = io.BytesIO()
    sheet.save(made, "PNG")
    for what, path, data in (("Table", flags.csv or paths.data / "samplers.csv", table.encode()),
                             ("Pictures", flags.sheet or paths.data / "samplers.png", made.getvalue())):
        write_atomically(path, data)
        print(f"{what}: {path}")
    return 0


def _counts(text: str) -> tuple[int, ...]:
    """Step counts between commas. Raises RequestError."""
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise RequestError(f"“{text[:40]}” is no list of step counts; write numbers between commas, such as 5,10,20.",
                           field="steps") from error


def _listed(flags: argparse.Namespace) -> int:
    found = samplers(flags.samplers)
    if flags.json:
        print_json(found)
        return 0
    for one in found:
        kind = f"order {one['order']}" if one["order"] else "own kind"
        print(f"{one['name']:<24}{kind:<10}{one['calls']} call{'s' if one['calls'] > 1 else ' '} a step  {one['schedule']:<13}"
              f"{', '.join(one['aliases'])}".rstrip())
    return 0
