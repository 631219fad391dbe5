"""What a job shows while it runs, and how it is stopped. One object a job: no flag outlives it, none is shared."""
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from modules.core.errors import Cancelled


@dataclass(frozen=True, kw_only=True)
class ProgressView:
    """A job's progress at one moment. Steps count model evaluations' outer steps, 0-based pictures, seconds of wall clock."""

    stage: str = ""                    # what is being done, in words: "loading", "sampling", "decoding", "saving"
    batch: int = 0
    batches: int = 0
    step: int = 0
    steps: int = 0
    started: float | None = None       # time.monotonic() of the first step of the job
    preview_id: int = 0                # grows with every new preview; 0 = none yet
    interrupted: bool = False
    skipped: bool = False

    @property
    def fraction(self) -> float:
        """0..1 over the whole job."""
        if self.batches < 1:
            return 0.0
        inside = min(self.step / self.steps, 1.0) if self.steps else 0.0
        return min((self.batch + inside) / self.batches, 1.0)

    @property
    def eta(self) -> float | None:
        """Seconds left, from the speed so far; None while unknown."""
        if self.started is None or self.fraction <= 0:
            return None
        return (time.monotonic() - self.started) * (1 / self.fraction - 1)


@dataclass
class Progress:
    """Written by the worker, read by any thread. `interrupt` ends the job after this step, `skip` only this batch."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _view: ProgressView = ProgressView()
    _preview: Callable[[], Any] | None = None
    _interrupt: threading.Event = field(default_factory=threading.Event)
    _skip: threading.Event = field(default_factory=threading.Event)

    def view(self) -> ProgressView:
        with self._lock:
            values = {**vars(self._view), "interrupted": self._interrupt.is_set(), "skipped": self._skip.is_set()}
        return ProgressView(**values)

    def at(self, **changes: Any) -> None:
        """Set any field of the view: `progress.at(stage="sampling", step=3, steps=20)`."""
        with self._lock:
            self._view = ProgressView(**{**vars(self._view), **changes})

    def show(self, preview: Callable[[], Any]) -> None:
        """Offer a preview; it is drawn only when somebody looks. `preview()` returns a PIL image."""
        with self._lock:
            self._preview = preview
            self._view = ProgressView(**{**vars(self._view), "preview_id": self._view.preview_id + 1})

    def preview(self) -> Any | None:
        """The latest preview as a PIL image, or None before the first."""
        with self._lock:
            draw = self._preview
        return draw() if draw else None

    def interrupt(self) -> None:
        self._interrupt.set()

    def skip(self) -> None:
        self._skip.set()

    @staticmethod
    def clock() -> float:
        """Seconds on the clock that `started` is read from."""
        return time.monotonic()

    def unskip(self) -> None:
        """The batch that was to be skipped has ended; the next one runs."""
        self._skip.clear()

    @property
    def stopping(self) -> bool:
        return self._interrupt.is_set() or self._skip.is_set()

    @property
    def interrupted(self) -> bool:
        return self._interrupt.is_set()

    def check(self) -> None:
        """Raises Cancelled when the job or its batch is to stop."""
        if self.stopping:
            raise Cancelled("Stopped by the user.")
