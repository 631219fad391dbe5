"""Open the port, answer with the shell, load the rest behind it, end cleanly."""
from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import uvicorn

from modules.core.environment import StartError
from modules.core.errors import WebUIError
from modules.core.flags import API_PORT, PAGE_PORT, Flags
from modules.core.paths import Paths
from webui import quick_gradio
from webui.door import Door
from webui.guard import Guard

log = logging.getLogger("easel.start")
TRIES = 100                                                 # ports looked at when none was asked for
HEADER_BYTES = 48 << 10                                     # of one request's header
CLOSING = 4.5                                               # seconds until the process ends whatever hangs
LABELS = (("engine", "Queue and settings"), ("page", "Page"), ("torch", "torch"), ("model", "Model"))


def serve(flags: Flags, paths: Paths) -> int:
    """Serve until a signal. Returns the exit code; raises StartError when the port cannot be had."""
    logging.basicConfig(level=flags.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    host = flags.server_name or ("0.0.0.0" if flags.listen else "127.0.0.1")
    opened = listen_on(host, flags.port, API_PORT if flags.nowebui else PAGE_PORT)
    port = opened.getsockname()[1]
    wide = not _is_loopback(opened)
    token = secrets.token_urlsafe(18) if wide and not flags.users else ""
    server = Server(flags, paths, opened, guard_for(flags, port, wide, token))
    code = asyncio.run(server.run())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)                                          # a thread inside an import or a kernel would hold up a plain exit


def listen_on(host: str, asked: int | None, first: int) -> socket.socket:
    """A listening socket on the asked-for port, or on the first free one from `first` up. Raises StartError with exit code 2 when taken."""
    candidates = [asked] if asked is not None else list(range(first, first + TRIES))
    for port in candidates:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        except OSError as error:
            raise StartError(f"The address {host} is not known here ({error.strerror}); give another with --server-name.", 2) from error
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name != "nt":                             # there it would let two programs share a port
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(256)
        except OSError as error:
            made.close()
            if asked is not None:
                raise StartError(f"Port {asked} cannot be used on {host} ({error.strerror}); end the program that has it, "
                                 "or give another --port.", 2) from error
            continue
        made.set_inheritable(False)
        return made
    raise StartError(f"No port from {first} to {first + TRIES - 1} is free on {host}; give one with --port.", 2)


def guard_for(flags: Flags, port: int, wide: bool, token: str) -> Guard:
    """Who may pass: loopback names always; this machine's names and any IP address when the network is served."""
    names = {"localhost", *(name.lower() for name in flags.allowed_hosts)}
    if flags.server_name:
        names.add(flags.server_name.lower())
    if wide:
        own = socket.gethostname().lower()
        names |= {own, own.split(".")[0], own.split(".")[0] + ".local"}
    return Guard(names=frozenset(names), any_address=wide, users=flags.users, token=token, cookie=f"easel_token_{port}",
                 origins=frozenset(flags.cors_allow_origins), origin_pattern=flags.cors_allow_origins_regex)


def wants_browser(flags: Flags, environment: Mapping[str, str] = os.environ, terminal: bool | None = None,
                  platform: str = sys.platform) -> bool:
    """Whether to open the browser: asked for, or a person at a screen started us from a terminal."""
    if flags.no_browser or flags.nowebui:
        return False
    if flags.autolaunch:
        return True
    seen = sys.stdout.isatty() if terminal is None else terminal
    away = any(environment.get(name) for name in ("CI", "PYTEST_CURRENT_TEST", "SSH_CONNECTION"))
    screen = platform in ("darwin", "win32") or bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))
    return seen and screen and not away


class Server:
    """One start: the open port, the door, and the thread that loads what is behind it. Also what the shell shows of it."""

    def __init__(self, flags: Flags, paths: Paths, opened: socket.socket, guard: Guard) -> None:
        self.flags, self.paths, self._socket, self.guard = flags, paths, opened, guard
        self._place = opened.getsockname()[:2]              # a socket that is closed already does not tell it any more
        self.engine: Any = None
        self._failure = ""
        self._code = 0
        self._began = time.monotonic()
        self._life = contextlib.AsyncExitStack()
        self._loading: asyncio.Task[None] | None = None
        self.door = Door(guard, self, subpath=flags.subpath, timed=flags.api, api_only=flags.nowebui, log=print if flags.api_log else None)
        self._uvicorn = Uvicorn(uvicorn.Config(
            self.door, http="h11", lifespan="off", log_config=None, access_log=False, proxy_headers=False, server_header=False,
            h11_max_incomplete_event_size=HEADER_BYTES, timeout_keep_alive=flags.timeout_keep_alive, timeout_graceful_shutdown=1,
            ssl_keyfile=flags.tls_keyfile, ssl_certfile=flags.tls_certfile,
        ), self._listening)

    @property
    def address(self) -> str:
        """The address for this machine's own browser."""
        host, port = self._place
        name = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"{'https' if self.flags.tls_certfile else 'http'}://{name}:{port}{self.flags.subpath}"

    # ---- what the shell shows

    def stages(self) -> tuple[tuple[str, str, str], ...]:
        known = dict(self.engine.readiness()) if self.engine else {}
        states = {"engine": "ready" if self.engine else "loading", "page": "waiting", "torch": "waiting", "model": "waiting", **known}
        wanted = [(key, label, states[key]) for key, label in LABELS]
        return tuple(stage for stage in wanted if not (self.flags.nowebui and stage[0] == "page"))

    def failed(self) -> str:
        return self._failure

    # ---- life

    async def run(self) -> int:
        """Until a signal or a failed start. Returns the exit code."""
        self._answer_signals()
        await self._uvicorn.serve(sockets=[self._socket])
        watch = threading.Timer(CLOSING, self._end_hard)
        watch.daemon = True
        watch.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end_loading(), 1.0)
            await asyncio.wait_for(self._life.aclose(), 1.0)
        if self.engine:
            await _in_thread(lambda: self.engine.close(2.5))
        watch.cancel()
        return self._code

    async def _end_loading(self) -> None:
        """Before the lifespan is left: a load that still runs could enter it afterwards, and nobody would leave it."""
        if self._loading:
            self._loading.cancel()
            await asyncio.wait([self._loading])

    def _answer_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._stop)
            except NotImplementedError:                     # Windows' event loop has none
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._stop))

    def _stop(self) -> None:
        if self._uvicorn.should_exit:
            os._exit(130)                                   # asked twice: at once
        print("\nEnding: finished pictures are saved, the running job can be taken up again.", flush=True)
        self._uvicorn.should_exit = True

    def _end_hard(self) -> None:
        sys.stderr.write("Something did not end in time; the process stops now.\n")
        sys.stderr.flush()
        os._exit(1)

    def _listening(self) -> None:
        """The port answers: tell the address, then load."""
        query = f"/?token={self.guard.token}" if self.guard.token else ""
        print(f"Easel answers at {self.address}{query}", flush=True)
        if self.guard.any_address:
            own = self.address.replace("127.0.0.1", _network_address())
            print(f"From other machines: {own}{query}", flush=True)
        if wants_browser(self.flags):
            threading.Thread(target=webbrowser.open, args=(self.address + query,), daemon=True).start()
        self._loading = asyncio.get_running_loop().create_task(self._load())

    async def _load(self) -> None:
        """Engine, then page, each in a thread; the page's lifespan is entered on this loop, and only then requests go in."""
        try:
            self.engine = await _in_thread(self._make_engine)
            app = await _in_thread(self._make_app)
            await self._life.enter_async_context(app.router.lifespan_context(app))
        except WebUIError as error:
            await self._give_up(str(error))
            return
        except Exception as error:
            log.error("The start failed.", exc_info=error)
            await self._give_up(f"Easel could not start ({type(error).__name__}: {error}); the lines above say where.")
            return
        self.engine.note("page", "ready")
        self.door.open(app)
        await self._tell_when_ready()

    def _make_engine(self) -> Any:
        # Behind the open port, so that the shell answers first.
        from modules.engine import Engine
        from modules.extension_loader import load
        engine = Engine(self.paths, address=self.address, extensions=partial(load, self.paths, disable=self.flags.disable_extensions))
        engine.note("page", "loading")
        engine.warm()
        return engine

    def _make_app(self) -> Any:
        quick_gradio.prepare()
        # FastAPI and Gradio: seconds to import, behind the open port.
        from webui.app import build
        return build(self.engine, self.flags)

    async def _give_up(self, sentence: str) -> None:
        self._failure, self._code = sentence, 1
        sys.stderr.write(sentence + "\n")
        self.door.give_up()
        await asyncio.sleep(1.0)                            # the shell asks once more and can show why
        self._uvicorn.should_exit = True

    async def _tell_when_ready(self) -> None:
        while any(state in ("waiting", "loading") for _, _, state in self.stages()):
            await asyncio.sleep(0.05)
        troubles = [state for _, _, state in self.stages() if state != "ready"]
        print(troubles[0] if troubles else f"Ready after {time.monotonic() - self._began:.1f} s.", flush=True)


class Uvicorn(uvicorn.Server):
    """uvicorn's server, told to leave signals to us and to say when it listens."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()


async def _in_thread(work: Callable[[], Any]) -> Any:
    """The work's result from a thread of its own, which does not keep the process alive as a pool's would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def tell(act: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            act(value)

    def run() -> None:
        try:
            value = work()
        except BaseException as error:                      # handed to whoever awaits
            loop.call_soon_threadsafe(tell, future.set_exception, error)
        else:
            loop.call_soon_threadsafe(tell, future.set_result, value)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _is_loopback(opened: socket.socket) -> bool:
    host = opened.getsockname()[0]
    return host.startswith("127.") or host == "::1"


def _network_address() -> str:
    """This machine's address on its network. A datagram socket is only aimed; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as aimed:
        try:
            aimed.connect(("192.0.2.1", 9))
            return str(aimed.getsockname()[0])
        except OSError:
            return socket.gethostname()
