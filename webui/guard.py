"""May this request come in? Host, origin and credentials, judged from the raw ASGI scope alone. Everything not allowed is refused.

A web page anywhere can send requests to a server on the loopback interface, and a name that an attacker owns can be made to resolve to it.
So the Host must be a name of ours (or, when the whole network is served, an IP address, which cannot be rebound), the Origin must be our
own, and, when there are users or a token, every path needs them: the mounted application's own logins are not relied on.
"""
from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9_.-]{1,253}))(?::([0-9]{1,5}))?")
READING = frozenset({"GET", "HEAD", "OPTIONS"})
# Paths that answer without credentials, each with its reason. Exact, on the path as it came, for GET and HEAD only.
PUBLIC = (
    ("/manifest.json", "browsers fetch a page's manifest without its credentials; it holds a title and icons"),
)
# Routes that Gradio mounts and our page does not use, by the beginning of their path: editing of source code, fetching for others, logins
# beside ours, figures on visitors, and a GET that writes. They answer 404.
CLOSED = (
    "/gradio_api/vibe-", "/gradio_api/undo-vibe-", "/gradio_api/proxy=", "/gradio_api/deep_link", "/gradio_api/dev/",
    "/gradio_api/custom_component/", "/gradio_api/process_recording", "/gradio_api/runs", "/monitoring", "/login", "/logout",
)
PAGES = frozenset({"/"})                                    # documents of ours: a link on another site may lead here, and nowhere else
REALM = 'Basic realm="Easel", charset="UTF-8"'


@dataclass(frozen=True)
class Refusal:
    """Why not. status: HTTP status. detail: what an API client reads."""

    status: int
    detail: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Guard:
    """names: host names we answer to, lower case. any_address: whether any IP address is one of ours (when the network is served).

    users: (name, password) pairs; token: a bearer token. With either, every path but PUBLIC needs credentials.
    origins, origin_pattern: foreign web origins that may call; "*" is any.
    """

    names: frozenset[str] = frozenset({"localhost"})
    any_address: bool = False
    users: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    token: str = field(default="", repr=False)
    cookie: str = "easel_token"
    origins: frozenset[str] = frozenset()
    origin_pattern: str | None = None

    def refusal(self, scope: Mapping[str, Any], path: str) -> Refusal | None:
        """None when the request (http or websocket) may pass. path: without the prefix of a reverse proxy."""
        headers = Headers(scope)
        refused = self._host(headers) or self._origin(scope, headers, path) or self._credentials(scope, headers, path)
        return refused or (Refusal(404, "Not Found") if path.startswith(CLOSED) else None)

    def foreign(self, scope: Mapping[str, Any]) -> str:
        """The request's Origin when it is a foreign one that may call, else ""."""
        headers = Headers(scope)
        origin = headers.one("origin")
        return origin if origin and not _same(origin, headers.one("host")) and self._listed(origin) else ""

    def _host(self, headers: Headers) -> Refusal | None:
        hosts = headers.all("host")
        found = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if found is None:
            return Refusal(400, "One valid Host header is needed")
        name = (found[1] or found[2]).lower().rstrip(".")
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            known = name in self.names
        else:
            known = address.is_loopback or self.any_address or name in self.names
        return None if known else Refusal(403, "This host name is not one of Easel's; name it with --allowed-hosts")

    def _origin(self, scope: Mapping[str, Any], headers: Headers, path: str) -> Refusal | None:
        origins = headers.all("origin")
        refused = Refusal(403, "Requests from other web sites are refused; name the origin with --cors-allow-origins")
        if len(origins) > 1:
            return refused
        if origins:
            return None if _same(origins[0], headers.one("host")) or self._listed(origins[0]) else refused
        if headers.one("sec-fetch-site") in ("", "same-origin", "none"):
            return None
        # A browser says that another site made this request, and it carries no Origin: only a plain link to a page is harmless.
        link = scope.get("method") in ("GET", "HEAD") and headers.one("sec-fetch-mode") == "navigate" and path in PAGES
        return None if link and headers.one("sec-fetch-dest") in ("document", "") else refused

    def _listed(self, origin: str) -> bool:
        pattern = self.origin_pattern
        return "*" in self.origins or origin in self.origins or bool(pattern and re.fullmatch(pattern, origin))

    def _credentials(self, scope: Mapping[str, Any], headers: Headers, path: str) -> Refusal | None:
        if not self.users and not self.token:
            return None
        if scope.get("method") in ("GET", "HEAD") and path in {public for public, _ in PUBLIC}:
            return None
        given = headers.one("authorization")
        kind, _, value = given.partition(" ")
        known = (
            (kind.lower() == "basic" and self._basic(value.strip()))
            or (kind.lower() == "bearer" and self._is_token(value.strip()))
            or self._is_token(_cookie(headers.all("cookie"), self.cookie))
        )
        if known:
            return None
        return Refusal(401, "Incorrect username or password" if given else "Not authenticated", (("WWW-Authenticate", REALM),))

    def _basic(self, value: str) -> bool:
        try:
            name, _, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        matches = [_equal(name, user) & _equal(password, word) for user, word in self.users]    # all are compared: time tells nothing
        return any(matches) or self._is_token(password)

    def _is_token(self, text: str) -> bool:
        return bool(self.token) and _equal(text, self.token)

    def token_in(self, scope: Mapping[str, Any]) -> bool:
        """Whether the query carries the right token, as the printed address does."""
        if not self.token or scope.get("method") != "GET":
            return False
        query = parse_qsl(bytes(scope.get("query_string", b"")).decode("latin-1"))
        return any(name == "token" and self._is_token(value) for name, value in query)


class Headers:
    """The headers of a scope, asked by lower-case name."""

    def __init__(self, scope: Mapping[str, Any]) -> None:
        self._pairs: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())

    def all(self, name: str) -> list[str]:
        wanted = name.encode()
        return [value.decode("latin-1").strip() for key, value in self._pairs if key.lower() == wanted]

    def one(self, name: str) -> str:
        """The first value, "" when there is none."""
        return next(iter(self.all(name)), "")


def _same(origin: str, host: str) -> bool:
    """Whether an Origin is this host's own. The scheme may differ: a proxy in front may speak HTTPS for us."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return False
    default = ":443" if parts.scheme == "https" else ":80"
    return bool(parts.netloc) and parts.netloc.lower().removesuffix(default) == host.lower().removesuffix(default)


def _equal(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass"))


def _cookie(lines: list[str], name: str) -> str:
    try:
        found = SimpleCookie("; ".join(lines)).get(name)
    except CookieError:
        return ""
    return found.value if found else ""
