"""What commands say while they work, and how a long one is watched."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from modules.cli.makers import LOOK, Show
from modules.core.progress import Progress

T = TypeVar("T")


def shower(flags: argparse.Namespace) -> Show:
    """A progress line on the terminal that is drawn over itself; nothing when errors go to a file."""
    if flags.quiet or not sys.stderr.isatty():
        return lambda fraction, stage, eta, position: None

    def show(fraction: float, stage: str, eta: float | None, position: int) -> None:
        words = f"{position + 1} in the queue" if position >= 0 else stage or "starting"
        left = f", {eta:.0f} s left" if eta is not None and fraction < 1 else ""
        sys.stderr.write(f"\r\x1b[K{fraction:4.0%} {words}{left}")
        sys.stderr.flush()

    return show


def watched(work: Callable[[Progress], T], show: Show) -> T:
    """`work` in a thread, so that this one can watch. Ctrl-C and SIGTERM end it at its next look at its progress."""
    progress = Progress()
    with ThreadPoolExecutor(1, thread_name_prefix="work") as pool:
        made = pool.submit(work, progress)
        try:
            while not made.done():
                wait([made], LOOK)
                view = progress.view()
                show(view.fraction, f"{view.stage} {view.step} of {view.steps}" if view.steps else view.stage or "reading", view.eta, -1)
        except (KeyboardInterrupt, SystemExit):
            progress.interrupt()
            raise
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    return made.result()


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
