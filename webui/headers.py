"""What a browser is told about a reply: which scripts may run, who may frame it, what it may do with it."""
from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

SCRIPT = re.compile(rb"<script(?=[\s>])", re.IGNORECASE)
ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
# A file that came from outside (HTML, SVG, PDF) shown as a document: it may show itself and do nothing.
SEALED = b"default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; sandbox"
ACTIVE = (b"text/html", b"application/xhtml", b"image/svg", b"text/xml", b"application/xml", b"application/pdf")
OURS = frozenset(name for name, _ in ALWAYS) | {b"content-security-policy", b"server"}

Pairs = list[tuple[bytes, bytes]]


def fresh_nonce() -> str:
    return secrets.token_urlsafe(18)


def policy(nonce: str) -> bytes:
    """The Content-Security-Policy of our own pages: scripts from our files, or inline with this reply's nonce.

    Gradio writes style attributes, so inline styles stay allowed; it makes workers and pictures from blobs.
    """
    return (
        f"default-src 'self'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
        "object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'self'; frame-ancestors 'self'"
    ).encode()


def with_nonce(html: bytes, nonce: str) -> bytes:
    """The page with the nonce on each of its script tags. For pages of ours only: a stranger's HTML must never pass here."""
    return SCRIPT.sub(b'<script nonce="' + nonce.encode() + b'"', html)


def secured(pairs: Iterable[tuple[bytes, bytes]], *, page_nonce: str = "") -> Pairs:
    """A reply's headers with ours in place of what the application said about the same things, its CORS words taken away."""
    kept = [(name, value) for name, value in pairs if name.lower() not in OURS and not name.lower().startswith(b"access-control-")]
    kind = next((value.lower() for name, value in kept if name.lower() == b"content-type"), b"")
    if page_nonce:
        kept += [(b"content-security-policy", policy(page_nonce)), (b"cache-control", b"no-store")]
    elif kind.startswith(ACTIVE):
        kept.append((b"content-security-policy", SEALED))
    return [*kept, *ALWAYS]


def cross_origin(origin: str, any_origin: bool, preflight: bool = False) -> Pairs:
    """CORS words for a foreign origin that may call. Credentials only for origins that were named."""
    pairs = [(b"access-control-allow-origin", b"*" if any_origin else origin.encode()), (b"vary", b"Origin")]
    if not any_origin:
        pairs.append((b"access-control-allow-credentials", b"true"))
    if preflight:
        pairs += [(b"access-control-allow-methods", b"GET, POST, PUT, PATCH, DELETE"),
                  (b"access-control-allow-headers", b"authorization, content-type"), (b"access-control-max-age", b"600")]
    return pairs
