"""Fetching: the final name appears complete and verified or not at all, and no connection is made to what is not public."""
import hashlib
import http.server
import os
import re
import socket
import threading

import pytest

from modules.checkpoints import fetch
from modules.checkpoints.fetch import Allow, get, is_public
from modules.core.errors import Cancelled, CheckpointError, DiskFullError, RequestError, SaveError
from modules.core.progress import Progress

BODY = bytes(range(256)) * 12000 + b"end"                   # 3 MB
SHA = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """mode by path; `seen`: (path, Range header) of every request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = []
        self.body = BODY
        self.target = ""
        self.drops = 0

    def url(self, mode, name="m.safetensors"):
        return f"http://127.0.0.1:{self.server_port}/{mode}/{name}?key=secret"

    def handle_error(self, request, address):
        """The other side went away, as it should."""

    @property
    def allow(self):
        return Allow(outbound=True, plain_http=True, local=frozenset({f"127.0.0.1:{self.server_port}"}))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        mode = self.path.split("/")[1]
        asked = self.headers.get("Range")
        self.server.seen.append((self.path, asked))
        getattr(self, f"do_{mode}")(int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0)

    def send(self, status, body, headers=(), length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_plain(self, at):
        body = self.server.body
        if at >= len(body) and at:
            return self.send(416, b"", [("Content-Range", f"bytes */{len(body)}")])
        if at:
            return self.send(206, body[at:], [("Content-Range", f"bytes {at}-{len(body) - 1}/{len(body)}")])
        self.send(200, body)

    def do_norange(self, at):
        self.send(200, self.server.body)

    def do_drop(self, at):
        """Ends the connection after a third, as often as told."""
        if self.server.drops <= 0:
            return self.do_plain(at)
        self.server.drops -= 1
        rest = self.server.body[at:]
        status, headers = (206, [("Content-Range", f"bytes {at}-{len(self.server.body) - 1}/{len(self.server.body)}")]) if at else (200, [])
        self.send(status, rest[:len(self.server.body) // 3], headers, length=len(rest))
        self.close_connection = True

    def do_elsewhere(self, at):
        self.send(206, self.server.body[5:], [("Content-Range", f"bytes 5-{len(self.server.body) - 1}/{len(self.server.body)}")])

    def do_html(self, at):
        self.send(200, b"<html>log in</html>", [("Content-Type", "text/html; charset=utf-8")])

    def do_gzip(self, at):
        self.send(200, b"x", [("Content-Encoding", "gzip")])

    def do_huge(self, at):
        self.send(200, b"", length=1 << 60)

    def do_chunked(self, at):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(self.server.body), 1 << 20):
            piece = self.server.body[start:start + (1 << 20)]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def do_missing(self, at):
        self.send(404, b"no")

    def do_broken(self, at):
        self.send(503, b"later")

    def do_redirect(self, at):
        self.send(302, b"", [("Location", self.server.target)])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def fetched(server, mode, folder, **more):
    return get(server.url(mode), more.pop("sha256", SHA), folder, allow=more.pop("allow", server.allow), **more)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- what arrives

@pytest.mark.parametrize("mode", ["plain", "norange", "chunked"])
def test_a_file_arrives_whole_under_the_address_s_last_name(server, tmp_path, mode):
    progress = Progress()
    path = fetched(server, mode, tmp_path / "new", progress=progress)
    assert path == tmp_path / "new" / "m.safetensors" and path.read_bytes() == BODY and names(tmp_path / "new") == ["m.safetensors"]
    assert progress.view().stage == "downloading"


def test_the_same_file_is_not_fetched_twice_and_another_one_is_not_replaced(server, tmp_path):
    fetched(server, "plain", tmp_path)
    fetched(server, "plain", tmp_path)
    assert len(server.seen) == 1
    (tmp_path / "m.safetensors").write_bytes(b"mine")
    with pytest.raises(SaveError, match="another"):
        fetched(server, "plain", tmp_path)
    assert (tmp_path / "m.safetensors").read_bytes() == b"mine"


def test_after_drops_it_goes_on_where_it_was(server, tmp_path):
    server.drops = 2
    assert fetched(server, "drop", tmp_path).read_bytes() == BODY
    third = len(BODY) // 3
    assert [asked for _, asked in server.seen] == [None, f"bytes={third}-", f"bytes={2 * third}-"]


def test_what_an_earlier_run_left_is_used(server, tmp_path):
    (tmp_path / f".{SHA[:16]}.part").write_bytes(BODY[:1000])
    assert fetched(server, "plain", tmp_path).read_bytes() == BODY
    assert [asked for _, asked in server.seen] == ["bytes=1000-"] and names(tmp_path) == ["m.safetensors"]


def test_when_all_had_arrived_nobody_is_asked(server, tmp_path):
    (tmp_path / f".{SHA[:16]}.part").write_bytes(BODY)
    assert fetched(server, "missing", tmp_path).read_bytes() == BODY
    assert server.seen == []


@pytest.mark.parametrize("left", [b"x" * 1000, BODY + b"more"])
def test_a_remainder_of_another_content_or_too_long_is_begun_anew(server, tmp_path, left):
    (tmp_path / f".{SHA[:16]}.part").write_bytes(left)
    assert fetched(server, "plain", tmp_path).read_bytes() == BODY


def test_a_server_that_goes_on_at_another_place_is_not_believed(server, tmp_path):
    (tmp_path / f".{SHA[:16]}.part").write_bytes(BODY[:1000])
    with pytest.raises(SaveError, match="another place"):
        fetched(server, "elsewhere", tmp_path)
    assert "m.safetensors" not in names(tmp_path)


# ---- what does not

def test_a_wrong_hash_leaves_no_file_at_all(server, tmp_path):
    server.body = BODY[:-1] + b"!"
    with pytest.raises(CheckpointError, match="thrown away"):
        fetched(server, "plain", tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("mode, error, said", [("html", CheckpointError, "web page"), ("gzip", CheckpointError, "packs"), ("missing", SaveError, "knows no such"),
                                               ("broken", SaveError, "503"), ("huge", SaveError, "more than")])
def test_every_refusal_is_a_sentence_without_the_address_s_key(server, tmp_path, mode, error, said):
    with pytest.raises(error, match=said) as caught:
        fetched(server, mode, tmp_path)
    assert "secret" not in str(caught.value) and "m.safetensors" not in names(tmp_path)


def test_a_server_that_is_not_there_is_a_sentence_and_what_arrived_is_kept(server, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    (tmp_path / f".{SHA[:16]}.part").write_bytes(BODY[:1000])
    with pytest.raises(SaveError, match="try again later"):
        get(f"http://127.0.0.1:{port}/m.safetensors", SHA, tmp_path, allow=Allow(outbound=True, plain_http=True, local=frozenset({f"127.0.0.1:{port}"})))
    assert names(tmp_path) == [f".{SHA[:16]}.part"]


def test_more_than_is_allowed_is_stopped_whether_announced_or_not(server, tmp_path):
    for mode in ("plain", "chunked"):
        with pytest.raises(SaveError, match="allowed"):
            fetched(server, mode, tmp_path, limit=1 << 20)
        assert "m.safetensors" not in names(tmp_path)


def test_cancelled_it_keeps_what_arrived_and_goes_on_later(server, tmp_path):
    class Impatient(Progress):
        def at(self, **changes):
            super().at(**changes)
            if changes.get("step") == 1:
                self.interrupt()

    with pytest.raises(Cancelled):
        fetched(server, "plain", tmp_path, progress=Impatient())
    assert names(tmp_path) == [f".{SHA[:16]}.part"]
    assert fetched(server, "plain", tmp_path).read_bytes() == BODY
    assert int(server.seen[-1][1].removeprefix("bytes=").rstrip("-")) > 1 << 20


def test_a_full_disk_is_told_before_and_while_it_fills(server, small_disk):
    for mode in ("plain", "chunked"):
        with pytest.raises(DiskFullError, match="room"):
            fetched(server, mode, small_disk)
        assert "m.safetensors" not in names(small_disk)


def test_two_downloads_of_one_file_do_not_mix(server, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with open(tmp_path / f".{SHA[:16]}.part", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SaveError, match="Another download"):
            fetched(server, "plain", tmp_path)


def test_a_disk_without_links_gives_the_name_too(server, tmp_path, monkeypatch):
    def no_link(*_):
        raise PermissionError(1, "no links here")
    monkeypatch.setattr(os, "link", no_link)
    assert fetched(server, "plain", tmp_path).read_bytes() == BODY and names(tmp_path) == ["m.safetensors"]


# ---- where it may go

def test_nothing_is_fetched_unasked(server, tmp_path):
    with pytest.raises(RequestError, match="unless it is asked"):
        get(server.url("plain"), SHA, tmp_path)
    assert server.seen == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
                                  "[::]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "[fe80::1]", "[fc00::1]",
                                  "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "224.0.0.1", "255.255.255.255"])
def test_no_connection_is_made_to_this_machine_or_its_network(host, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: made.append(address))
    with pytest.raises((RequestError, SaveError)) as caught:
        monkeypatch.setattr(fetch, "TRIES", 1)
        get(f"https://{host}/m.safetensors", SHA, tmp_path, allow=Allow(outbound=True))
    assert made == [] and (isinstance(caught.value, RequestError) or "not known" in str(caught.value))
    assert names(tmp_path) == []


def test_a_name_that_turns_into_a_private_address_is_caught(tmp_path, monkeypatch):
    """Resolved once; a name with one public and one private address is refused, and the connected peer is looked at again."""
    def answers(*addresses):
        return lambda host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    made = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: made.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", answers("93.184.215.14", "127.0.0.1"))
    with pytest.raises(RequestError, match="this machine"):
        get("https://rebind.example/m.safetensors", SHA, tmp_path, allow=Allow(outbound=True))
    assert made == []
    monkeypatch.setattr(socket, "getaddrinfo", answers("93.184.215.14"))
    monkeypatch.setattr(socket.socket, "getpeername", lambda self: ("127.0.0.1", 443))
    with pytest.raises(RequestError, match="this machine"):
        get("https://rebind.example/m.safetensors", SHA, tmp_path, allow=Allow(outbound=True))
    assert made == [("93.184.215.14", 443)]


@pytest.mark.parametrize("target", ["http://127.0.0.1:9/m.safetensors", "http://localhost:9/x", "https://169.254.169.254/latest", "file:///etc/passwd", "ftp://a/b", "//", ""])
def test_a_redirect_is_looked_at_like_the_address_itself(server, tmp_path, target):
    server.target = target
    with pytest.raises((RequestError, SaveError)):
        fetched(server, "redirect", tmp_path)
    assert "m.safetensors" not in names(tmp_path)


def test_a_redirect_to_where_one_may_go_is_followed_with_its_range_and_no_circle_is(server, tmp_path):
    server.target = server.url("plain", "other.safetensors")
    (tmp_path / f".{SHA[:16]}.part").write_bytes(BODY[:7])
    assert fetched(server, "redirect", tmp_path).read_bytes() == BODY
    assert [asked for _, asked in server.seen] == ["bytes=7-", "bytes=7-"]
    server.target = server.url("redirect")
    with pytest.raises(SaveError, match="without end"):
        get(server.url("redirect", "again.safetensors"), SHA, tmp_path, allow=server.allow)


@pytest.mark.parametrize("url", ["http://example.com/m.safetensors", "ftp://example.com/m.safetensors", "file:///m.safetensors", "https:///m.safetensors",
                                 "https://user:hush@example.com/m.safetensors", "https://example.com:99999/m.safetensors", "https://exa mple.com/m.safetensors",
                                 "https://example.com/\r\nHost: x/m.safetensors", "https://[::1/m.safetensors", "https://\ud800.com/m.safetensors", "m.safetensors"])
def test_an_address_that_is_none_of_ours_is_refused_before_anything_else(url, tmp_path):
    with pytest.raises(RequestError) as caught:
        get(url, SHA, tmp_path, allow=Allow(outbound=True))
    assert "hush" not in str(caught.value) and names(tmp_path) == []


@pytest.mark.parametrize("name", ["../m.safetensors", "a/m.safetensors", "m.exe", "m", "aux.safetensors ", "C:m.safetensors", ".."])
def test_a_name_that_leaves_the_folder_or_is_no_model_s_is_refused(name, tmp_path):
    with pytest.raises(Exception) as caught:
        get("https://example.com/x", SHA, tmp_path, name=name, allow=Allow(outbound=True))
    assert getattr(caught.value, "status", 500) == 422 and names(tmp_path) == []


def test_an_address_may_not_smuggle_a_folder_into_the_name(tmp_path):
    with pytest.raises(Exception) as caught:
        get("https://example.com/a%2F..%2F..%5Cm.safetensors", SHA, tmp_path, allow=Allow(outbound=True))
    assert getattr(caught.value, "status", 500) == 422


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64, SHA + "0"])
def test_without_a_whole_hash_nothing_is_fetched(sha256, tmp_path):
    with pytest.raises(RequestError, match="64 hex digits"):
        get("https://example.com/m.safetensors", sha256, tmp_path, allow=Allow(outbound=True))


@pytest.mark.parametrize("address, public", [("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("::ffff:10.0.0.1", False),
                                             ("64:ff9b::808:808", True), ("64:ff9b::a00:1", False), ("2001:db8::1", False), ("192.0.2.1", False),
                                             ("198.18.0.1", False), ("ff02::1", False), ("nonsense", False)])
def test_what_is_public_and_what_is_not(address, public):
    assert is_public(address) == public
