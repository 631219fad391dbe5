"""A job as its owner holds it: watch it, wait for it, stop it. Handles are thread-safe; closing the page that holds one changes nothing."""
from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any

from modules.core import errors
from modules.core.errors import BusyError, WebUIError
from modules.core.progress import Progress, ProgressView
from modules.jobs import store as states
from modules.jobs.store import JobRow, PictureRow, Store
from modules.pipeline.request import Request, Result

Load = Callable[["Job"], Result]                            # reads the pictures of a job back from disk


class Job:
    """One submitted request.

    id: 16 hex digits. task_id: the name an API client gave it, or None. number: order of arrival. request: frozen, every name and seed
    resolved. kind: "txt2img" or "img2img". settings: what differed from the default settings at submission. save: False = pictures go to
    the spool.
    """

    def __init__(self, row: JobRow, store: Store, load: Load) -> None:
        self.id = row.id
        self.task_id = row.task_id
        self.number = row.number
        self.kind = row.kind
        self.created = row.created                          # seconds since 1970
        self.save = row.save
        self.settings = row.settings
        self.attempts = row.attempts
        self.request = Request.from_json(row.request)
        self.live = Progress()                              # the worker writes here; faces read `progress`
        self._store = store
        self._load = load
        self._row = row
        self._ended: concurrent.futures.Future[Result | None] = concurrent.futures.Future()
        self._ended.set_running_or_notify_cancel()          # a caller that stops waiting must not cancel it for the others
        if row.state in states.ENDS:
            self._ended.set_result(None)

    @property
    def state(self) -> str:
        """pending, running, done, failed, cancelled, interrupted (the program stopped under it) or parked."""
        return self._now().state

    @property
    def ended(self) -> bool:
        return self._ended.done()

    @property
    def error(self) -> WebUIError | None:
        """Why it failed, as the error that was raised; None unless failed or parked."""
        row = self._now()
        return _error(row.error_code, row.error) if row.error else None

    @property
    def warnings(self) -> tuple[str, ...]:
        return self._now().warnings

    @property
    def progress(self) -> ProgressView:
        """Its progress at this moment."""
        return self.live.view()

    def preview(self) -> Any | None:
        """The latest preview as a PIL image, drawn on demand; None before the first."""
        return self.live.preview()

    def pictures(self) -> tuple[PictureRow, ...]:
        """The pictures delivered so far, by index. Their files: `engine.tools.picture_file(job.id, index)`."""
        return self._store.pictures(self.id)

    @property
    def position(self) -> int:
        """How many jobs wait before this one, 0 = next; -1 when it does not wait."""
        waiting = self._store.waiting()
        return waiting.index(self.id) if self.id in waiting else -1

    def result(self, timeout: float | None = None) -> Result:
        """Wait until it ends. Done and cancelled jobs give the pictures that exist (look at `state`); seconds, None = for ever.

        Raises TimeoutError, the error of a failed or parked job, and BusyError when the program stopped before it was finished.
        """
        return self._outcome(self._ended.result(timeout))

    async def done(self) -> Result:
        """As `result`, for async callers: no thread is held while it waits, and a caller that goes away changes nothing."""
        kept = await asyncio.wrap_future(self._ended)
        return self._outcome(kept) if kept is not None else await asyncio.to_thread(self._outcome, None)

    def cancel(self) -> None:
        """Take it out of the queue, or stop it after the current step; what is finished stays. Nothing happens to an ended job."""
        if self._store.cancel_pending(self.id):
            self.end(Result(request=self.request, pictures=()))
        else:
            self.live.interrupt()

    def skip(self) -> None:
        """End the batch that is being made; the next one goes on. Nothing happens unless it runs."""
        if self.state == states.RUNNING:
            self.live.skip()

    def end(self, result: Result | None, fallback: JobRow | None = None) -> None:
        """The worker's word that its end stands in the store; wakes everybody who waits.

        fallback: its end when the store could not take it.
        """
        self._row = fallback or self._now()
        with contextlib.suppress(concurrent.futures.InvalidStateError):    # the program closed first and said so
            self._ended.set_result(result)

    @property
    def row(self) -> JobRow:
        """As it stands in the table."""
        return self._now()

    def _now(self) -> JobRow:
        if not self._ended.done():
            self._row = self._store.job(self.id)
        return self._row

    def _outcome(self, kept: Result | None) -> Result:
        state = self.state
        if state in (states.FAILED, states.PARKED):
            raise self.error or WebUIError(f"Job {self.id} failed.")
        if state not in (states.DONE, states.CANCELLED):
            raise BusyError(f"Easel stopped before job {self.id} was finished; resume it to make what is missing.")
        return kept if kept is not None else self._load(self)


def _error(code: str, sentence: str) -> WebUIError:
    """The stored error as an exception of its own class, by its code."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, WebUIError) and kind.code == code:
            return kind(sentence)
    error = WebUIError(sentence)
    error.code, error.status = code, 500
    return error
