"""How well a model follows words about scenes, judged by a checker that reads pixels: the table and the contact sheet of demo-report."""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from modules.demo import captions, scenes
from modules.demo.checker import Verdict, check
from modules.imaging.grid import grid

SHEET = 32                                                  # pictures on the contact sheet
GATES = (                                                   # row, at least this many percent at 128 px, at least at 256 px
    ("sky and ground", 90.0, 97.0), ("object's colour and place", 85.0, 95.0), ("kind of object", 70.0, 92.0),
)
UNKNOWN = ("xylophone", "parliament", "saxophone", "spaceship", "volcano", "keyboard", "gothic", "renaissance", "hamburger", "photograph",
           "crystal", "samurai", "typewriter", "dinosaur", "chocolate", "architecture")          # none is ever trained on
Draw = Callable[[str, int], Image.Image]                    # (prompt, seed) -> picture


@dataclass(frozen=True)
class Report:
    """rates: percent of pictures (or objects) that are right, by the names in GATES; strange: the same with unknown words in the prompt."""

    count: int
    size: int
    rates: dict[str, float]
    strange: dict[str, float]
    psnr: float | None                                      # dB, of the VAE on scenes that were not trained on; None = not measured
    sheet: Image.Image

    def lines(self) -> list[str]:
        """The table, with what is asked for at this size."""
        large = self.size > 128
        told = [f"{self.count} prompts of combinations never trained on, {self.size} px",
                f"{'':28}{'reached':>9}{'gate':>10}{'with two unknown words (>= -5)':>34}"]
        for name, low, high in GATES:
            gate, strange = high if large else low, self.strange[name]
            told.append(f"{name:28}{self.rates[name]:7.1f} %{'>=':>5}{gate:3.0f} %{strange:24.1f} % ({strange - self.rates[name]:+.1f})")
        if self.psnr is not None:
            told.append(f"{'VAE on scenes not trained on':28}{self.psnr:6.1f} dB{'>=':>5}{32 if large else 27:3} dB")
        return told


def report(draw: Draw, *, size: int, count: int = 256, seed: int = 0, decoded: Callable[[Image.Image], Image.Image] | None = None,
           tell: Callable[[int, int], None] = lambda done, of: None) -> Report:
    """Draw `count` unseen scenes from plain prompts, and as many with unknown words added, and judge each.

    draw: the model. decoded: its VAE there and back; None leaves the PSNR out. tell(done, of) after each picture.
    """
    layouts = [scenes.unseen_layout(random.Random(f"report {seed} {number}")) for number in range(count)]
    rng = random.Random(f"words {seed}")
    prompts = [captions.prompt_for(layout) for layout in layouts]
    strange = [f"{prompt}, {', '.join(rng.sample(UNKNOWN, 2))}" for prompt in prompts]
    images: list[Image.Image] = []
    rates = []
    for turn, words in enumerate((prompts, strange)):
        verdicts = []
        for number, (prompt, layout) in enumerate(zip(words, layouts, strict=True)):
            image = draw(prompt, number)
            verdicts.append(check(image, layout))
            if not turn and len(images) < SHEET:
                images.append(image)
            tell(turn * count + number + 1, 2 * count)
        rates.append(rates_of(verdicts))
    psnr = None
    if decoded:
        truths = [scenes.draw(layout, size).image for layout in layouts[:SHEET]]
        psnr = float(np.mean([psnr_of(truth, decoded(truth)) for truth in truths]))
    return Report(count=count, size=size, rates=rates[0], strange=rates[1], psnr=psnr, sheet=grid(images, rows=max(1, len(images) // 8)))


def rates_of(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Percent of what is right: both of sky and ground, both of an object's colour and place, an object's kind."""
    objects = [both for one in verdicts for both in zip(one.colour, one.place, one.kind, strict=True)]
    found = ([one.sky and one.ground for one in verdicts], [colour and place for colour, place, _ in objects],
             [kind for *_, kind in objects])
    return {name: 100.0 * sum(right) / max(1, len(right)) for (name, *_), right in zip(GATES, found, strict=True)}


def psnr_of(truth: Image.Image, other: Image.Image) -> float:
    """Peak signal to noise in dB of two RGB pictures of one size; infinite for equal ones."""
    error = np.mean((np.asarray(truth.convert("RGB"), np.float64) - np.asarray(other.convert("RGB"), np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255 ** 2 / error))
