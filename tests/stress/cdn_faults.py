"""What a CDN can do wrong, byte by byte: replies of tests/cdn's misbehaving server, and the files it serves soundly."""

import gzip
import hashlib
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from urllib.parse import unquote

from tests.cdn.misbehaving_server import Exchange, MisbehavingServer
from tif1_pipeline.simulator import Season

_HTML = b"<!DOCTYPE html><html><body><h1>Something went wrong</h1></body></html>\n"
_MODIFIED = "Sat, 01 Mar 2025 12:00:00 GMT"
LATER = "Sat, 01 Mar 2036 12:00:00 GMT"
_MIB = 1 << 20


class Files:
    """A season's files as they are sent: gzipped, with their ETags."""

    def __init__(self, season: Season, season_later: Season | None = None) -> None:
        self.season, self.later = season, season_later
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, bool], tuple[bytes, bytes, str] | None] = {}

    def get(self, path: str, later: bool = False) -> tuple[bytes, bytes, str] | None:
        """Return a file plain, gzipped, and its ETag, by the path below the mirror's prefix."""
        with self._lock:
            if (path, later) not in self._kept:
                season = self.later if later and self.later else self.season
                name = unquote(path).partition("/")[2]
                plain = season.schedule() if path.startswith("schedule") else season.file(name)
                self._kept[path, later] = plain and (
                    plain, gzip.compress(plain, 1), f'"{hashlib.sha1(plain, usedforsecurity=False).hexdigest()[:16]}"'
                )  # fmt: skip
            return self._kept[path, later]


class Mirrors(MisbehavingServer):
    """Mirrors ``a`` and ``b`` that are sound but for the faults in force.

    Attributes:
        fault: By mirror: what to do instead of answering, and the share of the requests it is done to.
        served: Sound answers by path.
        is_later: Another version of all files is published.
    """

    def __init__(self, files: Files, chance: random.Random) -> None:
        super().__init__()
        self.files, self.chance = files, chance
        self.fault: dict[str, tuple[Callable[[Exchange, Mirrors], None], float]] = {}
        self.served: Counter[str] = Counter()
        self.is_later = False
        self.replies = {"a": self._reply, "b": self._reply}
        self.start()

    def _reply(self, exchange: Exchange) -> None:
        mirror = exchange.path.split("/")[1]
        fault = self.fault.get(mirror)
        with suppress(OSError):  # clients that hang up are part of it
            if fault and self.chance.random() < fault[1]:
                fault[0](exchange, self)
            else:
                self.sound(exchange)

    def file(self, exchange: Exchange, later: bool = False) -> tuple[bytes, bytes, str] | None:
        """Return the file asked for."""
        # A query says nothing to a CDN of files; without this a redirect that adds one would end at no file.
        return self.files.get(exchange.path.partition("?")[0].split("/", 2)[2], later)

    def sound(self, exchange: Exchange) -> None:
        """Answer as the CDN does."""
        found = self.file(exchange, self.is_later)
        if found is None:
            exchange.send(b"Couldn't find the requested file.\n", 404, content_type="text/plain")
            return
        _, packed, etag = found
        if exchange.headers.get("If-None-Match") == etag:
            exchange.send(b"", 304, etag=etag, content_length="")
            return
        exchange.send(packed, etag=etag, last_modified=_MODIFIED, content_encoding="gzip")
        with self.lock:
            self.served[exchange.path] += 1

    def urls(self, *names: str) -> list[str]:
        """Return templates for the setting ``cdn_urls``."""
        return [self.mirror(name) for name in names]

    def schedules(self, *names: str) -> list[str]:
        """Return templates for the setting ``schedule_urls``."""
        return [f"{self.origin}/{name}/schedule_{{year}}.json" for name in names]


Reply = Callable[[Exchange, Mirrors], None]


def _packed(exchange: Exchange, mirrors: Mirrors) -> bytes:
    found = mirrors.file(exchange)
    return found[1] if found else gzip.compress(b'{"detail": "nothing here"}')


def _plain(exchange: Exchange, mirrors: Mirrors) -> bytes:
    found = mirrors.file(exchange)
    return found[0] if found else b'{"detail": "nothing here"}'


def _head(status: int = 200, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Reason", "Content-Type: application/json", *lines, "", ""]).encode(
        "latin-1"
    )


def _one_of(*replies: Reply) -> Reply:
    def reply(exchange: Exchange, mirrors: Mirrors) -> None:
        mirrors.chance.choice(replies)(exchange, mirrors)

    return reply


def _close_after(data: Callable[[Exchange, Mirrors], bytes], *, reset: bool = False) -> Reply:
    def reply(exchange: Exchange, mirrors: Mirrors) -> None:
        exchange.raw(data(exchange, mirrors))
        exchange.hang_up(reset)

    return reply


def _sends(data: Callable[[Exchange, Mirrors], bytes]) -> Reply:
    return lambda exchange, mirrors: exchange.raw(data(exchange, mirrors))


def _status(code: int, **headers: str) -> Reply:
    return lambda exchange, _: exchange.send(_HTML, code, content_type="text/html", **headers)


def _drip(exchange: Exchange, mirrors: Mirrors, data: Iterator[bytes], pause: float, most: int) -> None:
    """Send piece by piece until the client has gone, or so much was sent."""
    exchange.close_connection = True
    sent = 0
    for piece in data:
        if mirrors.over.is_set() or sent > most:
            return
        exchange.raw(piece)
        sent += len(piece)
        if pause:
            time.sleep(pause)


# ---- slow ones


def late(seconds: float) -> Reply:
    """Answer, but late."""

    def reply(exchange: Exchange, mirrors: Mirrors) -> None:
        if mirrors.over.wait(seconds):
            return
        mirrors.sound(exchange)

    return reply


def silent(exchange: Exchange, _: Mirrors) -> None:
    """Say nothing."""
    exchange.stall()


def stalls(exchange: Exchange, mirrors: Mirrors) -> None:
    """Stop in the middle of the body, the connection open."""
    body = _packed(exchange, mirrors)
    exchange.raw(_head(200, f"Content-Length: {len(body)}", "Content-Encoding: gzip") + body[: len(body) // 2])
    exchange.stall()


def slow_headers(exchange: Exchange, mirrors: Mirrors) -> None:
    """Send headers one byte at a time."""
    head = _head(200, "Content-Length: 2", *(f"X-{number}: {'x' * 50}" for number in range(200)))
    _drip(exchange, mirrors, (head[at : at + 1] for at in range(len(head))), 0.05, 1 << 30)


def slow_body(exchange: Exchange, mirrors: Mirrors) -> None:
    """Send the body one byte at a time."""
    body = _packed(exchange, mirrors)
    exchange.raw(_head(200, f"Content-Length: {len(body)}", "Content-Encoding: gzip"))
    _drip(exchange, mirrors, (body[at : at + 1] for at in range(len(body))), 0.05, 1 << 30)


# ---- broken off

reset = _one_of(
    lambda exchange, _: exchange.hang_up(True),
    _close_after(lambda *_: b"", reset=False),
    _close_after(lambda *_: b"HTTP/1.1 2", reset=True),
    _close_after(lambda *_: b"HTTP/1.1 200 OK\r\nContent-Type: appl", reset=True),
    _close_after(lambda *_: _head(200, "Content-Length: 5000"), reset=False),
    _close_after(lambda e, m: _head(200, "Content-Length: 500000") + _packed(e, m)[:200], reset=True),
)
truncated = _one_of(
    _close_after(
        lambda e, m: _head(200, f"Content-Length: {len(_packed(e, m))}", "Content-Encoding: gzip") + _packed(e, m)[:-9]
    ),
    _close_after(lambda e, m: _head(200, f"Content-Length: {len(_plain(e, m))}") + _plain(e, m)[:-1]),
    # Of a length that is told wrong: whole, but for what is missing.
    _sends(lambda e, m: _head(200, f"Content-Length: {len(_plain(e, m)) - 2}") + _plain(e, m)[:-2]),
)
truncated_unannounced = _one_of(
    _close_after(lambda e, m: _head(200, "Connection: close") + _plain(e, m)[: len(_plain(e, m)) // 2]),
    _close_after(lambda e, m: _head(200, "Connection: close") + _plain(e, m)[:-1]),
    _close_after(lambda e, m: _head(200, "Content-Encoding: gzip") + _packed(e, m)[:-8]),
    _close_after(lambda e, m: _head(200, "Content-Encoding: gzip") + _packed(e, m)[: len(_packed(e, m)) // 2]),
    _close_after(lambda e, m: b"HTTP/1.0 200 OK\r\n\r\n" + _plain(e, m)[:-1]),
)


def _etag_stays(exchange: Exchange, mirrors: Mirrors) -> None:
    """Break one version off and send another one whole, both under one ETag."""
    if mirrors.chance.random() < 0.4:
        body = _packed(exchange, mirrors)
        exchange.raw(
            _head(200, f"Content-Length: {len(body)}", 'ETag: "same"', "Content-Encoding: gzip", "Accept-Ranges: bytes")
        )
        exchange.raw(body[: len(body) // 2])
        exchange.hang_up()
        return
    found = mirrors.file(exchange, later=mirrors.chance.random() < 0.5)
    if found is None:
        mirrors.sound(exchange)
    else:
        exchange.send(found[1], etag='"same"', content_encoding="gzip")


etag_stays: Reply = _etag_stays
unasked_304 = _one_of(
    lambda exchange, _: exchange.send(b"", 304, etag='"v9"', content_length=""),
    lambda exchange, _: exchange.send(b"", 304, content_length=""),
)


# ---- refusals

too_many = _status(429)
too_many_wait = _one_of(_status(429, retry_after="0"), _status(429, retry_after="1"), _status(503, retry_after="1"))
too_many_absurd = _one_of(
    *(
        _status(429, retry_after=value)
        for value in (
            "-5", "1000000000", "9" * 400, "1e9", "soon", "Sat, 01 Jan 2000 00:00:00 GMT",
            "Fri, 01 Jan 9999 00:00:00 GMT", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
            "Mon, 01 Jan 2025 00:00:00 +99999999999999999999", "Mon, 01 Jan 2030 99:99:99 -0000", "0x10", "\xb2",
        )
    )
)  # fmt: skip
server_errors = _one_of(*(_status(code) for code in (500, 501, 502, 503, 504, 507, 520, 599)))
odd_statuses = _one_of(
    *(_status(code) for code in (201, 202, 203, 206, 300, 305, 400, 401, 402, 408, 418, 451, 999)),
    _sends(lambda *_: b"HTTP/1.1 204 No Content\r\n\r\n"),
    _sends(lambda e, m: _head(206, "Content-Range: bytes 0-9/500", "Content-Length: 10") + _plain(e, m)[:10]),
)
html = _one_of(
    lambda exchange, _: exchange.send(_HTML, content_type="text/html"),
    lambda exchange, _: exchange.send(_HTML),
    lambda exchange, _: exchange.send(gzip.compress(_HTML), content_encoding="gzip"),
    lambda exchange, _: exchange.send(b""),
    lambda exchange, _: exchange.send(b"version https://git-lfs.github.com/spec/v1\n"),
)


def _wrong_json(exchange: Exchange, mirrors: Mirrors) -> None:
    right = json.loads(_plain(exchange, mirrors))
    chance = mirrors.chance
    name = chance.choice(list(right))
    inner = right[name]
    wrong = chance.choice((
        [], {}, [right], [1, 2, 3], {"detail": "Not found", "status": "error"}, {name: None}, {name: 5}, {name: "x"},
        {name: [inner]}, {name: [[[1], 2], {"a": 1}]},
        {"message": {name: inner}},
    ))  # fmt: skip
    exchange.send(json.dumps(wrong).encode())


wrong_json = _one_of(
    _wrong_json,
    _wrong_json,
    _wrong_json,
    lambda exchange, _: exchange.send(b"[" * 100_000),
    lambda exchange, _: exchange.send(b'{"a":' * 100_000),
    lambda exchange, _: exchange.send(b'{"time": [' + b"9" * 100_000 + b"]}"),
    lambda exchange, _: exchange.send(b'{"drivers": [{"driver": "\\ud800"}], "tel": {"time": ["\\ud800"]}}'),
    lambda exchange, _: exchange.send(b'\xff\xfe{"\x00'),
)


# ---- redirects


def redirects(canary: int) -> Reply:
    """Lead to hosts that nobody configured."""
    places = [
        f"http://127.0.0.1:{canary}/x", f"https://127.0.0.1:{canary}/x", f"http://localhost:{canary}/x",
        f"https://localhost:{canary}/x", f"https://127.1:{canary}/x", f"https://2130706433:{canary}/x",
        f"https://[::ffff:127.0.0.1]:{canary}/x", f"https://0.0.0.0:{canary}/x", f"https://0x7f.1:{canary}/x",
        f"//127.0.0.1:{canary}/x", f"http://a@127.0.0.1:{canary}/x", f"https://localhost.:{canary}/x",
        f"https://sub.localhost:{canary}/x", "http://169.254.169.254/latest/meta-data/",
        "https://169.254.169.254/latest/meta-data/", "https://10.0.0.1/", "https://[fe80::1]/", "https://[fd00::1]/",
        "file:///etc/passwd", "FILE:/etc/passwd", "ftp://127.0.0.1/", "data:application/json,{}", "javascript:1",
        f"gopher://127.0.0.1:{canary}/", "https://[::1", "https://a..b/", f"https://{'a' * 70}.example/",
        "https://xn--/", "https://host:99999/", "https:///x", "https://%zz/", "http://", "\x7f", "\xe9\xff",
        "https://192.0.2.1:0/", f"http:/\\127.0.0.1:{canary}/",
    ]  # fmt: skip

    def reply(exchange: Exchange, mirrors: Mirrors) -> None:
        code = mirrors.chance.choice((301, 302, 303, 307, 308))
        exchange.send(b"", code, location=mirrors.chance.choice(places))

    return reply


loops = _one_of(
    lambda exchange, _: exchange.send(b"", 302, location=exchange.path),
    lambda exchange, _: exchange.send(b"", 301, location=exchange.path + "?again"),
    lambda exchange, _: exchange.send(b"", 308, location=""),
)


# ---- bombs


@cache
def _bomb(mib: int, kind: str) -> bytes:
    """Return a body that inflates to so many MiB of JSON, at a thousandth of it."""
    wbits = {"gzip": 31, "deflate": 15}[kind]
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    # Of lists of numbers without what any file must have.
    begin, middle, end = b'{"tel": {"unheard_of": [', b"0," * (_MIB // 2), b"0]}}"
    packed = [packer.compress(begin), packer.flush(zlib.Z_FULL_FLUSH)]
    packed += [packer.compress(middle), packer.flush(zlib.Z_FULL_FLUSH)]
    packed += [packed[-2] + packed[-1]] * (mib - 1)  # after a full flush the same bytes mean the same again
    packed += [packer.compress(end), packer.flush()]
    body = b"".join(packed)
    if kind == "gzip":  # its end tells checksum and size; nobody gets to see the checksum of one that is too large
        checksum = zlib.crc32(begin)
        for _ in range(min(mib, 100)):
            checksum = zlib.crc32(middle, checksum)
        size = len(begin) + mib * _MIB + len(end)
        body = body[:-8] + struct.pack("<II", zlib.crc32(end, checksum), size & 0xFFFFFFFF)
    return body


def _bombs(exchange: Exchange, mirrors: Mirrors) -> None:
    honest = _bomb(1024, "gzip")
    body, encoding = mirrors.chance.choice((
        (honest, "gzip"), (honest, "x-gzip"), (_bomb(1024, "deflate"), "deflate"),
        (honest[:-4] + struct.pack("<I", 100), "gzip"), (honest[:-4] + struct.pack("<I", 30 * _MIB), "gzip"),
        (_bomb(4096, "gzip"), "gzip"),  # of a size that 32 bits tell as about nothing
        (gzip.compress(honest, 1), "gzip"), (gzip.compress(honest, 1), "gzip, gzip"),
        (gzip.compress(b" ") + honest, "gzip"), (honest, "br"), (honest, "zstd"), (honest, "compress"),
        (honest, "GZIP"), (b"\x28\xb5\x2f\xfd" + bytes(1000), "zstd"),
    ))  # fmt: skip
    exchange.send(body, content_encoding=encoding)


bombs: Reply = _bombs
for _mib, _kind in ((1024, "gzip"), (1024, "deflate"), (4096, "gzip"), (2, "gzip"), (30, "gzip")):
    _bomb(_mib, _kind)  # not while somebody waits for it


def bombs_within_bounds(exchange: Exchange, mirrors: Mirrors) -> None:
    """Send what inflates to just less than a body may have, and parses."""
    exchange.send(_bomb(mirrors.chance.choice((2, 2, 2, 30)), "gzip"), content_encoding="gzip")


# ---- what is not HTTP, or too much of it


def _endless(head: bytes, piece: bytes, most: int = 400 * _MIB) -> Reply:
    def reply(exchange: Exchange, mirrors: Mirrors) -> None:
        exchange.raw(head)
        _drip(exchange, mirrors, iter(lambda: piece, None), 0, most)

    return reply


many_headers = _one_of(
    _sends(lambda *_: _head(200, *(f"X-{number}: 1" for number in range(20_000)), "Content-Length: 2") + b"{}"),
    _sends(lambda *_: _head(200, "X: " + "x" * 500_000, "Content-Length: 2") + b"{}"),
    _endless(b"HTTP/1.1 200 OK\r\n", b"X-Header: " + b"x" * 1000 + b"\r\n"),
    _endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65_536),
    _endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    _endless(b"HTTP/1.1 200 " + b"x" * 1000, b"x" * 65_536),
    _endless(_head(200, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n", b"X-Trailer: " + b"x" * 1000 + b"\r\n"),
    _endless(_head(200, "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX: ", b"x" * 65_536),
    _endless(_head(200, "Transfer-Encoding: chunked") + b"2;", b"x" * 65_536),
)
too_large = _one_of(
    _endless(_head(200, f"Content-Length: {10 << 30}"), b" " * 65_536),
    _endless(_head(200), b" " * 65_536),
    _endless(_head(200, "Transfer-Encoding: chunked"), b"10000\r\n" + b" " * 65_536 + b"\r\n"),
    _endless(_head(404), b" " * 65_536),
    _endless(_head(503, f"Content-Length: {10 << 30}"), b" " * 65_536),
)


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


bad_chunks = _one_of(
    *(
        _close_after(lambda e, m, make=make: _head(200, "Transfer-Encoding: chunked") + make(_plain(e, m)))
        for make in (
            lambda body: b"zz\r\n" + body,
            lambda body: b"-5\r\n" + body,
            lambda body: b"f" * 40 + b"\r\n" + body,
            lambda body: b"%x\r\n%bXX0\r\n\r\n" % (len(body), body),
            lambda body: _chunked(body)[:-2] + b"0\r\n\r\n",
            lambda body: _chunked(body),  # without its end
            lambda body: _chunked(body[:-1]) + b"0\r\n\r\n",
            lambda body: b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) + 10, body),
            lambda body: b"\r\n\r\n",
        )
    ),
    _close_after(lambda e, m: _head(200, "Transfer-Encoding: chunked", "Content-Length: 5") + _chunked(_plain(e, m))),
    _close_after(lambda e, m: _head(200, "Content-Length: 5", "Content-Length: 7") + _plain(e, m)),
    _close_after(lambda e, m: _head(200, "Content-Length: -1") + _plain(e, m)),
    _close_after(lambda e, m: _head(200, f"Content-Length: {'9' * 30}") + _plain(e, m)),
)
not_http = _one_of(
    _close_after(lambda *_: bytes(range(256)) * 20),
    _close_after(lambda *_: b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 5),
    _close_after(lambda e, m: _plain(e, m)),
    _close_after(lambda *_: b"HTTP/9.9 200 OK\r\n\r\n{}"),
    _close_after(lambda *_: b"HTTP/1.1 abc\r\n\r\n"),
    _close_after(lambda *_: b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n\x00\x01"),
    _close_after(lambda *_: b"SSH-2.0-OpenSSH_9.6\r\n"),
    _close_after(lambda *_: b"\x15\x03\x01\x00\x02\x02\x28"),
    _sends(lambda e, m: _head(200, "Content-Length: -") + _plain(e, m)),
)


# ---- kept connections


def _closes_silently(exchange: Exchange, mirrors: Mirrors) -> None:
    mirrors.sound(exchange)
    exchange.hang_up(mirrors.chance.random() < 0.5)


def _closes_second(exchange: Exchange, mirrors: Mirrors) -> None:
    """Answer the first request of a connection, and none after it."""
    if hasattr(exchange, "has_answered"):
        exchange.hang_up(mirrors.chance.random() < 0.5)
        return
    exchange.has_answered = True  # type: ignore[attr-defined] - this connection's
    mirrors.sound(exchange)


def _says_more(exchange: Exchange, mirrors: Mirrors) -> None:
    """Answer, and send the beginning of another answer, or one that nobody asked for."""
    mirrors.sound(exchange)
    more = mirrors.chance.choice((
        _head(408, "Content-Length: 0"), b"HTTP/1.1 200 OK\r\nContent-Le", b"\r\n\r\n", b"garbage",
        _head(200, "Content-Length: 500") + b'{"drivers": [',
    ))  # fmt: skip
    with suppress(OSError):
        exchange.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if mirrors.chance.random() < 0.5:
        time.sleep(0.002)
    exchange.raw(more)


closes_kept = _one_of(_closes_silently, _closes_second)
says_more: Reply = _says_more


def lying_304(exchange: Exchange, mirrors: Mirrors) -> None:
    """Say that what is held is current, and name another version; to whoever holds nothing, answer."""
    if exchange.headers.get("If-None-Match") is None:
        mirrors.sound(exchange)
    else:
        found = mirrors.file(exchange, later=True)
        exchange.send(b"", 304, etag=found[2] if found else '"x"', last_modified=LATER, content_length="")
