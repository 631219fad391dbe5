"""`launch.py vae-bench`: VAEs side by side, as a table, a CSV file and a picture."""
from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from modules.cli.words import shower
from modules.core.files import write_atomically
from modules.core.paths import Paths

# (paths, VAE names, image=, latent=, scale=, size=, tell=) -> lines of the table, the CSV file's text, the picture; see errands.vae_bench
Bench = Callable[..., tuple[tuple[str, ...], str, Any]]


def add(parser: argparse.ArgumentParser, bench: Bench) -> None:
    """The flags of `vae-bench`."""
    parser.add_argument("--vae", action="append", required=True, metavar="NAME", dest="vaes",
                        help="a VAE or checkpoint: a path, or a name of the list; give it once for each")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--image", type=Path, metavar="FILE", help="the picture that goes there and back (default: a drawn scene)")
    source.add_argument("--latent", type=Path, metavar="FILE", help="a .safetensors with a tensor “latent” to decode instead")
    parser.add_argument("--size", type=int, default=1024, metavar="PIXELS",
                        help="longest edge of the picture; larger ones are made smaller (default: 1024)")
    parser.add_argument("--scale", type=float, default=0.18215, metavar="NUMBER",
                        help="what the U-Net's latents are multiplied by: 0.18215 for SD1 and SD2 (default), 0.13025 for SDXL")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="the table (default: vae-bench.csv in the data)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="a .png of all pictures (default: vae-bench.png in the data)")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.set_defaults(run=partial(run, bench=bench))


def run(flags: argparse.Namespace, paths: Paths, *, bench: Bench) -> int:
    """Measure, print the table, and write both files."""
    show = shower(flags)

    def tell(done: int, of: int) -> None:
        show(done / of, f"VAE {done} of {of}", None, -1)

    lines, table, sheet = bench(paths, tuple(dict.fromkeys(flags.vaes)), image=flags.image, latent=flags.latent, scale=flags.scale,
                                size=flags.size, tell=tell)
    print("\n".join(lines))
    made = io.BytesIO()
    sheet.save(made, "PNG")
    for what, path, data in (("Table", flags.csv or paths.data / "vae-bench.csv", table.encode()),
                             ("Pictures", flags.sheet or paths.data / "vae-bench.png", made.getvalue())):
        write_atomically(path, data)
        print(f"{what}: {path}")
    return 0
