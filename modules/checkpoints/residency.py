"""What is in memory: the models used last, lent to one job at a time, and none given up before the next one is known to be sound."""
from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from modules.checkpoints import load
from modules.checkpoints.shelf import Entry, Shelf
from modules.core import hardware, hashing, pages
from modules.core.errors import BusyError, CheckpointError, OutOfMemoryError, WebUIError
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


@dataclass(eq=False)
class Resident:
    """A model in memory. lent: how often it is in use now."""

    held: Held
    model: Model
    lent: int = 0


class Residency:
    """Lends models, the one used last and as many before it as the limit lets stay. One borrower at a time, from any thread; who has one
    may borrow others beside it, however low the limit."""

    def __init__(self, shelf: Shelf, device: torch.device | str, dtype: torch.dtype, limit: Callable[[], int] = lambda: 1) -> None:
        """limit: how many models may stay in memory, asked at each switch; the one in use is on the device, others wait outside."""
        self._shelf = shelf
        self._device = torch.device(device)
        self._dtype = dtype
        self._limit = limit
        self._lock = threading.RLock()
        self._residents: list[Resident] = []                # the one used last stands last

    @property
    def loaded(self) -> str:
        """Title of the model used last; "" = none is in memory."""
        residents = self._residents
        return residents[-1].model.title if residents else ""

    @contextmanager
    def borrow(self, checkpoint: str, vae: str = "Automatic", prediction: str = "Auto") -> Iterator[Model]:
        """The model of these names for the length of a `with`. checkpoint "" = the one used last, else the first on the shelf.

        vae: "Automatic" (the file of the checkpoint's base name, else its own), "None" (its own) or a VAE's name.
        Raises NotFoundError, CheckpointError, OutOfMemoryError, all with the old model still in memory where there is one;
        BusyError when this thread holds the same model with another VAE already.
        """
        with self._lock:
            resident = self._ready(checkpoint, vae, prediction)
            resident.lent += 1
            try:
                yield resident.model
            finally:
                resident.lent -= 1
                if len(self._idle()) == len(self._residents):
                    self._trim()

    def preload(self, checkpoint: str, vae: str = "Automatic", prediction: str = "Auto") -> str:
        """Have this model in memory, and say its title. Raises as `borrow`."""
        with self.borrow(checkpoint, vae, prediction) as model:
            return model.title

    def release(self) -> None:
        """Give the memory back. Waits until no other thread has a model; raises BusyError if this one does."""
        with self._lock:
            if any(resident.lent for resident in self._residents):
                raise BusyError("The model is in use and cannot be released; wait for the job to end.")
            self._residents.clear()
            _tidy(self._device)

    def _ready(self, checkpoint: str, vae: str, prediction: str) -> Resident:
        wanted = self._wanted(checkpoint, vae, prediction)
        found = next((resident for resident in self._residents if wanted.same_model(resident.held)), None)
        if found is None:
            return self._switch(wanted)
        if not wanted.same_vae(found.held):
            self._swap_vae(found, wanted)
        if found is not self._residents[-1]:
            self._residents.remove(found)
            self._residents.append(found)
            self._place(found)
        return found

    def _wanted(self, checkpoint: str, vae: str, prediction: str) -> Held:
        entry = self._entry(checkpoint)
        vae_entry = self._shelf.vae_of(entry, vae)
        return Held(checkpoint=entry, stamp=self._shelf.stamp(entry), prediction=prediction, vae=vae_entry,
                    vae_stamp=self._shelf.stamp(vae_entry) if vae_entry else None)

    def _entry(self, checkpoint: str) -> Entry:
        if checkpoint:
            return self._shelf.find_checkpoint(checkpoint)
        if self._residents:
            return self._residents[-1].held.checkpoint
        entries = self._shelf.checkpoints()
        if not entries:
            raise CheckpointError("There is no model to draw with; put a .safetensors checkpoint into the models folder.")
        return entries[0]

    def _switch(self, wanted: Held) -> Resident:
        """All or nothing: header, names and shapes are checked with the old models in memory, and the values too."""
        path, vae_path = wanted.checkpoint.path, wanted.vae.path if wanted.vae else None
        values = load.verify(path, prediction=wanted.prediction, vae_path=vae_path)
        self._trim(room=1)
        with ThreadPoolExecutor(1, thread_name_prefix="hash") as hasher:
            digest = hasher.submit(self._hashes_of, wanted)
            if not self._idle() or self._room_for(values):
                return self._keep(self._loaded(wanted, verified=True), wanted, digest)
            load.check_values(path, vae_path)
            digest.result()                                 # a file that changes meanwhile is noticed before the old model goes
            gone = self._drop(lambda: self._room_for(values))
            try:
                return self._keep(self._loaded(wanted, verified=True), wanted, digest)
            except WebUIError:
                self._restore(gone)
                raise

    def _loaded(self, wanted: Held, *, verified: bool = False) -> Model:
        return load.load(wanted.checkpoint.path, device="cpu", dtype=self._dtype, prediction=wanted.prediction,
                         vae_path=wanted.vae.path if wanted.vae else None, verified=verified,
                         kind=layers.usual(self._device, self._dtype))

    def _room_for(self, values: int) -> bool:
        """Whether a model of so many values fits into main memory beside those that are there."""
        free = hardware.memory_free(torch.device("cpu"))
        return free is not None and free > values * self._dtype.itemsize * ROOM

    def _idle(self) -> list[Resident]:
        """Those that nobody has, the one used longest ago first."""
        return [resident for resident in self._residents if not resident.lent]

    def _trim(self, room: int = 0) -> None:
        """Let go of what is over the limit, but of no model in use, and never of the last one before another is whole. room: places to be
        taken soon, as far as the limit has them."""
        over = len(self._residents) - max(1, self._limit() - room)
        for resident in self._idle()[:max(0, over)]:
            if len(self._residents) > 1:
                self._residents.remove(resident)
        if over > 0:
            _tidy(self._device)

    def _keep(self, model: Model, wanted: Held, digest: Future[tuple[Entry, Entry | None]]) -> Resident:
        """Put the new model before the others, on the device; those over the limit go."""
        entry, vae = digest.result()
        if self._shelf.stamp(entry) != wanted.stamp:
            raise CheckpointError(f"{entry.path.name} changed while it was loaded; try again when it is complete.")
        model.title, model.sha256 = entry.title, entry.sha256 or ""
        _name_vae(model, vae)
        old = [resident for resident in self._idle() if resident.held.checkpoint.path == entry.path and resident.held.stamp != wanted.stamp]
        self._residents = [resident for resident in self._residents if resident not in old]
        gone = self._drop(lambda: len(self._residents) < self._limit())
        new = Resident(wanted, model)
        self._residents.append(new)
        try:
            self._place(new)
        except WebUIError:
            self._residents.remove(new)
            del new, model
            self._restore(gone)
            raise
        log.info("Loaded %s (%s).", entry.title, ", ".join(f"{key}: {value}" for key, value in new.model.hints.items()))
        return new

    def _place(self, resident: Resident) -> None:
        """The model on the device, and what is not in use off it; its parts one by one where it cannot be there as a whole."""
        if self._device.type != "cpu":
            for other in self._idle():
                if other is not resident and other.model.device != torch.device("cpu"):
                    load.move(other.model, torch.device("cpu"))
            _tidy(self._device)
        try:
            load.move(resident.model, self._device)
            if self._device.type == "cpu":
                pages.gather_soon()
        except OutOfMemoryError:
            if self._device.type == "cpu":
                raise
            log.warning("%s does not fit on the device as a whole; its parts take turns there.", resident.model.title)
            load.set_apart(resident.model, self._device)
            _tidy(self._device)

    def _restore(self, gone: list[Held]) -> None:
        """Load again what had to give way, the one used last only. If even that fails, the next job says why."""
        if not gone:
            return
        try:
            model = load.move(self._loaded(gone[-1]), self._device)
            entry, vae = self._hashes_of(gone[-1])
        except WebUIError as error:
            log.warning("The former model could not be loaded again: %s", error)
            return
        model.title, model.sha256 = entry.title, entry.sha256 or ""
        _name_vae(model, vae)
        self._residents.append(Resident(gone[-1], model))

    def _swap_vae(self, resident: Resident, wanted: Held) -> None:
        """Another VAE for a model in memory; the old one stays until the new one is whole."""
        if resident.lent:
            raise BusyError("This very job uses the model with another VAE; it has to be given back first.")
        entry = self._shelf.hashed(wanted.vae) if wanted.vae else None
        model = resident.model
        model.vae, model.colours = load.load_vae((entry or wanted.checkpoint).path, model), None    # colours were fitted to the old one
        _name_vae(model, entry)
        resident.held = wanted
        _tidy(self._device)

    def _hashes_of(self, wanted: Held) -> tuple[Entry, Entry | None]:
        return self._shelf.hashed(wanted.checkpoint), self._shelf.hashed(wanted.vae) if wanted.vae else None

    def _drop(self, enough: Callable[[], bool]) -> list[Held]:
        """Let go of models that nobody has, the one used longest ago first, until it is enough; what they were made of."""
        gone = []
        for resident in self._idle():
            if enough():
                break
            self._residents.remove(resident)
            gone.append(resident.held)
            del resident
            _tidy(self._device)
        return gone


def _name_vae(model: Model, vae: Entry | None) -> None:
    model.vae_name, model.vae_sha256 = (vae.name, vae.sha256 or "") if vae else ("", "")


def _tidy(device: torch.device) -> None:
    """Give memory back now, not when Python finds the time."""
    gc.collect()
    if device.type != "cpu":
        torch.accelerator.empty_cache()
