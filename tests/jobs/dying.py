"""Run as a process that kills itself: `python -m tests.jobs.dying ROOT MOMENT [stub|real]`. It submits a batch of 4 and dies at the moment.

enqueue: right after the job stands in the table; step: in the third picture; file: while the third file gets its name;
commit: when the third file is on disk and its row is not; row: after the third row.
"""
import os
import signal
import sys
from pathlib import Path

from modules.core import files
from modules.core.paths import Paths
from modules.engine import Engine
from modules.jobs.store import Store
from modules.pipeline.request import Request
from tests.jobs import stub

REQUEST = Request(prompt="four boats", seed=7, steps=3, width=64, height=64, n_iter=4)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(moment: str) -> None:
    """Lay the mine."""
    count = {"links": 0, "rows": 0}
    link, add = files._claim, Store.add_picture

    def claim(*args):
        count["links"] += 1
        return die() if moment == "file" and count["links"] == 3 else link(*args)

    def row(self, picture):
        count["rows"] += 1
        if moment == "commit" and count["rows"] == 3:
            die()
        add(self, picture)
        if moment == "row" and count["rows"] == 3:
            die()

    files._claim, Store.add_picture = claim, row


def spine(moment: str, real: bool):
    """The spine, dying in its third picture for "step"."""
    if real:
        from modules.pipeline.generate import generate
        inner = generate
    else:
        inner = stub.spine

    def mined(request, resources):
        def show(*args):
            if moment == "step" and resources.progress.view().batch == 2:
                die()
            return offer(*args)

        def advance(**changes):
            if moment == "step" and changes.get("batch") == 2:
                die()
            return go(**changes)

        offer, go = resources.progress.show, resources.progress.at
        resources.progress.show, resources.progress.at = show, advance
        return inner(request, resources)

    return mined


def main(root: str, moment: str, kind: str = "stub") -> None:
    at(moment)
    engine = Engine(Paths.of(root) if kind == "real" else stub.house(Path(root)))
    if kind == "real":
        engine._generate = lambda: spine(moment, True)
    else:
        engine._spine = spine(moment, False)
    if moment == "enqueue":
        engine._worker.wake = die
    job = engine.resume(sys.argv[4]) if len(sys.argv) > 4 else engine.submit(REQUEST)
    job.result(100)


if __name__ == "__main__":
    main(*sys.argv[1:4])
