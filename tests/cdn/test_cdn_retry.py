"""Retries: of what, how often, after how long."""

import logging
import time
from email.utils import formatdate

import pytest
import stamina
from misbehaving_server import FILE, TIMING, files, ok, status

from tif1_pipeline.cdn.base import CdnStats, Timing
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.cdn.retry import backoff, parse_retry_after
from tif1_pipeline.exceptions import NetworkError


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504, 520])
def test_passing_faults_are_retried_as_often_as_the_setting_says(client, config, server, code):
    server.replies["a"] = [status(code), status(code), ok]
    stats = CdnStats()
    assert client.fetch(FILE, bytes, stats=stats).url.startswith(f"{server.origin}/a/")
    assert (stats.requests, stats.retries) == (3, 2)
    config.max_retries = 1
    server.replies = {"c": status(code)}
    config.cdn_urls = [server.mirror("c")]
    with pytest.raises(NetworkError, match=rf"HTTP {code} \(2 tries\)"):
        client.fetch(FILE, bytes)
    assert server.asked("c") == 2


@pytest.mark.parametrize("code", [206, 400, 401, 451])
def test_other_answers_are_not_retried(client, config, server, code):
    config.cdn_urls = [server.mirror("a")]
    server.replies["a"] = status(code)
    with pytest.raises(NetworkError, match=f"HTTP {code}"):
        client.fetch(FILE, bytes)
    assert server.asked("a") == 1


def test_dropped_connections_and_garbage_are_retried(client, server):
    server.replies["a"] = [lambda x: x.hang_up(), lambda x: (x.raw(b"\x16\x03\x01 not http\r\n\r\n"), x.hang_up()), ok]
    assert client.fetch(FILE, bytes).url.startswith(f"{server.origin}/a/")
    assert server.asked("a") == 3


def test_retry_after_in_seconds_is_honoured(client, server):
    server.replies["a"] = [status(429, retry_after=1), ok]
    started = time.monotonic()
    assert client.fetch(FILE, bytes).url.startswith(f"{server.origin}/a/")
    assert 1.0 <= time.monotonic() - started < 3


def test_retry_after_as_a_date_is_honoured(client, server):
    server.replies["a"] = [lambda x: status(503, retry_after=formatdate(time.time() + 2, usegmt=True))(x), ok]
    started = time.monotonic()
    assert client.fetch(FILE, bytes).url.startswith(f"{server.origin}/a/")
    assert 0.9 <= time.monotonic() - started < 4  # dates have whole seconds


def test_a_mirror_that_asks_for_too_long_a_wait_is_left(client, server):
    server.replies["a"] = status(429, retry_after=15)
    started = time.monotonic()
    assert client.fetch(FILE, bytes).url.startswith(f"{server.origin}/b/")
    assert server.asked("a") == 1
    assert time.monotonic() - started < 2


def test_waits_longer_than_the_files_time_at_the_mirror_are_not_begun(client, config, server):
    config.update({"request_timeout": 0.2, "max_retries": 2})  # 1.2 s a mirror
    server.replies["a"] = status(429, retry_after=1)
    started = time.monotonic()
    assert client.fetch(FILE, bytes).url.startswith(f"{server.origin}/b/")
    assert server.asked("a") == 2
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("-5", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 -0000", 0.0),
        ("Sun, 99 Nov 2094 08:49:37 GMT", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Mon, 01 Jan 2025 00:00:00 +99999999999999999999", None),
    ],
)
def test_reading_retry_after(header, seconds):
    assert parse_retry_after(header) == seconds


def test_backoff_is_exponential_with_full_jitter_and_bounded():
    timing = Timing(wait_initial=1, wait_max=10)
    for tries, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (5000, 10)]:
        waits = [backoff(tries, timing) for _ in range(500)]
        assert 0 <= min(waits) < 0.1 * longest
        assert 0.9 * longest < max(waits) <= longest


def test_the_client_waits_between_tries(config, server):
    server.replies["a"] = [status(503)] * 6 + [ok]
    config.max_retries = 8
    client = CdnClient(config, Timing(wait_initial=0.2, wait_max=0.2))
    started = time.monotonic()
    client.fetch(FILE, bytes)
    client.close()
    assert server.asked("a") == 7
    assert 0.1 < time.monotonic() - started < 3  # six waits of 0 to 0.2 s


def test_retries_are_logged_for_debugging_and_print_nothing(client, server, caplog, capsys):
    server.replies["a"] = [status(503), ok]
    with caplog.at_level(logging.DEBUG, logger="tif1_pipeline.cdn"):
        client.fetch(FILE, bytes)
    assert [record.message for record in caplog.records if "HTTP 503" in record.message and "retry 1" in record.message]
    assert "stamina" not in caplog.text
    assert capsys.readouterr() == ("", "")


def test_retries_of_other_code_keep_their_hooks(client, server):
    seen = []
    before = stamina.instrumentation.get_on_retry_hooks()
    stamina.instrumentation.set_on_retry_hooks([seen.append])
    try:
        server.replies["a"] = [status(503), ok]
        client.fetch(FILE, bytes)
        for attempt in stamina.retry_context(on=ValueError, attempts=2, wait_initial=0, wait_max=0.001):
            with attempt:
                if attempt.num == 1:
                    raise ValueError("theirs")
        assert [str(details.caused_by) for details in seen] == ["theirs"]
    finally:
        stamina.instrumentation.set_on_retry_hooks(before)


def test_a_blip_of_the_only_mirror_loses_no_file(config, server):
    # All of the first requests fail at once, as when a CDN drops the connections of one of its machines.
    config.cdn_urls = [server.mirror("a")]
    failed = set()

    def reply(exchange):
        first = exchange.path not in failed and len(failed) < 32
        failed.add(exchange.path)
        (status(503) if first else ok)(exchange)

    server.replies["a"] = reply
    client = CdnClient(config, TIMING)
    outcomes = client.fetch_many(files(200), lambda file, body: len(body))
    client.close()
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    assert server.asked("a") == 200 + client.totals.retries
    assert client.totals.retries >= 32
