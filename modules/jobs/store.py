"""The job table in SQLite: the truth about every job and every finished picture. No torch here.

One `Store` may be used by any number of threads, and several may be open on one file. A picture's row is written only after its file is on
disk, so a row without a file means that somebody removed the file, never that the program died between the two.
"""
from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.core.errors import BusyError, NotFoundError, SaveError

PENDING, RUNNING, DONE, FAILED, CANCELLED, INTERRUPTED, PARKED = (
    "pending", "running", "done", "failed", "cancelled", "interrupted", "parked")
ENDS = frozenset({DONE, FAILED, CANCELLED, INTERRUPTED, PARKED})
SCHEMA = 1                                                  # PRAGMA user_version of this layout
REQUEST_VERSION = 1                                         # version of the JSON in jobs.request
MAX_ATTEMPTS = 2                                            # a job under which the program died this often is parked

_TABLES = """                                               -- seeds are text: SQLite's numbers end at 63 bits
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    task_id TEXT,
    kind TEXT NOT NULL,
    request TEXT NOT NULL,
    settings TEXT NOT NULL,
    save INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL,
    ended REAL,
    error_code TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    warnings TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE INDEX jobs_by_task ON jobs (task_id) WHERE task_id IS NOT NULL;
CREATE TABLE pictures (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    place TEXT NOT NULL,
    path TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    seed TEXT NOT NULL,
    subseed TEXT NOT NULL,
    infotext TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    complete INTEGER NOT NULL,
    PRIMARY KEY (job, position)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, kw_only=True)
class JobRow:
    """One job as it stands in the table. `request` and `settings` are JSON values; settings hold only what differs from the defaults."""

    number: int                                             # order of arrival
    id: str
    task_id: str | None
    kind: str                                               # "txt2img", ...
    request: Mapping[str, Any]
    settings: Mapping[str, Any]
    save: bool                                              # True: pictures go to outputs; False: to the spool
    state: str
    attempts: int                                           # how often the worker began it
    created: float                                          # seconds since 1970
    ended: float | None
    error_code: str
    error: str                                              # one sentence, "" unless failed or parked
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class PictureRow:
    """One finished picture of a job; the file lies at `path` under `place`."""

    job: str
    index: int                                              # 0-based within the job
    place: str                                              # "outputs", "spool", or "gone" when the spool was emptied
    path: str                                               # relative to that folder, with "/"
    sha256: str                                             # of the file's bytes
    seed: int
    subseed: int
    infotext: str
    width: int                                              # pixels
    height: int
    complete: bool                                          # False: interrupted before its last step


class Store:
    """The table. Every method is one transaction and may be called from any thread.

    cap: how many jobs may wait; one more raises BusyError. Raises SaveError when the file is not a job table that this version can read.
    """

    def __init__(self, path: Path, *, cap: int = 10_000) -> None:
        self.path = path
        self.cap = cap
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._prepare()
        except sqlite3.DatabaseError as error:
            raise SaveError(f"The job table {path} cannot be opened ({error}); move that file away and start again.") from error

    def _prepare(self) -> None:
        self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        for line in ("journal_mode=WAL", "busy_timeout=30000", "synchronous=FULL", "foreign_keys=ON"):
            self._db.execute(f"PRAGMA {line}")
        with self._transaction() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA:
                raise SaveError(f"The job table {self.path} was made by a newer Easel; update Easel or choose another --data-dir.")
            if version == 0:
                for statement in _TABLES.split(";"):
                    if statement.strip():
                        db.execute(statement)
                db.execute(f"PRAGMA user_version={SCHEMA}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    # ---- entering and claiming

    def add(self, kind: str, request: Mapping[str, Any], settings: Mapping[str, Any], *, save: bool = True, task_id: str | None = None,
            warnings: Sequence[str] = ()) -> JobRow:
        """Put one job at the end of the queue. Raises BusyError when `cap` jobs already wait."""
        job = secrets.token_hex(8)
        body = _text({"version": REQUEST_VERSION, "request": dict(request)})
        with self._transaction() as db:
            if self._count(db, PENDING) >= self.cap:
                raise BusyError(f"The queue is full ({self.cap} jobs wait); try again when some are done.")
            db.execute(
                "INSERT INTO jobs (id, task_id, kind, request, settings, save, state, created, warnings)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (job, task_id, kind, body, _text(dict(settings)), int(save), PENDING, time.time(), _text(list(warnings))))
            return self._job(db, job)

    def claim(self, among: Collection[str] | None = None) -> JobRow | None:
        """The oldest waiting job, now running and ours alone; None when nothing waits. among: only these ids."""
        with self._transaction() as db:
            waiting = db.execute("SELECT id FROM jobs WHERE state = ? ORDER BY number", (PENDING,))
            job = next((row["id"] for row in waiting if among is None or row["id"] in among), None)
            if job is None:
                return None
            db.execute("UPDATE jobs SET state = ?, attempts = attempts + 1 WHERE id = ?", (RUNNING, job))
            return self._job(db, job)

    def finish(self, job: str, state: str, *, error_code: str = "", error: str = "", warnings: Sequence[str] = ()) -> bool:
        """End a running job; its warnings are added to those of its entering.

        False when it had already ended: an end is reached once and stays.
        """
        assert state in ENDS, state
        with self._transaction() as db:
            row = self._job(db, job)
            if row.state != RUNNING:
                return False
            said = list(dict.fromkeys((*row.warnings, *warnings)))
            db.execute("UPDATE jobs SET state = ?, error_code = ?, error = ?, warnings = ?, ended = ? WHERE id = ?",
                       (state, error_code, error, _text(said), time.time(), job))
            return True

    def cancel_pending(self, job: str) -> bool:
        """Take a waiting job out of the queue. False when it no longer waits."""
        with self._transaction() as db:
            changed = db.execute("UPDATE jobs SET state = ?, ended = ? WHERE id = ? AND state = ?", (CANCELLED, time.time(), job, PENDING))
            return changed.rowcount == 1

    def recover(self) -> tuple[JobRow, ...]:
        """At start-up: whatever ran when the program died becomes interrupted, or parked after MAX_ATTEMPTS. Returns those jobs."""
        with self._transaction() as db:
            rows = db.execute("SELECT id, attempts FROM jobs WHERE state = ? ORDER BY number", (RUNNING,)).fetchall()
            for row in rows:
                parked = row["attempts"] >= MAX_ATTEMPTS
                sentence = f"The program ended {row['attempts']} times while this job ran; it is parked." if parked else ""
                db.execute("UPDATE jobs SET state = ?, error_code = ?, error = ?, ended = ? WHERE id = ?",
                           (PARKED if parked else INTERRUPTED, "parked" if parked else "", sentence, time.time(), row["id"]))
            return tuple(self._job(db, row["id"]) for row in rows)

    def resume(self, job: str, *, force: bool = False) -> JobRow:
        """Put an ended, unfinished job back into the queue, at its old place. force: also a parked one.

        Raises NotFoundError for an unknown id, BusyError when the job is parked, waits, runs or is done.
        """
        with self._transaction() as db:
            row = self._job(db, job)
            if row.state == PARKED and not force:
                raise BusyError(f"Job {job} is parked because the program ended twice while it ran; resume it with force to try once more.")
            if row.state in (DONE, PENDING, RUNNING):
                raise BusyError(f"Job {job} is {row.state}; only an interrupted, failed or cancelled job can be resumed.")
            attempts = row.attempts if row.state == INTERRUPTED else 0
            db.execute("UPDATE jobs SET state = ?, attempts = ?, ended = NULL, error = '', error_code = '' WHERE id = ?",
                       (PENDING, attempts, job))
            return self._job(db, job)

    # ---- pictures

    def add_picture(self, picture: PictureRow) -> None:
        """Commit one picture whose file is already on disk. An incomplete one of the same index is replaced."""
        values = (picture.job, picture.index, picture.place, picture.path, picture.sha256, str(picture.seed), str(picture.subseed),
                  picture.infotext, picture.width, picture.height, int(picture.complete))
        with self._transaction() as db:
            db.execute(f"INSERT OR REPLACE INTO pictures VALUES ({', '.join('?' * len(values))})", values)

    def pictures(self, job: str) -> tuple[PictureRow, ...]:
        """The pictures of a job, by index."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM pictures WHERE job = ? ORDER BY position", (job,)).fetchall()
        return tuple(_picture(row) for row in rows)

    def picture(self, job: str, index: int) -> PictureRow:
        """Raises NotFoundError."""
        for row in self.pictures(job):
            if row.index == index:
                return row
        raise NotFoundError(f"Job {job} has no picture {index}.")

    def spooled(self) -> tuple[PictureRow, ...]:
        """Every picture whose file lies in the spool, oldest job first."""
        query = "SELECT pictures.* FROM pictures JOIN jobs ON jobs.id = pictures.job WHERE place = 'spool' ORDER BY number, position"
        with self._lock:
            return tuple(_picture(row) for row in self._db.execute(query).fetchall())

    def forget_file(self, job: str, index: int) -> None:
        """The spool dropped this picture's file."""
        with self._transaction() as db:
            db.execute("UPDATE pictures SET place = 'gone', path = '' WHERE job = ? AND position = ?", (job, index))

    # ---- looking

    def job(self, job: str) -> JobRow:
        """Raises NotFoundError."""
        with self._lock:
            return self._job(self._db, job)

    def by_task(self, task_id: str) -> JobRow | None:
        """The newest job that was entered under this outside name."""
        with self._lock:
            row = self._db.execute("SELECT id FROM jobs WHERE task_id = ? ORDER BY number DESC LIMIT 1", (task_id,)).fetchone()
            return self._job(self._db, row["id"]) if row else None

    def jobs(self, state: str | None = None, limit: int = 100) -> tuple[JobRow, ...]:
        """Waiting and running jobs oldest first when asked for by state, else all, newest first."""
        where, order = ("WHERE state = ?", "ASC") if state in (PENDING, RUNNING) else ("WHERE state = ?" if state else "", "DESC")
        query = f"SELECT * FROM jobs {where} ORDER BY number {order} LIMIT ?"
        with self._lock:
            rows = self._db.execute(query, ((state, limit) if state else (limit,))).fetchall()
        return tuple(_job(row) for row in rows)

    def waiting(self) -> tuple[str, ...]:
        """Ids of the waiting jobs in order."""
        with self._lock:
            return tuple(row["id"] for row in self._db.execute("SELECT id FROM jobs WHERE state = ? ORDER BY number", (PENDING,)))

    def count(self, state: str) -> int:
        with self._lock:
            return self._count(self._db, state)

    def prune(self, keep: int = 5_000) -> int:
        """Forget all but the newest `keep` ended jobs (their pictures in outputs stay on disk). Returns how many were forgotten."""
        marks = ", ".join("?" * len(ENDS))
        with self._transaction() as db:
            old = db.execute(f"SELECT id FROM jobs WHERE state IN ({marks}) ORDER BY number DESC LIMIT -1 OFFSET ?", (*sorted(ENDS), keep))
            ids = [(row["id"],) for row in old.fetchall()]
            db.executemany("DELETE FROM jobs WHERE id = ?", ids)
        with self._lock:
            self._db.executescript("PRAGMA incremental_vacuum;")    # `execute` would take one step of it and free one page
        return len(ids)

    def sound(self) -> bool:
        """Whether SQLite finds the file whole."""
        with self._lock:
            return self._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @staticmethod
    def _count(db: sqlite3.Connection, state: str) -> int:
        return db.execute("SELECT COUNT(*) FROM jobs WHERE state = ?", (state,)).fetchone()[0]

    @staticmethod
    def _job(db: sqlite3.Connection, job: str) -> JobRow:
        row = db.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            raise NotFoundError(f"There is no job {job[:40]!r}.")
        return _job(row)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _job(row: sqlite3.Row) -> JobRow:
    body = json.loads(row["request"])
    return JobRow(
        number=row["number"], id=row["id"], task_id=row["task_id"], kind=row["kind"], request=body["request"],
        settings=json.loads(row["settings"]), save=bool(row["save"]), state=row["state"], attempts=row["attempts"],
        created=row["created"], ended=row["ended"], error_code=row["error_code"], error=row["error"],
        warnings=tuple(json.loads(row["warnings"])))


def _picture(row: sqlite3.Row) -> PictureRow:
    return PictureRow(
        job=row["job"], index=row["position"], place=row["place"], path=row["path"], sha256=row["sha256"], seed=int(row["seed"]),
        subseed=int(row["subseed"]), infotext=row["infotext"], width=row["width"], height=row["height"], complete=bool(row["complete"]))
