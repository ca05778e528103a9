"""Alerts to a real HTTP endpoint on loopback, and what the logs say of it."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
from alert_endpoint import PASSWORD, SECRET, Endpoint

from tif1_pipeline import alerts
from tif1_pipeline.alerts import Alert, Outbox
from tif1_pipeline.config import Config

# What Apprise imports when it is first asked whether a URL is one.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

STARTED = Alert("disk", "The disk is full", "Nothing is free.\nDelete something.")
OVER = Alert("disk", "The disk has room", "All is free.", "over")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def other() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(1)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_an_alert_arrives_with_title_body_and_type(endpoint: Endpoint) -> None:
    config = Config(alert_urls=(endpoint.url,))
    assert alerts.send(STARTED, config)
    assert alerts.send([OVER], config)
    first, second = endpoint.received
    assert (first["title"], first["message"], first["type"]) == (STARTED.title, STARTED.body, "warning")
    assert (second["title"], second["message"], second["type"]) == (OVER.title, OVER.body, "success")


def test_several_alerts_are_one_message(endpoint: Endpoint) -> None:
    report = Alert("report", "The report", "Numbers.", "report")
    assert alerts.send([OVER, STARTED, report], Config(alert_urls=(endpoint.url,)))
    (message,) = endpoint.received
    assert message["title"] == "tif1_pipeline: 3 alerts (1 started, 1 over, 1 report)"
    assert message["type"] == "warning"
    for alert in (OVER, STARTED, report):
        assert f"[{alert.kind}] {alert.title}\n{alert.body}" in message["message"]


def test_alerts_are_logged_with_and_without_endpoints(caplog: pytest.LogCaptureFixture) -> None:
    assert alerts.send([STARTED, OVER, Alert("x", "No body", "", "report")], Config())
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, STARTED.text),
        (logging.INFO, OVER.text),
        (logging.INFO, "No body"),
    ]


def test_nothing_to_say_is_not_said(endpoint: Endpoint) -> None:
    assert alerts.send([], Config(alert_urls=(endpoint.url,)))
    assert endpoint.received == []


@pytest.mark.parametrize("status", [200, 403, 500])
def test_no_log_names_what_is_secret(endpoint: Endpoint, caplog: pytest.LogCaptureFixture, capfd, status: int) -> None:
    endpoint.status = status
    outbox = Outbox()
    outbox.post(STARTED)
    assert outbox.deliver(Config(alert_urls=(endpoint.url,))) is (status == 200)
    said = caplog.text + "".join(capfd.readouterr()) + json.dumps(outbox.state)
    for secret in (SECRET, PASSWORD, "127.0.0.1"):
        assert secret not in said
    if status != 200:
        assert f"number 1 of alert_urls (json://): it answered with status {status}" in caplog.text


def test_a_scheme_that_is_no_word_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert alerts._notify(f"{SECRET}:no-url", {"title": "t", "body": "b"})
    assert alerts._scheme_of(f"{SECRET}/no-url") == "?"
    assert SECRET not in caplog.text


def test_an_alert_survives_an_endpoint_that_was_down(endpoint: Endpoint) -> None:
    config = Config(alert_urls=(endpoint.url,))
    endpoint.status = 503
    outbox = Outbox()
    outbox.post(STARTED)
    assert not outbox.deliver(config)
    outbox = Outbox(json.loads(json.dumps(outbox.state)))  # as the next tick finds it
    assert len(outbox) == 1
    endpoint.status = 200
    outbox.post(OVER)
    assert outbox.deliver(config)
    (message,) = endpoint.received
    assert message["message"].index(STARTED.title) < message["message"].index(OVER.title)
    outbox = Outbox(json.loads(json.dumps(outbox.state)))
    assert outbox.deliver(config)
    assert len(endpoint.received) == 1
    assert outbox.state == Outbox().state


def test_who_has_an_alert_does_not_get_it_again_because_another_was_down(endpoint: Endpoint, other: Endpoint) -> None:
    config = Config(alert_urls=(endpoint.url, other.url))
    other.status = 500
    outbox = Outbox()
    outbox.post(STARTED)
    assert not outbox.deliver(config)
    other.status = 200
    assert outbox.deliver(config)
    assert [len(each.received) for each in (endpoint, other)] == [1, 1]


def test_an_endpoint_that_stays_down_is_asked_less_and_less_often(caplog: pytest.LogCaptureFixture) -> None:
    config = Config(alert_urls=(f"json://127.0.0.1:{closed_port()}/{SECRET}",))
    outbox = Outbox()
    outbox.post(STARTED)
    for _ in range(4):
        assert not outbox.deliver(config)
    assert caplog.text.count("could not be delivered") == 2
    ((failures, not_before),) = outbox.state["endpoints"].values()
    assert failures == 2
    assert 0 < not_before - time.time() <= 60
    # A URL that is no longer in the settings is nobody's.
    assert outbox.deliver(Config())
    assert outbox.state == Outbox().state


def test_what_comes_up_soon_after_a_message_waits_for_the_next_one(endpoint: Endpoint) -> None:
    config = Config(alert_urls=(endpoint.url,))
    outbox = Outbox()
    outbox.post(STARTED)
    assert outbox.deliver(config, timedelta(minutes=10))
    outbox.post(OVER)
    outbox.post(STARTED)
    assert not outbox.deliver(config, timedelta(minutes=10))
    assert len(endpoint.received) == 1
    state = outbox.state
    for each in state["endpoints"].values():
        each[1] = time.time() - 1  # ten minutes later
    assert Outbox(state).deliver(config, timedelta(minutes=10))
    assert len(endpoint.received) == 2
    assert endpoint.received[1]["title"] == "tif1_pipeline: 2 alerts (1 started, 1 over)"


@pytest.mark.slow
def test_an_endpoint_that_never_answers_does_not_hold_up_the_others(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "SECONDS", 10.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        # Longer than the limit, as a URL may ask for.
        url = f"json://127.0.0.1:{silent.getsockname()[1]}/{SECRET}?rto=600&cto=600"
        started = time.monotonic()
        assert not alerts.send(STARTED, Config(alert_urls=(url, endpoint.url)))
        assert time.monotonic() - started < 60
    assert len(endpoint.received) == 1
    assert "number 1 of alert_urls (json://): no answer within 10 s" in caplog.text
    assert SECRET not in caplog.text


def test_many_endpoints_that_never_answer_do_not_outlast_a_tick(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place = f"json://127.0.0.1:{silent.getsockname()[1]}"
        config = Config(alert_urls=(*(f"{place}/{number}?rto=600&cto=600" for number in range(6)), endpoint.url))
        outbox = Outbox()
        outbox.post(STARTED)
        for _ in range(2):
            assert not outbox.deliver(config, seconds=1.5)
            assert len(outbox.state["endpoints"]) == 4, "nothing is known of those that were not tried"
        monkeypatch.setattr(alerts, "SECONDS", 20.0)
        config.alert_urls = (*config.alert_urls[:4], endpoint.url)
        assert not outbox.deliver(config)  # those that failed twice have to wait
    assert len(endpoint.received) == 1


def test_a_time_to_wait_until_from_a_clock_that_was_wrong_silences_no_endpoint(endpoint: Endpoint) -> None:
    config = Config(alert_urls=(endpoint.url,))
    outbox = Outbox()
    outbox.post(STARTED)
    (name,) = (alerts._name_of(url) for url in config.alert_urls)
    outbox = Outbox(outbox.state | {"endpoints": {name: [3, time.time() + 86400]}})
    assert outbox.deliver(config)
    assert len(endpoint.received) == 1


def test_what_is_kept_is_bounded() -> None:
    config = Config(alert_urls=(f"json://127.0.0.1:{closed_port()}/",))
    outbox = Outbox()
    outbox.post([Alert(str(number), f"Alert {number}", "x" * 10_000) for number in range(120)])
    assert not outbox.deliver(config)
    assert 0 < len(outbox) < 120
    assert len(json.dumps(outbox.state)) < 120_000
    assert outbox.state["letters"][-1]["alert"]["name"] == "119"
    state = outbox.state
    for letter in state["letters"]:
        letter["at"] -= 3 * 86400
    assert Outbox(state).deliver(Config(alert_urls=(f"json://127.0.0.1:{closed_port()}/",)))


@pytest.mark.parametrize(
    "state", [None, 7, "x", [], {}, {"letters": 3}, {"letters": [{"alert": {"kind": "?"}}], "endpoints": {}}]
)
def test_a_state_that_is_none_is_an_empty_outbox(state: object) -> None:
    assert Outbox(state).state == Outbox().state


def test_without_a_process_there_is_a_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, endpoint: Endpoint
) -> None:
    monkeypatch.setattr(alerts.sys, "executable", "/nowhere/python")
    assert not alerts.send(STARTED, Config(alert_urls=(endpoint.url,)))
    assert "no process could be started" in caplog.text
    assert SECRET not in caplog.text
