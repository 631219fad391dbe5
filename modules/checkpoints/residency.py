"""What is in memory: at most one model, lent to one job at a time, and never given up before the next one is known to be sound."""
from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from modules.checkpoints import load
from modules.checkpoints.shelf import Entry, Shelf
from modules.core import hardware, hashing
from modules.core.errors import BusyError, CheckpointError, WebUIError
from modules.families.base import Model
from modules.networks import layers

log = logging.getLogger("easel.checkpoints")
ROOM = 1.25                                                 # a second model is held beside the first only with this much space to spare


@dataclass(frozen=True, kw_only=True)
class Held:
    """Which files the model in memory was made of: with their stamps, so that a changed file is noticed."""

    checkpoint: Entry
    stamp: hashing.Stamp
    prediction: str
    vae: Entry | None                                       # None = the checkpoint's own
    vae_stamp: hashing.Stamp | None

    def same_model(self, other: Held | None) -> bool:
        return other is not None and (self.checkpoint.path, self.stamp, self.prediction) == (
            other.checkpoint.path, other.stamp, other.prediction)

    def same_vae(self, other: Held) -> bool:
        return (self.vae.path if self.vae else None, self.vae_stamp) == (other.vae.path if other.vae else None, other.vae_stamp)


class Residency:
    """Lends the one model. Safe for many threads: a second borrower waits until the first has given it back."""

    def __init__(self, shelf: Shelf, device: torch.device | str, dtype: torch.dtype) -> None:
        self._shelf = shelf
        self._device = torch.device(device)
        self._dtype = dtype
        self._lock = threading.RLock()
        self._lent = 0                                      # how often the model is lent, by this thread
        self._model: Model | None = None
        self._held: Held | None = None

    @property
    def loaded(self) -> str:
        """Title of the model in memory; "" = none."""
        model = self._model
        return model.title if model else ""

    @contextmanager
    def borrow(self, checkpoint: str, vae: str = "Automatic", prediction: str = "Auto") -> Iterator[Model]:
        """The model of these names for the length of a `with`. checkpoint "" = the one in memory, else the first on the shelf.

        vae: "Automatic" (the file of the checkpoint's base name, else its own), "None" (its own) or a VAE's name.
        Raises NotFoundError, CheckpointError, OutOfMemoryError, all with the old model still in memory where there is one;
        BusyError when this thread holds another model already.
        """
        with self._lock:
            model = self._ready(checkpoint, vae, prediction)
            self._lent += 1
            try:
                yield model
            finally:
                self._lent -= 1

    def preload(self, checkpoint: str, vae: str = "Automatic", prediction: str = "Auto") -> str:
        """Have this model in memory, and say its title. Raises as `borrow`."""
        with self.borrow(checkpoint, vae, prediction) as model:
            return model.title

    def release(self) -> None:
        """Give the memory back. Waits until the model is not lent."""
        with self._lock:
            if self._lent:
                raise BusyError("The model is in use and cannot be released; wait for the job to end.")
            self._drop()

    def _ready(self, checkpoint: str, vae: str, prediction: str) -> Model:
        wanted = self._wanted(checkpoint, vae, prediction)
        if self._model is not None and self._held is not None and wanted.same_model(self._held):
            if wanted.same_vae(self._held):
                return self._model
            self._check_not_lent()
            self._swap_vae(self._model, wanted)
            return self._model
        self._check_not_lent()
        return self._switch(wanted)

    def _wanted(self, checkpoint: str, vae: str, prediction: str) -> Held:
        entry = self._entry(checkpoint)
        vae_entry = self._shelf.vae_of(entry, vae)
        return Held(checkpoint=entry, stamp=hashing.stamp(entry.path), prediction=prediction, vae=vae_entry,
                    vae_stamp=hashing.stamp(vae_entry.path) if vae_entry else None)

    def _entry(self, checkpoint: str) -> Entry:
        if checkpoint:
            return self._shelf.find_checkpoint(checkpoint)
        if self._held:
            return self._held.checkpoint
        entries = self._shelf.checkpoints()
        if not entries:
            raise CheckpointError("There is no model to draw with; put a .safetensors checkpoint into the models folder.")
        return entries[0]

    def _check_not_lent(self) -> None:
        if self._lent:
            raise BusyError("Another model is in use by this very job; it has to be given back first.")

    def _switch(self, wanted: Held) -> Model:
        """All or nothing: header, names and shapes are checked with the old model in memory, and the values too."""
        path, vae_path = wanted.checkpoint.path, wanted.vae.path if wanted.vae else None
        values = load.verify(path, prediction=wanted.prediction, vae_path=vae_path)
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher:
            digest = hasher.submit(self._hashes_of, wanted)
            if self._model is None or self._room_for(values):
                return self._keep(self._loaded(wanted, verified=True), wanted, digest)
            load.check_values(path, vae_path)
            digest.result()                                 # a file that changes meanwhile is noticed before the old model goes
            previous = self._drop()
            try:
                return self._keep(self._loaded(wanted, verified=True), wanted, digest)
            except WebUIError:
                self._restore(previous)
                raise

    def _loaded(self, wanted: Held, *, verified: bool = False) -> Model:
        return load.load(wanted.checkpoint.path, device="cpu", dtype=self._dtype, prediction=wanted.prediction,
                         vae_path=wanted.vae.path if wanted.vae else None, verified=verified,
                         kind=layers.usual(self._device, self._dtype))

    def _room_for(self, values: int) -> bool:
        """Whether the new model fits into main memory beside the old one."""
        free = hardware.memory_free(torch.device("cpu"))
        return free is not None and free > values * self._dtype.itemsize * ROOM

    def _keep(self, model: Model, wanted: Held, digest: Future[tuple[Entry, Entry | None]]) -> Model:
        """Put the new model in the old one's place, on the device."""
        entry, vae = digest.result()
        if hashing.stamp(entry.path) != wanted.stamp:
            raise CheckpointError(f"{entry.path.name} changed while it was loaded; try again when it is complete.")
        model.title, model.sha256 = entry.title, entry.sha256 or ""
        _name_vae(model, vae)
        previous = self._drop()
        try:
            self._model, self._held = load.move(model, self._device), wanted
        except WebUIError:
            del model
            self._restore(previous)
            raise
        log.info("Loaded %s (%s).", self._model.title, ", ".join(f"{key}: {value}" for key, value in self._model.hints.items()))
        return self._model

    def _restore(self, previous: Held | None) -> None:
        """Load again what had to give way. If even that fails, none is in memory and the next job says why."""
        if previous is None:
            return
        try:
            model = load.move(self._loaded(previous), self._device)
            entry, vae = self._hashes_of(previous)
        except WebUIError as error:
            log.warning("The former model could not be loaded again: %s", error)
            return
        model.title, model.sha256 = entry.title, entry.sha256 or ""
        _name_vae(model, vae)
        self._model, self._held = model, previous

    def _swap_vae(self, model: Model, wanted: Held) -> None:
        """Another VAE for the model in memory; the old one stays until the new one is whole."""
        entry = self._shelf.hashed(wanted.vae) if wanted.vae else None
        vae = load.load_vae((entry or wanted.checkpoint).path, model)
        model.vae, model.colours = vae, None                # the preview's colours were fitted to the old one
        _name_vae(model, entry)
        self._held = wanted
        _tidy(self._device)

    def _hashes_of(self, wanted: Held) -> tuple[Entry, Entry | None]:
        return self._shelf.hashed(wanted.checkpoint), self._shelf.hashed(wanted.vae) if wanted.vae else None

    def _drop(self) -> Held | None:
        """Let go of the model; what it was made of."""
        held, self._model, self._held = self._held, None, None
        _tidy(self._device)
        return held


def _name_vae(model: Model, vae: Entry | None) -> None:
    model.vae_name, model.vae_sha256 = (vae.name, vae.sha256 or "") if vae else ("", "")


def _tidy(device: torch.device) -> None:
    """Give memory back now, not when Python finds the time."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
