"""`python3 launch.py` as a person starts it: a process, a port, a browser, a signal. Nothing is installed: the environment stands already."""
import base64
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HANG = 150                                                  # seconds; a limit for machines that do ten things at once, not a promise
pytestmark = pytest.mark.skipif(Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(), reason="starts the environment in .venv")


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@dataclass
class Started:
    process: subprocess.Popen
    port: int
    folder: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self.address + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=HANG) as reply:
                return reply.status, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def first_answer(self, path: str = "/") -> tuple[int, bytes]:
        """The first answer that the port gives."""
        until = time.monotonic() + HANG
        while time.monotonic() < until:
            try:
                return self.get(path)
            except OSError:
                assert self.process.poll() is None, self.said()
                time.sleep(0.02)
        raise AssertionError("Nothing answers.")

    def wait_until(self, what: str) -> dict:
        until = time.monotonic() + HANG
        while time.monotonic() < until:
            state = json.loads(self.first_answer("/easel/ready")[1])
            assert not state["failed"], state["failed"]
            if state[what]:
                return state
            time.sleep(0.1)
        raise AssertionError(f"It never became {what}: {state}")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(HANG)

    def said(self) -> str:
        return (self.folder / "said").read_text()


def start(folder: Path, *words: str, port: int | None = None, data: Path | None = None) -> Started:
    """launch.py in a process group of its own, its home and temporary folder empty ones that can be looked into afterwards."""
    for name in ("home", "tmp", "cwd"):
        (folder / name).mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EASEL_", "XDG_", "GRADIO_", "OMP_", "HF_", "TORCH"))}
    surroundings = {**kept, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "CI": "1"}
    port = free_port() if port is None else port
    command = [sys.executable, str(ROOT / "launch.py"), "--port", str(port), "--no-browser", "--data-dir", str(data or folder / "data"),
               "--models-dir", str(folder / "models"), *words]
    with open(folder / "said", "w") as said:
        process = subprocess.Popen(command, cwd=folder / "cwd", env=surroundings, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    return Started(process, port, folder)


def stop(started: Started) -> None:
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait(HANG)


def rooms() -> set[str]:
    """What lies in the repository's own folders, compiled files and the tools' caches aside."""
    aside = {".git", ".venv", "__pycache__", "tests", ".ruff_cache", ".mypy_cache", ".hypothesis"}
    top = {entry.name for entry in ROOT.iterdir()} - aside
    inside = {str(path.relative_to(ROOT)) for name in ("models", "extensions", "data") for path in (ROOT / name).rglob("*")}
    return top | inside


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Started]:
    started = start(tmp_path_factory.mktemp("start"), "--api")
    yield started
    stop(started)


def test_the_shell_answers_while_the_rest_loads_and_the_page_follows_by_itself(server):
    """One browser, opened at once: it must see the shell, then the page, with no word against the content policy and no call to the network."""
    sync_api = pytest.importorskip("playwright.sync_api")
    status, shell = server.first_answer("/")
    assert status == 200 and b"easel/ready" in shell
    troubles: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page()
        page.add_init_script("document.addEventListener('securitypolicyviolation', e => console.error('policy', e.violatedDirective, e.blockedURI))")
        page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("http:", "https:", "ws:")) and not request.url.startswith(server.address)
                and troubles.append("foreign " + request.url))
        page.goto(server.address)
        page.wait_for_selector("button:has-text('Generate')", timeout=HANG * 1000)
        page.wait_for_timeout(500)
        browser.close()
    assert troubles == []


def test_from_the_start_to_a_picture_in_a_browser(tmp_path, figure):
    """The shell answers, Generate is pressed the moment it stands there, a picture comes. Seconds are printed, not promised: machines differ."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        page = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"]).new_page()
        began = time.monotonic()
        started = start(tmp_path)
        try:
            assert started.first_answer()[0] == 200
            figure("seconds from start to the shell", time.monotonic() - began, "<= 1.5 on 2 free cores")
            page.goto(started.address)
            page.wait_for_selector("#txt2img_generate", state="visible", timeout=HANG * 1000)
            page.click("#txt2img_generate")
            figure("seconds from start to Generate pressed", time.monotonic() - began, "")
            page.wait_for_selector("#txt2img_gallery img", timeout=HANG * 1000)
            figure("seconds from start to the first picture", time.monotonic() - began, "<= 8 on 2 free cores")
            assert list((tmp_path / "data" / "outputs").rglob("*.png"))
            began = time.monotonic()
            assert started.end(signal.SIGINT) == 0
            figure("seconds from Ctrl-C to the end", time.monotonic() - began, "<= 5")
        finally:
            stop(started)


def test_it_becomes_ready_and_says_so(server):
    server.wait_until("ready")
    assert f"Easel answers at {server.address}" in server.said()
    assert "Ready after" in server.said()


def test_the_api_answers_beside_the_page(server):
    server.wait_until("open")
    status, body = server.get("/sdapi/v1/samplers")
    assert status == 200 and any(entry["name"] == "Euler" for entry in json.loads(body))


def test_names_and_origins_of_others_are_refused_over_the_real_socket(server):
    assert server.get("/", Host="evil.example")[0] == 403
    assert server.get("/sdapi/v1/samplers", Origin="http://evil.example")[0] == 403


def spoken(port: int, words: bytes) -> bytes:
    """The first bytes that the server answers to these, or nothing when it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANG) as wire:
        try:
            wire.sendall(words)
            return wire.recv(4096)
        except ConnectionError:
            return b""


def test_a_header_of_a_megabyte_is_refused(server):
    server.first_answer()
    answer = spoken(server.port, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n")
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_a_body_of_two_gigabytes_is_refused_before_it_is_sent(server):
    server.wait_until("open")
    answer = spoken(server.port, b"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2147483648\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_hundred_slow_clients_keep_nobody_waiting(server):
    server.wait_until("open")
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=HANG) for _ in range(100)]
    try:
        for wire in slow:
            wire.sendall(b"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        assert server.get("/sdapi/v1/samplers")[0] == 200
    finally:
        for wire in slow:
            wire.close()


def test_a_second_easel_on_the_same_data_is_told_who_has_it(server, tmp_path):
    server.wait_until("open")
    second = start(tmp_path, data=server.folder / "data")
    try:
        assert second.process.wait(HANG) == 1
        assert "--data-dir" in second.said() and "Traceback" not in second.said()
    finally:
        stop(second)
    assert server.get("/easel/ready")[0] == 200


def test_a_port_that_was_asked_for_and_is_taken_ends_with_code_2_and_one_sentence(server, tmp_path):
    server.first_answer()
    second = start(tmp_path, port=server.port)
    try:
        assert second.process.wait(HANG) == 2
        last = second.said().splitlines()[-1]
        assert last.startswith(f"Port {server.port}") and "--port" in last and "Traceback" not in second.said()
    finally:
        stop(second)


def test_ctrl_c_ends_cleanly_and_nothing_was_written_elsewhere(server):
    """Last of those that share the server: it ends it."""
    server.wait_until("ready")
    before = rooms()
    assert server.end(signal.SIGINT) == 0
    assert "Traceback" not in server.said() and "ERROR" not in server.said()
    assert rooms() == before
    for name in ("home", "tmp", "cwd"):
        assert [str(path) for path in (server.folder / name).rglob("*")] == []
    database = server.folder / "data" / "easel.db"
    with sqlite3.connect(database) as opened:
        assert opened.execute("pragma integrity_check").fetchone() == ("ok",)
    assert not list((server.folder / "data").rglob("*.part"))


def test_a_signal_while_it_loads_ends_it_cleanly_too(tmp_path):
    before = rooms()
    started = start(tmp_path)
    try:
        started.first_answer()
        assert started.end(signal.SIGTERM) == 0
        assert "Traceback" not in started.said()
        assert rooms() == before
    finally:
        stop(started)


def test_serving_the_network_without_users_prints_an_address_with_a_token_that_opens_it(tmp_path):
    started = start(tmp_path, "--listen", "--nowebui")
    try:
        assert started.first_answer()[0] == 401
        token = started.said().split("?token=")[1].split()[0]
        assert len(token) >= 20
        started.get("/easel/ready", Authorization=f"Bearer {token}")
        status, body = started.get("/sdapi/v1/samplers", Authorization=f"Bearer {token}")      # waits until it has loaded
        assert status == 200 and json.loads(body)
        assert started.get("/sdapi/v1/samplers")[0] == 401
        assert started.end(signal.SIGTERM) == 0
    finally:
        stop(started)


def test_passwords_stay_out_of_what_is_printed_and_told(tmp_path):
    started = start(tmp_path, "--nowebui", "--api-log", "--log-level", "debug", "--api-auth", "anna:planted-SECRET-9")
    try:
        started.first_answer()
        assert started.get("/sdapi/v1/samplers")[0] == 401
        known = "Basic " + base64.b64encode(b"anna:planted-SECRET-9").decode()
        for path in ("/sdapi/v1/cmd-flags", "/sdapi/v1/options", "/sdapi/v1/memory", "/openapi.json", "/easel/ready"):
            status, body = started.get(path, Authorization=known)
            assert status == 200 and b"planted-SECRET-9" not in body, path
        assert started.end(signal.SIGINT) == 0
        assert "planted-SECRET-9" not in started.said() and known[6:] not in started.said()
        for path in (tmp_path / "data").rglob("*"):
            assert not path.is_file() or b"planted-SECRET-9" not in path.read_bytes(), path
    finally:
        stop(started)
