"""The noise levels that a model would be drawn with, known without loading it: by its header and its schedule."""
from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from modules.checkpoints import folder, read
from modules.checkpoints.convert import MARKERS, TRAINING, said_of
from modules.checkpoints.describe import SCALES
from modules.core import hashing
from modules.families.catalogue import family_of
from modules.families.keys import plain_names
from modules.sampling import catalogue, schedule
from modules.sampling.levels import levels_of
from modules.sampling.prediction import Prediction, scaled_linear_alphas

VALUES = frozenset({*MARKERS, "alphas_cumprod"})            # what is read in full
MOST = 16                                                   # models that are remembered


def noise_of(path: Path) -> tuple[Prediction, bool]:
    """How the model in this file or folder was trained, and whether tables of noise levels are SDXL's for it. Raises CheckpointError."""
    found = read.contents(path)
    weights = {name: torch.empty(slot.shape, dtype=getattr(torch, slot.dtype), device="meta") for name, slot in found.slots.items()
               if name not in read.SCHEDULE and not name.startswith(TRAINING) and not name.endswith(SCALES)}
    weights |= read.weights(path, VALUES.__contains__)
    model = family_of(plain_names(found.header)).build(weights, said_of(path, found) | {"prediction": "Auto"})
    return model.prediction, model.family.sdxl_ladder


class Ladders:
    """Noise levels for the plot on a page. Each model's header is read once as long as its file stays as it is. Safe for many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[Any, ...], tuple[Prediction, bool]] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all schedules that stand for themselves, in the menu's order."""
        return tuple(entry.label for entry in catalogue.SCHEDULES if entry.function)

    def of(self, path: Path | None, scheduler: str, sampler: str, steps: int, *, levels: str = "", **numbers: Any) -> tuple[float, ...]:
        """The levels that `sampler` walks, falling; path: of a model, None = the usual schedule of Stable Diffusion.

        levels: a list of them as text, instead of the schedule. numbers: rho, sigma_min, sigma_max, discard, alpha, beta, see
        schedule.ladder. Raises as that, or CheckpointError.
        """
        prediction, sdxl = self._noise(path) if path else (Prediction("eps", scaled_linear_alphas()), False)
        return tuple(schedule.ladder(scheduler, sampler, steps, prediction, sdxl=sdxl, levels=levels_of(levels), **numbers).tolist())

    def _noise(self, path: Path) -> tuple[Prediction, bool]:
        key = (path, *(folder.stamp(path) if path.is_dir() else hashing.stamp(path)))
        with self._lock:
            if key not in self._known:
                found = noise_of(path)
                while len(self._known) >= MOST:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = found
            return self._known[key]
