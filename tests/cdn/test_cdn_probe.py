"""Asking whether files have changed: conditions, mirrors and what an answer means, without a body on the wire."""

import time
from collections.abc import Iterator

import pytest
from misbehaving_server import FILE, TIMING, Exchange, MisbehavingServer, files, slow, status

from tif1_pipeline.cdn.base import CdnFile, CdnStats, Probed, Validators, Version
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import DataNotFoundError, InvalidDataError, NetworkError
from tif1_pipeline.simulator import CdnServer, Fault, Season

RACE = ("Australian Grand Prix", "Race")
DRIVERS = CdnFile(2025, (*RACE, "drivers.json"))
OLD, NEW = "Mon, 01 Jan 2024 00:00:00 GMT", "Tue, 02 Jan 2024 00:00:00 GMT"


# ---- against the simulated CDN


@pytest.fixture(scope="module")
def shared() -> Iterator[CdnServer]:
    with CdnServer(Season(2025, seed=7, events=1, size="tiny", untidy=False)) as server:
        yield server


@pytest.fixture
def simulated(shared: CdnServer) -> Iterator[tuple[CdnServer, CdnClient]]:
    config = Config(cdn_urls=shared.mirror_urls(2), request_timeout=5, max_retries=1)
    client = CdnClient(config, TIMING)
    shared.requests.clear()
    yield shared, client
    client.close()
    shared.faults.clear()
    shared.publish()


def test_a_version_that_was_fetched_is_unchanged_until_it_is_published_anew(simulated):
    cdn, client = simulated
    fetched = client.fetch(DRIVERS, bytes)
    held = Version(fetched.validators, fetched.url)
    sent = cdn.requests.bytes_sent
    stats = CdnStats()
    assert client.probe_many({DRIVERS: held}, stats=stats) == {DRIVERS: Probed("unchanged", held)}
    asked = cdn.requests.entries[-1]
    assert (asked.method, asked.status, asked.conditional, asked.mirror) == ("HEAD", 304, True, 1)
    assert cdn.requests.bytes_sent == sent
    assert (stats.requests, stats.bytes) == (1, 0)

    cdn.republish("Race/drivers.json")
    outcome = client.probe_many({DRIVERS: held})[DRIVERS]
    assert outcome.state == "changed"
    assert outcome.version.url == held.url
    assert outcome.version.validators.etag != held.validators.etag
    assert outcome.version == Version(client.fetch(DRIVERS, bytes).validators, held.url)


def test_a_file_that_is_not_held_is_changed_when_it_is_published(simulated):
    cdn, client = simulated
    cdn.hide("Race/drivers.json")
    assert isinstance(client.probe_many({DRIVERS: None})[DRIVERS], DataNotFoundError)
    assert cdn.requests.count("drivers.json", mirror=2) == 1, "every mirror must say so"
    cdn.publish("Race/drivers.json")
    assert client.probe_many({DRIVERS: None})[DRIVERS].state == "changed"
    assert not cdn.requests.entries[-1].conditional


def test_the_mirror_of_the_held_version_is_asked_first(simulated):
    cdn, client = simulated
    fault = Fault("missing", mirror=1)
    cdn.faults.add(fault)
    fetched = client.fetch(DRIVERS, bytes)
    assert "/mirror2/" in fetched.url
    cdn.faults.clear()
    cdn.requests.clear()
    assert client.probe_many({DRIVERS: Version(fetched.validators, fetched.url)})[DRIVERS].state == "unchanged"
    assert [request.mirror for request in cdn.requests.entries] == [2]


def test_many_files_each_with_its_own_answer(simulated):
    cdn, client = simulated
    weather, corners, rcm = (CdnFile(2025, (*RACE, f"{name}.json")) for name in ("weather", "corners", "rcm"))
    held = {file: Version((got := client.fetch(file, bytes)).validators, got.url) for file in (DRIVERS, weather)}
    cdn.republish("Race/weather.json")
    cdn.hide("Race/corners.json")
    cdn.faults.add(Fault("error", path="Race/rcm.json"))
    outcomes = client.probe_many({**held, corners: None, rcm: None})
    assert list(outcomes) == [DRIVERS, weather, corners, rcm]
    assert outcomes[DRIVERS].state == "unchanged"
    assert outcomes[weather].state == "changed"
    assert isinstance(outcomes[corners], DataNotFoundError)
    assert isinstance(outcomes[rcm], NetworkError)
    assert client.probe_many({}) == {}


def test_a_fault_that_passes_is_retried_and_one_mirror_stands_in_for_another(simulated):
    cdn, client = simulated
    cdn.faults.add(Fault("error", mirror=1, times=1))
    assert "/mirror2/" not in client.probe_many({DRIVERS: None})[DRIVERS].version.url
    cdn.faults.set(Fault("reset", mirror=1))
    assert "/mirror2/" in client.probe_many({DRIVERS: None})[DRIVERS].version.url


def test_a_mirror_that_fails_is_set_aside_by_probes_as_by_fetches(simulated):
    cdn, client = simulated
    cdn.faults.add(Fault("error", mirror=1))
    laps = [CdnFile(2025, (*RACE, f"{number}.json")) for number in range(40)]
    client.probe_many(dict.fromkeys(laps))
    cdn.requests.clear()
    client.probe_many(dict.fromkeys(laps))
    assert cdn.requests.count(mirror=1) == 0


def test_offline_nothing_is_asked(simulated):
    cdn, client = simulated
    client._config.offline = True
    outcome = client.probe_many({DRIVERS: None})[DRIVERS]
    assert isinstance(outcome, NetworkError)
    assert "offline" in str(outcome)
    assert cdn.requests.total == 0


def test_a_name_that_is_no_file_name_spoils_no_other(simulated):
    _, client = simulated
    bad = CdnFile(2025, (*RACE, ".."))
    outcomes = client.probe_many({bad: None, DRIVERS: None})
    assert isinstance(outcomes[bad], InvalidDataError)
    assert outcomes[DRIVERS].state == "changed"


# ---- against servers that answer in other ways


class _Exchange(Exchange):
    """Answers HEAD as GET, but for the body."""

    do_HEAD = Exchange.do_GET  # noqa: N815 - as http.server wants it

    def raw(self, data: bytes) -> None:
        head, _, body = data.partition(b"\r\n\r\n")
        super().raw(head + b"\r\n\r\n" + (b"" if self.command == "HEAD" else body))


@pytest.fixture
def server() -> Iterator[MisbehavingServer]:
    server = MisbehavingServer()
    server.http.RequestHandlerClass = _Exchange
    server.start()
    yield server
    server.stop()


def held_of(server, etag=None, last_modified=None, mirror="a"):
    folder = server.mirror(mirror).replace("{year}", "2025")
    return Version(Validators(etag, last_modified), f"{folder}/Monaco%20Grand%20Prix/Race/VER/10_tel.json")


def probe(client, held):
    return client.probe_many({FILE: held})[FILE]


@pytest.mark.parametrize(
    ("held", "sent", "state"),
    [
        (('"1"', None), {"etag": '"1"'}, "unchanged"),
        (('W/"1"', None), {"etag": '"1"'}, "unchanged"),
        (('"1"', OLD), {"etag": '"1"', "last_modified": NEW}, "unchanged"),
        (('"1"', OLD), {"etag": '"2"', "last_modified": OLD}, "changed"),
        ((None, OLD), {"last_modified": OLD}, "unchanged"),
        ((None, NEW), {"last_modified": OLD}, "changed"),
        (('"1"', None), {"last_modified": OLD}, "unknown"),
        (('"1"', None), {}, "unknown"),
        ((None, None), {"etag": '"1"'}, "unknown"),
        ((None, "yesterday"), {"last_modified": "today"}, "changed"),
    ],
)
def test_a_server_that_ignores_conditions_is_compared_all_the_same(client, server, held, sent, state):
    server.replies["a"] = lambda x: x.send(**sent)
    assert probe(client, held_of(server, *held)).state == state


@pytest.mark.parametrize(
    ("held", "sent", "state"),
    [
        (('"1"', None), {"etag": '"2"'}, "unknown"),
        (('"1"', OLD), {"etag": '"2"'}, "unknown"),
        (('"1"', OLD), {"etag": '"2"', "last_modified": OLD}, "unchanged"),
        (('"1"', NEW), {"etag": '"2"', "last_modified": OLD}, "unchanged"),
        (('"1"', OLD), {"etag": '"2"', "last_modified": NEW}, "changed"),
        ((None, OLD), {"last_modified": "rubbish"}, "unknown"),
    ],
)
def test_an_etag_says_nothing_at_another_mirror(client, server, held, sent, state):
    server.replies["a"] = status(404)
    server.replies["b"] = lambda x: x.send(**sent)
    assert probe(client, held_of(server, *held)).state == state
    assert "if-none-match" not in server.requests[-1][2]


def test_a_version_of_unknown_origin_is_compared_by_its_date(client, server):
    server.replies["a"] = lambda x: x.send(etag='"1"', last_modified=NEW)
    assert probe(client, Version(Validators('"1"', OLD))).state == "changed"
    assert probe(client, Version(Validators('"0"', NEW))).state == "unchanged"


@pytest.mark.parametrize("code", [405, 501])
def test_a_server_without_head_is_asked_by_get_and_its_body_not_read(client, server, code):
    def reply(exchange):
        if exchange.command == "HEAD":
            exchange.send(b"", code)
        else:
            exchange.send(etag='"1"')

    server.replies["a"] = reply
    stats = CdnStats()
    outcome = client.probe_many({FILE: held_of(server, '"1"')}, stats=stats)[FILE]
    assert outcome.state == "unchanged"
    assert (stats.requests, stats.bytes, stats.retries) == (2, 0, 0)


def test_a_signed_url_that_holds_for_get_alone_is_not_a_missing_file(client, server):
    def reply(exchange):
        if "signed" not in exchange.path:
            exchange.send(b"", 302, location=f"{server.origin}/a/signed")
        elif exchange.command == "HEAD":
            exchange.send(b"", 403)
        else:
            exchange.send(etag='"1"')

    server.replies["a"] = reply
    assert probe(client, None).version.validators.etag == '"1"'
    assert server.asked("b") == 0


def test_forbidden_without_redirect_means_missing_as_for_fetch(client, server):
    server.replies["a"] = server.replies["b"] = status(403)
    assert isinstance(probe(client, None), DataNotFoundError)
    assert server.asked("a") == server.asked("b") == 1


def test_an_html_page_is_no_file(client, server):
    server.replies["a"] = server.replies["b"] = status(200)
    assert isinstance(probe(client, None), InvalidDataError)


def test_one_mirror_down_and_the_other_without_the_file_does_not_mean_missing(client, server):
    server.replies["a"] = status(503)
    server.replies["b"] = status(404)
    assert isinstance(probe(client, None), NetworkError)


def test_a_mirror_that_hangs_leaves_time_for_the_next(client, config, server):
    config.request_timeout, config.max_retries = 3600, 0
    server.replies["a"] = lambda x: x.stall()
    assert client.probe_many({FILE: None}, seconds=6)[FILE].state == "changed"


def test_what_has_no_answer_in_time_was_not_reached(client, config, server):
    config.max_concurrent_requests, config.request_timeout = 1, 3600
    server.replies["a"] = server.replies["b"] = slow(0.4)
    started = time.monotonic()
    outcomes = client.probe_many(dict.fromkeys(files(200)), seconds=2)
    assert time.monotonic() - started < 40
    late = [outcome for outcome in outcomes.values() if isinstance(outcome, NetworkError)]
    assert len(outcomes) == 200
    assert late
    assert "no answer within the 2 s" in str(late[-1])
    server.replies.clear()
    assert client.probe_many({FILE: None})[FILE].state == "changed", "the client is as good as new"
