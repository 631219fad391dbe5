"""Who does the work of a command: an Engine of our own, the Easel that holds the data folder, or the one at an address."""
from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

from modules import client as remote
from modules.core.errors import BusyError, NotFoundError, RequestError, WebUIError
from modules.core.paths import Paths
from modules.core.settings import SettingsFile
from modules.engine import Engine, Library, request_with
from modules.errands import serving
from modules.extension_loader import load

LOOK = 0.1                                                  # seconds between two progress lines
ENDING = 2.0                                                # seconds that a cancelled job has to end by itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What a job gave. files: (index, seed, infotext, complete, bytes, path or None)."""

    job: str
    state: str
    files: tuple[tuple[int, int, str, bool, bytes, Path | None], ...]
    warnings: tuple[str, ...]


class Show(Protocol):
    def __call__(self, fraction: float, stage: str, eta: float | None, position: int) -> None: ...


class Maker(Protocol):
    """Either engine: our own or a server's. keep: a picture file into its store; (sha256, (width, height), notices)."""

    def keep(self, file: bytes, what: str) -> tuple[str, tuple[int, int], tuple[str, ...]]: ...
    def make(self, values: Mapping[str, Any], *, save: bool, show: Show) -> Made: ...
    def resume(self, job_id: str, force: bool, *, show: Show) -> Made: ...
    def replay(self, file: bytes, *, show: Show) -> Any: ...


@contextlib.contextmanager
def maker(server: str | None, auth: str | None, paths: Paths) -> Iterator[Maker]:
    """--server; else an Engine of our own; else, when another Easel holds the data folder, that one."""
    login = _login(auth)
    if server:
        with remote.Client(server, auth=login) as client:
            yield _Remote(client, None)
        return
    try:
        engine = Engine(paths, whole_queue=False, extensions=partial(load, paths))
    except BusyError:
        address = serving(paths)
        if not address:
            raise
        with remote.Client(address, auth=login) as client:
            yield _Remote(client, paths)
        return
    try:
        for warning in engine.tools.warnings():
            say(warning)
        yield _Local(engine)
    finally:
        if not engine.close():
            _leave_at_once(sys.exc_info()[1])


def _leave_at_once(error: BaseException | None) -> NoReturn:
    """The worker is in the middle of a long step; ending Python under it would abort the process with a core dump instead of a code."""
    say("Stopped.")
    sys.stdout.flush()
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        os._exit(error.code)
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)


def _login(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, colon, password = text.partition(":")
    if not colon:
        raise RequestError("--auth takes USER:PASSWORD.", field="auth")
    return name, password


def _sized(values: Mapping[str, Any], native_size: Callable[[str], tuple[int, int]]) -> Mapping[str, Any]:
    """Where no size was asked for, the model's own, as on the page."""
    if "width" in values or "height" in values:
        return values
    width, height = native_size(values.get("checkpoint", ""))
    return {**values, "width": width, "height": height}


class _Local:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def keep(self, file: bytes, what: str) -> tuple[str, tuple[int, int], tuple[str, ...]]:
        kept = self._engine.inputs.keep(file, what)
        return kept.sha256, (kept.width, kept.height), kept.notices

    def make(self, values: Mapping[str, Any], *, save: bool, show: Show) -> Made:
        values = _sized(values, self._engine.tools.native_size)
        return self._wait(self._engine.submit(self._engine.tools.request(values), save=save), show)

    def resume(self, job_id: str, force: bool, *, show: Show) -> Made:
        return self._wait(self._engine.resume(job_id, force=force), show)

    def replay(self, file: bytes, *, show: Show) -> Any:
        """In a thread, so that this one can watch and be interrupted."""
        begun: list[Any] = []
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(self._engine.tools.replay(file, begun.append)), daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(LOOK)
                if begun:
                    _show(begun[-1], show)
        except KeyboardInterrupt:
            if begun:
                begun[-1].cancel()
            raise
        if not found:
            raise WebUIError("The replay failed inside Easel; the log in the data folder has the details.")
        return found[0]

    def _wait(self, job: Any, show: Show) -> Made:
        try:
            while not job.ended:
                try:
                    job.result(LOOK)
                except TimeoutError:
                    _show(job, show)
            result = job.result()
        except KeyboardInterrupt:
            job.cancel()
            with contextlib.suppress(TimeoutError, WebUIError):
                job.result(ENDING)
            raise
        _show(job, show)
        return Made(job=job.id, state=job.state, warnings=tuple(dict.fromkeys((*result.warnings, *job.warnings))), files=tuple(
            (one.index, one.seed, one.infotext, one.complete, one.file, one.path) for one in result.pictures))


def _show(job: Any, show: Show) -> None:
    view = job.progress
    show(view.fraction, view.stage, view.eta, job.position)


class _Remote:
    """paths: of the data folder that the server holds; None = ask the server."""

    def __init__(self, client: remote.Client, paths: Paths | None) -> None:
        self._client = client
        self._paths = paths

    def keep(self, file: bytes, what: str) -> tuple[str, tuple[int, int], tuple[str, ...]]:
        kept = self._client.send(remote.keep(file, what))
        return kept.sha256, (kept.width, kept.height), kept.notices

    def make(self, values: Mapping[str, Any], *, save: bool, show: Show) -> Made:
        settings = SettingsFile(self._paths.settings_file).read() if self._paths else self._options()
        if self._paths:
            library, chosen = Library(self._paths), settings["sd_model_checkpoint"]
            values = _sized(values, lambda checkpoint: library.native_size(checkpoint, chosen))
        request = request_with(values, settings)
        return self._wait(self._client.send(remote.submit(request, save=save)).id, show)

    def resume(self, job_id: str, force: bool, *, show: Show) -> Made:
        return self._wait(self._client.send(remote.resume(job_id, force=force)).id, show)

    def replay(self, file: bytes, *, show: Show) -> Any:
        return remote.replay(self._client, file, lambda job: show(job.fraction, job.stage, job.eta, job.position))

    def _options(self) -> Mapping[str, Any]:
        try:
            return self._client.send(remote.options())
        except NotFoundError:                               # served without --api: its own defaults are ours
            return {}

    def _wait(self, job_id: str, show: Show) -> Made:
        try:
            job = self._client.wait(job_id, lambda job: show(job.fraction, job.stage, job.eta, job.position))
        except KeyboardInterrupt:
            self._client.send(remote.cancel(job_id))
            raise
        if job.error:
            raise job.error
        if job.state not in ("done", "cancelled"):
            raise BusyError(f"Easel stopped before job {job.id} was finished; resume it to make what is missing.")
        files = tuple((one.index, one.seed, one.infotext, one.complete, self._client.send(remote.picture(job.id, one.index)), None)
                      for one in job.pictures)
        return Made(job=job.id, state=job.state, files=files, warnings=job.warnings)


def say(sentence: str) -> None:
    sys.stderr.write(("\r\x1b[K" if sys.stderr.isatty() else "") + sentence + "\n")
