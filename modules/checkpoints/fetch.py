"""The one client that reaches out: a model file from an address, resumed where it broke off, under its name only when its hash is right.

Nothing calls it unasked. It speaks https alone, follows redirects one by one, and connects only to public addresses, each looked at
after the name was resolved and again on the connection itself, so that no name can turn into one of this machine or its network.
"""
from __future__ import annotations

import errno
import hashlib
import http.client
import ipaddress
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote, urljoin, urlsplit

from modules.core.errors import CheckpointError, DiskFullError, RequestError, SaveError
from modules.core.files import FULL, NO_LINKS
from modules.core.paths import safe_join
from modules.core.progress import Progress

ENDINGS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
LIMIT = 64 << 30                                            # bytes of one file
BLOCK = 1 << 20                                             # bytes received at once
TIMEOUT = 30.0                                              # seconds without a byte
TRIES, PAUSE = 5, 1.0                                       # connections in a row that bring nothing new; seconds before the second
MOST_HOPS = 5
HEX = re.compile(r"[0-9a-fA-F]{64}")
RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
TURNED_AWAY = {401: "asks for a login", 403: "refuses it", 404: "knows no such file", 410: "has it no more"}
UNQUOTED = "/%:@!$&'()*+,;=~-._?"                            # in a path or a query these stay as they are
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, kw_only=True)
class Allow:
    """What the caller permits. outbound: reaching out at all. plain_http: without encryption. local: "host:port" of servers that may
    be reached although their addresses are not public."""

    outbound: bool = False
    plain_http: bool = False
    local: frozenset[str] = frozenset()


class Dropped(Exception):
    """The connection ended too early or could not be made; another one may do better."""


def get(url: str, sha256: str, folder: str | os.PathLike[str], *, name: str = "", allow: Allow = Allow(), limit: int = LIMIT,
        progress: Progress | None = None) -> Path:
    """Bring the file at `url` into `folder` and return its path. Nothing is fetched when it is there already.

    sha256: 64 hex digits that the file must have. name: "" = the last part of the address. limit: bytes.
    What arrived stays in a hidden part file when it breaks off or is cancelled; the next call with this hash goes on from there.
    Raises RequestError for an address that may not be reached, CheckpointError for another content, SaveError, DiskFullError, Cancelled.
    """
    if not allow.outbound:
        raise RequestError("Easel fetches nothing unless it is asked to; allow it for this file.", field="url")
    if not HEX.fullmatch(sha256):
        raise RequestError("The SHA-256 of the file is needed, 64 hex digits, as the page that offers it shows them.", field="sha256")
    home, wanted, progress = Path(folder), sha256.lower(), progress or Progress()
    _checked(url, allow)
    target = safe_join(home, _name(url, name))
    if target.exists():
        if _digest(target, progress).hexdigest() == wanted:
            return target
        raise SaveError(f"There is another {target.name} in {home} already; choose another name.")
    with _sentences(home):
        home.mkdir(parents=True, exist_ok=True)
        with _Part.opened(home / f".{wanted[:16]}.part", progress) as part:
            _fill(part, url, wanted, allow, limit, progress)
        _place(part.path, target)
    return target


def _fill(part: _Part, url: str, wanted: str, allow: Allow, limit: int, progress: Progress) -> None:
    """Receive until the part file has the wanted hash. One that was resumed and came out wrong is begun anew once."""
    resumed = part.size > 0
    if resumed and part.digest.hexdigest() == wanted:
        return                                              # all of it had arrived
    _receive(part, url, allow, limit, progress)
    if part.digest.hexdigest() != wanted and resumed:
        part.restart()
        _receive(part, url, allow, limit, progress)
    if part.digest.hexdigest() != wanted:
        found = part.digest.hexdigest()
        part.discard()
        raise CheckpointError(f"The file at {_shown(url)} has the SHA-256 {found}, not the wanted one, so it was thrown away; check the "
                              "address and the hash.")


def _receive(part: _Part, url: str, allow: Allow, limit: int, progress: Progress) -> None:
    """All that is missing, over as many connections as it takes while each brings something."""
    failures = 0
    while True:
        before = part.size
        try:
            return _once(part, url, allow, limit, progress)
        except Dropped as error:
            failures = failures + 1 if part.size <= before else 1
            if failures >= TRIES:
                raise SaveError(f"{_shown(url)} could not be fetched ({error}); what arrived is kept, try again later.") from error
            _wait(PAUSE * 2 ** (failures - 1), progress)


def _once(part: _Part, url: str, allow: Allow, limit: int, progress: Progress) -> None:
    """One connection. Raises Dropped when it ends before the file does."""
    with _answer(url, part.size, allow) as answer:
        if answer.status == 416:
            part.restart()
            raise Dropped("the file is shorter than what arrived of it")
        kind = answer.getheader("Content-Type", "").split(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise CheckpointError(f"{_shown(url)} answers with a web page, not with a file; find the address of the file itself.")
        if answer.getheader("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise CheckpointError(f"{_shown(url)} packs what it sends, so its length cannot be known; find another address.")
        if answer.status == 200:
            part.restart()
        elif not _goes_on(answer, part.size):
            part.restart()
            raise Dropped("the server goes on at another place")
        length = answer.length                              # None = the server does not say
        if part.size + (length or 0) > limit:
            raise SaveError(f"{_shown(url)} has {part.size + (length or 0)} bytes, more than the {limit} that are allowed.")
        if length is not None and shutil.disk_usage(part.path.parent).free < length:
            raise DiskFullError(f"There is no room for {length} bytes in {part.path.parent}; make room there and try again.")
        _copy(answer, part, None if length is None else part.size + length, limit, progress)


def _copy(answer: http.client.HTTPResponse, part: _Part, whole: int | None, limit: int, progress: Progress) -> None:
    while True:
        progress.check()
        progress.at(stage="downloading", batches=1, step=part.size >> 20, steps=(whole or 0) >> 20)
        try:
            data = answer.read(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Dropped(_cause(error)) from error
        if not data:
            break
        part.write(data)
        if part.size > limit:
            part.discard()
            raise SaveError(f"More than the {limit} bytes that are allowed came; the file was thrown away.")
    if whole is not None and part.size < whole:
        raise Dropped("the connection ended early")


def _goes_on(answer: http.client.HTTPResponse, at: int) -> bool:
    found = RANGE.fullmatch(answer.getheader("Content-Range", "").strip())
    return answer.status == 206 and found is not None and int(found[1]) == at


# ---- addresses

@contextmanager
def _answer(url: str, at: int, allow: Allow) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET from byte `at` on, status 200, 206 or 416, behind all redirects. Raises Dropped for what may pass."""
    for _ in range(MOST_HOPS + 1):
        connection, place = _connection(url, allow)
        try:
            headers = {"User-Agent": "Easel", "Accept": "*/*", "Accept-Encoding": "identity", **({"Range": f"bytes={at}-"} if at else {})}
            try:
                connection.request("GET", place, headers=headers)
                answer = connection.getresponse()
            except ssl.SSLCertVerificationError as error:
                raise _impostor(url, error) from error
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                raise Dropped(_cause(error)) from error
            if answer.status in (200, 206, 416):
                yield answer
                return
            if answer.status not in (301, 302, 303, 307, 308):
                raise _refusal(url, answer.status)
            url = urljoin(url, answer.getheader("Location", ""))
        finally:
            connection.close()
    raise SaveError(f"{_shown(url)} sends from one address to the next without end.")


def _refusal(url: str, status: int) -> Exception:
    if status == 429 or status >= 500:
        return Dropped(f"the server answers {status}")
    return SaveError(f"{_shown(url)} {TURNED_AWAY.get(status, f'answers {status}')}; check the address in a browser.")


def _impostor(url: str, error: ssl.SSLCertVerificationError) -> SaveError:
    return SaveError(f"{_shown(url)} cannot prove that it is what it says ({error.verify_message}); nothing was fetched.")


def _checked(url: str, allow: Allow) -> tuple[str, str, int, str]:
    """(scheme, host, port, path with query). Raises RequestError for what may not be asked."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except ValueError as error:                             # also UnicodeError: half a character, a label too long
        raise RequestError(f"{_shown(url)} is no address; copy it again.", field="url") from error
    if len(url) > 4096 or not host or any(letter <= " " or letter == "\x7f" for letter in url):
        raise RequestError(f"{_shown(url)} is no address; copy it again.", field="url")
    if scheme != "https" and not (scheme == "http" and allow.plain_http):
        raise RequestError(f"{_shown(url)} does not begin with https://, and Easel fetches from such addresses only.", field="url")
    if parts.username is not None or parts.password is not None:
        raise RequestError("The address holds a name or a password; give one without them.", field="url")
    place = quote(parts.path or "/", safe=UNQUOTED) + (f"?{quote(parts.query, safe=UNQUOTED)}" if parts.query else "")
    return scheme, host, port or (443 if scheme == "https" else 80), place


def _connection(url: str, allow: Allow) -> tuple[http.client.HTTPConnection, str]:
    """A connection whose socket is made only to addresses that are allowed, and the path to ask for. Raises RequestError, Dropped."""
    scheme, host, port, place = _checked(url, allow)
    connection: http.client.HTTPConnection
    if scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    connection.auto_open = 0                                # else it would connect by itself, to wherever the name then leads
    raw = _socket(host, port, allow, _shown(url))
    try:
        connection.sock = context.wrap_socket(raw, server_hostname=host) if scheme == "https" else raw
    except ssl.SSLCertVerificationError as error:
        raw.close()
        raise _impostor(url, error) from error
    except OSError as error:
        raw.close()
        raise Dropped(_cause(error)) from error
    return connection, place


def _socket(host: str, port: int, allow: Allow, shown: str) -> socket.socket:
    """Connected to the first address of the name that answers, all of which must be public. The name is resolved once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Dropped(f"{host[:80]} is not known") from error
    private = f"{host}:{port}" in allow.local
    if not private and not all(is_public(str(address[0])) for *_, address in found):
        raise RequestError(f"{shown} leads to this machine or its own network, from where nothing is fetched.", field="url")
    cause = "no address"
    for family, kind, protocol, _, address in found:
        raw = socket.socket(family, kind, protocol)
        try:
            raw.settimeout(TIMEOUT)
            raw.connect(address)
            peer = raw.getpeername()[0]
        except OSError as error:
            raw.close()
            cause = _cause(error)
            continue
        if private or is_public(str(peer)):
            return raw
        raw.close()
        raise RequestError(f"{shown} leads to this machine or its own network, from where nothing is fetched.", field="url")
    raise Dropped(cause)


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the open Internet, in whatever wrapping of IPv6 it comes."""
    try:
        found = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inside = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in NAT64:
            inside.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in inside):
            return False
        if found.ipv4_mapped is not None or found in NAT64:
            return True                                     # as public as what it wraps
    return found.is_global and not (found.is_multicast or found.is_reserved or found.is_unspecified)


def _name(url: str, name: str) -> str:
    found = name or unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    if not found.lower().endswith(ENDINGS):
        said = f"“{found[:60]}” does not end" if found else "The address does not end"
        raise RequestError(f"{said} as a model file does; give a name with {', '.join(ENDINGS)}.", field="name")
    return found


def _shown(url: str) -> str:
    """The address without its query, which may hold a key, short enough for a sentence."""
    plain = "".join(letter if letter.isprintable() else "�" for letter in url.split("?")[0].split("#")[0])
    plain = re.sub(r"//[^/@]*@", "//", plain)
    return plain if len(plain) <= 120 else plain[:117] + "..."


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    return str(getattr(error, "strerror", None) or getattr(error, "reason", None) or error or type(error).__name__)[:120]


def _wait(seconds: float, progress: Progress) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        progress.check()
        time.sleep(min(0.1, seconds))


# ---- files

class _Part:
    """The hidden file that grows, and the hash of what is in it."""

    def __init__(self, path: Path, file: BinaryIO, progress: Progress) -> None:
        self.path, self._file = path, file
        file.seek(0)
        self.digest = hashlib.sha256()
        self.size = 0
        while block := file.read(BLOCK):
            progress.check()
            self.digest.update(block)
            self.size += len(block)

    @classmethod
    @contextmanager
    def opened(cls, path: Path, progress: Progress) -> Iterator[_Part]:
        """Begun or gone on with; safely on disk at the end. Raises SaveError when another process is at it."""
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            _lock(file, path)
            part = cls(path, file, progress)
            try:
                yield part
            except BaseException:
                if not part.size:
                    part.discard()                          # nothing to go on from
                raise
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)

    def discard(self) -> None:
        """Take the file away; what came was not wanted."""
        self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)


def _lock(file: BinaryIO, path: Path) -> None:
    """Two downloads of one file at once would mix; where the system has no such locks, the hash would tell."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SaveError(f"Another download of the same file into {path.parent} is going on; wait for it.") from error


def _place(part: Path, target: Path) -> None:
    """Give the finished file its name; a file that has it meanwhile stays. Raises SaveError."""
    try:
        os.link(part, target)
    except FileExistsError as error:
        raise SaveError(f"There is another {target.name} in {target.parent} now; choose another name.") from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        os.replace(part, target)
        return
    os.unlink(part)


def _digest(path: Path, progress: Progress) -> hashlib._Hash:
    digest = hashlib.sha256()
    with _sentences(path.parent), open(path, "rb") as file:
        while block := file.read(BLOCK):
            progress.check()
            digest.update(block)
    return digest


@contextmanager
def _sentences(folder: Path) -> Iterator[None]:
    """Turn the system's words into ours."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFullError(f"There is no room left in {folder}; make room there and try again, what arrived is kept.") from error
        cause = error.strerror or errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise SaveError(f"Nothing could be written in {folder} ({cause}); check the folder and its permissions.") from error
