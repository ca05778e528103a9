"""Which files make up a table: over HTTP from a simulated CDN, without a cache."""

import pyarrow as pa
import pytest

from tif1_pipeline.cdn.base import CdnStats
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import DataNotFoundError, EventNotFoundError, InvalidDataError, NetworkError
from tif1_pipeline.fetch import fetch_schedule, fetch_table, fetch_telemetry
from tif1_pipeline.keys import SessionKey
from tif1_pipeline.simulator import Fault

RACE = SessionKey(2025, "Australian Grand Prix", "Race")
QUALIFYING = SessionKey(2025, "Australian Grand Prix", "Qualifying")


@pytest.fixture
def client(cdn):
    client = CdnClient(Config(cdn_urls=cdn.cdn_urls, schedule_urls=cdn.schedule_urls, max_retries=0))
    yield client
    client.close()


def look_up_with(client, key):
    tables = {}

    def look_up(dataset):
        if dataset not in tables:
            tables[dataset] = fetch_table(client, key, dataset, look_up).table
        return tables[dataset]

    return look_up


def last_laps(laps):
    last = {}
    for code, lap in zip(laps["Driver"].to_pylist(), laps["LapNumber"].to_pylist(), strict=True):
        last[code] = max(last.get(code, 0), int(lap))
    return last


def test_laps_come_from_the_session_file(client, cdn):
    fetched = fetch_table(client, RACE, "laps", look_up_with(client, RACE))
    assert fetched.url.endswith("/Australian%20Grand%20Prix/Race/session_laptimes.json")
    assert fetched.validators.etag
    assert cdn.requests.total == 1


def test_laps_fall_back_to_the_drivers_files(client, cdn):
    whole = fetch_table(client, RACE, "laps", look_up_with(client, RACE)).table
    cdn.hide("Race/session_laptimes.json")
    fetched = fetch_table(client, RACE, "laps", look_up_with(client, RACE))
    assert fetched.url.endswith("/Race/")

    def laps(table):
        rows = zip(
            table["Driver"].to_pylist(), table["LapNumber"].to_pylist(), table["LapTime"].to_pylist(), strict=True
        )
        return sorted(rows, key=lambda row: row[:2])

    assert laps(fetched.table) == laps(whole)
    assert set(fetched.table["Team"].to_pylist()) == set(whole["Team"].to_pylist())


def test_laps_that_nobody_has_are_not_found(client, cdn):
    cdn.hide("Race/*laptimes.json")
    with pytest.raises(DataNotFoundError, match=r"session_laptimes\.json"):
        fetch_table(client, RACE, "laps", look_up_with(client, RACE))


def test_laps_by_driver_with_a_hole_are_no_laps(client, cdn):
    cdn.hide("Race/session_laptimes.json")
    driver = look_up_with(client, RACE)("drivers")["Driver"][0].as_py()
    cdn.faults.add(Fault("error", path=f"Race/{driver}/laptimes.json"))
    with pytest.raises(NetworkError, match="1 of"):
        fetch_table(client, RACE, "laps", look_up_with(client, RACE))


def test_telemetry_of_laps_that_the_table_lacks_is_found(client, season):
    look_up = look_up_with(client, QUALIFYING)
    table = fetch_table(client, QUALIFYING, "telemetry", look_up).table
    found = set(zip(table["Driver"].to_pylist(), table["LapNumber"].to_pylist(), strict=True))
    laps = look_up("laps")
    in_table = {
        (code, int(lap)) for code, lap in zip(laps["Driver"].to_pylist(), laps["LapNumber"].to_pylist(), strict=True)
    }
    session = season.session(QUALIFYING.event, QUALIFYING.session_type)
    published = {
        (path.split("/")[0], int(path.split("/")[1].split("_")[0]))
        for path in session.paths()
        if path.endswith("_tel.json")
    }
    # A run of missing files longer than one ends the search past a driver's last known lap.
    last = last_laps(laps)
    assert {pair for pair in published if pair[1] <= last.get(pair[0], 0) + 1} <= found <= published
    assert found - in_table, "the untidy season has telemetry beyond the lap table"


def test_a_driver_is_followed_while_others_are_fetched(client, cdn):
    client._config.max_concurrent_requests = 4  # of 34 files
    look_up = look_up_with(client, QUALIFYING)
    last = last_laps(look_up("laps"))
    cdn.requests.clear()
    fetch_table(client, QUALIFYING, "telemetry", look_up)
    asked = [entry.path.split("/")[-2:] for entry in cdn.requests.entries if entry.path.endswith("_tel.json")]
    beyond = [place for place, (code, file) in enumerate(asked) if int(file.split("_")[0]) > last.get(code, 0) + 1]
    assert beyond, "the untidy season has telemetry beyond the lap table"
    assert beyond[0] < len(asked) - 2 * len(beyond)


def test_a_server_that_has_every_lap_is_not_followed_for_ever(client, monkeypatch):
    laps = look_up_with(client, QUALIFYING)("laps")
    table = fetch_table(client, QUALIFYING, "telemetry", look_up_with(client, QUALIFYING)).table
    last = last_laps(laps)
    code = next(code for code, number in last_laps(table).items() if number > last.get(code, 0))
    known = {"Driver": [code], "LapNumber": [float(last.get(code, 0))]}
    tables = {"drivers": pa.table({"Driver": [code]}), "laps": pa.table(known)}
    monkeypatch.setattr("tif1_pipeline.fetch._MOST_LAPS", last.get(code, 0))
    with pytest.raises(InvalidDataError, match="every lap number"):
        fetch_table(client, QUALIFYING, "telemetry", tables.__getitem__)


def test_parts_are_told_of_while_others_are_fetched(client, cdn):
    look_up = look_up_with(client, RACE)
    look_up("drivers"), look_up("laps")
    cdn.requests.clear()
    told, asked = {}, []

    def on_part(name, rows):
        told[name] = rows
        asked.append(cdn.requests.total)

    table = fetch_table(client, RACE, "telemetry", look_up, on_part=on_part).table
    assert list(told) == table["Driver"].unique().to_pylist()
    assert asked[0] < asked[-1] <= cdn.requests.total
    assert sum(rows.num_rows for rows in told.values()) == table.num_rows
    at = 0
    for name, rows in told.items():
        part = table.slice(at, rows.num_rows)
        assert set(part["Driver"].to_pylist()) == {name}
        assert part["Speed"].chunk(0).buffers()[1].address == rows["Speed"].chunk(0).buffers()[1].address
        at += rows.num_rows


def test_telling_of_parts_changes_nothing(client, cdn):
    cdn.hide("Race/session_laptimes.json")
    for key in (RACE, QUALIFYING):
        plain = fetch_table(client, key, "telemetry", look_up_with(client, key))
        parts = []
        told = fetch_table(
            client, key, "telemetry", look_up_with(client, key), on_part=lambda name, rows, to=parts: to.append(name)
        )
        assert told.table.equals(plain.table)
        assert parts == told.table["Driver"].unique().to_pylist()
        assert (told.url, told.files_missing, told.raw_bytes) == (plain.url, plain.files_missing, plain.raw_bytes)


def test_missing_telemetry_files_are_counted_not_fatal(client, cdn):
    look_up = look_up_with(client, RACE)
    laps = look_up("laps")
    driver, lap = laps["Driver"][0].as_py(), int(laps["LapNumber"][0].as_py())
    cdn.hide(f"Race/{driver}/{lap}_tel.json")
    fetched = fetch_table(client, RACE, "telemetry", look_up)
    assert fetched.files_missing >= 1
    pairs = set(zip(fetched.table["Driver"].to_pylist(), fetched.table["LapNumber"].to_pylist(), strict=True))
    assert (driver, lap) not in pairs
    assert pairs


def test_no_telemetry_at_all_is_not_found(client, cdn):
    cdn.hide("*_tel.json")
    with pytest.raises(DataNotFoundError, match="half an hour after a session"):
        fetch_table(client, RACE, "telemetry", look_up_with(client, RACE))


def test_one_unsound_telemetry_file_fails_the_table_and_is_named(client, cdn):
    look_up = look_up_with(client, RACE)
    driver = look_up("laps")["Driver"][0].as_py()
    cdn.faults.add(Fault("garbage", path=f"Race/{driver}/1_tel.json"))
    with pytest.raises(InvalidDataError, match=rf"1 of \d+ files.*{driver}/1_tel\.json"):
        fetch_table(client, RACE, "telemetry", look_up)


def test_one_driver_and_one_lap_fetch_no_more(client, cdn):
    look_up = look_up_with(client, RACE)
    driver = look_up("laps")["Driver"][0].as_py()
    cdn.requests.clear()
    fetch_telemetry(client, RACE, look_up, driver=driver, lap=1)
    assert cdn.requests.total == 1
    fetch_telemetry(client, RACE, look_up, driver=driver)
    assert cdn.requests.total == cdn.requests.count(f"{driver}/*_tel.json") + cdn.requests.count("drivers.json")


def test_an_absurd_lap_number_does_not_become_requests(client, cdn):
    tables = {
        "drivers": pa.table({"Driver": ["VER"]}),
        "laps": pa.table({"Driver": ["VER"], "LapNumber": [1e9]}),
    }
    with pytest.raises(InvalidDataError, match="VER drove lap"):
        fetch_telemetry(client, RACE, tables.__getitem__)
    assert cdn.requests.total == 0


def test_an_unchanged_file_is_not_sent_again(client):
    first = fetch_table(client, RACE, "weather", look_up_with(client, RACE))
    again = fetch_table(client, RACE, "weather", look_up_with(client, RACE), validators=first.validators)
    assert again.not_modified
    assert again.table is None


def test_stats_count_what_was_asked(client, cdn):
    stats = CdnStats()
    fetch_table(client, RACE, "telemetry", look_up_with(client, RACE), stats=stats)
    assert stats.requests == cdn.requests.count("*_tel.json")
    assert stats.bytes > 1000
    assert stats.seconds > 0


def test_schedules_outside_of_the_published_seasons(client, cdn):
    assert fetch_schedule(client, 2025).table.num_rows == 2
    with pytest.raises(EventNotFoundError, match="start with 2018"):
        fetch_schedule(client, 2017)
    assert cdn.requests.count("*2017*") == 0
    with pytest.raises(EventNotFoundError, match="season 2019"):
        fetch_schedule(client, 2019)


def test_a_dead_mirror_does_not_make_the_search_past_the_last_lap_fail(cdn):
    config = Config(
        cdn_urls=(*cdn.cdn_urls, "http://127.0.0.1:9/{year}"), schedule_urls=cdn.schedule_urls, max_retries=0
    )
    client = CdnClient(config)
    try:
        fetched = fetch_table(client, RACE, "telemetry", look_up_with(client, RACE))
        assert fetched.table.num_rows
        # But a lap that the table has may be on the mirror that is down: what is incomplete is not returned.
        look_up = look_up_with(client, RACE)
        driver, lap = look_up("laps")["Driver"][0].as_py(), int(look_up("laps")["LapNumber"][0].as_py())
        cdn.hide(f"Race/{driver}/{lap}_tel.json")
        with pytest.raises(NetworkError, match="1 of"):
            fetch_table(client, RACE, "telemetry", look_up)
    finally:
        client.close()


def test_an_error_page_at_one_mirror_does_not_make_the_search_past_the_last_lap_fail(cdn):
    config = Config(cdn_urls=cdn.mirror_urls(2), schedule_urls=cdn.schedule_urls, max_retries=0)
    client = CdnClient(config)
    try:
        look_up = look_up_with(client, RACE)
        laps = look_up("laps").to_pandas()
        driver, last = laps["Driver"][0], int(laps[laps["Driver"] == laps["Driver"][0]]["LapNumber"].max())
        cdn.faults.add(Fault("garbage", path=f"Race/{driver}/{last + 1}_tel.json", mirror=1))
        assert fetch_table(client, RACE, "telemetry", look_up).table.num_rows
    finally:
        client.close()


def test_rows_that_name_no_lap_or_driver_ask_for_no_file(client, cdn):
    code = look_up_with(client, RACE)("laps")["Driver"][0].as_py()
    tables = {
        "drivers": pa.table({"Driver": pa.array([code, None], pa.string())}),
        "laps": pa.table({"Driver": [code, code, None], "LapNumber": [1.0, None, 2.0]}),
    }
    assert fetch_telemetry(client, RACE, tables.__getitem__).table.num_rows
    assert cdn.requests.count("Race/*/*_tel.json") == cdn.requests.count(f"Race/{code}/*_tel.json")
