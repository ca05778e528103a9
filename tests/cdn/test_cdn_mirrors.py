"""Mirrors that fail are set aside, probed and taken back, without storms of requests."""

import logging
import threading
import time

import pytest
from misbehaving_server import BODY, FILE, files, ok, status

from tif1_pipeline.cdn.base import Timing
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.cdn.mirrors import FAILURES_IN_A_ROW
from tif1_pipeline.exceptions import InvalidDataError, NetworkError

QUICK = Timing(wait_initial=0.01, wait_max=0.02, set_aside=0.5, set_aside_alone=0.2)


def length(file, body):
    return len(body)


@pytest.fixture
def quick_client(config):
    client = CdnClient(config, QUICK)
    yield client
    client.close()


@pytest.mark.parametrize(
    ("reply", "tries"),
    [(status(500), 2), (lambda x: x.hang_up(), 2), (lambda x: x.send(b"<html>"), 1), (status(401), 1)],
)
def test_a_failing_mirror_is_set_aside_after_some_failures_in_a_row(client, config, server, reply, tries, caplog):
    config.max_retries = 1
    server.replies["a"] = reply
    for _ in range(FAILURES_IN_A_ROW):
        client.fetch(FILE, bytes)
    asked = server.asked("a")
    assert asked == tries * FAILURES_IN_A_ROW
    for _ in range(5):
        assert client.fetch(FILE, bytes).url.startswith(f"{server.origin}/b/")
    assert server.asked("a") == asked
    assert [record.levelname for record in caplog.records if "set aside" in record.message] == ["WARNING"]


def test_one_success_between_failures_keeps_a_mirror(client, config, server):
    config.max_retries = 0
    server.replies["a"] = ([status(500)] * (FAILURES_IN_A_ROW - 1) + [ok]) * 3
    for _ in range(3 * FAILURES_IN_A_ROW):
        client.fetch(FILE, bytes)
    assert server.asked("a") == 3 * FAILURES_IN_A_ROW


def test_a_missing_file_shows_that_a_mirror_is_alive(quick_client, config, server):
    config.max_retries = 0
    server.replies["a"] = ([status(500)] * (FAILURES_IN_A_ROW - 1) + [status(404)]) * 3 + [status(500)]
    for _ in range(3 * FAILURES_IN_A_ROW + FAILURES_IN_A_ROW):
        quick_client.fetch(FILE, bytes)
    assert server.asked("a") == 4 * FAILURES_IN_A_ROW
    time.sleep(QUICK.set_aside)
    server.replies["a"] = status(404)
    for _ in range(3):
        quick_client.fetch(FILE, bytes)
    assert server.asked("a") == 4 * FAILURES_IN_A_ROW + 3


def test_missing_files_and_files_that_do_not_decode_say_nothing_about_a_mirror(client, server):
    server.replies["a"] = status(404)
    for _ in range(2 * FAILURES_IN_A_ROW):
        client.fetch(FILE, bytes)
    assert server.asked("a") == 2 * FAILURES_IN_A_ROW
    server.replies["a"] = ok

    def decode(body):
        raise ValueError("rotten at the source")

    for _ in range(2 * FAILURES_IN_A_ROW):
        with pytest.raises(InvalidDataError):
            client.fetch(FILE, decode)
    assert server.asked("a") == 4 * FAILURES_IN_A_ROW


def test_a_mirror_set_aside_may_have_what_the_others_miss(client, config, server):
    config.max_retries = 0
    server.replies["a"] = status(500)
    for _ in range(FAILURES_IN_A_ROW):
        client.fetch(FILE, bytes)
    server.replies["b"] = status(404)
    with pytest.raises(NetworkError, match=r"set aside after failures in a row, the last: HTTP 500.*HTTP 404"):
        client.fetch(FILE, bytes)


def test_one_request_probes_a_mirror_and_takes_it_back(quick_client, config, server, caplog):
    config.max_retries = 3
    server.replies["a"] = status(500)
    quick_client.fetch_many(files(40), length)
    asked = server.asked("a")
    time.sleep(QUICK.set_aside)
    quick_client.fetch_many(files(40), length)
    quick_client.fetch_many(files(40), length)
    assert server.asked("a") == asked + 1  # still failing: one request, without retries, and another pause
    time.sleep(QUICK.set_aside)
    server.replies["a"] = ok
    quick_client.fetch_many(files(40), length)
    assert server.asked("a") > asked + 2
    messages = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [("is set aside" in text, "is used again" in text) for text in messages] == [(True, False), (False, True)]


def test_a_hanging_probe_is_the_only_one(quick_client, config, server):
    config.update({"max_retries": 0, "request_timeout": 0.5})
    server.replies["a"] = status(500)
    for _ in range(FAILURES_IN_A_ROW):
        quick_client.fetch(FILE, bytes)
    time.sleep(QUICK.set_aside)
    server.replies["a"] = lambda x: x.stall()
    quick_client.fetch_many(files(200), length)
    assert server.asked("a") == FAILURES_IN_A_ROW + 1


def test_a_cancelled_probe_gives_its_turn_back(quick_client, config, server):
    config.max_retries = 0
    server.replies["a"] = status(500)
    for _ in range(FAILURES_IN_A_ROW):
        quick_client.fetch(FILE, bytes)
    time.sleep(QUICK.set_aside)
    server.replies["a"] = ok

    def decode(body):
        raise MemoryError

    with pytest.raises(MemoryError):
        quick_client.fetch(FILE, decode)
    assert quick_client.fetch(FILE, bytes).url.startswith(f"{server.origin}/a/")


@pytest.mark.parametrize("reply", [status(500), lambda x: x.hang_up(), status(429)])
def test_a_dead_mirror_gets_a_few_dozen_requests_and_no_storm(client, config, server, reply):
    config.max_retries = 3
    server.replies["a"] = reply
    outcomes = client.fetch_many(files(500), length)
    assert [outcome.value for outcome in outcomes] == [len(BODY)] * 500
    assert server.asked("a") <= 32 + 3 * FAILURES_IN_A_ROW + FAILURES_IN_A_ROW
    assert server.asked("b") == 500


def test_a_dead_mirror_gets_no_storm_from_many_threads_either(client, config, server):
    config.max_retries = 3
    server.replies["a"] = status(500)
    threads = [threading.Thread(target=client.fetch_many, args=(files(200), length)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One request of each worker at most, however many threads, and the retries of the few.
    assert server.asked("a") <= 4 * 32 + 4 * FAILURES_IN_A_ROW


def test_all_mirrors_dead_ends_soon_and_says_so(client, config, server):
    config.max_retries = 3
    server.replies |= {"a": status(500), "b": lambda x: x.hang_up()}
    started = time.monotonic()
    outcomes = client.fetch_many(files(1400), length)
    assert time.monotonic() - started < 5
    assert {type(outcome) for outcome in outcomes} == {NetworkError}
    assert "set aside after failures in a row" in str(outcomes[-1])
    assert server.asked("a") <= 60
    assert server.asked("b") <= 60


def test_the_only_mirror_is_probed_sooner(quick_client, config, server):
    config.update({"max_retries": 0, "cdn_urls": [server.mirror("a")]})
    server.replies["a"] = [status(500)] * FAILURES_IN_A_ROW + [ok]
    for _ in range(FAILURES_IN_A_ROW):
        with pytest.raises(NetworkError):
            quick_client.fetch(FILE, bytes)
    with pytest.raises(NetworkError, match="set aside"):
        quick_client.fetch(FILE, bytes)
    time.sleep(QUICK.set_aside_alone)
    assert quick_client.fetch(FILE, bytes).value == BODY
    assert server.asked("a") == FAILURES_IN_A_ROW + 1


def test_state_changes_are_logged_by_this_package(client, config, server, caplog):
    config.max_retries = 0
    server.replies["a"] = status(500)
    with caplog.at_level(logging.WARNING):
        client.fetch_many(files(40), length)
    (record,) = caplog.records
    assert record.name == "tif1_pipeline.cdn.mirrors"
    assert "127.0.0.1" in record.message
    assert "HTTP 500" in record.message
