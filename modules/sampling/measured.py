"""Schedules that were measured on a model and are published as tables of noise levels: (steps + 1,) float32, falling, then 0.

Another number of steps than the table has is read off it, evenly in the place along the table and linear in log sigma, as Sabour et al.
say. The range of the model and of the request have no say.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGNED_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
ALIGNED_32 = (
    14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609, 3.13490466, 2.79228788, 2.48773628,
    2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953, 1.314849, 1.16642497, 1.03475547, 0.91573744, 0.80748169, 0.71202361,
    0.621739, 0.53065202, 0.4529096, 0.37491455, 0.27461819, 0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015)
ALIGNED_32_SDXL = (
    14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457, 2.74396527, 2.29968659, 1.95448514,
    1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443, 0.80290886, 0.69660121, 0.60436903, 0.52852552, 0.46773344, 0.41393379,
    0.36258186, 0.31008517, 0.26518925, 0.22326461, 0.17653877, 0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015)
REGULAR = (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029)
REGULAR_SDXL = (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029)


def align_your_steps(steps: int, sigma_min: float, sigma_max: float, sdxl: bool = False) -> Tensor:
    """Least bound on the error of the whole walk, in 10 steps. Sabour, Fidler and Kreis 2024, arXiv:2404.14507, and its project page."""
    return _read_off(ALIGNED_SDXL if sdxl else ALIGNED, steps)


def align_your_steps_32(steps: int, sigma_min: float, sigma_max: float, sdxl: bool = False) -> Tensor:
    """The same in a table of 32 levels down to 0.015, as Forge has it."""
    return _read_off(ALIGNED_32_SDXL if sdxl else ALIGNED_32, steps)


def align_your_steps_gits(steps: int, sigma_min: float, sigma_max: float, sdxl: bool = False) -> Tensor:
    """Steps are long where the path through latent space is straight: Chen et al. 2024, arXiv:2405.11326; the tables are Forge's."""
    return _read_off(REGULAR_SDXL if sdxl else REGULAR, steps)


def _read_off(table: Sequence[float], steps: int) -> Tensor:
    """One step starts at the top of the table."""
    places = np.linspace(0, len(table) - 1, steps)
    levels = np.exp(np.interp(places, np.arange(len(table)), np.log(table)))
    exact = np.array(table) if steps == len(table) else levels
    return torch.from_numpy(np.append(exact, 0.0)).float()
