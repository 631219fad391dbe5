"""Samplers side by side: the same words and seed at several step counts, how long each took, and how far it is from where it leads to.

A sampler leads to its own picture of very many steps; those that solve the noise-free equation lead to one picture, so for them the
distance to Heun's is told too.
"""
from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from modules.core.errors import RequestError
from modules.pipeline.request import Request
from modules.pipeline.vae_bench import psnr
from modules.sampling import catalogue

Draw = Callable[[Request], Image.Image]                     # one picture of a request
Tell = Callable[[int, int], None]                           # (done, of), in steps; may raise to stop
COLUMNS = ("sampler", "schedule", "steps", "calls", "seconds", "own_db", "heun_db")
COMMON = "Heun"
LEFT, TOP, CAPTION = 148, 30, 20                            # pixels: names at the side, step counts above, figures below a picture
MOST = 1000                                                 # steps that a request may have


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture. own, heun: PSNR in dB to the sampler's own picture of very many steps, and to Heun's; inf = equal, None = leads
    elsewhere."""

    sampler: str
    schedule: str
    steps: int
    calls: int
    seconds: float
    own: float
    heun: float | None
    image: Image.Image

    def row(self) -> tuple[str, ...]:
        """As text, in the order of COLUMNS."""
        return (self.sampler, self.schedule, str(self.steps), str(self.calls), f"{self.seconds:.2f}", f"{self.own:.2f}",
                "" if self.heun is None else f"{self.heun:.2f}")


@dataclass(frozen=True, kw_only=True)
class SamplerGrid:
    """cells: by sampler, then by steps, those of the reference last."""

    cells: tuple[Cell, ...]
    columns: tuple[int, ...]                                # step counts

    def lines(self) -> tuple[str, ...]:
        """A table for eyes."""
        table = [COLUMNS, *(cell.row() for cell in self.cells)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return tuple("  ".join(text.ljust(width) if place < 2 else text.rjust(width)
                               for place, (text, width) in enumerate(zip(line, widths, strict=True))).rstrip() for line in table)

    def csv(self) -> str:
        made = io.StringIO()
        csv.writer(made, lineterminator="\n").writerows([COLUMNS, *(cell.row() for cell in self.cells)])
        return made.getvalue()

    def sheet(self) -> Image.Image:
        """All pictures, RGB: a row for each sampler, a column for each step count, seconds and dB below each."""
        font = ImageFont.load_default(12)
        width, height = self.cells[0].image.size
        rows = tuple(dict.fromkeys(cell.sampler for cell in self.cells))
        sheet = Image.new("RGB", (LEFT + (width + 4) * len(self.columns), TOP + (height + CAPTION) * len(rows)), "white")
        draw = ImageDraw.Draw(sheet)
        for place, steps in enumerate(self.columns):
            draw.text((LEFT + (width + 4) * place + width / 2, TOP / 2), f"{steps} steps", "black", font, anchor="mm")
        for cell in self.cells:
            left, top = LEFT + (width + 4) * self.columns.index(cell.steps), TOP + (height + CAPTION) * rows.index(cell.sampler)
            sheet.paste(cell.image, (left, top))
            near = "reference" if cell.steps == self.columns[-1] else "equal" if math.isinf(cell.own) else f"{cell.own:.1f} dB"
            draw.text((left + width / 2, top + height + CAPTION / 2 - 2), f"{cell.seconds:.1f} s, {near}", "black", font, anchor="mm")
            draw.text((8, top + height / 2), cell.sampler, "black", font, anchor="lm")
        return sheet


def sampler_grid(draw: Draw, request: Request, samplers: Sequence[str], steps: Sequence[int], *, reference: int = 500,
                 tell: Tell = lambda done, of: None) -> SamplerGrid:
    """Draw the request with each sampler (names or aliases, each with its own schedule) at each step count, and at `reference` steps.

    A picture is drawn once before, so that what is done only once is not timed. Raises RequestError for step counts that no request has
    or that are not below the reference's; NotFoundError for an unknown sampler.
    """
    columns = tuple(sorted(set(steps)))
    if not columns or columns[0] < 1 or columns[-1] >= reference or reference > MOST:
        raise RequestError(f"The step counts {', '.join(map(str, columns)) or '(none)'} must lie between 1 and the reference's, which is "
                           f"{reference} and at most {MOST}.", field="steps")
    names = tuple(dict.fromkeys(catalogue.sampler(name).name for name in samplers))
    of, done = reference * (len(names) + 1) + sum(columns) * len(names), 0
    draw(replace(request, sampler=names[0], scheduler="Automatic", steps=columns[0]))
    common = draw(replace(request, sampler=COMMON, scheduler="Automatic", steps=reference))
    tell(done := done + reference, of)
    cells = []
    for name in names:
        entry = catalogue.sampler(name)
        drawn: list[tuple[int, float, Image.Image]] = []
        for count in (reference, *columns):
            begun = time.perf_counter()
            image = draw(replace(request, sampler=name, scheduler="Automatic", steps=count))
            drawn.append((count, time.perf_counter() - begun, image))
            tell(done := done + count, of)
        truth = drawn[0][2]
        cells += [Cell(sampler=name, schedule=entry.default_schedule or "automatic", steps=count, calls=entry.calls(count), seconds=seconds,
                       own=psnr(truth, image), heun=psnr(common, image) if entry.order and not entry.name.endswith("CFG++") else None,
                       image=image) for count, seconds, image in (*drawn[1:], drawn[0])]
    return SamplerGrid(cells=tuple(cells), columns=(*columns, reference))
