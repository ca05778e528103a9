"""One file: what is asked, what is accepted, what is refused, and which error comes of it."""

import asyncio
import gzip
import itertools
import json
import pickle
import struct
import time
import zlib

import pytest
from isal import isal_zlib
from misbehaving_server import BODY, FILE, LARGE, ok, slow, status

from tif1_pipeline.cdn.base import CdnFile, CdnStats, Validators
from tif1_pipeline.cdn.body import Inflater
from tif1_pipeline.cdn.faults import MirrorError
from tif1_pipeline.exceptions import CacheError, DataNotFoundError, InvalidDataError, NetworkError

HTML = b"<!DOCTYPE html><html>Sorry</html>"
COMPRESSIBLE = b'{"a": [' + b"1234, " * 5000 + b"0]}"
PACKED = gzip.compress(COMPRESSIBLE)


def fetch(client, file=FILE, decode=json.loads, **options):
    return client.fetch(file, decode, **options)


# ---- the request


def test_a_file_comes_from_the_first_mirror_with_its_validators(client, server):
    server.replies["a"] = lambda x: x.send(etag='"v1"', last_modified="Mon, 01 Jan 2024 00:00:00 GMT")
    fetched = fetch(client)
    assert fetched.value == json.loads(BODY)
    assert fetched.size_bytes == len(BODY)
    assert fetched.validators == Validators('"v1"', "Mon, 01 Jan 2024 00:00:00 GMT")
    assert fetched.url == f"{server.origin}/a/2025/Monaco%20Grand%20Prix/Race/VER/10_tel.json"
    assert server.asked("b") == 0


@pytest.mark.parametrize(
    ("name", "on_the_wire"),
    [
        ("São Paulo Grand Prix", "S%C3%A3o%20Paulo%20Grand%20Prix"),
        ("a/b", "a%2Fb"),
        ("100%25", "100%2525"),
        ("a+b&c?d#e", "a%2Bb%26c%3Fd%23e"),
        ("a..b", "a..b"),
    ],
)
def test_names_reach_the_server_as_one_segment(client, server, name, on_the_wire):
    fetch(client, CdnFile(2025, (name, "drivers.json")))
    assert server.requests[0][1] == f"/a/2025/{on_the_wire}/drivers.json"


@pytest.mark.parametrize("name", ["..", ".", "", "a\0b", "a\nb"])
def test_names_that_are_no_file_names_are_refused_without_a_request(client, server, name):
    with pytest.raises(InvalidDataError, match="cannot be the name"):
        fetch(client, CdnFile(2025, (name, "drivers.json")))
    assert not server.requests


def test_a_schedule_has_mirrors_of_its_own(client, server):
    assert fetch(client, CdnFile(2024)).url == f"{server.origin}/s/schedule_2024.json"


def test_request_headers_and_no_cookies(client, config, server):
    config.cdn_urls = [server.mirror("a").replace("127.0.0.1", "localhost")]
    server.replies["a"] = lambda x: x.send(set_cookie="id=1; Path=/")
    fetch(client)
    fetch(client)
    for _, _, headers, _ in server.requests:
        assert headers["accept-encoding"] == "gzip"
        assert headers["user-agent"].startswith("tif1_pipeline/")
        assert "cookie" not in headers
        assert "if-none-match" not in headers


def test_settings_are_effective_at_once(client, config, server):
    fetch(client)
    config.cdn_urls = [server.mirror("b")]
    fetch(client)
    assert (server.asked("a"), server.asked("b")) == (1, 1)
    config.max_retries = 0
    server.replies["b"] = status(503)
    with pytest.raises(NetworkError):
        fetch(client)
    assert server.asked("b") == 2


def test_offline_forbids_requests_and_says_so(client, config, server):
    config.offline = True
    with pytest.raises(NetworkError, match="setting offline is on"):
        fetch(client)
    done = []
    outcomes = client.fetch_many([FILE, FILE], lambda file, body: body, on_done=done.append)
    assert [type(outcome) for outcome in outcomes] == [NetworkError, NetworkError]
    assert done == [FILE, FILE]
    assert not server.requests
    config.offline = False
    assert fetch(client).value


def test_counters_of_the_caller_and_of_all_calls(client, server):
    packed = gzip.compress(COMPRESSIBLE)
    server.replies["a"] = [status(503), lambda x: x.send(packed, content_encoding="gzip")]
    stats = CdnStats()
    fetch(client, stats=stats)
    assert (stats.requests, stats.retries, stats.bytes) == (2, 1, len(packed))
    assert 0 < stats.seconds < 5
    fetch(client)
    assert client.totals.requests == 3
    assert client.totals.bytes == 2 * len(packed)
    assert stats.requests == 2


# ---- bodies


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [("gzip", PACKED), ("deflate", zlib.compress(COMPRESSIBLE)), ("identity", COMPRESSIBLE)],
    ids=["gzip", "deflate", "identity"],
)
def test_bodies_are_inflated(client, server, encoding, packed):
    server.replies["a"] = lambda x: x.send(packed, content_encoding=encoding)
    fetched = fetch(client, decode=bytes)
    assert fetched.value == COMPRESSIBLE
    assert fetched.size_bytes == len(COMPRESSIBLE)


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (HTML, {"content_type": "text/html; charset=utf-8"}, "text/html instead of JSON"),
        (HTML, {}, "beginning with b'<!DOCTYPE"),
        (b'{"error": "page"}', {"content_type": "text/html"}, "text/html instead of JSON"),
        (b"\n  not json", {"content_type": "text/plain"}, "text/plain instead of JSON"),
        (b"", {}, "empty body"),
        (b" \n" * 500, {}, "empty body"),
        (b"", {"content_encoding": "gzip"}, "empty body"),
        (gzip.compress(b""), {"content_encoding": "gzip"}, "empty body"),
        (HTML, {"content_encoding": "gzip"}, "gzip"),
        (PACKED[:-20], {"content_encoding": "gzip"}, "gzip"),
        (PACKED[:-3], {"content_encoding": "gzip"}, "gzip"),
        (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], {"content_encoding": "gzip"}, "checksum"),
        (PACKED + PACKED, {"content_encoding": "gzip"}, "gzip"),
        (PACKED[:2000] + b"\xff" * 20 + PACKED[2020:], {"content_encoding": "gzip"}, "gzip"),
        (b"xyz", {"content_encoding": "br"}, "only gzip was asked for"),
        (PACKED, {"content_encoding": "gzip, gzip"}, "only gzip was asked for"),
    ],
    ids=itertools.count(1),
)
def test_a_bad_body_is_refused_and_the_next_mirror_asked(client, server, body, headers, reason):
    server.replies["a"] = lambda x: x.send(body, **headers)
    assert fetch(client).url.startswith(f"{server.origin}/b/")
    assert server.asked("a") == 1  # such a body would come again
    server.replies["b"] = server.replies["a"]
    with pytest.raises(InvalidDataError, match=reason) as caught:
        fetch(client)
    assert f"{server.origin}/a/2025/Monaco" in str(caught.value)


def test_large_bodies_are_inflated_and_bad_ones_among_them_refused(client, config, server):
    packed = gzip.compress(LARGE)
    bad = [
        packed[:-100],
        packed[:9000] + b"\xff" * 40 + packed[9040:],
        packed[:-4] + b"\1\0\0\0",
        gzip.compress(HTML * 9000, 0),
    ]
    number = itertools.count()
    server.replies["a"] = lambda x: x.send(
        bad[n // 5 % len(bad)] if (n := next(number)) % 5 == 0 else packed, content_encoding="gzip"
    )
    server.replies["b"] = lambda x: x.send(packed, content_encoding="gzip")
    outcomes = client.fetch_many([FILE] * 60, lambda _, body: body)
    assert {outcome.value for outcome in outcomes} == {LARGE}
    assert sum("/b/" in outcome.url for outcome in outcomes) == server.asked("b") == 12

    config.cdn_urls = [server.mirror("a")]
    number = itertools.count()
    reasons = ("cut off", "does not inflate", "another size than it says", "beginning with b'<!DOCTYPE")
    outcomes = client.fetch_many([FILE] * 20, lambda _, body: body)
    errors = [outcome for outcome in outcomes if isinstance(outcome, InvalidDataError)]
    assert len(errors) == len(bad)
    assert all(any(reason in str(error) for error in errors) for reason in reasons)
    assert [outcome.value for outcome in outcomes if outcome not in errors] == [LARGE] * 16


def test_bodies_are_inflated_where_no_thread_is_to_be_had():
    packed = gzip.compress(LARGE)
    inflater = Inflater()
    inflater.close()  # from then on it has none, as at the end of the interpreter

    async def inflate():
        return await asyncio.gather(
            inflater.inflate(packed, "GZIP"), inflater.inflate(packed[:-1], "gzip"), return_exceptions=True
        )

    body, error = asyncio.run(inflate())
    assert body == LARGE
    assert isinstance(error, MirrorError)


def test_whoever_no_longer_waits_for_a_large_body_keeps_no_other_from_it():
    packed = gzip.compress(LARGE)
    inflater = Inflater()

    async def inflate():
        tasks = [asyncio.create_task(inflater.inflate(packed, "gzip")) for _ in range(40)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(inflate())
    assert outcomes[1::2] == [LARGE] * 20
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    inflater.close()


def test_leading_blanks_are_json(client, server):
    server.replies["a"] = lambda x: x.send(b" " * 300 + b"\n[1]", content_type="")
    assert fetch(client).value == [1]


def _bomb(window_bits: int) -> bytes:
    packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, window_bits)
    piece = b"0" * (1 << 20)
    return packer.compress(b"[") + b"".join(packer.compress(piece) for _ in range(300)) + packer.flush()


@pytest.mark.parametrize("lies", [False, True])
def test_a_gzip_bomb_ends_early(client, config, server, lies):
    config.cdn_urls = [server.mirror("a")]
    bomb = _bomb(31)
    if lies:  # about its size, in the last four bytes
        bomb = bomb[:-4] + struct.pack("<I", 100)
    server.replies["a"] = lambda x: x.send(bomb, content_encoding="gzip")
    started = time.process_time()
    with pytest.raises(InvalidDataError, match="gzip"):
        fetch(client, decode=len)
    assert time.process_time() - started < 0.1  # inflating all of it takes several times as long


def test_a_deflate_bomb_ends_at_the_bound(client, config, server):
    config.cdn_urls = [server.mirror("a")]
    bomb = _bomb(15)
    server.replies["a"] = lambda x: x.send(bomb, content_encoding="deflate")
    with pytest.raises(InvalidDataError, match="larger than allowed"):
        fetch(client, decode=len)


def test_a_body_announced_too_large_is_not_read(client, config, server):
    config.cdn_urls = [server.mirror("a")]

    def reply(exchange):
        exchange.send(b"{", content_length=100 << 20)
        exchange.stall()

    server.replies["a"] = reply
    started = time.monotonic()
    with pytest.raises(InvalidDataError, match="104,857,600 bytes, more than"):
        fetch(client)
    assert time.monotonic() - started < 2


def test_an_endless_body_is_cut_off(client, config, server):
    config.cdn_urls = [server.mirror("a")]
    sent = []

    def reply(exchange):
        exchange.send(b"", content_length="", transfer_encoding="chunked")
        piece = b"100000\r\n" + b"[" * (1 << 20) + b"\r\n"
        for _ in range(200):
            exchange.raw(piece)
            sent.append(1)

    server.replies["a"] = reply
    with pytest.raises(InvalidDataError, match=r"more than the 33,554,432 bytes"):
        fetch(client)
    assert len(sent) < 100
    assert server.asked("a") == 1


def _short(exchange):
    exchange.send(BODY, content_length=len(BODY) + 10)
    exchange.hang_up()


def _chunks_without_end(exchange):
    exchange.send(b"5\r\n[1234\r\n", content_length="", transfer_encoding="chunked")
    exchange.hang_up()


def _reset_midway(exchange):
    exchange.send(BODY, content_length=len(BODY) + 10)
    time.sleep(0.05)
    exchange.hang_up(reset=True)


@pytest.mark.parametrize("cut", [_short, _chunks_without_end, _reset_midway])
def test_an_incomplete_body_is_asked_for_again_and_never_decoded(client, config, server, cut):
    server.replies["a"] = [cut, ok]
    decoded = []
    fetch(client, decode=decoded.append)
    assert decoded == [BODY]
    assert (server.asked("a"), server.asked("b")) == (2, 0)
    config.cdn_urls = [server.mirror("c")]
    server.replies["c"] = cut
    with pytest.raises(InvalidDataError, match=r"incomplete body .*\(3 tries\)"):
        fetch(client, decode=decoded.append)
    assert server.asked("c") == 3
    assert len(decoded) == 1


def test_a_body_longer_than_announced_harms_nobody(client, server):
    server.replies["a"] = [lambda x: x.send(BODY + b"garbage", content_length=len(BODY)), ok]
    for _ in range(3):
        assert fetch(client).value == json.loads(BODY)


# ---- decoders


@pytest.mark.parametrize(
    "error_class",
    [InvalidDataError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError],
)
def test_a_body_that_does_not_decode_is_asked_of_the_next_mirror(client, server, error_class):
    error = error_class("no column Speed")

    def decode(body):
        raise error

    with pytest.raises(InvalidDataError, match="no column Speed") as caught:
        fetch(client, decode=decode)
    assert (server.asked("a"), server.asked("b")) == (1, 1)
    assert str(caught.value).count("no column Speed") == 2
    assert caught.value.__cause__.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError("bug"), CacheError("bug"), TimeoutError("bug")])
def test_other_errors_of_a_decoder_are_raised_as_they_are(client, server, error):
    def decode(body):
        raise error

    with pytest.raises(type(error), match="bug"):
        fetch(client, decode=decode)
    assert server.asked("b") == 0


# ---- which error


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_missing_file_is_asked_of_every_mirror_once(client, server, code):
    server.replies["a"] = status(code)
    assert fetch(client).url.startswith(f"{server.origin}/b/")
    assert server.asked("a") == 1
    server.replies["b"] = status(404)
    with pytest.raises(DataNotFoundError, match=rf"HTTP {code}; .*HTTP 404") as caught:
        fetch(client)
    assert (server.asked("a"), server.asked("b")) == (2, 2)
    assert "2025/Monaco Grand Prix/Race/VER/10_tel.json" in str(caught.value)


def test_missing_here_and_unreachable_there_is_a_network_error(client, server):
    server.replies |= {"a": status(404), "b": status(502)}
    with pytest.raises(NetworkError, match=r"HTTP 404; .*HTTP 502 \(3 tries\)") as caught:
        fetch(client)
    assert caught.value.details["url"].startswith(f"{server.origin}/b/")


@pytest.mark.parametrize("other", [status(404), status(502)])
def test_an_invalid_body_outweighs_other_reasons(client, server, other):
    server.replies |= {"a": other, "b": lambda x: x.send(HTML)}
    with pytest.raises(InvalidDataError) as caught:
        fetch(client)
    assert caught.value.details["url"].startswith(f"{server.origin}/b/")


def test_errors_carry_the_facts_and_survive_pickling(client, server):
    server.replies |= {"a": status(404), "b": status(404)}
    with pytest.raises(DataNotFoundError) as caught:
        fetch(client)
    details = pickle.loads(pickle.dumps(caught.value)).details
    assert details["file"] == str(FILE)
    assert details["year"] == 2025
    assert details["mirror"] == server.origin.removeprefix("http://")
    assert [entry["reason"] for entry in details["mirrors"]] == ["HTTP 404", "HTTP 404"]


def test_a_refused_connection_is_a_network_error(client, config, server):
    config.cdn_urls = ["http://127.0.0.1:1/{year}", server.mirror("a")]
    assert fetch(client).url.startswith(server.origin)
    config.cdn_urls = ["http://127.0.0.1:1/{year}"]
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1:1: ConnectError"):
        fetch(client)


# ---- time


def test_a_silent_mirror_is_left_after_the_timeout_and_its_retries(client, config, server):
    config.update({"request_timeout": 0.2, "max_retries": 1})
    server.replies["a"] = lambda x: x.stall()
    started = time.monotonic()
    assert fetch(client).url.startswith(f"{server.origin}/b/")
    assert 0.4 <= time.monotonic() - started < 3
    assert server.asked("a") == 2


def test_a_body_that_trickles_for_ever_is_ended(client, config, server):
    config.update({"request_timeout": 0.5, "max_retries": 0, "cdn_urls": [server.mirror("a")]})

    def trickle(exchange):
        exchange.send(b"[", content_length=100_000)
        for _ in range(200):
            time.sleep(0.05)
            exchange.raw(b"1")

    server.replies["a"] = trickle
    started = time.monotonic()
    with pytest.raises(NetworkError, match=r"not complete within 2 s"):
        fetch(client)
    assert 1.5 < time.monotonic() - started < 8


def test_a_body_that_stops_midway_is_a_network_error(client, config, server):
    config.update({"request_timeout": 1, "max_retries": 0, "cdn_urls": [server.mirror("a")]})

    def reply(exchange):
        exchange.send(b"[", content_length=100)
        exchange.stall()

    server.replies["a"] = reply
    with pytest.raises(NetworkError, match=r"silence for 1 s"):
        fetch(client)


def test_a_slow_body_within_the_timeout_is_fetched(client, config, server):
    config.update({"request_timeout": 0.5, "max_retries": 0})
    server.replies["a"] = slow(0.3)
    assert fetch(client).url.startswith(f"{server.origin}/a/")


def test_a_missing_file_whose_error_page_never_ends_is_missing(client, server):
    def reply(exchange):
        exchange.send(b"x", 404, content_length=100)
        exchange.stall()

    server.replies |= {"a": reply, "b": reply}
    started = time.monotonic()
    with pytest.raises(DataNotFoundError):
        fetch(client)
    assert time.monotonic() - started < 3


# ---- conditional requests


def test_an_unchanged_file_is_not_sent_again(client, server):
    server.replies["a"] = lambda x: x.send(b"", 304, etag='"v1"', content_length="")
    held = Validators('"v1"', "Mon, 01 Jan 2024 00:00:00 GMT")
    fetched = fetch(client, validators=held)
    assert fetched.not_modified
    assert fetched.value is None
    assert fetched.validators == held
    headers = server.requests[0][2]
    assert headers["if-none-match"] == '"v1"'
    assert headers["if-modified-since"] == "Mon, 01 Jan 2024 00:00:00 GMT"


def test_validators_of_a_304_do_not_replace_the_held_ones(client, server):
    """Else a 304 that is said by mistake would put what is held under the ETag of another version, for ever."""
    later = "Mon, 01 Jan 2034 00:00:00 GMT"
    server.replies["a"] = lambda x: x.send(b"", 304, etag='"v2"', last_modified=later, content_length="")
    held = Validators('"v1"', "Mon, 01 Jan 2024 00:00:00 GMT")
    assert fetch(client, validators=held).validators == held


def test_a_changed_file_comes_with_its_new_validators(client, server):
    server.replies["a"] = lambda x: x.send(etag='"v2"')
    fetched = fetch(client, validators=Validators('"v1"'))
    assert not fetched.not_modified
    assert fetched.value == json.loads(BODY)
    assert fetched.validators == Validators('"v2"')


@pytest.mark.parametrize("validators", [None, Validators()])
def test_a_304_that_nobody_asked_for_is_invalid(client, server, validators):
    server.replies |= dict.fromkeys("ab", lambda x: x.send(b"", 304, content_length=""))
    with pytest.raises(InvalidDataError, match="304"):
        fetch(client, validators=validators)


# ---- redirects


def test_redirects_are_followed_and_counted(client, server):
    server.replies["a"] = status(302, location="/elsewhere/x")
    server.replies["elsewhere"] = status(307, location=f"{server.origin}/end/x")
    stats = CdnStats()
    fetched = fetch(client, stats=stats)
    assert fetched.value == json.loads(BODY)
    assert stats.requests == 3
    assert stats.retries == 0
    # Where a redirect leads may be a signed address, which must not end up in logs and metadata.
    assert fetched.url.startswith(f"{server.origin}/a/")


@pytest.mark.parametrize(
    "target", ["https://a..b/", f"https://{'a' * 70}.example/", "https://no-such-host.invalid:99999/"]
)
def test_redirects_to_what_no_host_can_be_called_are_an_error_of_the_mirror(client, server, target):
    server.replies["a"] = status(302, location=target)
    assert fetch(client).url.startswith(f"{server.origin}/b/")


def test_redirects_in_a_circle_end(client, server):
    server.replies["a"] = status(301, location="/a/again")
    assert fetch(client).url.startswith(f"{server.origin}/b/")
    assert server.asked("a") == 6


@pytest.mark.parametrize(
    "target",
    [
        "http://192.0.2.1/x",
        "http://127.0.0.1:9/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "http://[bad",
        "https://xn--/",
        "https:///x",
        "https://127.0.0.1/x",
        "https://127.1/x",
        "https://2130706433/x",
        "https://[::ffff:127.0.0.1]/x",
        "https://[fe80::1]/x",
        "https://localhost./x",
        "https://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/x",
    ],
)
def test_redirects_away_from_https_are_refused(client, server, target):
    server.replies |= dict.fromkeys("ab", status(302, location=target))
    with pytest.raises(NetworkError, match="a redirect to"):
        fetch(client)
    assert (server.asked("a"), server.asked("b")) == (1, 1)
