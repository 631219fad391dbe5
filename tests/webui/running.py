"""A whole Easel for tests: the engine alone behind the API, or a process of its own started by launch.py, with a miniature model."""
from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
HANG = 120                                                  # seconds after which a start is called a failure
MODEL = "miniature.safetensors"


def models(folder: Path) -> Path:
    """A folder with one miniature checkpoint in it."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.save_sd1(folder / MODEL)
    return folder


@dataclass(frozen=True, kw_only=True)
class Easel:
    """A running Easel. log: what it has printed."""

    address: str
    data: Path
    checkpoints: Path
    log: Path

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.address}{path}", timeout=60)

    def post(self, path: str, body: object = None) -> httpx.Response:
        return httpx.post(f"{self.address}{path}", json=body, timeout=300)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def launched(folder: Path, *flags: str, model: str = MODEL) -> Iterator[Easel]:
    """launch.py --api on a free port with its data in `folder`, ready, and the miniature (or what `model` names) chosen."""
    port, log = free_port(), folder / "log.txt"
    checkpoints = models(folder / "checkpoints")
    words = [sys.executable, str(ROOT / "launch.py"), "--api", "--port", str(port), "--data-dir", str(folder / "data"), "--ckpt-dir",
             str(checkpoints), "--no-browser", *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(words, cwd=folder, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    easel = Easel(address=f"http://127.0.0.1:{port}", data=folder / "data", checkpoints=checkpoints, log=log)
    try:
        _wait(easel, process)
        easel.post("/sdapi/v1/options", {"sd_model_checkpoint": model}).raise_for_status()
        yield easel
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(easel: Easel, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        assert process.poll() is None, easel.log.read_text()
        try:
            found = easel.get("/easel/v1/ready")
            if found.status_code == 200 and found.json().get("page") == "ready":
                return
        except (httpx.HTTPError, ValueError):
            pass
        time.sleep(0.3)
    raise AssertionError(f"not ready after {HANG} s:\n{easel.log.read_text()}")


@contextmanager
def browser() -> Iterator[object]:
    """Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright
    path = next((path for path in CHROMIUM if Path(path).exists()), None)
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()
