"""The engine owns all that is alive: the queue and its worker, the settings, the shelf of models, the one loaded model.

Faces (page, API, command line) hold an Engine and speak Request and Job with it; `engine.tools` answers their questions. Making an Engine
is quick and imports no torch: heavy packages are loaded in the worker's thread, ahead of time when `warm` is called.
"""
from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from modules.core.errors import BusyError, CheckpointError, WebUIError
from modules.core.files import remove_parts
from modules.core.paths import Paths
from modules.core.settings import Settings, SettingsFile, as_json
from modules.jobs import store as states
from modules.jobs.delivery import Delivery
from modules.jobs.inputs import Inputs
from modules.jobs.job import Job
from modules.jobs.lock import Lock
from modules.jobs.store import JobRow, Store
from modules.jobs.worker import Worker
from modules.pipeline import parameters
from modules.pipeline.extension import Entry, resolved
from modules.pipeline.request import Request, Resources, Result
from modules.sampling import catalogue
from modules.tools import Library, Tools, request_with

__all__ = ["Engine", "Job", "Library", "request_with"]     # what faces may take from here

log = logging.getLogger("easel.engine")
Spine = Callable[[Request, Resources], Result]
Finder = Callable[[Mapping[str, Any]], Sequence[Entry]]     # settings -> extensions
SEEDS = 4294967294                                          # a drawn seed lies in 0..4294967293, as the field has always drawn it
PRUNE_EVERY = 200                                           # jobs between two tidyings of the table


class Engine:
    """All that outlives a request.

    paths: where things lie. extensions: given the settings, what extension_loader.load finds. whole_queue: False = leave alone what waits
    from earlier runs (the command line does). spine: another function in place of pipeline.generate, for tests of faults. address: where a
    server will answer. deterministic: every request is made one picture at a time.
    Raises BusyError when another Easel holds the data folder, SaveError when it cannot be written.
    """

    def __init__(self, paths: Paths, *, extensions: Finder = lambda settings: (), whole_queue: bool = True, spine: Spine | None = None,
                 address: str = "", deterministic: bool = False) -> None:
        self.paths = paths
        paths.make()
        self._lock = Lock(paths.data)
        try:
            self._store = Store(paths.database)
        except BaseException:
            self._lock.release()
            raise
        self._lock.announce(address)
        self._settings = SettingsFile(paths.settings_file)
        self._extensions = tuple(extensions(self._settings.snapshot()))
        self._options = tuple(option for entry in self._extensions for option in entry.options)
        self._settings.join(self._options)
        self._library = Library(paths)
        self._delivery = Delivery(paths, self._store)
        self.inputs = Inputs(paths.inputs)                  # pictures that come in: keep(file) gives the name that an InitImage holds
        self._spine = spine
        self._whole_queue = whole_queue
        self._deterministic = deterministic
        self._residency: Any = None                         # these two are made in the worker's thread and touched by it alone
        self._encodings: Any = None
        self._guard = threading.RLock()
        self._live: dict[str, Job] = {}                     # waiting and running
        self._known: weakref.WeakValueDictionary[str, Job] = weakref.WeakValueDictionary()
        self._ready = {"torch": "waiting", "model": "waiting", "page": "waiting"}
        self._asked: set[Future[None]] = set()              # what is to be done between jobs, and somebody waits for
        self._since_prune = 0
        self._closed = False
        for notice in paths.notices:
            log.warning("%s", notice)
        self.recovered = self._recover()                    # ids of jobs under which the program died, now interrupted or parked
        self._worker = Worker(self._claim, self._finish, self._run)
        self.tools = Tools(paths, self._settings, self._library, self._store, self._delivery, self.submit, self._model_chosen,
                           self._extensions)
        self._worker.start()

    # ---- jobs

    def submit(self, request: Request, *, save: bool = True, task_id: str | None = None, overrides: Mapping[str, Any] | None = None,
               notices: Sequence[str] = ()) -> Job:
        """Freeze a request and put it at the end of the queue.

        Names ("" = the settings' choice), sampler and schedule, and seeds of -1 are resolved now; a snapshot of the settings with
        `overrides` (A1111's override_settings) laid over rides along. notices: sentences that are to stand among the job's warnings.
        save: False keeps the pictures in the spool instead of outputs.
        Raises RequestError for values out of range, NotFoundError for unknown names and for pictures that are not in `inputs`, BusyError
        when the queue is full or closed.
        """
        if self._closed:
            raise BusyError("Easel is closing; start it again and send the request then.")
        settings = self._settings.snapshot(overrides)
        frozen, warnings = self._freeze(request, settings)
        warnings = (*notices, *warnings)
        with self._guard:
            row = self._store.add("img2img" if frozen.init else "txt2img", frozen.to_json(), as_json_changed(settings), save=save,
                                  task_id=task_id, warnings=warnings)
            job = self._handle(row)
        self._worker.wake()
        return job

    def job(self, job_id: str) -> Job:
        """The handle of any job of the table, also one of an earlier run. Raises NotFoundError."""
        with self._guard:
            return self._handle(self._store.job(job_id))

    def task(self, task_id: str) -> Job | None:
        """The newest job entered under this outside name, or None."""
        row = self._store.by_task(task_id)
        return self.job(row.id) if row else None

    def running(self) -> Job | None:
        """The job that is being done now."""
        return self._worker.current

    def waiting(self) -> tuple[Job, ...]:
        """The jobs that wait, next one first."""
        return tuple(self.job(job_id) for job_id in self._store.waiting())

    def resume(self, job_id: str, *, force: bool = False) -> Job:
        """Take an interrupted, failed or cancelled job up at its first missing picture. force: also a parked one.

        Returns a fresh handle. Raises NotFoundError, or BusyError when there is nothing to resume.
        """
        with self._guard:
            row = self._store.resume(job_id, force=force)
            self._live.pop(job_id, None)
            self._known.pop(job_id, None)
            job = self._handle(row)
        self._worker.wake()
        return job

    def interrupt(self) -> None:
        """Stop the running job after its current step; jobs that wait go on waiting. Nothing happens when none runs."""
        job = self.running()
        if job:
            job.cancel()

    def skip(self) -> None:
        """End the running job's batch; its next one goes on."""
        job = self.running()
        if job:
            job.skip()

    # ---- life

    def warm(self) -> None:
        """Begin to load torch and the chosen checkpoint in the worker's thread; returns at once."""
        self._worker.errand(self._warm)

    def unload(self) -> Future[None]:
        """Give the model's memory back once the running job has ended; the next job loads it again. The future ends when it is done."""
        return self._between(self._let_go)

    def reload(self) -> Future[None]:
        """Have the chosen model in memory. The future ends when it is, or with the CheckpointError that says why it cannot be."""
        return self._between(self._take_up)

    def readiness(self) -> tuple[tuple[str, str], ...]:
        """(("torch", state), ("model", state), ("page", state)); a state is "waiting", "loading", "ready" or a sentence of what failed."""
        with self._guard:
            return tuple(self._ready.items())

    def note(self, what: str, state: str) -> None:
        """Say how far a part of the start is; the page's loader notes "page" here."""
        with self._guard:
            self._ready[what] = state

    def announce(self, address: str) -> None:
        """Write the address at which this Easel answers into the data folder, so that a command line finds it."""
        self._lock.announce(address)

    def close(self, timeout: float = 4.0) -> bool:
        """Stop after the current step. A running job ends as interrupted, waiting jobs stay in the table; both can go on at the next start.

        Everybody who waits for a job is told so. Harmless when called twice. Returns False when the worker did not stop within `timeout`
        seconds: its thread is still computing, and ends with the process.
        """
        with self._guard:
            if self._closed:
                return True
            self._closed = True
        current = self._worker.current
        stopped = self._worker.stop(timeout)
        if not stopped and current is not None:
            self._store.finish(current.id, states.INTERRUPTED)
        with self._guard:
            live, self._live = list(self._live.values()), {}
            asked, self._asked = self._asked, set()
        for future in asked:
            future.cancel()
        for job in live:
            job.end(None)
        self._store.close()
        self._lock.release()
        return stopped

    # ---- inside

    def _freeze(self, request: Request, settings: Settings) -> tuple[Request, tuple[str, ...]]:
        """The request with everything decided: limits checked, names and seeds resolved. And sentences about what was replaced."""
        parameters.check(request)
        request = parameters.normal(request)
        if request.init is not None:
            for what, sha256 in (("picture", request.init.image), ("mask", request.init.mask), ("depth map", request.init.depth)):
                if sha256:
                    self.inputs.file(sha256, what)
        sampler, scheduler = catalogue.resolve(request.sampler, request.scheduler)
        entry, eta = catalogue.sampler(sampler), request.eta
        if eta is None and entry.eta_option and settings[entry.eta_option] != entry.default_eta:
            eta = float(settings[entry.eta_option])         # from here on nobody asks the settings, so a replay is the same under others
        checkpoint, warnings = self._library.choose_checkpoint(request.checkpoint, settings["sd_model_checkpoint"])
        return dataclasses.replace(
            request, sampler=sampler, scheduler=scheduler, eta=eta, checkpoint=checkpoint,
            vae=self._library.choose_vae(request.vae or settings["sd_vae"]), refiner=self._library.choose_refiner(request.refiner),
            seed=request.seed if request.seed >= 0 else secrets.randbelow(SEEDS), subseed=_subseed(request),
            deterministic=request.deterministic or self._deterministic,
            extra=resolved(self._extensions, request.extra, settings),
        ), warnings

    def _handle(self, row: JobRow) -> Job:
        job = self._live.get(row.id) or self._known.get(row.id)
        if job is None:
            job = Job(row, self._store, self._delivery.load)
            self._known[row.id] = job
            if not job.ended:
                self._live[row.id] = job
        return job

    def _claim(self) -> Job | None:
        with self._guard:
            row = self._store.claim(None if self._whole_queue else tuple(self._live))
            return self._handle(row) if row else None

    def _finish(self, job_id: str, state: str, **facts: Any) -> bool:
        changed = self._store.finish(job_id, state, **facts)
        with self._guard:
            self._live.pop(job_id, None)
        self._since_prune += 1
        if self._since_prune >= PRUNE_EVERY:
            self._since_prune = 0
            self._store.prune()
        self._delivery.trim()
        return changed

    def _run(self, job: Job) -> Result:
        """One job in the worker's thread: its resources filled, the spine called, earlier pictures of a resumed job joined in."""
        done = self._delivery.done(job)
        table = self._settings.snapshot().table             # an extension may have gone since, and its settings with it
        settings = Settings({key: value for key, value in job.settings.items() if key in table}, self._options)
        request = job.request
        resources = Resources(
            settings=settings, models=self._models(), adapters=None, upscalers=None, styles=self._library.styles(),
            tokenizer=None if self._spine else self._library.tokenizer, encodings=self._library.encodings,
            extensions=tuple(entry.extension for entry in self._extensions if entry.extension),
            progress=job.live, done=done, deliver=self._delivery.deliver(job, settings),
            wildcards=self._library.wildcards(), inputs=self.inputs.image,
            embeddings=None if self._spine else self._library.embeddings)
        result = self._generate()(request, resources)
        return self._delivery.joined(job, result) if done else result

    def _generate(self) -> Spine:
        """The spine; imports torch."""
        if self._spine is not None:
            return self._spine
        from modules.pipeline.generate import generate
        return generate

    def _models(self) -> Any:
        """The one loaded model's keeper; imports torch."""
        if self._residency is None and self._spine is None:
            self.note("torch", "loading")
            from modules.checkpoints.residency import Residency
            from modules.core import hardware
            from modules.prompts.encode import EncodeCache
            device = hardware.device()
            self._residency = Residency(self._library.shelf, device, hardware.dtype(device),
                                        limit=lambda: int(self._settings.snapshot()["sd_checkpoints_limit"]))
            self._encodings = EncodeCache()
            self.note("torch", "ready")
        return self._residency

    def _warm(self) -> None:
        if self._spine is not None:
            return
        models = self._models()
        self._generate()
        settings = self._settings.snapshot()
        self.note("model", "loading")
        try:
            name, _ = self._library.choose_checkpoint("", settings["sd_model_checkpoint"])
            with models.borrow(name, self._library.choose_vae(settings["sd_vae"]), "Auto"):
                self.note("model", "ready")
        except WebUIError as error:
            self.note("model", str(error))
            log.warning("%s", error)

    def _between(self, task: Callable[[], None]) -> Future[None]:
        """The task in the worker's thread, before the next job. Raises BusyError when the engine is closed."""
        future: Future[None] = Future()

        def run() -> None:
            with self._guard:
                self._asked.discard(future)
            if future.set_running_or_notify_cancel():
                try:
                    task()
                    future.set_result(None)
                except BaseException as error:              # whoever waits for it is told
                    future.set_exception(error)

        with self._guard:
            if self._closed:
                raise BusyError("Easel is closing.")
            self._asked.add(future)
        self._worker.errand(run)
        return future

    def _let_go(self) -> None:
        if self._residency is not None:
            self._residency.release()
            self.note("model", "waiting")

    def _take_up(self) -> None:
        self._warm()
        state = dict(self.readiness())["model"]
        if state not in ("ready", "waiting"):               # "waiting": there is nothing to load for a spine of a test's own
            raise CheckpointError(state)

    def _model_chosen(self) -> None:
        """The settings name another model: load it between jobs."""
        if self._ready["torch"] == "ready":
            self.warm()

    def _recover(self) -> tuple[str, ...]:
        rows = self._store.recover()
        if rows:
            for folder in (self.paths.outputs, self.paths.spool):
                remove_parts(folder)
        for row in rows:
            log.warning("Job %s was interrupted when the program ended; it is %s.", row.id, row.state)
        return tuple(row.id for row in rows)


def _subseed(request: Request) -> int:
    """The variation seed. One that is not used stays 0 instead of being drawn, so that equal requests give equal files."""
    if request.subseed >= 0:
        return request.subseed
    return secrets.randbelow(SEEDS) if request.subseed_strength else 0


def as_json_changed(settings: Settings) -> dict[str, Any]:
    """What differs from the default settings, as JSON values."""
    return as_json(settings.changed())
