"""The state of a run in a file: weights, optimisers, running mean, draws, history. What is taken up again goes on as if never left."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from modules.core.errors import CheckpointError
from modules.training import tensors
from modules.training.ema import LitEma

FORMAT = "1"


class Resumable(Protocol):
    """As much of loop.Run as a state is made of. task: with `tensors()`, `phases` and `device`; optimisers: one for each phase."""

    task: Any
    optimisers: list[torch.optim.AdamW]
    ema: LitEma | None
    scaler: torch.amp.GradScaler
    seed: int
    step: int
    history: list[tuple[float, ...]]


def write(run: Resumable, path: Path) -> Path:
    """Everything that decides the next step. Raises DiskFullError or SaveError; the state that was there is then untouched."""
    found = {f"weights.{name}": tensor for name, tensor in run.task.tensors().items()}
    for number, adam in enumerate(run.optimisers):
        for place, parameter in enumerate(run.task.phases[number].parameters):
            found |= {f"optimiser.{number}.{place}.{name}": value for name, value in adam.state.get(parameter, {}).items()}
    if run.ema:
        found |= {f"ema.{name}": tensor for name, tensor in run.ema.state().items()}
    found["rng.cpu"] = torch.get_rng_state()
    if run.task.device.type == "cuda":
        found["rng.cuda"] = torch.cuda.get_rng_state(run.task.device)
    found["history"] = torch.tensor(run.history, dtype=torch.float64)
    said = {"format": FORMAT, "step": str(run.step), "seed": str(run.seed), "scaler": json.dumps(run.scaler.state_dict())}
    return tensors.write(path, found, said)


@torch.no_grad()
def restore(run: Resumable, path: Path) -> None:
    """Put a state into the run's own tensors. Raises CheckpointError if it is damaged or belongs to other sizes or another seed."""
    found, said = tensors.read(path)
    if said.get("format") != FORMAT or said.get("seed") != str(run.seed):
        raise _other(path)
    _fill(run.task.tensors(), found, "weights.", path)
    for number, adam in enumerate(run.optimisers):
        for place, parameter in enumerate(run.task.phases[number].parameters):
            adam.state[parameter] = _moments(parameter, found, f"optimiser.{number}.{place}.")
    if run.ema:
        state = {name.removeprefix("ema."): tensor for name, tensor in found.items() if name.startswith("ema.")}
        if set(state) != {*run.ema.names, "num_updates"}:
            raise _other(path)
        run.ema.restore(state)
    torch.set_rng_state(found["rng.cpu"])
    if run.task.device.type == "cuda" and "rng.cuda" in found:
        torch.cuda.set_rng_state(found["rng.cuda"], run.task.device)
    run.scaler.load_state_dict(json.loads(said["scaler"]))
    run.step = int(said["step"])
    run.history = [tuple(row) for row in found["history"].tolist()]


def _fill(places: Mapping[str, Tensor], found: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    if {name for name in found if name.startswith(prefix)} != {prefix + name for name in places}:
        raise _other(path)
    for name, place in places.items():
        if place.shape != found[prefix + name].shape:
            raise _other(path)
        place.copy_(found[prefix + name])


def _moments(parameter: Tensor, found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """An optimiser's tensors for one weight, in the weight's own order in memory; {} for a weight that never moved."""
    moments = {}
    for name, tensor in found.items():
        if name.startswith(prefix):
            like = torch.empty_like(parameter, dtype=tensor.dtype) if tensor.shape == parameter.shape else tensor.to(parameter.device)
            moments[name.removeprefix(prefix)] = like.copy_(tensor)
    return moments


def _other(path: Path) -> CheckpointError:
    return CheckpointError(f"The state {path} belongs to another recipe; choose another folder, or delete it to begin anew.")
