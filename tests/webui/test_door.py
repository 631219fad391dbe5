"""The door in front of everything: who may pass, what waits, what is too large, and what a browser is told."""
import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest

from modules.core.flags import Flags
from modules.core.paths import Paths
from modules.engine import Engine
from webui.app import build
from webui.door import READY, Door, Limits
from webui.guard import CLOSED, PAGES, PUBLIC, Guard
from webui.headers import with_nonce

HOST = "127.0.0.1:7860"
SECRET = "planted-SECRET-9"
USERS = (("anna", SECRET),)
LOADING = (("engine", "Queue", "ready"), ("page", "Page", "loading"))


@dataclass
class Stages:
    found: tuple = LOADING
    failure: str = ""

    def stages(self):
        return self.found

    def failed(self):
        return self.failure


@dataclass
class Reply:
    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def __getitem__(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")


async def call(app, method="GET", path="/", headers=(), body: bytes | AsyncIterator[bytes] = b"", host=HOST, seconds=20.0, kind="http") -> Reply:
    """One request to an ASGI application. A reply that never ends is cut after `seconds`, with what has come until then."""
    path, _, query = path.partition("?")
    pairs = [(b"host", host.encode())] if host is not None else []
    pairs += [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": kind, "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http", "path": path,
             "raw_path": path.encode(), "query_string": query.encode(), "root_path": "", "headers": pairs, "client": ("127.0.0.1", 5),
             "server": ("127.0.0.1", 7860), "subprotocols": []}
    reply, parts = Reply(), body if not isinstance(body, bytes) else one(body)
    gone = asyncio.Event()

    async def receive():
        if kind == "websocket":
            return {"type": "websocket.connect"}
        try:
            return {"type": "http.request", "body": await anext(parts), "more_body": not isinstance(body, bytes)}
        except StopAsyncIteration:
            if not isinstance(body, bytes) and not gone.is_set():
                gone.set()
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.sleep(seconds)
            return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = [(name.decode().lower(), value.decode()) for name, value in message["headers"]]
        elif message["type"] == "http.response.body":
            reply.body += message.get("body", b"")
        else:
            reply.status = {"websocket.accept": 101}.get(message["type"], message.get("code", 0))

    try:
        await asyncio.wait_for(app(scope, receive, send), seconds)
    except TimeoutError:
        pass                                                # an endless stream: what has come is what we look at
    except RuntimeError as error:                           # Gradio's streams find out too late that the event is unknown
        assert "response already started" in str(error)
    return reply


async def one(part: bytes) -> AsyncIterator[bytes]:
    yield part


def ask(app, *words, **more) -> Reply:
    return asyncio.run(call(app, *words, **more))


def basic(name: str, password: str) -> tuple[str, str]:
    return "Authorization", "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class Inner:
    """An application that reads the whole body, counts its calls, and answers with what it is given."""

    def __init__(self, body=b"hello", kind=b"text/plain", headers=()) -> None:
        self.calls, self.read, self.scope = 0, 0, {}
        self.body, self.headers = body, [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]

    async def __call__(self, scope, receive, send):
        self.calls, self.scope = self.calls + 1, scope
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            return
        while True:
            message = await receive()
            self.read += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


def door(inner=None, stages=None, limits=None, **guard) -> Door:
    more = {name: guard.pop(name) for name in ("subpath", "timed", "api_only", "log") if name in guard}
    made = Door(Guard(**guard), stages or Stages(), limits=limits, **more)
    if inner is not None:
        made.open(inner)
    return made


# ---- the real application behind it

@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator:
    folder = tmp_path_factory.mktemp("door")
    engine = Engine(Paths.of(folder, folder / "data", folder / "models"))
    yield build(engine, Flags(api=True, users=USERS))
    engine.close()


def routes_of(routes, prefix="") -> list[tuple[str, str]]:
    """(method, path) of every route, whatever mounts or includes it; a websocket's method is WEBSOCKET."""
    found = []
    for route in routes:
        context = getattr(route, "include_context", None)
        inside = getattr(getattr(route, "original_router", None), "routes", None) or getattr(getattr(route, "app", None), "routes", None)
        if inside is not None and not hasattr(route, "endpoint"):
            found += routes_of(inside, prefix + (context.prefix if context else getattr(route, "path", "")))
        elif hasattr(route, "path"):
            methods = getattr(route, "methods", None) or (["WEBSOCKET"] if "WebSocket" in type(route).__name__ else ["GET", "POST"])
            found += [(method, prefix + route.path) for method in methods]
    return sorted(set(found))


def filled(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "x", path)


def test_without_credentials_every_route_of_the_real_application_answers_401_but_for_the_reasoned_list(app):
    guarded = door(app, users=USERS)
    routes = routes_of(app.routes)
    assert len(routes) >= 110, len(routes)                  # fewer would mean that this walk no longer sees them
    for wanted in ("/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/stream/{event_id}", "/sdapi/v1/txt2img", "/internal/progress", "/config"):
        assert any(path == wanted for _, path in routes), wanted
    opened = set()
    for method, path in [*routes, ("GET", READY), ("GET", "/no/such/path"), ("TRACE", "/"), ("GET", "//config"), ("GET", "/./manifest.json")]:
        answer = ask(guarded, method, filled(path), kind="websocket" if method == "WEBSOCKET" else "http")
        if answer.status not in (401, 1008):
            opened.add((method, path))
    assert opened <= {("GET", "/manifest.json"), ("HEAD", "/manifest.json")}


def test_the_list_of_what_needs_no_credentials_has_one_entry_with_a_reason():
    assert [path for path, _ in PUBLIC] == ["/manifest.json"]
    assert all(len(reason) > 20 for _, reason in PUBLIC)


def test_from_foreign_origins_every_mutating_route_answers_403(app):
    guarded = door(app)
    for method, path in routes_of(app.routes):
        if method in ("POST", "PUT", "PATCH", "DELETE", "WEBSOCKET"):
            for origin in ("http://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1:7860.evil.example"):
                answer = ask(guarded, method, filled(path), [("Origin", origin)], kind="websocket" if method == "WEBSOCKET" else "http")
                assert answer.status in (403, 1008), (method, path, origin)


def test_no_answer_to_a_get_carries_a_password_or_a_path_of_this_machine(app):
    guarded = door(app, users=USERS)
    home = str(Path.home()) + "/"
    gets = [path for method, path in routes_of(app.routes) if method == "GET" and "assets" not in path and "static" not in path]
    for path in [*gets, READY]:
        answer = ask(guarded, "GET", filled(path), [basic(*USERS[0])], seconds=3.0)
        assert answer.status != 401, path
        for secret in (SECRET, base64.b64encode(SECRET.encode()).decode(), home):
            assert secret.encode() not in answer.body, (path, secret)


def test_what_gradio_mounts_and_the_page_does_not_use_is_closed(app):
    paths = {path for _, path in routes_of(app.routes)}
    for start in CLOSED:
        assert ask(door(app), "POST", start + "x").status == 404
        assert ask(door(app), "GET", start).status == 404
    assert {path for path in paths if "vibe" in path} <= {path for path in paths if path.startswith(CLOSED)}


def test_the_real_page_gets_a_nonce_on_each_of_its_scripts(app):
    answer = ask(door(app), "GET", "/", [("Accept", "text/html"), ("Accept-Encoding", "gzip, br")])
    nonce = re.search(r"'nonce-([^']+)'", answer["content-security-policy"])[1]
    scripts = re.findall(rb"<script[^>]*>", answer.body)
    assert len(scripts) >= 4 and all(f'nonce="{nonce}"'.encode() in script for script in scripts)
    assert int(answer["content-length"]) == len(answer.body)


def test_ten_thousand_parts_and_huge_part_headers_are_refused_quickly(app):
    line = b"--cut\r\nContent-Disposition: form-data; name=\"files\"; filename=\"a\"\r\n\r\nx\r\n"
    kind = ("Content-Type", "multipart/form-data; boundary=cut")
    for body in (line * 10_000 + b"--cut--\r\n", line.replace(b'"a"', b'"' + b"a" * 1_000_000 + b'"') + b"--cut--\r\n"):
        began = time.monotonic()
        answer = ask(door(app), "POST", "/gradio_api/upload", [kind], body=body)
        assert 400 <= answer.status < 500
        assert time.monotonic() - began < 20                # a hang limit


# ---- host and origin

@pytest.mark.parametrize("host, open_to_network, status", [
    ("127.0.0.1:7860", False, 200), ("localhost:7860", False, 200), ("LOCALHOST.", False, 200), ("[::1]:7860", False, 200), ("127.9.9.9", False, 200),
    ("192.168.1.7:7860", False, 403), ("192.168.1.7:7860", True, 200), ("[fe80::1]:7860", True, 200),
    ("evil.example", False, 403), ("evil.example", True, 403), ("127.0.0.1.evil.example", False, 403), ("localhost.evil.example", True, 403),
    ("my-box:7860", True, 200), ("my-box:7860", False, 403),
    ("", False, 400), (None, False, 400), ("a b", False, 400), ("user@localhost", False, 400), ("localhost/", False, 400), ("localhost:x", False, 400),
])
def test_a_host_that_is_not_ours_is_refused(host, open_to_network, status):
    names = frozenset({"localhost", "my-box"}) if open_to_network else frozenset({"localhost"})
    inner = Inner()
    answer = ask(door(inner, names=names, any_address=open_to_network), "GET", "/x", host=host)
    assert answer.status == status
    assert inner.calls == (status == 200)


def test_two_host_headers_are_refused():
    assert ask(door(Inner()), "GET", "/x", [("Host", HOST)]).status == 400


ORIGINS = {"same": f"http://{HOST}", "same over https": f"https://{HOST}", "evil": "http://evil.example", "other port": "http://127.0.0.1:9",
           "null": "null", "none": None, "garbage": "http://[", "path": f"http://{HOST}/x", "user": f"http://a@{HOST}", "file": "file://"}
KINDS = ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None)


@pytest.mark.parametrize("host, origin, kind, method", product(
    (HOST, "192.168.1.7:7860", "evil.example"), ORIGINS, KINDS, ("POST", "PUT", "DELETE", "PATCH", "WEBSOCKET")))
def test_only_our_own_origin_or_none_may_change_anything(host, origin, kind, method):
    headers = [(name, value) for name, value in (("Origin", ORIGINS[origin]), ("Content-Type", kind)) if value]
    inner = Inner()
    answer = ask(door(inner), method, "/sdapi/v1/options", headers, host=host, kind="websocket" if method == "WEBSOCKET" else "http")
    allowed = host == HOST and origin in ("same", "same over https", "none")
    assert inner.calls == allowed
    assert answer.status == ((101 if allowed else 1008) if method == "WEBSOCKET" else (200 if allowed else 403))


@pytest.mark.parametrize("site, mode, dest, path, passes", [
    ("cross-site", "navigate", "document", "/", True),      # a link to the page
    ("cross-site", "navigate", "document", "/logoutx", False),
    ("cross-site", "navigate", "iframe", "/", False),
    ("cross-site", "no-cors", "image", "/sdapi/v1/progress", False),
    ("same-site", "no-cors", "script", "/config", False),   # another port of this machine
    ("same-origin", "cors", "empty", "/config", True),
    ("none", "navigate", "document", "/sdapi/v1/progress", True),
])
def test_another_site_may_link_to_the_page_and_load_nothing_else(site, mode, dest, path, passes):
    headers = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)]
    assert (ask(door(Inner()), "GET", path, headers).status == 200) is passes


def test_a_form_posted_by_another_site_without_an_origin_is_refused():
    assert ask(door(Inner()), "POST", "/", [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate")]).status == 403


# ---- CORS

def test_what_the_application_says_about_cors_does_not_leave_the_house():
    inner = Inner(headers=[(b"access-control-allow-origin", b"http://evil.example"), (b"Access-Control-Allow-Credentials", b"true")])
    answer = ask(door(inner), "GET", "/x")
    assert answer.status == 200 and not answer["access-control-allow-origin"] and not answer["access-control-allow-credentials"]


@pytest.mark.parametrize("guard", [{"origins": frozenset({"https://friend.example"})}, {"origin_pattern": r"https://.*\.example"}])
def test_an_origin_that_was_named_may_call_and_ask_first(guard):
    friend = ("Origin", "https://friend.example")
    asked = ask(door(Inner(), users=USERS, **guard), "OPTIONS", "/sdapi/v1/txt2img", [friend, ("Access-Control-Request-Method", "POST")])
    assert asked.status == 401                              # users are asked for first, and a preflight carries none
    asked = ask(door(Inner(), **guard), "OPTIONS", "/sdapi/v1/txt2img", [friend, ("Access-Control-Request-Method", "POST")])
    assert asked.status == 204 and asked["access-control-allow-origin"] == "https://friend.example"
    assert "POST" in asked["access-control-allow-methods"] and "authorization" in asked["access-control-allow-headers"]
    answer = ask(door(Inner(), **guard), "POST", "/sdapi/v1/txt2img", [friend])
    assert answer.status == 200 and answer["access-control-allow-origin"] == "https://friend.example" and answer["vary"] == "Origin"
    assert ask(door(Inner(), **guard), "POST", "/x", [("Origin", "https://friend.example.org")]).status == 403


def test_any_origin_may_call_when_that_was_asked_for_but_never_with_a_browsers_credentials():
    answer = ask(door(Inner(), origins=frozenset({"*"})), "POST", "/x", [("Origin", "http://anyone.example")])
    assert answer["access-control-allow-origin"] == "*" and not answer["access-control-allow-credentials"]


# ---- credentials

@pytest.mark.parametrize("header, status", [
    (basic("anna", SECRET), 200), (("Authorization", "basic " + basic("anna", SECRET)[1][6:]), 200),
    (basic("anna", "wrong"), 401), (basic("bob", SECRET), 401), (basic("", ""), 401), (basic("anna", ""), 401),
    (("Authorization", "Basic !!!"), 401), (("Authorization", "Basic"), 401), (("Authorization", "Bearer " + SECRET), 401),
    (("Authorization", "Basic " + base64.b64encode(b"\xff\xfe").decode()), 401), (("Cookie", f"easel_token={SECRET}"), 401), (("X", "y"), 401),
])
def test_a_name_and_its_password_open_the_door_and_nothing_else_does(header, status):
    inner = Inner()
    answer = ask(door(inner, users=USERS), "GET", "/x", [header])
    assert answer.status == status and inner.calls == (status == 200)
    if status == 401:
        assert answer["www-authenticate"].startswith("Basic ")
        assert set(json.loads(answer.body)) == {"error", "detail", "body", "errors"}


def test_the_two_kinds_of_401_use_the_words_that_clients_know():
    assert json.loads(ask(door(Inner(), users=USERS)).body)["detail"] == "Not authenticated"
    assert json.loads(ask(door(Inner(), users=USERS), headers=[basic("a", "b")]).body)["detail"] == "Incorrect username or password"


def test_every_user_is_let_in():
    users = (("a", "1"), ("b", "2"), ("ü", "ß:x"))
    for name, password in users:
        assert ask(door(Inner(), users=users), headers=[basic(name, password)]).status == 200


def test_the_printed_address_puts_its_token_into_a_cookie_and_out_of_sight():
    locked = door(Inner(), token="the-token", cookie="easel_token_7860")
    answer = ask(locked, "GET", "/?token=the-token")
    assert answer.status == 303 and answer["location"] == "/"
    assert "HttpOnly" in answer["set-cookie"] and "SameSite=Strict" in answer["set-cookie"]
    cookie = ("Cookie", "other=1; " + answer["set-cookie"].split(";")[0])
    assert ask(locked, "GET", "/config", [cookie]).status == 200
    assert ask(locked, "GET", "/config", [("Authorization", "Bearer the-token")]).status == 200
    assert ask(locked, "GET", "/config", [basic("anybody", "the-token")]).status == 200


@pytest.mark.parametrize("method, path", [("GET", "/?token=wrong"), ("GET", "/?token="), ("POST", "/?token=the-token"), ("GET", "/config?token=the-token")])
def test_a_token_opens_nothing_where_it_is_wrong_or_out_of_place(method, path):
    inner = Inner()
    assert ask(door(inner, token="the-token"), method, path).status == 401
    assert inner.calls == 0


def test_a_person_without_credentials_sees_a_page_that_says_what_to_do():
    answer = ask(door(Inner(), token="t"), "GET", "/", [("Accept", "text/html")])
    assert answer.status == 401 and b"terminal" in answer.body and answer["content-type"].startswith("text/html")


def test_the_guards_repr_tells_no_secret():
    assert SECRET not in repr(Guard(users=USERS, token=SECRET))


# ---- loading

def test_before_the_application_is_there_the_page_is_the_shell_and_the_state_is_told():
    loading = door()
    answer = ask(loading, "GET", "/", [("Accept", "text/html")])
    assert answer.status == 200 and b"Easel" in answer.body and b"easel/ready" in answer.body
    nonce = re.search(r"'nonce-([^']+)'", answer["content-security-policy"])[1]
    assert answer.body.count(f'<script nonce="{nonce}">'.encode()) == answer.body.count(b"<script") == 1
    state = json.loads(ask(loading, "GET", READY).body)
    assert state["page"] is False and state["ready"] is False
    assert state["stages"][1] == {"name": "page", "label": "Page", "state": "loading"}


def test_the_shell_fetches_nothing_from_anywhere_else():
    body = ask(door(), "GET", "/").body.decode()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|/["'])""", body)
    assert "http" not in body.replace("http-equiv", "")


def test_a_call_that_comes_early_waits_and_is_answered():
    async def play():
        early, inner = door(), Inner()
        waiting = asyncio.create_task(call(early, "POST", "/sdapi/v1/txt2img", body=b"{}"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        early.open(inner)
        return await waiting
    assert asyncio.run(play()).body == b"hello"


def test_a_call_that_would_wait_too_long_is_told_to_come_again():
    answer = ask(door(limits=Limits(loading=0.05)), "GET", "/sdapi/v1/progress")
    assert answer.status == 503 and answer["retry-after"]


def test_when_the_start_has_failed_waiting_calls_hear_why():
    async def play():
        failed = door(stages=Stages(failure="The data folder is full."))
        waiting = asyncio.create_task(call(failed, "GET", "/sdapi/v1/progress"))
        await asyncio.sleep(0.05)
        failed.give_up()
        return await waiting
    answer = asyncio.run(play())
    assert answer.status == 503 and json.loads(answer.body)["detail"] == "The data folder is full."


def test_ready_means_that_every_stage_is():
    done = Stages(tuple((key, label, "ready") for key, label, _ in LOADING))
    assert json.loads(ask(door(Inner(), stages=done), "GET", READY).body)["ready"] is True
    assert json.loads(ask(door(Inner()), "GET", READY).body)["ready"] is False


# ---- limits

def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read():
    inner = Inner()
    answer = ask(door(inner), "POST", "/x", [("Content-Length", str(100 << 20))])
    assert answer.status == 413 and inner.calls == 0 and answer["connection"] == "close"


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_body_without_a_length_is_refused_when_it_grows_too_large(reads_on):
    handed = []

    async def endless():
        for _ in range(1000):
            handed.append(1)
            yield b"x" * 1000

    class Careless(Inner):
        """Fails on a broken body, as a framework does, with a reply of its own."""
        async def __call__(self, scope, receive, send):
            while (message := await receive())["type"] != "http.disconnect" and message.get("more_body"):
                self.read += len(message["body"])
            if reads_on:
                await send({"type": "http.response.start", "status": 400, "headers": []})
                await send({"type": "http.response.body", "body": b"broken"})

    inner = Careless()
    answer = ask(door(inner, limits=Limits(body=10_000)), "POST", "/x", body=endless())
    assert answer.status == 413 and set(json.loads(answer.body)) == {"error", "detail", "body", "errors"}
    assert inner.read <= 10_000 and len(handed) <= 12


def test_a_body_within_the_limit_passes_whole():
    inner = Inner()
    assert ask(door(inner, limits=Limits(body=10_000)), "POST", "/x", body=b"x" * 10_000).status == 200
    assert inner.read == 10_000


def test_a_body_that_stops_coming_is_given_up():
    async def stuck():
        yield b"x"
        await asyncio.sleep(30)
    inner = Inner()
    ask(door(inner, limits=Limits(between_chunks=0.05)), "POST", "/x", body=stuck(), seconds=10)
    assert inner.calls == 1 and inner.read == 1


@pytest.mark.parametrize("headers, status", [
    ([(f"X-{index}", "y") for index in range(200)], 431),
    ([("Content-Length", "1"), ("Content-Length", "2")], 400), ([("Content-Length", "-1")], 400), ([("Content-Length", "1e3")], 400),
    ([("Range", "bytes=" + ",".join("0-1" for _ in range(1000)))], 400), ([("Range", "bytes=0-1,2-3")], 200),
])
def test_headers_beyond_measure_are_refused(headers, status):
    assert ask(door(Inner()), "GET", "/x", headers).status == status


# ---- what a browser is told

def test_every_reply_says_what_it_is_and_who_may_frame_it():
    for answer in (ask(door(Inner()), "GET", "/x"), ask(door(), "GET", "/"), ask(door(), "GET", "/", host="evil.example"),
                   ask(door(Inner(b"<html>", b"text/html")), "GET", "/"), ask(door(), "GET", READY)):
        assert answer["x-content-type-options"] == "nosniff"
        assert answer["referrer-policy"] and answer["x-frame-options"] == "SAMEORIGIN"
        assert answer["cross-origin-opener-policy"] == "same-origin"


def test_the_policy_of_a_page_allows_no_inline_script_without_the_nonce():
    policy = ask(door(Inner(b"<html>", b"text/html")), "GET", "/")["content-security-policy"]
    scripts = next(part for part in policy.split(";") if "script-src" in part)
    assert "unsafe" not in scripts and "nonce-" in scripts and "*" not in scripts
    for wanted in ("object-src 'none'", "base-uri 'self'", "frame-ancestors 'self'", "form-action 'self'"):
        assert wanted in policy


def test_each_page_has_a_nonce_of_its_own():
    opened = door(Inner(b"<script>1</script>", b"text/html"))
    assert len({ask(opened, "GET", "/").body for _ in range(5)}) == 5


@pytest.mark.parametrize("kind", [b"text/html", b"text/html; charset=utf-8", b"image/svg+xml", b"application/xml", b"application/pdf"])
def test_a_strangers_document_is_sealed_and_its_scripts_get_no_nonce(kind):
    answer = ask(door(Inner(b"<script>alert(1)</script>", kind)), "GET", "/gradio_api/file=/x/evil.html")
    assert answer.body == b"<script>alert(1)</script>"
    assert "sandbox" in answer["content-security-policy"] and "script-src" not in answer["content-security-policy"]
    assert "default-src 'none'" in answer["content-security-policy"]


def test_only_script_tags_get_the_nonce():
    before = b'<script>a</script><script src="x"></script><scripts><SCRIPT\n>b</SCRIPT>"<scripting"'
    after = with_nonce(before, "N")
    assert after.count(b'nonce="N"') == 3
    assert after.replace(b' nonce="N"', b"").lower() == before.lower()


@pytest.mark.parametrize("timed", [True, False])
def test_the_time_a_reply_took_is_told_when_the_api_is_on(timed):
    answer = ask(door(Inner(), timed=timed), "GET", "/x")
    assert bool(re.fullmatch(r"\d+\.\d{4}", answer["x-process-time"])) is timed


def test_requests_to_the_api_are_told_to_the_log_and_no_others():
    lines = []
    logged = door(Inner(), log=lines.append)
    ask(logged, "GET", "/config")
    ask(logged, "POST", "/sdapi/v1/txt2img?x=secret")
    assert len(lines) == 1 and "/sdapi/v1/txt2img 200" in lines[0] and "secret" not in lines[0]


# ---- behind a proxy

@pytest.mark.parametrize("asked", ["/sdapi/v1/progress", "/prefix/sdapi/v1/progress"])
def test_the_prefix_of_a_proxy_is_understood_whether_or_not_the_proxy_takes_it_away(asked):
    inner = Inner()
    ask(door(inner, subpath="/prefix"), "GET", asked)
    assert (inner.scope["path"], inner.scope["root_path"]) == ("/prefix/sdapi/v1/progress", "/prefix")


def test_the_prefix_is_no_way_around_the_credentials():
    for path in ("/prefix/config", "/config", "/prefix/prefix/config", "/prefix", "/prefixx/config"):
        assert ask(door(Inner(), subpath="/prefix", users=USERS), "GET", path).status == 401


def test_another_site_may_link_to_one_page_only():
    assert frozenset({"/"}) == PAGES
