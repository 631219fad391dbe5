"""The outer ASGI application: every request passes here before anything mounted sees it.

It answers at once with a shell page, lets other requests wait until the application behind it has loaded, and then hands them on.
Each request is judged by the guard; each body is counted while it comes in; each reply leaves with our headers.
"""
from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from webui import headers, shell
from webui.guard import PAGES, Guard, Headers, Refusal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

READY = "/easel/ready"
WRONG_CREDENTIALS_WAIT = 0.3                                # seconds; makes guessing slow, one connection at a time


@dataclass(frozen=True, kw_only=True)
class Limits:
    """body: bytes of a request's body. fields: number of headers. ranges: parts of a Range header. Times in seconds."""

    body: int = 80 << 20
    fields: int = 100
    ranges: int = 8
    between_chunks: float = 60.0
    loading: float = 120.0


class Loading(Protocol):
    """What the shell shows. stages: (key, label, state) where a state is waiting, loading, ready, or a sentence of what failed."""

    def stages(self) -> tuple[tuple[str, str, str], ...]: ...

    def failed(self) -> str: ...


class Door:
    """guard: who may pass. loading: how far the start is. subpath: prefix of a reverse proxy, "" or "/prefix".

    timed: add X-Process-Time to each reply. log: called with a line per request to the API, or None.
    """

    def __init__(self, guard: Guard, loading: Loading, *, subpath: str = "", timed: bool = False, api_only: bool = False,
                 limits: Limits | None = None, log: Callable[[str], None] | None = None) -> None:
        self.guard, self.loading, self.subpath, self.timed, self.api_only = guard, loading, subpath, timed, api_only
        self.limits, self.log = limits or Limits(), log
        self._inner: Application | None = None
        self._opened = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._inner is not None

    def open(self, inner: Application) -> None:
        """From now on requests go to this application; those that wait go first. Its lifespan has been entered by the caller."""
        self._inner = inner
        self._opened.set()

    def give_up(self) -> None:
        """Nothing will be opened: requests that wait are told so."""
        self._opened.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        path = self._settle(scope)
        refusal = self._limited(scope) or self.guard.refusal(scope, path)
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send, refusal)
            return
        reply = Reply(send, scope, self, path)
        if refusal and refusal.status == 401 and self.guard.token_in(scope) and path in PAGES:
            await self._let_in(scope, reply)
        elif refusal:
            await self._refuse(scope, reply, refusal, path)
        elif scope["method"] == "OPTIONS" and self._is_preflight(scope):
            await reply.whole(204, b"", preflight=True)
        elif path == READY:
            await reply.json(200, self._state())
        else:
            await self._pass(scope, receive, reply, path)
        if self.log and path.startswith("/sdapi"):
            self.log(f"{scope['method']} {path} {reply.status} {reply.seconds:.3f} s")

    def _settle(self, scope: Scope) -> str:
        """Put the proxy's prefix where ASGI wants it, whether or not the proxy has taken it away. Returns the path without it."""
        path, raw, prefix = scope["path"], scope.get("raw_path") or scope["path"].encode(), self.subpath
        if prefix and (path == prefix or path.startswith(prefix + "/")):
            path = path[len(prefix):] or "/"
        elif prefix:
            scope["path"], scope["raw_path"] = prefix + path, prefix.encode() + raw
        scope["root_path"] = prefix
        return path

    def _limited(self, scope: Scope) -> Refusal | None:
        found = Headers(scope)
        lengths = found.all("content-length")
        if len(scope.get("headers", ())) > self.limits.fields:
            return Refusal(431, "Too many header fields")
        if len(lengths) > 1 or (lengths and not lengths[0].isdecimal()):
            return Refusal(400, "One valid Content-Length is needed")
        if lengths and int(lengths[0]) > self.limits.body:
            return Refusal(413, f"The request is larger than {self.limits.body >> 20} MiB")
        if found.one("range").count(",") >= self.limits.ranges:
            return Refusal(400, "Too many ranges")
        return None

    async def _websocket(self, scope: Scope, receive: Receive, send: Send, refusal: Refusal | None) -> None:
        if not refusal and await self._wait():
            assert self._inner is not None
            await self._inner(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1008 if refusal else 1013})

    async def _let_in(self, scope: Scope, reply: Reply) -> None:
        """The printed address was opened: the token moves from the address into a cookie, so it stays out of history and referrers."""
        secure = "; Secure" if scope.get("scheme") == "https" else ""
        cookie = f"{self.guard.cookie}={self.guard.token}; HttpOnly; SameSite=Strict; Path={self.subpath or '/'}{secure}"
        home = (self.subpath or "") + "/"
        await reply.whole(303, b"", extra=[(b"location", home.encode()), (b"set-cookie", cookie.encode())])

    async def _refuse(self, scope: Scope, reply: Reply, refusal: Refusal, path: str) -> None:
        extra = [(name.lower().encode(), value.encode()) for name, value in refusal.headers]
        if refusal.status == 413:
            extra.append((b"connection", b"close"))
        if refusal.status == 401 and refusal.detail != "Not authenticated":
            await asyncio.sleep(WRONG_CREDENTIALS_WAIT)
        if refusal.status == 401 and path in PAGES and "text/html" in Headers(scope).one("accept"):
            nonce = headers.fresh_nonce()
            await reply.whole(401, shell.locked(nonce), b"text/html; charset=utf-8", extra, nonce=nonce)
        else:
            await reply.json(refusal.status, four_keys(refusal.detail), extra)

    def _is_preflight(self, scope: Scope) -> bool:
        return bool(self.guard.foreign(scope) and Headers(scope).one("access-control-request-method"))

    def _state(self) -> dict[str, Any]:
        stages = [{"name": key, "label": label, "state": state} for key, label, state in self.loading.stages()]
        ready = self.is_open and all(stage["state"] == "ready" for stage in stages)
        page = self.is_open and not self.api_only
        return {"page": page, "open": self.is_open, "ready": ready, "failed": self.loading.failed(), "stages": stages}

    async def _wait(self) -> bool:
        """Whether the application is there, after waiting for it."""
        if self._inner is None:
            try:
                await asyncio.wait_for(self._opened.wait(), self.limits.loading)
            except TimeoutError:
                return False
        return self._inner is not None

    async def _pass(self, scope: Scope, receive: Receive, reply: Reply, path: str) -> None:
        if path in PAGES and scope["method"] in ("GET", "HEAD") and not self.is_open:
            nonce = headers.fresh_nonce()
            shown = shell.page(nonce, base=self.subpath + "/", api_only=self.api_only)
            await reply.whole(200, shown, b"text/html; charset=utf-8", nonce=nonce)
            return
        if not await self._wait():
            detail = self.loading.failed() or "Easel is still loading; ask again in a few seconds"
            await reply.json(503, four_keys(detail), [(b"retry-after", b"5")])
            return
        if path in PAGES:                                   # a compressed page could not be given its nonce
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        body = Body(receive, self.limits, reply)
        assert self._inner is not None
        await self._inner(scope, body.receive, reply.send)
        if body.over and not reply.started:
            await reply.too_large()


class Body:
    """A request's body, counted as it comes. Beyond the limit the reader is told that the client has gone."""

    def __init__(self, receive: Receive, limits: Limits, reply: Reply) -> None:
        self._receive, self._limits, self._reply = receive, limits, reply
        self._taken, self._whole, self.over = 0, False, False

    async def receive(self) -> Message:
        if self.over:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()                    # only news of the client's leaving is left, and that may take hours
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.between_chunks)
        except TimeoutError:
            return {"type": "http.disconnect"}
        self._taken += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._taken > self._limits.body:
            self.over = self._reply.refused = True
            return {"type": "http.disconnect"}
        return message


class Reply:
    """The way out: our headers on every reply, the nonce in our own pages, the size and time limits' last word."""

    def __init__(self, send: Send, scope: Scope, door: Door, path: str) -> None:
        self._send, self._door = send, door
        self._began = time.perf_counter()
        self._page = path in PAGES and scope["method"] == "GET"
        self._origin = door.guard.foreign(scope)
        self._any = bool(self._origin) and "*" in door.guard.origins
        self._held: Message | None = None
        self._body = bytearray()
        self._dropping = False
        self.started, self.refused, self.status = False, False, 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    async def send(self, message: Message) -> None:
        """What the application behind sends."""
        if self._dropping:
            return
        if message["type"] == "http.response.start":
            if self.refused:
                await self.too_large()
                self._dropping = True
                return
            kind = next((value for name, value in message.get("headers", ()) if name.lower() == b"content-type"), b"")
            if self._page and kind.lower().startswith(b"text/html"):
                self._held = message
                return
            await self._start(message["status"], headers.secured(message.get("headers", ())))
        elif message["type"] == "http.response.body" and self._held is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish_page(self._held)
        else:
            await self._send(message)

    async def whole(self, status: int, body: bytes, kind: bytes = b"", extra: headers.Pairs | None = None, *, nonce: str = "",
                    preflight: bool = False) -> None:
        """A reply of our own."""
        pairs = [(b"content-length", str(len(body)).encode()), *([(b"content-type", kind)] if kind else [])]
        secured = headers.secured([*pairs, *(extra or ())], page_nonce=nonce)
        await self._start(status, [*secured, (b"cache-control", b"no-store")] if not nonce else secured, preflight)
        await self._send({"type": "http.response.body", "body": body})

    async def json(self, status: int, value: Any, extra: headers.Pairs | None = None) -> None:
        await self.whole(status, json.dumps(value).encode(), b"application/json", extra)

    async def too_large(self) -> None:
        await self.json(413, four_keys(f"The request is larger than {self._door.limits.body >> 20} MiB"), [(b"connection", b"close")])

    async def _finish_page(self, start: Message) -> None:
        nonce = headers.fresh_nonce()
        body = headers.with_nonce(bytes(self._body), nonce)
        dropped = (b"content-length", b"etag", b"cache-control")
        kept = [(name, value) for name, value in start["headers"] if name.lower() not in dropped]
        kept.append((b"content-length", str(len(body)).encode()))
        self._held = None
        await self._start(start["status"], headers.secured(kept, page_nonce=nonce))
        await self._send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, pairs: headers.Pairs, preflight: bool = False) -> None:
        if self._origin:
            pairs = [*pairs, *headers.cross_origin(self._origin, self._any, preflight)]
        if self._door.timed:
            pairs = [*pairs, (b"x-process-time", f"{self.seconds:.4f}".encode())]
        self.started, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


def four_keys(detail: str, error: str = "HTTPException", errors: str = "") -> dict[str, str]:
    """The body of an error, as A1111's clients read it."""
    return {"error": error, "detail": detail, "body": "", "errors": errors}
