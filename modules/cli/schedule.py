"""`launch.py schedule`: the noise levels of schedules as numbers, and as curves in a picture."""
from __future__ import annotations

import argparse
import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from modules.cli.makers import say
from modules.cli.words import print_json
from modules.core.errors import RequestError, ScheduleError
from modules.core.files import write_atomically
from modules.core.paths import Paths
from modules.engine import Library

Ladders = Mapping[str, Sequence[float]]                     # label -> noise levels, falling

SIZE = (960, 540)                                           # pixels
LEFT, TOP, RIGHT, BOTTOM = 64, 40, 210, 44                  # margins in pixels
SHARPER = 2                                                 # drawn so many times larger, then made smaller
FEW = ("#2457a6", "#c0562b", "#3a8a4d", "#8a3f9c", "#b08a1e", "#2a8a94")
END = 28                                                    # pixels between the lowest level above zero and zero
LEVELS = tuple(digit * 10.0 ** power for power in range(-6, 7) for digit in (1, 3))


def add(parser: argparse.ArgumentParser) -> None:
    """The flags of `schedule`."""
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them as curves into this file")
    parser.add_argument("--scheduler", action="append", default=[], metavar="NAME", dest="schedulers",
                        help="a schedule; give it once for each (default: all of them)")
    parser.add_argument("--sampler", default="Euler", metavar="NAME", help="the sampler that walks them (default: Euler)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="sampling steps (default: 20)")
    parser.add_argument("--model", default="", metavar="NAME",
                        help="a checkpoint of the list, whose noise is taken (default: the usual noise of Stable Diffusion)")
    for name, what in (("rho", "curvature"), ("sigma-min", "lowest level"), ("sigma-max", "highest level")):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="NUMBER", help=f"{what}, where a schedule has it (default: own)")
    parser.add_argument("--sigmas", default="", metavar="LIST", help="levels of your own, such as 14.6,7.3,2.1,0, beside the others")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace, paths: Paths) -> int:
    """Print the levels of each schedule, and draw them if a file was named."""
    if flags.plot and flags.plot.suffix.lower() != ".png":
        raise RequestError(f"“{flags.plot.name}” does not end in .png; choose such a name for the plot.", field="plot")
    library = Library(paths)
    model = _model(library, flags.model) if flags.model else None
    ladder = partial(library.ladders.of, model, sampler=flags.sampler, steps=flags.steps, rho=flags.rho, sigma_min=flags.sigma_min,
                     sigma_max=flags.sigma_max)
    found = {name: ladder(name) for name in dict.fromkeys(flags.schedulers)}
    if flags.sigmas:
        found["own levels"] = ladder("Automatic", levels=flags.sigmas)
    if not found:
        found = _every(library.ladders.labels, ladder)
    if flags.json:
        print_json(found)
    else:
        for name, levels in found.items():
            print(f"{name:<22}{' '.join(f'{level:.4f}' if level else '0' for level in levels)}")
    if flags.plot:
        made = io.BytesIO()
        title = f"{flags.sampler}, {flags.steps} steps" + (f", {flags.model}" if flags.model else "")
        drawn(found, title).save(made, "PNG")
        write_atomically(flags.plot, made.getvalue())
        if not flags.json:
            print(f"Plot: {flags.plot}")
    return 0


def _model(library: Library, name: str) -> Path:
    """A model by its path, or by any name that the shelf knows. Raises NotFoundError."""
    try:
        if Path(name).exists():
            return Path(name)
    except (OSError, ValueError):                           # too long, or with a NUL: no path then
        pass
    return Path(library.shelf.find_checkpoint(name).path)


def _every(labels: Sequence[str], ladder: partial[tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    """All schedules of the menu that can be made of these numbers; the sentence of the last that cannot where none can."""
    found, faults = {}, []
    for label in labels:
        try:
            found[label] = ladder(label)
        except ScheduleError as error:
            faults.append(error)
    if not found:
        raise faults[-1]
    for fault in faults:
        say(str(fault))
    return found


def drawn(ladders: Ladders, title: str) -> Image.Image:
    """Noise levels over steps, the levels logarithmic with 0 on a line of its own below, the names at the side. RGB, SIZE pixels."""
    picture = Image.new("RGB", (SIZE[0] * SHARPER, SIZE[1] * SHARPER), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13 * SHARPER)
    above = [level for levels in ladders.values() for level in levels if level > 0]
    low, high = math.log10(min(above)) - 0.05, math.log10(max(above)) + 0.05
    steps = max(1, *(len(levels) - 1 for levels in ladders.values()))
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(step: float, level: float) -> tuple[float, float]:
        down = height if level <= 0 else (height - END) * (high - math.log10(level)) / (high - low)
        return (LEFT + width * step / steps) * SHARPER, (TOP + down) * SHARPER

    draw.text((LEFT * SHARPER, 10 * SHARPER), f"noise levels: {title}"[:110], "black", font)
    for level in (0.0, *(level for level in LEVELS if low <= math.log10(level) <= high)):
        left, y = place(0, level)
        draw.line((left, y, place(steps, level)[0], y), "#dddddd", SHARPER)
        draw.text((left - 8 * SHARPER, y), f"{level:g}", "black", font, anchor="rm")
    for step in range(0, steps + 1, max(1, math.ceil(steps / 10))):
        x, y = place(step, 0)
        draw.text((x, y + 8 * SHARPER), str(step), "black", font, anchor="mt")
    for number, (name, levels) in enumerate(ladders.items()):
        colour = _colour(number, len(ladders))
        points = [place(step, level) for step, level in enumerate(levels)]
        draw.line(points, colour, 2 * SHARPER, joint="curve")
        for x, y in points:
            draw.circle((x, y), 2.5 * SHARPER, colour)
        draw.text(((SIZE[0] - RIGHT + 16) * SHARPER, (TOP + 20 * number) * SHARPER), name[:28], colour, font)
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def _colour(number: int, of: int) -> str:
    if of <= len(FEW):
        return FEW[number]
    red, green, blue = colorsys.hsv_to_rgb(number / of, 0.85, 0.55 + 0.25 * (number % 2))
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"
