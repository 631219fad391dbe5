"""The one thread that makes pictures: it claims the oldest waiting job, runs it, and writes its end. One of the four doors that catch."""
from __future__ import annotations

import dataclasses
import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable

from modules.core.errors import Cancelled, DiskFullError, OutOfMemoryError, WebUIError
from modules.jobs import store as states
from modules.jobs.job import Job
from modules.pipeline.request import Result

log = logging.getLogger("easel.jobs")
Run = Callable[[Job], Result]


class Worker:
    """Runs jobs one after another, first come first served.

    claim: () -> the next job, already marked running, or None. run: makes its pictures; what it raises is the job's failure.
    Errands (loading a model ahead of time) run between jobs in the same thread, so that models are touched by one thread only.
    """

    def __init__(self, claim: Callable[[], Job | None], finish: Callable[..., bool], run: Run) -> None:
        self._claim = claim
        self._finish = finish
        self._run = run
        self._errands: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._work = True                                   # something may be waiting
        self._stop = False
        self.current: Job | None = None
        self._cut: Job | None = None                        # the job that was interrupted because the program ends
        self._thread = threading.Thread(target=self._live, name="easel-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """A job was added."""
        with self._wake:
            self._work = True
            self._wake.notify()

    def errand(self, task: Callable[[], None]) -> None:
        """Do this between jobs, before the next one. What it raises is logged."""
        with self._wake:
            self._errands.append(task)
            self._wake.notify()

    def stop(self, timeout: float) -> bool:
        """Stop after the current step; a running job ends as interrupted. False when the thread still runs after `timeout` seconds."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        current = self.current
        if current is not None:
            self._cut_short(current)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _cut_short(self, job: Job) -> None:
        """Interrupt for our own sake; one that the user has stopped already stays his."""
        if not job.live.interrupted:
            self._cut = job
            job.live.interrupt()

    def _live(self) -> None:
        while True:
            with self._wake:
                while not (self._stop or self._work or self._errands):
                    self._wake.wait()
                if self._stop:
                    return
                errands, self._errands = self._errands, []
                self._work = False
            for task in errands:
                self._do_errand(task)
            self._take_jobs()

    def _do_errand(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception:                                   # an errand is a convenience; the job that needs it will say what is wrong
            log.exception("%s failed", getattr(task, "__name__", "an errand"))

    def _take_jobs(self) -> None:
        while not self._stop and not self._errands:
            try:
                job = self._claim()
            except Exception:                               # the disk may be full: the queue waits for the next wake-up
                log.exception("the next job could not be claimed")
                return
            if job is None:
                return
            self.current = job
            try:
                self._do(job)
            finally:
                self.current = None
        self._work = True

    def _do(self, job: Job) -> None:
        result, state, error = None, states.DONE, None
        if self._stop:
            self._cut_short(job)                            # claimed while stop() looked for a current job
        try:
            result = self._run(job)
            state = states.CANCELLED if job.live.interrupted and _short(result) else states.DONE
        except Cancelled:
            state = states.CANCELLED
        except BaseException as raised:
            error = sentence_of(raised)
            state = states.FAILED
            if error.code == "internal":
                log.error("job %s failed", job.id, exc_info=raised)
        if job is self._cut and state in (states.CANCELLED, states.FAILED):
            state, error = states.INTERRUPTED, None         # it can be taken up at the next start
        self._write_end(job, state, error, result)

    def _write_end(self, job: Job, state: str, error: WebUIError | None, result: Result | None) -> None:
        warnings = result.warnings if result else ()
        code, sentence = (error.code, str(error)) if error else ("", "")
        unwritten = None
        try:
            self._finish(job.id, state, error_code=code, error=sentence, warnings=warnings)
        except Exception as raised:                         # no room for the row: the next start will find the job as interrupted
            log.exception("the end of job %s could not be written", job.id)
            unwritten = sentence_of(raised)
        fallback = None
        if unwritten is not None:
            error = error or unwritten
            fallback = dataclasses.replace(job.row, state=states.FAILED, error_code=error.code, error=str(error), ended=time.time())
        job.end(result, fallback)


def _short(result: Result) -> bool:
    """Whether fewer or rougher pictures came than were asked for."""
    asked = result.request.batch_size * result.request.n_iter
    return len(result.pictures) < asked or not all(picture.complete for picture in result.pictures)


def sentence_of(raised: BaseException) -> WebUIError:
    """Any exception as an error with a code and a sentence for the user."""
    if isinstance(raised, WebUIError):
        return raised
    if isinstance(raised, MemoryError) or type(raised).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(raised):
        return OutOfMemoryError("The memory is full; choose a smaller width and height or a smaller batch, or close other programs.")
    full = isinstance(raised, OSError) and raised.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(raised, sqlite3.Error) and "full" in str(raised)):
        return DiskFullError("The disk is full, so the picture could not be saved; make room and resume the job.")
    first_line = (str(raised).strip().splitlines() or [""])[0][:200]
    error = WebUIError(f"Something inside Easel failed ({type(raised).__name__}: {first_line}); the log has the details.")
    error.code, error.status = "internal", 500
    return error
