"""The server, over real HTTP."""

import gzip
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import httpx
import pytest

from tif1_pipeline.exceptions import ConfigError
from tif1_pipeline.simulator import CdnServer, Fault, Season

FOLDER = "Australian%20Grand%20Prix/Race"
SEASON = Season(2025, events=1, size="tiny", untidy=False)


@pytest.fixture(scope="module")
def running() -> Iterator[CdnServer]:
    with CdnServer(SEASON) as server:
        yield server


@pytest.fixture
def server(running: CdnServer) -> Iterator[CdnServer]:
    running.faults.clear()
    running.requests.clear()
    yield running
    running.faults.clear()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=5, trust_env=False) as client:
        yield client


def url(server: CdnServer, name: str, mirror: int = 1) -> str:
    return f"{server.mirror_urls(mirror)[-1].format(year=2025)}/{FOLDER}/{name}"


# ---- what it serves


def test_the_settings_find_the_files(server, client):
    assert server.url == f"http://127.0.0.1:{server.port}"
    assert server.cdn_urls == (f"{server.url}/TracingInsights/{{year}}@main",)
    answer = client.get(url(server, "NOR/2_tel.json"))
    assert answer.status_code == 200
    assert answer.content == SEASON.file("Australian Grand Prix/Race/NOR/2_tel.json")
    assert answer.headers["content-type"].startswith("application/json")
    assert client.get(server.schedule_urls[0].format(year=2025)).content == SEASON.schedule()


@pytest.mark.parametrize(
    "path",
    [
        "",
        "x",
        "TracingInsights/2024@main/Australian%20Grand%20Prix/Race/drivers.json",
        "theOehrly/f1schedule@master/schedule_2024.json",
        "TracingInsights/2025@main/",
    ],
)
def test_everything_else_is_404(server, client, path):
    assert client.get(f"{server.url}/{path}").status_code == 404
    assert client.post(url(server, "drivers.json")).status_code == 405


def test_head_is_get_without_the_body(server, client):
    plain = {"Accept-Encoding": "identity"}
    get, head = (client.request(method, url(server, "drivers.json"), headers=plain) for method in ("GET", "HEAD"))
    assert head.content == b""
    for name in ("etag", "last-modified", "content-length", "content-type"):
        assert head.headers[name] == get.headers[name]
    assert int(get.headers["content-length"]) == len(get.content)


def test_gzip_when_accepted(server, client):
    with client.stream("GET", url(server, "NOR/2_tel.json"), headers={"Accept-Encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) == len(raw)
    plain = client.get(url(server, "NOR/2_tel.json"), headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < 0.7 * len(plain.content)


def test_conditional_requests(server, client):
    first = client.get(url(server, "weather.json"))
    etag, modified = first.headers["etag"], first.headers["last-modified"]
    for headers, status in [
        ({"If-None-Match": etag}, 304),
        ({"If-None-Match": f'"other", {etag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": modified}, 304),
        ({"If-Modified-Since": formatdate(0, usegmt=True)}, 200),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": modified}, 200),
    ]:
        answer = client.get(url(server, "weather.json"), headers=headers)
        assert answer.status_code == status, headers
        assert answer.headers["etag"] == etag
        assert (answer.content == b"") is (status == 304)
    assert server.requests.count("weather.json", status=304) == 4


def test_connections_are_kept_alive(server, client):
    streams = {client.get(url(server, "drivers.json")).extensions["network_stream"] for _ in range(3)}
    ports = {stream.get_extra_info("client_addr") for stream in streams}
    assert len(ports) == 1


def test_a_directory_is_served_and_nothing_outside(tmp_path, client):
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    root = tmp_path / "cdn"
    folder = root / "TracingInsights" / "2025@main" / "São Paulo Grand Prix" / "Race"
    folder.mkdir(parents=True)
    (folder / "drivers.json").write_text('{"drivers": []}')
    (folder / "link.json").symlink_to(outside)
    with CdnServer(root) as server, CdnServer(root / "TracingInsights") as inner:
        for each in (server, inner):
            base = each.cdn_urls[0].format(year=2025) + "/S%C3%A3o%20Paulo%20Grand%20Prix/Race"
            answer = client.get(f"{base}/drivers.json")
            assert answer.json() == {"drivers": []}
            tag = {"If-None-Match": answer.headers["etag"]}
            assert client.get(f"{base}/drivers.json", headers=tag).status_code == 304
            for path in ("link.json", "", "..%2F..%2F..%2F..%2Fsecret.json", "%2e%2e/x", "a%00b", "x" * 300):
                assert client.get(f"{base}/{path}").status_code == 404
            for path in ("..%2Fsecret.json", f"%2F{str(outside)[1:].replace('/', '%2F')}", f"x/{outside}"):
                assert client.get(f"{each.url}/{path}").status_code == 404
    with pytest.raises(ConfigError, match="no directory"):
        CdnServer(tmp_path / "none")


def test_several_seasons_on_one_server(client):
    with CdnServer([Season(2024, events=1, size="tiny"), SEASON]) as server:
        for year in (2024, 2025):
            assert client.get(server.schedule_urls[0].format(year=year)).status_code == 200


def test_a_taken_port_is_an_error_of_start(server):
    with pytest.raises(OSError, match=r"[Aa]ddress"):
        CdnServer(SEASON, port=server.port).start()


def test_memory_is_bounded_and_bodies_stay_right(client):
    with CdnServer(SEASON, cache_bytes=30_000) as server:
        names = [f"{code}/{lap}_tel.json" for code in ("NOR", "VER") for lap in (2, 3, 4)]
        for name in names * 2:
            assert client.get(url(server, name)).content == SEASON.file(f"Australian Grand Prix/Race/{name}")
        assert server._content._held <= 30_000 + 15_000


# ---- what changes


def test_hidden_files_appear_when_they_are_published(client):
    with CdnServer(SEASON) as server:
        server.hide("Race/*")
        assert client.get(url(server, "drivers.json")).status_code == 404
        assert client.get(url(server, "drivers.json").replace("Race", "Qualifying")).status_code == 200
        server.publish("Race/drivers.json")
        assert client.get(url(server, "drivers.json")).status_code == 200
        assert client.get(url(server, "weather.json")).status_code == 404
        server.publish()
        assert client.get(url(server, "weather.json")).status_code == 200


@pytest.mark.parametrize("name", ["NOR/laptimes.json", "session_laptimes.json"])
def test_a_republished_lap_table_has_a_corrected_time(name, client):
    with CdnServer(SEASON) as server:
        before = client.get(url(server, name))
        server.republish("*laptimes.json")
        after = client.get(url(server, name), headers={"If-None-Match": before.headers["etag"]})
        assert after.status_code == 200
        old, new = before.json(), after.json()
        changed = [(was, now) for was, now in zip(old["time"], new["time"], strict=True) if was != now]
        assert [round(now - was, 6) for was, now in changed] == [0.001]
        assert {**old, "time": 0} == {**new, "time": 0}
        server.republish("*laptimes.json")
        assert client.get(url(server, name)).headers["etag"] != after.headers["etag"]


def test_other_republished_files_have_a_new_etag_and_the_same_content(client):
    with CdnServer(SEASON) as server:
        for name in ("NOR/2_tel.json", "weather.json"):
            before = client.get(url(server, name))
            server.republish(name)
            after = client.get(url(server, name))
            assert after.headers["etag"] != before.headers["etag"]
            assert after.json() == before.json()


# ---- faults


@pytest.mark.parametrize(("fault", "status"), [
    (Fault("error"), 503), (Fault("error", status=500), 500), (Fault("rate_limit"), 429), (Fault("missing"), 404),
    (Fault("forbidden"), 403),
])  # fmt: skip
def test_faults_by_status(server, client, fault, status):
    server.faults.add(fault)
    assert client.get(url(server, "drivers.json")).status_code == status
    server.faults.remove(fault)
    assert client.get(url(server, "drivers.json")).status_code == 200
    assert server.requests.by_status == {status: 1, 200: 1}
    assert server.requests.entries[0].faults == (fault.kind,)


def test_retry_after(server, client):
    server.faults.set(Fault("rate_limit", retry_after=2))
    assert client.get(url(server, "drivers.json")).headers["retry-after"] == "2"
    server.faults.set(Fault("rate_limit"))
    assert "retry-after" not in client.get(url(server, "drivers.json")).headers


def test_garbage_and_cut_json_look_like_success(server, client):
    server.faults.set(Fault("garbage"))
    answer = client.get(url(server, "drivers.json"))
    assert answer.status_code == 200
    assert answer.text.startswith("<!DOCTYPE html>")
    server.faults.set(Fault("bad_json"))
    answer = client.get(url(server, "drivers.json"))
    assert answer.status_code == 200
    with pytest.raises(ValueError):
        answer.json()


@pytest.mark.parametrize("kind", ["truncate", "reset"])
def test_broken_connections(server, client, kind):
    server.faults.set(Fault(kind))
    with pytest.raises(httpx.RemoteProtocolError if kind == "truncate" else httpx.TransportError):
        client.get(url(server, "NOR/2_tel.json"))
    server.faults.clear()
    assert client.get(url(server, "NOR/2_tel.json")).status_code == 200


def test_latency_and_hang(server, client):
    server.faults.set(Fault("latency", seconds=0.15))
    before = time.monotonic()
    assert client.get(url(server, "drivers.json")).status_code == 200
    assert time.monotonic() - before >= 0.15
    server.faults.set(Fault("hang"))
    with pytest.raises(httpx.ReadTimeout):
        client.get(url(server, "drivers.json"), timeout=0.2)


def test_stopping_does_not_wait_for_hanging_requests(client):
    with CdnServer(SEASON, faults=[Fault("hang")]) as server, pytest.raises(httpx.ReadTimeout):
        client.get(url(server, "drivers.json"), timeout=0.1)
    with CdnServer(SEASON, faults=[Fault("hang")]) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.get, url(server, "drivers.json"), timeout=20, trust_env=False)
        while not server.requests.peak:
            time.sleep(0.01)
        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before < 5
        assert isinstance(waiting.exception(), httpx.TransportError)


def test_a_fault_may_hit_some_paths_or_one_mirror_or_a_few_times(server, client):
    server.faults.set(Fault("error", path="*_tel.json"))
    assert client.get(url(server, "NOR/2_tel.json")).status_code == 503
    assert client.get(url(server, "drivers.json")).status_code == 200
    server.faults.set(Fault("error", mirror=2))
    assert [client.get(url(server, "drivers.json", mirror)).status_code for mirror in (1, 2, 3)] == [200, 503, 200]
    assert server.requests.entries[-1].mirror == 3
    server.faults.set(Fault("error", times=2))
    assert [client.get(url(server, "drivers.json")).status_code for _ in range(3)] == [503, 503, 200]
    schedule = server.mirror_schedule_urls(2)[1].format(year=2025)
    assert "/mirror2/" in schedule
    assert [client.get(schedule).status_code for _ in range(3)] == [503, 503, 200]


def test_rates_are_met_and_decided_by_the_seed_alone(client):
    def statuses(seed: int, names: list[str]) -> dict[str, int]:
        with CdnServer(SEASON, seed=seed, faults=[Fault("error", 0.3)]) as server:
            return {name: client.get(url(server, name)).status_code for name in names}

    names = [f"{code}/{lap}_tel.json" for code in ("NOR", "VER", "LEC", "RUS", "ALB") for lap in range(1, 40)]
    one, again, other = statuses(1, names), statuses(1, names[::-1]), statuses(2, names)
    assert one == again
    assert one != other
    assert 0.2 < list(one.values()).count(503) / len(names) < 0.4


def test_bad_faults_are_refused():
    with pytest.raises(ConfigError, match="latency, error"):
        Fault("earthquake")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="from 0 to 1"):
        Fault("error", 1.5)


# ---- counting


def test_requests_are_counted(server, client):
    for _ in range(3):
        client.get(url(server, "drivers.json"))
    client.get(url(server, "weather.json", 2))
    log = server.requests
    assert log.total == 4
    assert log.count("drivers.json") == 3
    assert log.count(mirror=2) == 1
    assert log.by_path["TracingInsights/2025@main/Australian Grand Prix/Race/drivers.json"] == 3
    assert log.bytes_sent > 500
    log.clear()
    assert (log.total, log.count(), log.entries) == (0, 0, [])


def test_the_peak_of_concurrent_requests(server):
    server.faults.set(Fault("latency", seconds=0.2))
    gate = threading.Barrier(4)

    def ask() -> None:
        gate.wait()
        httpx.get(url(server, "drivers.json"), trust_env=False)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(ask) for _ in range(4)]:
            done.result()
    assert server.requests.peak == 4


def test_the_log_of_a_path_has_no_mirror_prefix_and_no_escapes(server, client):
    client.get(url(server, "drivers.json", 3))
    assert server.requests.entries[0].path == "TracingInsights/2025@main/Australian Grand Prix/Race/drivers.json"
