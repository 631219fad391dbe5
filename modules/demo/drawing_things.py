"""The things of the storybook, one function each: shapes in a box of 0..1 with named paints.

The paints body, light, shade and deep are tones of the thing's own colour, all others are the same on every thing.
A thing stands on the lower edge of its box and looks to the right.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from modules.demo.drawing import Colour, Pen, mix, times

TONES = ("body", "light", "shade", "deep")
ACCENTS: Mapping[str, Colour] = MappingProxyType({
    "cream": (253, 243, 220), "dark": (58, 48, 60), "glass": (196, 228, 242), "wood": (134, 94, 62), "leaf": (84, 152, 84),
    "gold": (250, 196, 70), "rose": (240, 140, 140), "stone": (158, 152, 158), "eye": (255, 255, 255),
})


def tones(colour: Colour) -> dict[str, Colour]:
    """The four tones of a thing of this colour."""
    if min(colour) > 200:                                   # white shaded grey would be another colour
        shade, deep = times(colour, (0.93, 0.94, 0.98)), times(colour, (0.84, 0.87, 0.95))
        return {"body": colour, "light": (255, 255, 255), "shade": shade, "deep": deep}
    dark = sum(colour) < 200                                # a black thing needs visible tones: they rise instead of falling
    shade, deep = (mix(colour, (150, 150, 180), 0.16), mix(colour, (150, 150, 180), 0.10)) if dark else (
        times(colour, (0.86, 0.84, 0.88)), times(colour, (0.70, 0.66, 0.72)))
    return {"body": colour, "light": mix(colour, (255, 255, 255), 0.14 if dark else 0.28), "shade": shade, "deep": deep}


@dataclass(frozen=True)
class Thing:
    """How a kind is drawn. width, height: its box as parts of its size; lives: "land", "water" or "air"."""

    draw: Callable[[Pen], None]
    width: float
    height: float
    lives: str
    turns: bool = True                                      # whether its mirror image differs


def _eye(pen: Pen, x: float, y: float, r: float) -> None:
    pen.oval(x, y, r, r * 1.15, "eye")
    pen.oval(x + r * 0.2, y, r * 0.6, r * 0.8, "dark")


def _house(pen: Pen) -> None:
    pen.block(0.70, 0.06, 0.84, 0.4, "stone")
    pen.block(0.12, 0.42, 0.88, 1, "body")
    pen.block(0.12, 0.86, 0.88, 1, "shade")
    pen.shape([(0, 0.48), (0.5, 0), (1, 0.48)], "deep")
    pen.oval(0.5, 0.29, 0.085, 0.09, "cream")
    pen.block(0.20, 0.55, 0.46, 0.80, "cream", 0.03)
    pen.block(0.235, 0.585, 0.425, 0.765, "glass")
    pen.block(0.57, 0.58, 0.79, 1, "cream", 0.08)
    pen.block(0.605, 0.62, 0.755, 1, "wood", 0.06)


def _tree(pen: Pen) -> None:
    pen.shape([(0.42, 0.55), (0.58, 0.55), (0.60, 0.93), (0.70, 1), (0.30, 1), (0.40, 0.93)], "wood")
    for x, y, r in ((0.27, 0.47, 0.26), (0.73, 0.47, 0.26), (0.5, 0.56, 0.27)):
        pen.oval(x, y, r, r * 0.76, "shade")
    for x, y, r in ((0.5, 0.25, 0.31), (0.30, 0.40, 0.27), (0.68, 0.38, 0.27), (0.5, 0.44, 0.28)):
        pen.oval(x, y, r, r * 0.78, "body")
    for x, y, r in ((0.42, 0.18, 0.13), (0.24, 0.36, 0.10), (0.62, 0.33, 0.10)):
        pen.oval(x, y, r, r * 0.72, "light")


def _boat(pen: Pen) -> None:
    pen.block(0.465, 0.02, 0.515, 0.74, "wood")
    pen.shape([(0.54, 0.05), (0.54, 0.64), (0.97, 0.64)], "body")
    pen.shape([(0.54, 0.46), (0.54, 0.64), (0.97, 0.64), (0.84, 0.46)], "light")
    pen.shape([(0.44, 0.14), (0.44, 0.64), (0.08, 0.64)], "cream")
    pen.blob([(0.01, 0.70), (0.5, 0.715), (0.99, 0.70), (0.86, 0.96), (0.5, 1.0), (0.16, 0.96)], "body")
    pen.shape([(0.02, 0.71), (0.98, 0.71), (0.95, 0.79), (0.05, 0.79)], "deep")


def _car(pen: Pen) -> None:
    pen.blob([(0.16, 0.50), (0.26, 0.06), (0.45, 0.0), (0.64, 0.04), (0.82, 0.50)], "body")
    pen.shape([(0.27, 0.44), (0.33, 0.14), (0.46, 0.12), (0.46, 0.44)], "glass")
    pen.shape([(0.52, 0.44), (0.52, 0.12), (0.61, 0.14), (0.72, 0.44)], "glass")
    pen.block(0.01, 0.44, 0.99, 0.84, "body", 0.11)
    pen.block(0.03, 0.68, 0.97, 0.80, "shade", 0.04)
    pen.oval(0.93, 0.56, 0.055, 0.085, "gold")
    for x in (0.25, 0.76):
        pen.oval(x, 0.80, 0.135, 0.20, "dark")
        pen.oval(x, 0.80, 0.065, 0.095, "cream")


def _cat(pen: Pen) -> None:
    pen.stroke([(0.26, 0.90), (0.10, 0.82), (0.07, 0.66), (0.15, 0.56)], 0.13, "shade")
    pen.blob([(0.34, 0.52), (0.70, 0.50), (0.86, 0.82), (0.82, 1.0), (0.26, 1.0), (0.22, 0.80)], "body")
    pen.oval(0.55, 0.82, 0.15, 0.17, "light")
    pen.oval(0.40, 0.96, 0.12, 0.05, "light")
    pen.oval(0.68, 0.96, 0.12, 0.05, "light")
    pen.shape([(0.22, 0.30), (0.24, 0.0), (0.50, 0.16)], "body")
    pen.shape([(0.56, 0.16), (0.84, 0.0), (0.86, 0.30)], "body")
    pen.shape([(0.28, 0.20), (0.29, 0.08), (0.39, 0.15)], "rose")
    pen.shape([(0.69, 0.15), (0.79, 0.08), (0.80, 0.20)], "rose")
    pen.oval(0.54, 0.34, 0.35, 0.25, "body")
    _eye(pen, 0.41, 0.33, 0.075)
    _eye(pen, 0.67, 0.33, 0.075)
    pen.oval(0.54, 0.44, 0.05, 0.03, "rose")


def _dog(pen: Pen) -> None:
    pen.stroke([(0.12, 0.50), (0.05, 0.30)], 0.11, "body")
    for x in (0.24, 0.64):
        pen.block(x - 0.01, 0.66, x + 0.12, 1, "shade", 0.05)
    for x in (0.12, 0.52):
        pen.block(x, 0.62, x + 0.13, 1, "body", 0.05)
    pen.blob([(0.10, 0.46), (0.40, 0.46), (0.64, 0.40), (0.72, 0.58), (0.62, 0.76), (0.14, 0.76)], "body")
    pen.oval(0.68, 0.30, 0.22, 0.24, "body")
    pen.oval(0.86, 0.37, 0.14, 0.13, "light")
    pen.oval(0.95, 0.31, 0.05, 0.055, "dark")
    pen.blob([(0.50, 0.08), (0.60, 0.12), (0.62, 0.40), (0.54, 0.54), (0.44, 0.44), (0.44, 0.22)], "deep")
    pen.shape([(0.55, 0.54), (0.78, 0.50), (0.78, 0.57), (0.58, 0.62)], "gold")
    _eye(pen, 0.73, 0.22, 0.055)


def _bird(pen: Pen) -> None:
    pen.shape([(0.22, 0.62), (0.0, 0.48), (0.05, 0.66), (0.0, 0.82)], "deep")
    pen.blob([(0.12, 0.64), (0.40, 0.50), (0.66, 0.40), (0.82, 0.56), (0.70, 0.86), (0.40, 0.90)], "body")
    pen.oval(0.76, 0.46, 0.17, 0.21, "body")
    pen.shape([(0.90, 0.38), (1.0, 0.48), (0.89, 0.56)], "gold")
    pen.blob([(0.60, 0.60), (0.54, 0.30), (0.32, 0.02), (0.24, 0.22), (0.28, 0.52), (0.42, 0.68)], "shade")
    pen.blob([(0.54, 0.58), (0.48, 0.34), (0.33, 0.14), (0.31, 0.34), (0.36, 0.54)], "light")
    pen.oval(0.60, 0.78, 0.16, 0.09, "light")
    _eye(pen, 0.79, 0.42, 0.055)


def _balloon(pen: Pen) -> None:
    for x0, x1 in ((0.30, 0.40), (0.70, 0.60)):
        pen.stroke([(x0, 0.62), (x1, 0.86)], 0.035, "wood")
    pen.blob([(0.5, 0.0), (0.90, 0.14), (0.99, 0.36), (0.82, 0.58), (0.62, 0.72),
              (0.38, 0.72), (0.18, 0.58), (0.01, 0.36), (0.10, 0.14)], "body")
    pen.blob([(0.5, 0.01), (0.66, 0.16), (0.70, 0.38), (0.62, 0.58), (0.55, 0.72),
              (0.45, 0.72), (0.38, 0.58), (0.30, 0.38), (0.34, 0.16)], "light")
    pen.blob([(0.80, 0.12), (0.97, 0.34), (0.80, 0.57), (0.64, 0.70), (0.78, 0.54), (0.87, 0.34)], "shade")
    pen.block(0.36, 0.68, 0.64, 0.73, "deep", 0.02)
    pen.block(0.36, 0.84, 0.64, 1, "wood", 0.05)
    pen.block(0.34, 0.82, 0.66, 0.87, "cream", 0.03)


def _flower(pen: Pen) -> None:
    pen.block(0.46, 0.45, 0.545, 1, "leaf")
    pen.blob([(0.50, 0.94), (0.30, 0.86), (0.14, 0.68), (0.38, 0.74)], "leaf")
    pen.blob([(0.50, 0.90), (0.66, 0.84), (0.86, 0.64), (0.62, 0.70)], "leaf")
    for x, y in ((0.5, 0.12), (0.5, 0.47), (0.24, 0.20), (0.76, 0.20), (0.24, 0.39), (0.76, 0.39)):
        pen.oval(x, y, 0.22, 0.145, "body")
    for x, y in ((0.5, 0.12), (0.27, 0.21), (0.73, 0.21)):
        pen.oval(x, y, 0.11, 0.07, "light")
    pen.oval(0.5, 0.295, 0.20, 0.135, "gold")


def _fish(pen: Pen) -> None:
    pen.blob([(0.26, 0.52), (0.06, 0.16), (0.0, 0.30), (0.07, 0.52), (0.0, 0.76), (0.06, 0.90)], "deep")
    pen.blob([(0.40, 0.22), (0.52, 0.0), (0.72, 0.06), (0.78, 0.24)], "deep")
    pen.blob([(0.48, 0.80), (0.46, 1.0), (0.62, 0.98), (0.68, 0.78)], "deep")
    pen.blob([(0.16, 0.52), (0.40, 0.18), (0.72, 0.12), (0.99, 0.50), (0.72, 0.86), (0.40, 0.84)], "body")
    pen.blob([(0.36, 0.68), (0.62, 0.62), (0.92, 0.62), (0.70, 0.84), (0.42, 0.82)], "light")
    pen.blob([(0.50, 0.40), (0.62, 0.44), (0.60, 0.66), (0.48, 0.62)], "shade")
    _eye(pen, 0.80, 0.40, 0.065)


def _castle(pen: Pen) -> None:
    pen.block(0.20, 0.54, 0.80, 1, "body")
    for x in (0.24, 0.40, 0.56):
        pen.block(x + 0.02, 0.47, x + 0.11, 0.56, "body")
    pen.block(0.35, 0.30, 0.65, 0.62, "shade")
    pen.shape([(0.29, 0.31), (0.5, 0.0), (0.71, 0.31)], "deep")
    for x in (0.02, 0.72):
        pen.block(x, 0.38, x + 0.26, 1, "body")
        pen.shape([(x - 0.03, 0.40), (x + 0.13, 0.12), (x + 0.29, 0.40)], "deep")
        pen.block(x + 0.085, 0.50, x + 0.175, 0.64, "glass", 0.04)
    pen.block(0.455, 0.38, 0.545, 0.50, "glass", 0.04)
    pen.block(0.37, 0.68, 0.63, 1, "cream", 0.11)
    pen.block(0.41, 0.72, 0.59, 1, "wood", 0.08)
    pen.block(0.35, 0.95, 0.65, 1, "body")


def _mushroom(pen: Pen) -> None:
    pen.blob([(0.36, 0.46), (0.64, 0.46), (0.66, 0.80), (0.70, 0.99), (0.30, 0.99), (0.34, 0.80)], "cream")
    pen.blob([(0.0, 0.50), (0.12, 0.20), (0.5, 0.0), (0.88, 0.20), (1.0, 0.50), (0.75, 0.60), (0.5, 0.62), (0.25, 0.60)], "body")
    pen.blob([(0.08, 0.52), (0.5, 0.54), (0.92, 0.52), (0.75, 0.60), (0.5, 0.62), (0.25, 0.60)], "shade")
    for x, y, r in ((0.5, 0.22, 0.10), (0.22, 0.36, 0.075), (0.78, 0.36, 0.075)):
        pen.oval(x, y, r, r * 0.85, "cream")
    pen.oval(0.44, 0.76, 0.022, 0.035, "dark")
    pen.oval(0.57, 0.76, 0.022, 0.035, "dark")


def _lighthouse(pen: Pen) -> None:
    pen.oval(0.5, 0.97, 0.5, 0.06, "stone")
    pen.shape([(0.26, 0.26), (0.74, 0.26), (0.90, 0.96), (0.10, 0.96)], "body")
    pen.shape([(0.225, 0.42), (0.775, 0.42), (0.805, 0.54), (0.195, 0.54)], "cream")
    pen.shape([(0.16, 0.69), (0.84, 0.69), (0.865, 0.80), (0.135, 0.80)], "cream")
    pen.shape([(0.62, 0.26), (0.74, 0.26), (0.90, 0.96), (0.74, 0.96)], "shade")
    pen.block(0.14, 0.235, 0.86, 0.275, "deep", 0.03)
    pen.block(0.29, 0.115, 0.71, 0.24, "gold")
    pen.shape([(0.18, 0.13), (0.5, 0.0), (0.82, 0.13)], "deep")
    pen.block(0.38, 0.85, 0.62, 0.97, "wood", 0.10)


def _star(pen: Pen) -> None:
    outer = [(0.50, 0.0), (0.65, 0.31), (0.99, 0.37), (0.75, 0.62), (0.81, 0.98),
             (0.50, 0.81), (0.19, 0.98), (0.25, 0.62), (0.01, 0.37), (0.35, 0.31)]
    pen.shape(outer, "body")
    pen.shape([(0.5 + (x - 0.5) * 0.72, 0.53 + (y - 0.53) * 0.72) for x, y in outer], "light")
    for x in (0.42, 0.58):
        pen.oval(x, 0.48, 0.032, 0.055, "dark")
    for x in (0.33, 0.67):
        pen.oval(x, 0.57, 0.045, 0.03, "rose")
    pen.stroke([(0.45, 0.60), (0.50, 0.635), (0.55, 0.60)], 0.03, "dark")


def _kite(pen: Pen) -> None:
    pen.stroke([(0.5, 0.64), (0.40, 0.74), (0.60, 0.86), (0.50, 0.97)], 0.06, "wood")
    for x, y in ((0.40, 0.755), (0.59, 0.88)):
        pen.shape([(x, y), (x - 0.21, y - 0.075), (x - 0.21, y + 0.075)], "deep")
        pen.shape([(x, y), (x + 0.21, y - 0.075), (x + 0.21, y + 0.075)], "deep")
    pen.shape([(0.5, 0.0), (1.0, 0.28), (0.5, 0.66), (0.0, 0.28)], "body")
    pen.shape([(0.5, 0.0), (0.5, 0.28), (0.0, 0.28)], "light")
    pen.shape([(0.5, 0.28), (1.0, 0.28), (0.5, 0.66)], "shade")


def _butterfly(pen: Pen) -> None:
    for side in (-1, 1):
        pen.blob([(0.5 + side * x, y) for x, y in ((0.02, 0.50), (0.30, 0.52), (0.42, 0.76), (0.26, 0.99), (0.08, 0.84))], "shade")
        wing = ((0.02, 0.40), (0.18, 0.08), (0.42, 0.02), (0.49, 0.26), (0.34, 0.54), (0.08, 0.60))
        pen.blob([(0.5 + side * x, y) for x, y in wing], "body")
        pen.oval(0.5 + side * 0.31, 0.25, 0.10, 0.12, "light")
        pen.oval(0.5 + side * 0.23, 0.74, 0.07, 0.09, "light")
        pen.stroke([(0.5 + side * 0.02, 0.24), (0.5 + side * 0.10, 0.05)], 0.028, "dark")
    pen.oval(0.5, 0.52, 0.055, 0.33, "dark")


def _duck(pen: Pen) -> None:
    pen.blob([(0.0, 0.46), (0.22, 0.58), (0.50, 0.54), (0.84, 0.58), (0.90, 0.84), (0.60, 1.0), (0.24, 0.98), (0.06, 0.78)], "body")
    pen.oval(0.70, 0.28, 0.22, 0.26, "body")
    pen.block(0.56, 0.30, 0.82, 0.68, "body")
    pen.shape([(0.88, 0.22), (1.0, 0.34), (0.87, 0.42)], "gold")
    pen.blob([(0.18, 0.70), (0.40, 0.62), (0.62, 0.74), (0.44, 0.90), (0.24, 0.86)], "shade")
    pen.oval(0.64, 0.17, 0.08, 0.06, "light")
    _eye(pen, 0.77, 0.24, 0.055)


THINGS: Mapping[str, Thing] = MappingProxyType({
    "house": Thing(_house, 1.0, 0.98, "land"), "tree": Thing(_tree, 0.92, 1.22, "land"), "boat": Thing(_boat, 1.0, 1.04, "water"),
    "car": Thing(_car, 1.08, 0.68, "land"), "cat": Thing(_cat, 0.86, 1.02, "land"), "dog": Thing(_dog, 1.04, 0.92, "land"),
    "bird": Thing(_bird, 1.0, 0.82, "air"), "balloon": Thing(_balloon, 0.82, 1.12, "air", False),
    "flower": Thing(_flower, 0.76, 1.16, "land"),
    "fish": Thing(_fish, 1.02, 0.68, "water"), "castle": Thing(_castle, 1.08, 1.08, "land", False),
    "mushroom": Thing(_mushroom, 0.96, 0.94, "land", False), "lighthouse": Thing(_lighthouse, 0.56, 1.36, "land"),
    "star": Thing(_star, 0.96, 0.94, "air", False), "kite": Thing(_kite, 0.84, 1.18, "air"),
    "butterfly": Thing(_butterfly, 1.0, 0.84, "air", False), "duck": Thing(_duck, 0.98, 0.88, "water"),
})
