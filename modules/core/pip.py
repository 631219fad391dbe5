"""pip of one environment: run with a log, asked where it takes packages from, and its failures put into a sentence."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from modules.core.errors import WebUIError

SOURCES = frozenset({"index-url", "extra-index-url", "find-links", "no-index"})
NO_NETWORK = (
    "Temporary failure in name resolution", "NewConnectionError", "NameResolutionError", "getaddrinfo failed", "Max retries exceeded",
    "ConnectTimeout", "ReadTimeoutError", "Connection refused", "ProxyError", "Network is unreachable", "Name or service not known",
)
FULL = ("No space left on device", "Errno 28", "not enough space on the disk", "Disk quota exceeded")
MISSING = re.compile(r"No matching distribution found for (\S+)")
WIDTH = 100                                                 # characters of pip's own line shown on a terminal


class InstallError(WebUIError):
    code = "install_failed"
    status = 500


class Pip:
    """`python -m pip` of the environment whose Python this is. log: every word pip says is appended to it."""

    def __init__(self, python: Path, log: Path, say: Callable[[str], None] = print) -> None:
        self.python, self.log, self.say = python, log, say

    def works(self) -> bool:
        return self._ask("-m", "pip", "--version") is not None

    def version_of(self, package: str) -> str:
        """The installed version of a package, "" when it is not installed."""
        code = f"import importlib.metadata as m, importlib.util as u; print(m.version({package!r}) if u.find_spec({package!r}) else '')"
        return (self._ask("-c", code) or "").strip()

    def has_own_source(self) -> bool:
        """Whether the user (or the site) has told pip where packages come from: by PIP_* variables or by a configuration file."""
        if any(os.environ.get("PIP_" + name.upper().replace("-", "_")) for name in SOURCES):
            return True
        lines = (self._ask("-m", "pip", "config", "list") or "").splitlines()
        return any(line.partition("=")[0].rpartition(".")[2] in SOURCES for line in lines)

    def install(self, words: Sequence[str], what: str) -> None:
        """Install, with pip's lines in the log and, on a terminal, the current one shown. Raises InstallError with one sentence."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off", *words]
        tail: list[str] = []
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"$ pip install {' '.join(words)}\n")
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as running:
                for line in running.stdout or ():
                    log.write(line)
                    tail = [*tail[-199:], line.rstrip()]
                    self._show(line)
        self._show("")
        if running.returncode:
            raise InstallError(f"{reason(tail, what)} What pip said stands in {self.log}.")

    def _show(self, line: str) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[2K" + ("  " + line.strip()[:WIDTH] if line else ""))
            sys.stdout.flush()

    def _ask(self, *words: str) -> str | None:
        try:
            done = subprocess.run([str(self.python), *words], capture_output=True, text=True, timeout=120, errors="replace", check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None


def reason(lines: Sequence[str], what: str) -> str:
    """One sentence on why an installation failed and what to do, from pip's last lines."""
    text = "\n".join(lines)
    missing = MISSING.search(text)
    if any(sign in text for sign in FULL):
        why, then = "the disk is full", "make room and start again"
    elif any(sign in text for sign in NO_NETWORK):
        why, then = "the package index could not be reached", "connect (or set PIP_INDEX_URL) and start again"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        why, then = "the package index's certificate is not trusted here", "set PIP_CERT and start again"
    elif "Permission denied" in text:
        why, then = "a file could not be written", "move the folder .venv away and start again as the user who owns this one"
    elif missing:
        where = "name another index with --torch-index URL" if missing[1].startswith("torch") else "look at the index that pip uses"
        why, then = f"{missing[1]} is not offered for this Python where pip looks", f"{where} and start again"
    else:
        errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
        why, then = f'pip says "{(errors or [*lines, "nothing"])[-1][:200]}"', "start again to try once more"
    return f"Installing {what} failed because {why}; {then}."
