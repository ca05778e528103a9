"""Warming against a simulated CDN: what is fetched, what is left alone, what failures and interrupts leave behind."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from tif1_pipeline import api
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import SessionKey, schedule_entry
from tif1_pipeline.reading import Reader
from tif1_pipeline.simulator import Fault
from tif1_pipeline.warming import DEFAULT_TYPES, LASTING, NOT_PUBLISHED, PASSING, TYPES, Task, Warming

EVENT = "Australian Grand Prix"
RACE = SessionKey(2025, EVENT, "Race")
SESSIONS = 10


@pytest.fixture
def warming(tif1: object) -> Warming:
    return Warming(api.get_reader(), api.get_cache(), api.get_config())


def stored(key: SessionKey, data_type: str) -> bool:
    return api.get_cache().info(key.entry(data_type)) is not None


def counts(report: dict) -> tuple[int, int, int]:
    return report["succeeded"], report["skipped"], len(report["failed"])


# ---- what is warmed


def test_a_season_is_fetched_once_and_found_afterwards(tif1, cdn, warming):
    report = warming.season(2025)
    assert counts(report) == (SESSIONS * len(DEFAULT_TYPES), 0, 0)
    assert report["requests"] == cdn.requests.total
    assert report["bytes"] > 0
    assert report["seconds"] > 0
    asked = cdn.requests.total
    again = warming.season(2025)
    assert counts(again) == (0, SESSIONS * len(DEFAULT_TYPES), 0)
    assert (again["requests"], again["bytes"]) == (0, 0)
    assert len(tif1.get_session(2025, "Australia", "Q").laps)
    assert cdn.requests.total == asked


def test_what_is_found_stored_is_not_read(warming):
    warming.event(2025, EVENT, "R")
    api.get_cache().flush()
    before = {entry["key"]: entry["access_count"] for entry in api.get_cache().get_entries(year=2025)}
    warming.event(2025, EVENT, "R")
    api.get_cache().flush()
    after = {entry["key"]: entry["access_count"] for entry in api.get_cache().get_entries(year=2025)}
    del before["2025_schedule"], after["2025_schedule"]
    assert after == before


def test_an_event_or_a_session_alone(cdn, warming):
    assert counts(warming.event(2025, "melbourne", "Q", data_types=["weather"])) == (1, 0, 0)
    assert counts(warming.event(2025, 1, data_types=["weather"])) == (4, 1, 0)
    assert cdn.requests.count("weather.json") == 5
    assert counts(warming.types(["weather", "corners"], 2025)) == (15, 5, 0)
    assert counts(warming.types(["weather", "corners"], 2025, EVENT)) == (0, 10, 0)


def test_every_type_of_a_session_and_nothing_twice(cdn, warming):
    assert counts(warming.event(2025, EVENT, "R", data_types=TYPES)) == (len(TYPES), 0, 0)
    assert all(stored(RACE, name) for name in TYPES)
    assert set(cdn.requests.by_path.values()) == {1}
    assert counts(warming.event(2025, EVENT, "R", data_types=TYPES)) == (0, len(TYPES), 0)


def test_types_that_do_not_exist_are_refused_with_the_choices(cdn, warming):
    with pytest.raises(InvalidDataError, match=r"'lap'.*laps"):
        warming.season(2025, data_types=["lap"])
    with pytest.raises(InvalidDataError, match="schedule"):
        warming.types(["schedule"], 2025)
    with pytest.raises(InvalidDataError, match=r"give a list, \['laps'\]"):
        warming.types("laps", 2025)
    assert cdn.requests.total == 0


def test_sessions_that_have_not_begun_are_left_out_unless_named(warming):
    table = api.get_reader().schedule(2025).value
    position = table.schema.get_field_index("Session5DateUtc")
    ahead = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=1)
    starts = pa.array([ahead, *table["Session5DateUtc"].to_pylist()[1:]], table.schema.field(position).type)
    api.get_cache().write(
        schedule_entry(2025),
        table.set_column(position, table.schema.field(position), starts),
        schema_version=DATASETS["schedule"].schema_version,
    )
    assert counts(warming.event(2025, EVENT)) == (4 * len(DEFAULT_TYPES), 0, 0)
    assert not stored(RACE, "laps")
    assert counts(warming.event(2025, EVENT, "Race")) == (len(DEFAULT_TYPES), 0, 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_sessions_at_once_than_there_are_workers(cdn, warming, workers):
    api.get_reader().calendar(2025)
    cdn.requests.clear()
    cdn.faults.add(Fault("latency", path="drivers.json", seconds=0.2))
    warming.season(2025, data_types=["drivers"], max_workers=workers)
    assert cdn.requests.peak == workers


def test_less_than_one_worker_is_refused(warming):
    with pytest.raises(InvalidDataError, match="max_workers=0"):
        warming.season(2025, max_workers=0)


def test_a_switched_off_cache_cannot_be_warmed(tif1, warming):
    tif1.get_config().cache_enabled = False
    with pytest.raises(tif1.CacheError, match="cache_enabled"):
        warming.season(2025)


# ---- what has expired


def test_expired_tables_are_asked_for_conditionally(tif1, cdn, warming):
    warming.event(2025, EVENT)
    cdn.requests.clear()
    tif1.get_config().cache_ttl = timedelta(milliseconds=1)
    report = warming.event(2025, EVENT)
    assert counts(report) == (5 * len(DEFAULT_TYPES), 0, 0)
    files = [entry for entry in cdn.requests.entries if not entry.path.endswith("schedule_2025.json")]
    assert len(files) == 5 * len(DEFAULT_TYPES)
    assert all(entry.conditional and entry.status == 304 for entry in files)
    tif1.get_config().cache_ttl = None
    assert counts(warming.event(2025, EVENT)) == (0, 5 * len(DEFAULT_TYPES), 0)


def test_expired_and_not_to_be_refreshed_is_a_failure_that_keeps_what_is_stored(tif1, cdn, warming):
    warming.event(2025, EVENT, "R")
    tif1.get_config().cache_ttl_weather = timedelta(milliseconds=1)
    cdn.faults.add(Fault("error", path="weather.json"))
    report = warming.event(2025, EVENT, "R")
    assert counts(report) == (0, len(DEFAULT_TYPES) - 1, 1)
    assert "expired and could not be refreshed" in report["failed"][0]["error"]
    assert stored(RACE, "weather")


def test_tables_of_another_schema_are_fetched_anew(cdn, warming):
    warming.event(2025, EVENT, "R")
    cache = api.get_cache()
    cache.write(RACE.entry("weather"), pa.table({"former": [1]}), schema_version=-1)
    assert counts(warming.event(2025, EVENT, "R")) == (1, len(DEFAULT_TYPES) - 1, 0)
    assert "former" not in cache.read(RACE.entry("weather")).value.column_names


# ---- failures


def test_a_failed_table_is_named_with_its_reason_and_the_others_go_on(cdn, warming):
    cdn.hide("Race/weather.json")
    cdn.faults.add(Fault("error", path=f"{EVENT}/Qualifying/messages*"), Fault("error", path="Qualifying/rcm.json"))
    report = warming.event(2025, EVENT)
    assert counts(report) == (5 * len(DEFAULT_TYPES) - 2, 0, 2)
    messages, weather = report["failed"]
    assert messages["session_type"] == "Qualifying"
    assert messages["data_type"] == "messages"
    error = weather.pop("error")
    assert weather.pop("kind") == NOT_PUBLISHED
    assert weather == {"year": 2025, "event": EVENT, "session_type": "Race", "data_type": "weather"}
    assert "weather.json" in error
    cdn.publish()
    cdn.faults.clear()
    assert counts(warming.event(2025, EVENT)) == (2, 5 * len(DEFAULT_TYPES) - 2, 0)


def test_without_a_calendar_there_is_nothing_to_report_about(tif1, cdn, warming):
    with pytest.raises(tif1.EventNotFoundError):
        warming.season(2019)
    with pytest.raises(tif1.EventNotFoundError, match="Mars"):
        warming.event(2025, "Mars")
    with pytest.raises(tif1.SessionNotFoundError):
        warming.event(2025, EVENT, "Sprint")
    api.get_cache().remove(schedule_entry(2025))
    cdn.faults.add(Fault("error"))
    with pytest.raises(tif1.NetworkError):
        warming.season(2025)


def test_what_was_fetched_but_could_not_be_stored_is_a_failure(tif1, warming):
    warming.event(2025, EVENT, "R", data_types=["weather"])
    tif1.get_config().cache_lock_timeout = 0.2
    holder = sqlite3.connect(api.get_cache().get_cache_file(), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        report = warming.event(2025, EVENT, "R", data_types=["weather", "messages"])
    finally:
        holder.close()
    assert counts(report) == (0, 1, 1)
    assert report["requests"] > 0
    assert "fetched but could not be stored (" in report["failed"][0]["error"]
    assert "write: " in report["failed"][0]["error"]


def test_a_readonly_cache_fetches_nothing_it_could_not_store(tif1, cdn, warming):
    warming.event(2025, EVENT, "R", data_types=["weather"])
    tif1.close()
    tif1.get_config().cache_readonly = True
    cdn.requests.clear()
    report = warming.event(2025, EVENT, "R", data_types=["weather", "messages"])
    assert counts(report) == (0, 1, 1)
    assert "cache_readonly" in report["failed"][0]["error"]
    assert cdn.requests.total == 0


# ---- drivers


def test_drivers_alone(tif1, cdn, warming):
    report = warming.drivers(["ver", "NOR", "XXX"], 2025, EVENT, "Race")
    assert counts(report) == (2, 0, 1)
    failed = report["failed"][0]
    assert failed["driver"] == "XXX"
    assert "there are" in failed["error"]
    assert {path.split("/")[-2] for path in cdn.requests.by_path if path.endswith("_tel.json")} == {"VER", "NOR"}
    again = warming.drivers(["VER", "NOR"], 2025, EVENT, "Race")
    assert counts(again) == (0, 2, 0)
    assert again["requests"] == 0
    tif1.get_config().offline = True
    assert len(tif1.get_session(2025, EVENT, "Race").get_driver_telemetry("VER"))


def test_drivers_are_found_in_the_whole_table(warming):
    warming.event(2025, EVENT, "R", data_types=["telemetry"])
    codes = api.get_cache().info(RACE.entry("telemetry")).parts
    assert counts(warming.drivers(codes, 2025, EVENT, "R")) == (0, len(codes), 0)


def test_a_driver_is_found_by_number_too(warming):
    practice = SessionKey(2025, EVENT, "Practice 2")
    warming.event(2025, EVENT, "FP2", data_types=["telemetry"])
    codes = api.get_cache().info(practice.entry("telemetry")).parts
    rows = api.get_reader().table(practice, "drivers").value.to_pylist()
    numbers = [row["DriverNumber"] for row in rows if row["Driver"] in codes and row["DriverNumber"]]
    assert numbers
    assert counts(warming.drivers(numbers, 2025, EVENT, "FP2")) == (0, len(numbers), 0)


def test_a_text_is_no_list_of_drivers(warming):
    with pytest.raises(InvalidDataError, match=r"\['VER'\]"):
        warming.drivers("VER", 2025, EVENT)


# ---- what is used


def test_sessions_that_are_used_are_completed(tif1, cdn, warming):
    session = tif1.get_session(2025, EVENT, "Race")
    for _ in range(4):
        session.laps  # noqa: B018
    session.corners  # noqa: B018
    tif1.get_session(2025, EVENT, "Q").laps  # noqa: B018
    api.get_cache().remove(RACE.entry("corners"))
    session.get_driver_telemetry("VER")
    cdn.requests.clear()
    report = warming.frequent(3)
    assert counts(report)[0] == 2, "weather and messages"
    assert not report["failed"]
    assert not cdn.requests.count("*_tel.json"), "one driver's telemetry is stored, and fresh"
    assert not cdn.requests.count("Qualifying/*")
    api.get_cache().remove(RACE.entry("weather"))
    assert counts(warming.frequent(3))[0] == 1


def test_a_stored_session_that_the_calendar_does_not_know_is_a_failure(warming):
    api.get_cache().write(SessionKey(2025, "Atlantis Grand Prix", "Race").entry("laps"), pa.table({"n": [1]}))
    api.get_cache().read(SessionKey(2025, "Atlantis Grand Prix", "Race").entry("laps"))
    report = warming.frequent(1)
    assert [(item["event"], item["data_type"]) for item in report["failed"]] == [("atlantis", "laps")]


def test_nothing_is_used_yet(cdn, warming):
    assert counts(warming.frequent(1)) == (0, 0, 0)
    assert cdn.requests.total == 0


# ---- interrupts, in processes of their own

SCRIPT = """
import sys
from tif1_pipeline import api
from tif1_pipeline.warming import Warming
warming = Warming(api.get_reader(), api.get_cache(), api.get_config())
"""


@pytest.fixture
def start(tif1, cdn, tmp_path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start another process on the same cache and CDN."""
    started = []

    def run(script: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "TIF1_CDN_URLS": ",".join(cdn.cdn_urls),
            "TIF1_SCHEDULE_URLS": ",".join(cdn.schedule_urls),
            "TIF1_CACHE_DIR": str(tmp_path / "cache"),
            "TIF1_REQUEST_TIMEOUT": "60",
        }
        command = [sys.executable, "-W", "error", "-c", SCRIPT + textwrap.dedent(script)]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def lease_rows() -> int:
    with sqlite3.connect(api.get_cache().get_cache_file()) as connection:
        return connection.execute("SELECT count(*) FROM leases").fetchone()[0]


INTERRUPTED = """
try:
    warming.season(2025)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def test_ctrl_c_drops_what_is_under_way_and_keeps_what_was_stored(cdn, warming, start):
    warming.event(2025, EVENT, "FP1")
    cdn.faults.add(Fault("latency", path="weather.json", seconds=50))
    process = start(INTERRUPTED)
    wait_for(lambda: cdn.requests.count("session_laptimes.json") >= 4 and api.get_cache().search("*_laps_*")[3:])
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (130, "interrupted\n"), errors
    assert time.monotonic() - sent < 10, "it waited for the CDN"
    assert not errors
    assert lease_rows() <= 1, "at most one thread was in the middle of a write; its lease runs out by itself"
    kept = len([entry for entry in api.get_cache().get_entries(year=2025) if entry["session_type"]])
    assert kept >= len(DEFAULT_TYPES) + 3
    cdn.faults.clear()
    cdn.requests.clear()
    assert counts(warming.season(2025)) == (SESSIONS * len(DEFAULT_TYPES) - kept, kept, 0)
    assert cdn.requests.total == SESSIONS * len(DEFAULT_TYPES) - kept


@pytest.mark.slow
def test_ctrl_c_while_another_process_fetches_the_same(warming, start):
    warming.event(2025, EVENT, "FP1")
    with sqlite3.connect(api.get_cache().get_cache_file()) as connection:
        until = time.time() + 15
        rows = [(key.entry("drivers").text, "another", until) for key in api.get_reader().calendar(2025).session_keys]
        connection.executemany("INSERT INTO leases (key, owner, expires_at) VALUES (?, ?, ?)", rows)
    connection.close()
    process = start("print('ready', flush=True)" + INTERRUPTED)
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=8)
    assert (process.returncode, output, errors) == (130, "interrupted\n", "")
    assert time.time() < until


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(cdn, warming, start):
    cdn.faults.add(Fault("latency", path="weather.json", seconds=50))
    process = start(INTERRUPTED)
    wait_for(lambda: cdn.requests.count("session_laptimes.json") >= 4 and api.get_cache().search("*_laps_*")[3:])
    process.kill()
    process.communicate()
    kept = len([entry for entry in api.get_cache().get_entries(year=2025) if entry["session_type"]])
    cdn.faults.clear()
    report = warming.season(2025)  # waits until the leases of the killed process have run out
    assert counts(report) == (SESSIONS * len(DEFAULT_TYPES) - kept, kept, 0)
    assert api.get_cache().verify_integrity()["corrupted_entries"] == 0


def test_a_fault_in_one_table_leaves_the_others_and_the_report(warming, cdn, monkeypatch, caplog):
    monkeypatch.setattr(Reader, "table", failing_for("weather", IndexError("beyond")))
    report = warming.event(2025, EVENT)
    assert len(report["failed"]) == SESSIONS // 2
    assert all("beyond" in item["error"] for item in report["failed"])
    assert report["succeeded"] == SESSIONS // 2 * (len(DEFAULT_TYPES) - 1)
    assert "IndexError" in caplog.text


def failing_for(dataset, error):
    table = Reader.table

    def fail(self, key, name, *arguments, **options):
        if name == dataset:
            raise error
        return table(self, key, name, *arguments, **options)

    return fail


def test_a_cancelled_coroutine_stops_the_warming(tif1, cdn):
    cdn.faults.add(Fault("latency", path="weather.json", seconds=20))

    async def cancelled():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(tif1.get_cache().warm_event_async(2025, EVENT), 1.0)

    started = time.monotonic()
    asyncio.run(cancelled())
    assert time.monotonic() - started < 10
    cdn.faults.clear()
    report = asyncio.run(tif1.get_cache().warm_event_async(2025, EVENT, data_types=["laps", "weather"]))
    assert report["succeeded"] >= 1
    assert report["failed"] == []


def test_given_tables_are_warmed_and_a_session_without_any_ends_nothing(cdn, warming):
    race, practice = (SessionKey(2025, EVENT, name) for name in ("Race", "Practice 1"))
    report = warming.tables("some", {race: [], practice: [Task(practice, "weather")]}, max_workers=1)
    assert counts(report) == (1, 0, 0)
    assert cdn.requests.count("Practice 1/weather.json") == 1


def test_a_failure_says_whether_another_try_may_help(cdn, warming):
    cdn.hide("Race/weather.json")
    cdn.faults.add(Fault("error", path="Practice 1/weather.json"), Fault("garbage", path="Practice 2/weather.json"))
    report = warming.event(2025, EVENT, data_types=["weather"])
    assert {item["session_type"]: item["kind"] for item in report["failed"]} == {
        "Practice 1": PASSING,
        "Practice 2": LASTING,
        "Race": NOT_PUBLISHED,
    }
