"""One loop for every task: gradients to steps, states that a run can be taken up from, and when to stop."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from modules.core import hardware
from modules.core.errors import DiskFullError, NanError, OutOfMemoryError, SettingsError
from modules.core.files import write_atomically
from modules.training import curve, state
from modules.training.dataset import mixed
from modules.training.ema import LitEma
from modules.training.recipe import Training


class ProgressLike(Protocol):
    """As much of core.progress.Progress as a run needs."""

    @property
    def interrupted(self) -> bool: ...

    def at(self, **changes: Any) -> None: ...

    def show(self, preview: Callable[[], Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class Phase:
    """Weights that one optimiser moves. groups: as torch's optimisers take them; "scale" multiplies the recipe's learning rate."""

    name: str
    groups: tuple[dict[str, Any], ...]
    betas: tuple[float, float]
    weight_decay: float = 0.0

    @property
    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.groups for parameter in group["params"]]


class Task(Protocol):
    """What is learned. Everything random in it comes from the generator that it is given, which stands on the CPU.

    phases: each step goes through them in this order, all on the same batches. tensors: all weights and other tensors that a state holds,
    the very ones that are in use. averaged: name -> weights that a running mean follows, named as published checkpoints name them.
    """

    phases: Sequence[Phase]
    device: torch.device

    def tensors(self) -> Mapping[str, Tensor]: ...

    def averaged(self) -> Mapping[str, Tensor]: ...

    def batch(self, number: int) -> Any: ...

    def loss(self, phase: int, batch: Any, generator: torch.Generator, step: int) -> Tensor | None:
        """0-d, or None when this phase rests. The batch is kept from phase to phase and may carry things on."""
        ...


@dataclass(eq=False)
class Run:
    """A task on its way. `step` steps are done; history holds (step, learning rate, loss of each phase or nan)."""

    task: Task
    settings: Training
    folder: Path
    progress: ProgressLike
    seed: int = 0
    ema: LitEma | None = None
    sheet: Callable[[int], Image.Image] | None = None       # (step) -> a picture of samples
    step: int = 0
    history: list[tuple[float, ...]] = field(default_factory=list)
    saved: int | None = None                                # the step of the last good state

    def __post_init__(self) -> None:
        dtype = precision(self.settings.precision, self.task.device)
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if dtype == torch.float32 else lambda: torch.autocast(self.task.device.type, dtype))
        self.scaler = torch.amp.GradScaler(self.task.device.type, enabled=dtype == torch.float16)
        self.optimisers = [optimiser(phase, self.settings.lr) for phase in self.task.phases]

    @property
    def state_file(self) -> Path:
        return self.folder / "state.safetensors"

    def resume(self) -> bool:
        """Go back to the state in the folder, if there is one. Raises CheckpointError if it is damaged or another recipe's."""
        if not self.state_file.is_file():
            return False
        state.restore(self, self.state_file)
        self.saved = self.step
        return True

    def go(self) -> bool:
        """Take steps until all are done, the time is over (but one at least) or somebody interrupts; the state is then on disk.

        True when all are done.

        Raises NanError after too many steps in a row without a number, DiskFullError, SaveError, OutOfMemoryError; the last good state
        is then still there, and the sentence names it.
        """
        end = time.monotonic() + 60 * self.settings.minutes if self.settings.minutes else math.inf
        missed = 0
        with self._sentences():
            while self.step < self.settings.steps and not self.progress.interrupted:
                losses = self._stepped()
                missed = 0 if losses else missed + 1
                if missed >= self.settings.most_nan:
                    raise NanError(f"The loss was no number {missed} steps in a row; {self._last_good()} "
                                   "Lower training.lr, or use float32.")
                self.step += 1
                lr = self.optimisers[0].param_groups[0]["lr"]
                self.history.append((self.step, lr, *(losses or [math.nan] * len(self.optimisers))))
                said = f"training, loss {losses[0]:.4g}" if losses else "training, a step without a number"
                self.progress.at(stage=said, batches=1, step=self.step, steps=self.settings.steps)
                self._look(good=missed == 0)
                if time.monotonic() >= end:
                    break
            if self.saved != self.step and not missed:
                self.save()
        return self.step >= self.settings.steps

    def _look(self, *, good: bool) -> None:
        """The state, the curve and the sheet, where the recipe wants them at this step."""
        if good and self.step % self.settings.save_every == 0:
            self.save()
        if self.sheet and self.settings.sample_every and self.step % self.settings.sample_every == 0:
            with self.ema.applied() if self.ema else nullcontext():
                picture = self.sheet(self.step)
            write_atomically(self.folder / "samples" / f"{self.step:07}.png", curve.png(picture))
            self.progress.show(lambda: picture)

    def save(self) -> None:
        """The state and the losses (table and curve) on disk. Raises NanError if a weight is no number: such a state is not kept."""
        weights = [tensor for tensor in self.task.tensors().values() if tensor.is_floating_point()]
        if not all(bool(norm.isfinite()) for norm in torch._foreach_norm(weights)):
            raise NanError(f"A weight is no number any more; {self._last_good()} Lower training.lr, or use float32.")
        state.write(self, self.state_file)
        self.saved = self.step
        names = [phase.name for phase in self.task.phases]
        write_atomically(self.folder / "loss.csv", curve.table(self.history, names).encode())
        write_atomically(self.folder / "loss.png", curve.png(curve.drawn(self.history, names)))

    def _stepped(self) -> list[float]:
        """One step of every phase: its losses (nan for one that rests), or [] if it was left out since something was no number."""
        factor = rate(self.settings, self.step)
        count = self.settings.accumulate
        batches = [self.task.batch(self.step * count + k) for k in range(count)]
        losses: list[float] = []
        for number, (phase, adam) in enumerate(zip(self.task.phases, self.optimisers, strict=True)):
            for group in adam.param_groups:
                group["lr"] = self.settings.lr * group["scale"] * factor
            total = 0.0
            for k, batch in enumerate(batches):
                generator = torch.Generator().manual_seed(mixed(self.seed, self.step, k, number))
                with self.autocast():
                    loss = self.task.loss(number, batch, generator, self.step)
                if loss is None:
                    total = math.nan
                    break
                total += float(loss.detach()) / count
                if not math.isfinite(total):
                    return self._left_out(after=losses)
                self.scaler.scale(loss / count).backward()
            if not math.isnan(total) and not self._moved(phase, adam):
                return self._left_out(after=losses)
            losses.append(total)
        self.scaler.update()
        if self.ema:
            self.ema.update()
        return losses

    def _left_out(self, *, after: list[float]) -> list[float]:
        """Nothing more of this step; a scaler must hear of its end if a phase had moved."""
        if after:
            self.scaler.update()
        for adam in self.optimisers:
            adam.zero_grad(set_to_none=True)
        return []

    def _moved(self, phase: Phase, adam: torch.optim.Optimizer) -> bool:
        """Clip, step, forget the gradient. False if the gradient was no number; where a scaler seeks its scale that is no fault."""
        self.scaler.unscale_(adam)
        norm = torch.nn.utils.clip_grad_norm_(phase.parameters, self.settings.clip or math.inf)
        if not self.scaler.is_enabled() and not bool(norm.isfinite()):
            return False
        self.scaler.step(adam)
        adam.zero_grad(set_to_none=True)
        return True

    def _last_good(self) -> str:
        if self.saved is None:
            return "no state was saved before."
        return f"the last good state is that of step {self.saved}, in {self.state_file}."

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """A full disk and a full card say where the run can be taken up again."""
        try:
            yield
        except DiskFullError as error:
            raise DiskFullError(f"There is no room left in {self.folder} at step {self.step}; {self._last_good()} "
                                "Make room and start the training again.") from error
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"The device has no memory left at step {self.step}; {self._last_good()} "
                                   "Lower training.batch and raise training.accumulate.") from error


def optimiser(phase: Phase, lr: float) -> torch.optim.AdamW:
    """AdamW in one fused kernel. Loshchilov and Hutter 2019, arXiv:1711.05101."""
    groups = [{"scale": 1.0, **group} for group in phase.groups]
    return torch.optim.AdamW(groups, lr=lr, betas=phase.betas, weight_decay=phase.weight_decay, fused=True)


def rate(settings: Training, step: int) -> float:
    """The part of the learning rate for the step after `step` steps: rising evenly through the warm-up, then constant, or half a cosine
    from 1 to lr_floor at the last step."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    if settings.decay == "constant":
        return 1.0
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr_floor + (1 - settings.lr_floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in: what the recipe says, or bfloat16, float16 or float32, the first that this device has in hardware.

    Raises SettingsError for float16 on a CPU.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else hardware.dtype(device)
    if name == "float16" and device.type == "cpu":
        raise SettingsError("training.precision float16 needs an accelerator; use auto, float32 or bfloat16 on a CPU.")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
