"""Ended sessions are fetched as their files appear: a frozen clock over real requests to a simulated CDN.

Runs are done as the assets do them: each requested table is fetched from the CDN and stored.
"""

import itertools
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import OUTDATED, EntryInfo, Source
from tif1_pipeline.cdn.base import CdnFile, Timing
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.completion import NOMINAL_LENGTH, Completion, Decision, Request
from tif1_pipeline.completion import state as states
from tif1_pipeline.completion.state import Watch
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import NetworkError, Tif1Error
from tif1_pipeline.keys import SESSION_TYPES, SessionKey, schedule_entry
from tif1_pipeline.reading import Reader
from tif1_pipeline.simulator import CdnServer, Fault, Season

AUSTRALIA, CHINA = "Australian Grand Prix", "Chinese Grand Prix"
RACE = SessionKey(2025, AUSTRALIA, "Race")
FP1 = SessionKey(2025, AUSTRALIA, "Practice 1")
BASE = timedelta(minutes=2)
TIMING = Timing(wait_initial=0.01, wait_max=0.02, set_aside=0.01, set_aside_alone=0.01)
SINGLES = {name: dataset.file for name, dataset in DATASETS.items() if dataset.file and dataset.level == "session"}
TABLES = ("session_info", *SINGLES, "telemetry")


class World:
    """A CDN, a cache, the runs that were launched, and a clock that moves when told."""

    def __init__(self, folder: Path, *, events: int = 2, **settings: object) -> None:
        self.season = Season(2025, seed=7, events=events, size="tiny")
        self.cdn = CdnServer(self.season).start()
        self.config = Config(
            cdn_urls=self.cdn.cdn_urls,
            schedule_urls=self.cdn.schedule_urls,
            cache_dir=folder,
            request_timeout=20,
            max_retries=0,
            **settings,
        )
        self.cache = Cache(self.config)
        self.client = CdnClient(self.config, TIMING)
        self.reader = Reader(self.config, self.cache, lambda: self.client)
        self.completion = Completion(self.config, self.cache, self.client)
        self.now = datetime(2025, 3, 13, tzinfo=UTC)
        self.state: str | None = None
        self.launched: list[tuple[SessionKey, Request]] = []
        self.done: set[str] = set()
        self.failing: set[str] = set()
        self.open: dict[str, str] = {}
        self.materialized: dict[tuple[SessionKey, str], str] = {}
        self.told: list[tuple[SessionKey, str]] = []
        self.partitions = {key.partition for key in self.season.sessions()}
        self.reader.calendar(2025)

    def close(self) -> None:
        self.client.close()
        self.cache.close()
        self.cdn.stop()

    # ---- what the instance knows

    def under_way(self, partition: str) -> str | None:
        return self.open.get(partition)

    def exists(self, run_key: str) -> bool:
        return run_key in self.done

    def tell(self, key: SessionKey, table: str, info: EntryInfo) -> bool:
        if self.materialized.get((key, table)) == info.checksum:
            return False
        self.materialized[key, table] = info.checksum
        self.told.append((key, table))
        return True

    # ---- ticks and runs

    def start(self, key: SessionKey = RACE) -> datetime:
        found = self.reader.calendar(2025).find(key.event).session(key.session_type).date_utc
        assert found is not None
        return found

    def end(self, key: SessionKey = RACE) -> datetime:
        return self.start(key) + NOMINAL_LENGTH[key.session_type]

    def look(self, **options: object) -> tuple[Decision, ...]:
        """Tick once; launches nothing."""
        report = self.completion.tick(
            self.now, [self.reader.calendar(2025)], self.state, self, options.get("partitions", self.partitions)
        )
        self.state = report.state
        assert all(decision.reason for decision in report.decisions)
        return report.decisions

    def tick(self) -> dict[str, str]:
        """Tick, do what is requested, move the clock on; returns the reasons by partition."""
        reasons: dict[str, str] = {}
        for decision in self.look():
            reasons[decision.key.partition] = decision.reason
            if decision.request:
                self.run(decision.key, decision.request)
        self.now += BASE
        return reasons

    def ticks(self, length: timedelta) -> None:
        over = self.now + length
        while self.now < over:
            self.tick()

    def run(self, key: SessionKey, request: Request) -> None:
        assert request.run_key not in self.done, "a run is launched once"
        self.done.add(request.run_key)
        self.launched.append((key, request))
        for table in request.outdated:
            assert self.cache.outdate(key.entry(table)) == 1
        for table in sorted(request.tables, key=TABLES.index):
            if table not in self.failing and self.materialize(key, table):
                info = self.cache.info(key.entry(table))
                assert info is not None
                self.materialized[key, table] = info.checksum

    def materialize(self, key: SessionKey, table: str) -> bool:
        """Fetch and store as the asset does; a table that cannot be had fails alone."""
        dataset = DATASETS[table]
        try:
            fetched = self.reader.fetch(key, table)
        except Tif1Error:
            return False
        source = Source(fetched.url, fetched.validators.etag, fetched.validators.last_modified)
        return self.cache.write(
            key.entry(table),
            fetched.table,
            source=source,
            part_by=dataset.part_by,
            schema_version=dataset.schema_version,
        ).stored

    def materialize_schedule(self) -> None:
        fetched = self.reader.fetch_schedule(2025)
        self.cache.write(schedule_entry(2025), fetched.table, schema_version=DATASETS["schedule"].schema_version)

    def runs(self, key: SessionKey = RACE) -> list[tuple[str, ...]]:
        return [request.tables for of, request in self.launched if of == key]

    # ---- what is where

    def folder(self, key: SessionKey) -> str:
        return f"TracingInsights/2025@main/{key.event}/{key.session_type}"

    def hide(self, key: SessionKey, pattern: str = "*") -> None:
        self.cdn.hide(f"{self.folder(key)}/{pattern}")

    def publish(self, key: SessionKey, pattern: str = "*") -> None:
        self.cdn.publish(f"{self.folder(key)}/{pattern}")

    def etag(self, key: SessionKey, file: str) -> str | None:
        return self.client.fetch(CdnFile(key.year, (key.event, key.session_type, file)), len).validators.etag

    def telemetry(self, key: SessionKey) -> set[tuple[str, int]]:
        hit = self.cache.read(key.entry("telemetry"), columns=["Driver", "LapNumber"])
        return set() if hit is None else {(row["Driver"], row["LapNumber"]) for row in hit.value.to_pylist()}

    def published_telemetry(self, key: SessionKey) -> set[tuple[str, int]]:
        paths = self.season.session(key.event, key.session_type).paths()
        laps = [path.removesuffix("_tel.json").split("/") for path in paths if path.endswith("_tel.json")]
        return {(driver, int(number)) for driver, number in laps}

    def assert_all_stored(self, key: SessionKey) -> None:
        for table, file in SINGLES.items():
            info = self.cache.info(key.entry(table))
            assert info is not None, table
            assert info.source.etag == self.etag(key, file), table
        assert self.telemetry(key) == self.published_telemetry(key)
        assert self.cache.info(key.entry("session_info")) is not None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def ended(world: World, key: SessionKey = RACE) -> None:
    """Let only this session be watched, at its end."""
    world.partitions = {key.partition}
    world.now = world.end(key)


def reason(world: World, key: SessionKey = RACE) -> str:
    return {decision.key: decision.reason for decision in world.look()}[key]


# ---- a weekend


def test_a_whole_weekend_is_fetched_file_by_file(world):
    keys = [FP1, SessionKey(2025, AUSTRALIA, "Qualifying"), RACE]
    world.partitions = {key.partition for key in keys}
    for key in keys:
        world.hide(key)
    publications: list[tuple[datetime, SessionKey, str]] = []
    for key in keys:
        at = world.end(key) + timedelta(minutes=30)
        for file in ("drivers.json", "session_laptimes.json", "weather.json", "VER/*", "*"):
            publications.append((at, key, file))
            at += timedelta(minutes=7)
    publications.sort(key=lambda item: item[0])
    world.now = world.start(FP1) - timedelta(hours=2)
    over = world.end(RACE) + timedelta(hours=4)
    said: dict[str, list[str]] = {}
    while world.now < over:
        while publications and publications[0][0] <= world.now:
            _, key, file = publications.pop(0)
            world.publish(key, file)
        for partition, text in world.tick().items():
            said.setdefault(partition, []).append(text)
    for key in keys:
        world.assert_all_stored(key)
        texts = said[key.partition]
        assert texts[0].startswith("not ended: it ends at")
        assert "nothing is published yet (404); looked at again at" in " ".join(texts)
        assert texts[-1].startswith(("unchanged; looked at again", "not due until"))
        runs = world.runs(key)
        assert "session_info" in runs[0]
        assert sum("session_info" in tables for tables in runs) == 1
        fetched = Counter(table for tables in runs for table in tables)
        assert {name: fetched[name] for name in ("drivers", "weather", "messages", "corners")} == dict.fromkeys(
            ("drivers", "weather", "messages", "corners"), 1
        )
        assert len(runs) <= 8
    conditional = [entry for entry in world.cdn.requests.entries if entry.method == "HEAD" and entry.conditional]
    assert conditional
    assert len(world.state or "") < 30_000


def test_nothing_is_asked_before_the_nominal_end(world):
    world.now = world.start() - timedelta(hours=3)
    world.partitions = {RACE.partition}
    world.cdn.requests.clear()
    while world.now < world.end():
        text = world.tick()[RACE.partition]
        assert text == "not ended: it ends at 06:00 UTC at the earliest"
    assert world.cdn.requests.total == 0
    world.tick()
    assert world.runs()


def test_every_type_has_a_length_and_a_day_of_testing_lasts_longer(tmp_path):
    assert set(NOMINAL_LENGTH) == set(SESSION_TYPES)
    season = Season(2025, events=1, testing=1, size="tiny")
    world = World(tmp_path)
    try:
        world.season = season
        with CdnServer(season) as server:
            world.config.schedule_urls = server.schedule_urls
            world.cache.clear()
            calendar = world.reader.calendar(2025)
            test = calendar.events[0]
            assert test.is_testing
            start = test.sessions[0].date_utc
            world.now = start + timedelta(hours=8)
            decisions = world.completion.tick(world.now, [calendar], None, world, ()).decisions
            assert (
                decisions[0].reason == f"not ended: it ends at {start + timedelta(hours=9):%H:%M} UTC at the earliest"
            )
    finally:
        world.close()


# ---- waiting


def test_looks_grow_apart_while_nothing_changes_and_a_change_brings_them_back(world):
    ended(world)
    world.hide(RACE)
    looks = looks_of(world, timedelta(hours=2))
    assert gaps(looks)[:4] == [2, 4, 8, 10]
    assert set(gaps(looks)[4:]) == {10}, "something is missing"
    world.publish(RACE)
    world.ticks(timedelta(minutes=30))
    assert world.runs()
    world.assert_all_stored(RACE)
    looks = looks_of(world, timedelta(hours=8))
    assert gaps(looks)[-1] == 60, "everything is there"
    world.cdn.republish(f"{world.folder(RACE)}/weather.json")
    runs = len(world.launched)
    while len(world.launched) == runs:
        world.tick()
    assert world.runs()[-1] == ("weather",)
    assert gaps(looks_of(world, timedelta(minutes=20))) == [4, 8]


def looks_of(world: World, length: timedelta) -> list[datetime]:
    looks, over = [], world.now + length
    while world.now < over:
        before, moment = world.cdn.requests.total, world.now
        world.tick()
        if world.cdn.requests.total > before:
            looks.append(moment)
    return looks


def gaps(looks: list[datetime]) -> list[int]:
    return [round((later - earlier).total_seconds() / 60) for earlier, later in itertools.pairwise(looks)]


def test_a_tick_that_comes_a_little_early_does_not_cost_an_interval(world):
    ended(world)
    world.hide(RACE)
    world.tick()
    world.now -= timedelta(seconds=5)
    assert "not due" not in reason(world)


def test_a_session_is_watched_until_the_window_is_over(world):
    ended(world)
    world.ticks(timedelta(minutes=10))
    world.now = world.end() + timedelta(days=3) - BASE
    world.cdn.republish(f"{world.folder(RACE)}/rcm.json")
    assert "messages changed" in reason(world)
    world.now = world.end() + timedelta(days=3)
    assert reason(world) == "watched for long enough: not watched any more"
    assert not world.look()
    assert json.loads(world.state)["sessions"] == {}


# ---- corrections


def test_a_correction_is_one_run_of_what_changed_and_what_depends_on_it(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.assert_all_stored(RACE)
    world.launched.clear()
    world.cdn.republish(f"{world.folder(RACE)}/session_laptimes.json")
    world.ticks(timedelta(hours=3))
    assert [(request.tables, request.outdated) for _, request in world.launched] == [(("laps", "telemetry"), ("laps",))]
    world.assert_all_stored(RACE)
    world.cdn.republish(f"{world.folder(RACE)}/corners.json")
    world.cdn.republish(f"{world.folder(RACE)}/drivers.json")
    world.ticks(timedelta(hours=3))
    assert world.runs()[1:] == [("drivers", "corners", "telemetry")]


def test_corrected_telemetry_is_noticed_by_each_drivers_last_lap(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.launched.clear()
    world.cdn.republish(f"{world.folder(RACE)}/*_tel.json")
    world.ticks(timedelta(hours=2))
    assert [(request.tables, request.outdated) for _, request in world.launched] == [(("telemetry",), ("telemetry",))]


def test_a_correction_that_is_taken_back_is_fetched_too(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    info = world.cache.info(RACE.entry("weather"))
    world.launched.clear()
    # The stored version is the other one: the CDN's has been stored before, its run is known.
    world.cache.write(
        RACE.entry("weather"),
        world.cache.read(RACE.entry("weather")).value,
        source=Source(info.source.url, '"another"', None),
        schema_version=info.schema_version,
    )
    world.ticks(timedelta(hours=2))
    assert world.runs() == [("weather",)]


def test_a_manual_materialization_makes_the_run_superfluous(world):
    ended(world)
    for table in TABLES:
        world.materialize(RACE, table)
    world.ticks(timedelta(hours=2))
    assert world.launched == []
    world.cdn.republish(f"{world.folder(RACE)}/session_laptimes.json")
    world.materialize(RACE, "laps")
    world.ticks(timedelta(hours=2))
    assert world.launched == []


def test_what_others_than_runs_have_stored_is_told_once(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    assert world.told == [], "what runs have stored is known"
    world.cdn.republish(f"{world.folder(RACE)}/session_laptimes.json")
    world.materialize(RACE, "laps")
    (first, *_) = [decision.reason for decision in world.look() if decision.key == RACE]
    assert first == "stored outside of runs, logged as materialized: laps"
    world.ticks(timedelta(minutes=20))
    world.state = None
    world.ticks(timedelta(hours=2))
    assert world.told == [(RACE, "laps")]
    world.open[RACE.partition] = "run 1234 (started)"
    world.cdn.republish(f"{world.folder(RACE)}/session_laptimes.json")
    world.materialize(RACE, "laps")
    world.ticks(timedelta(minutes=10))
    assert len(world.told) == 1, "the run under way says so itself"


def test_telemetry_that_was_requested_with_its_laps_is_asked_for_until_it_is_stored(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    before = world.cache.info(RACE.entry("telemetry")).generation
    world.launched.clear()
    world.failing = {"telemetry"}
    world.cdn.republish(f"{world.folder(RACE)}/session_laptimes.json")
    world.now += timedelta(hours=1)
    world.tick()
    world.tick()
    assert world.runs() == [("laps", "telemetry"), ("telemetry",)]
    assert "telemetry still to be fetched; a run was requested at" in reason(world)
    world.failing = set()
    world.ticks(timedelta(minutes=20))
    assert world.cache.info(RACE.entry("telemetry")).generation != before
    runs = len(world.launched)
    world.ticks(timedelta(hours=2))
    assert len(world.launched) == runs == 3


def test_what_is_marked_as_out_of_date_is_fetched_whatever_its_file_says(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.launched.clear()
    world.cache.outdate(RACE.entry("weather"))
    world.ticks(timedelta(hours=2))
    assert world.runs() == [("weather",)]


def test_telemetry_that_somebody_else_has_fetched_anew_is_not_fetched_again(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.launched.clear()
    world.cdn.republish(f"{world.folder(RACE)}/*_tel.json")
    world.materialize(RACE, "telemetry")
    world.ticks(timedelta(hours=2))
    assert world.launched == []


def test_a_file_that_is_withdrawn_costs_nothing_that_is_stored(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.launched.clear()
    world.hide(RACE)
    world.ticks(timedelta(hours=2))
    assert world.launched == []
    assert world.cache.info(RACE.entry("laps")) is not None


# ---- files one by one


def test_laps_in_the_drivers_own_files_are_watched_one_by_one(world):
    ended(world)
    world.hide(RACE, "session_laptimes.json")
    world.hide(RACE, "*/laptimes.json")
    world.ticks(timedelta(minutes=10))
    assert "laps" not in {table for tables in world.runs() for table in tables}
    drivers = sorted({driver for driver, _ in world.published_telemetry(RACE)})
    for driver in drivers[:2]:
        world.publish(RACE, f"{driver}/laptimes.json")
        world.ticks(timedelta(minutes=20))
        stored = set(world.cache.read(RACE.entry("laps")).value["Driver"].to_pylist())
        assert driver in stored
    world.launched.clear()
    world.cdn.republish(f"{world.folder(RACE)}/{drivers[0]}/laptimes.json")
    world.ticks(timedelta(hours=1))
    assert [(request.tables, request.outdated) for _, request in world.launched] == [(("laps", "telemetry"), ("laps",))]
    world.publish(RACE)
    world.ticks(timedelta(hours=2))
    world.assert_all_stored(RACE)


def test_telemetry_that_grows_is_fetched_at_growing_distances(world):
    ended(world)
    world.hide(RACE, "*_tel.json")
    world.ticks(timedelta(minutes=10))
    laps = sorted(world.published_telemetry(RACE))
    before = len(world.launched)
    for driver, number in laps:
        world.publish(RACE, f"{driver}/{number}_tel.json")
        world.ticks(timedelta(minutes=4))
    world.ticks(timedelta(hours=2))
    world.assert_all_stored(RACE)
    drivers = len({driver for driver, _ in laps})
    assert len(world.launched) - before < len(laps) - drivers
    assert not any(request.outdated for _, request in world.launched), "what is stored was never wrong"


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_in_whatever_order_files_appear_all_are_stored_and_none_is_fetched_for_nothing(tmp_path_factory, data):
    key = data.draw(st.sampled_from([FP1, RACE, SessionKey(2025, AUSTRALIA, "Qualifying")]))
    world = World(tmp_path_factory.mktemp("cache"), events=1)
    try:
        ended(world, key)
        world.hide(key)
        paths = data.draw(st.permutations(sorted(world.season.session(key.event, key.session_type).paths())))
        cuts = data.draw(st.lists(st.integers(0, len(paths)), max_size=6).map(sorted))
        for first, last in zip([0, *cuts], [*cuts, len(paths)], strict=True):
            for path in paths[first:last]:
                world.publish(key, path)
            for _ in range(data.draw(st.integers(1, 12))):
                world.tick()
            if data.draw(st.booleans()):
                world.state = data.draw(st.sampled_from([None, "rubbish", world.state]))
        world.ticks(timedelta(hours=6))
        world.assert_all_stored(key)
        before = len(world.launched)
        world.ticks(timedelta(hours=6))
        assert len(world.launched) == before
        keys = [request.run_key for _, request in world.launched]
        assert len(keys) == len(set(keys))
        assert not any(request.outdated for _, request in world.launched)
    finally:
        world.close()


def test_laps_are_asked_for_in_turn_where_they_are_many(world, monkeypatch):
    monkeypatch.setattr("tif1_pipeline.completion.looking._LAPS_A_LOOK", 2)
    ended(world)
    laps = sorted(world.published_telemetry(RACE))
    never, late = laps[:2], max(lap for lap in laps if lap[1] == 3)
    for driver, number in (*never, late):
        world.hide(RACE, f"{driver}/{number}_tel.json")
    world.ticks(timedelta(minutes=20))
    assert world.telemetry(RACE) == {*laps} - {*never, late}
    world.publish(RACE, f"{late[0]}/{late[1]}_tel.json")
    world.ticks(timedelta(hours=12))
    assert world.telemetry(RACE) == {*laps} - {*never}


def test_dates_that_are_ahead_of_this_clock_lead_to_no_second_run(world, tmp_path):
    ahead = time.time() + 3600
    session = world.season.session(RACE.event, RACE.session_type)
    for path in session.paths():
        file = tmp_path / "cdn" / world.folder(RACE) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(session.file(path))
        os.utime(file, (ahead, ahead))
    with CdnServer(tmp_path / "cdn") as server:
        world.config.cdn_urls = server.cdn_urls
        ended(world)
        world.ticks(timedelta(hours=12))
        assert world.runs() == [tuple(table for table in TABLES if table != "telemetry"), ("telemetry",)]
        world.assert_all_stored(RACE)


# ---- trouble


def test_a_cdn_that_is_down_is_said_and_costs_nothing(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    runs = len(world.launched)
    for fault in ("error", "reset", "garbage"):
        world.cdn.faults.set(Fault(fault))
        world.now += timedelta(hours=1)
        assert reason(world).startswith("the CDN could not be asked:"), fault
        world.ticks(timedelta(hours=1))
    assert len(world.launched) == runs
    world.cdn.faults.clear()
    world.cdn.republish(f"{world.folder(RACE)}/weather.json")
    time.sleep(0.1)  # a mirror that was set aside is left alone for a moment
    world.ticks(timedelta(minutes=12))
    assert world.runs()[runs:] == [("weather",)], "the first look when it is back finds it"


def test_a_cdn_that_dies_before_the_fetch_is_said_and_no_run_is_requested_until_it_is_back(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.cdn.republish(f"{world.folder(RACE)}/session_laptimes.json")
    while not (requested := [(decision.key, decision.request) for decision in world.look() if decision.request]):
        world.now += BASE
    world.cdn.faults.set(Fault("error"))
    world.run(*requested[0])
    info = world.cache.info(RACE.entry("laps"))
    assert info.created_at == OUTDATED, "the run has fetched nothing"
    runs = len(world.launched)
    world.now += BASE
    assert reason(world).startswith("the CDN could not be asked:")
    world.ticks(timedelta(hours=2))
    assert len(world.launched) == runs
    world.cdn.faults.clear()
    time.sleep(0.1)  # a mirror that was set aside is left alone for a moment
    world.ticks(timedelta(minutes=12))
    assert len(world.launched) == runs + 1
    world.assert_all_stored(RACE)


def test_a_cdn_that_cannot_be_reached_at_all(world):
    ended(world)
    world.cdn.stop()
    text = reason(world)
    assert text.startswith("the CDN could not be asked:")
    assert "looked at again at" in text
    with pytest.raises(NetworkError):
        world.client.fetch(CdnFile(2025, ("x", "y", "z.json")), len)


def test_a_run_that_failed_is_asked_for_again_at_growing_distances(world):
    ended(world)
    world.failing = {"weather"}
    requested = []
    for _ in range(60):
        for decision in world.look():
            if decision.request:
                requested.append(world.now)
                world.run(decision.key, decision.request)
        world.now += BASE
    asked = [
        moment for moment, (_, request) in zip(requested, world.launched, strict=True) if "weather" in request.tables
    ]
    apart = gaps(asked)
    assert apart[:1] == [2]
    assert apart == sorted(apart)
    assert apart[-1] >= 16
    assert len(asked) <= 8
    assert world.launched[-1][1].run_key.rsplit(":", 1)[1].isdecimal()
    world.failing = set()
    world.ticks(timedelta(hours=2))
    world.assert_all_stored(RACE)


def test_what_waits_for_another_try_is_said(world):
    ended(world)
    world.failing = set(TABLES)
    world.tick()
    world.tick()
    text = reason(world)
    assert "a run was requested at 06:02 UTC, the next at 06:06 UTC" in text


def test_a_cache_that_cannot_be_read_is_not_taken_for_an_empty_one(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.launched.clear()
    calendar = world.reader.calendar(2025)
    world.cache.close()
    world.config.cache_lock_timeout, world.config.cache_wal_mode = 0.2, False
    world.now += timedelta(hours=2)
    with closing(sqlite3.connect(world.config.cache_path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        report = world.completion.tick(world.now, [calendar], world.state, world, world.partitions)
    assert {decision.key: decision.reason for decision in report.decisions}[RACE].startswith("the cache cannot be read")
    world.state = report.state
    world.ticks(timedelta(hours=2))
    assert world.launched == []


def test_a_run_under_way_is_waited_for(world):
    ended(world)
    world.open[RACE.partition] = "run 1234 (queued)"
    before = world.cdn.requests.total
    assert reason(world) == "run 1234 (queued) is under way: waiting for it"
    assert world.cdn.requests.total == before
    world.open.clear()
    assert "run requested" in reason(world)


def test_a_request_that_was_lost_is_made_again_under_the_same_key(world):
    ended(world)
    first = [decision.request for decision in world.look() if decision.request]
    world.now += BASE
    second = [decision.request for decision in world.look() if decision.request]
    assert first == second != []


def test_a_lost_state_leads_to_no_second_run(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    world.launched.clear()
    world.state = None
    world.ticks(timedelta(hours=2))
    assert world.launched == []


@pytest.mark.parametrize(
    "rubbish",
    [
        None,
        "",
        "rubbish",
        "[]",
        "{}",
        '{"version":99,"sessions":{}}',
        '{"version":1,"sessions":[]}',
        '{"version":1,"sessions":{"x":{}}}',
        states.dump({"2025 Australian Grand Prix Day 1": Watch()}),
        '{"version":1,"sessions":{"2025 Australian Grand Prix Race":{"next":"soon"}}}',
        "[" * 100_000,
    ],
)
def test_an_unreadable_state_is_a_lost_one(rubbish):
    assert states.load(rubbish) == {}


def test_a_state_from_a_clock_that_was_wrong_does_not_silence_a_session(world):
    ended(world)
    world.state = states.dump({RACE.partition: Watch(next=4e9, wait=1e9, asked_at=4e9, tries=99)})
    assert "run requested" in reason(world)


def test_the_state_survives_being_written_and_read(world):
    ended(world)
    world.ticks(timedelta(minutes=20))
    state = states.load(world.state)
    watch = state[RACE.partition]
    assert watch.seen
    assert states.dump(state) == world.state
    assert {version.url for version in watch.seen.values()} == {
        f"{world.cdn.cdn_urls[0].replace('{year}', '2025')}/Australian%20Grand%20Prix/Race/{path}"
        for path in watch.seen
    }


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [("offline", True, "offline is on"), ("cache_enabled", False, "cache_enabled is off")],
)
def test_settings_that_forbid_it_are_named(world, setting, value, text):
    ended(world)
    calendar = world.reader.calendar(2025)
    setattr(world.config, setting, value)
    report = world.completion.tick(world.now, [calendar], None, world, world.partitions)
    assert text in {decision.key: decision.reason for decision in report.decisions}[RACE]


def test_a_partition_that_is_not_loaded_yet_is_waited_for(world):
    ended(world)
    texts = {decision.key: decision.reason for decision in world.look(partitions=())}
    assert texts[RACE].startswith("its partition is not loaded yet")
    assert "run requested" in reason(world)


# ---- the calendar


def test_a_postponed_session_is_left_alone_until_its_new_end(world):
    ended(world)
    world.hide(RACE)
    world.tick()
    later = world.start() + timedelta(hours=20)
    reschedule(world, RACE, later)
    texts = [decision.reason for decision in world.look() if decision.key == RACE]
    assert texts[0] == "moved: it ends at 2025-03-17 02:00 UTC at the earliest"
    world.cdn.requests.clear()
    world.ticks(timedelta(hours=10))
    assert world.cdn.requests.total == 0
    world.now = later + timedelta(hours=2)
    world.publish(RACE)
    world.tick()
    assert world.runs()


def test_a_cancelled_event_is_dropped_and_one_that_never_publishes_ends_with_the_window(world):
    ended(world)
    world.hide(RACE)
    world.tick()
    world.now = world.end() + timedelta(days=2)
    assert "nothing is published yet" in reason(world)
    world.season.cancel(AUSTRALIA)
    refresh(world)
    assert reason(world) == "no longer in the calendar: not watched any more"
    assert world.look() == ()
    assert json.loads(world.state)["sessions"] == {}


def test_a_session_of_no_known_type_is_left_alone(world):
    from dataclasses import replace

    calendar = world.reader.calendar(2025)
    event = calendar.events[0]
    day = replace(event.sessions[0], name="Day 1")
    test = replace(event, name="Pre-Season Testing 1", event_format="testing", sessions=(day,))
    state = None
    for later in (timedelta(hours=10), timedelta(days=5)):
        report = world.completion.tick(day.date_utc + later, [replace(calendar, events=(test,))], state, world, ())
        assert report.decisions == ()
        state = report.state


def test_an_unknown_start_is_said(world):
    from dataclasses import replace

    calendar = world.reader.calendar(2025)
    event = calendar.events[0]
    unknown = replace(event, sessions=tuple(replace(s, date=None, date_utc=None) for s in event.sessions))
    world.now = datetime(2025, 3, 16, tzinfo=UTC)
    report = world.completion.tick(
        world.now, [replace(calendar, events=(unknown, *calendar.events[1:]))], None, world, world.partitions
    )
    texts = {decision.key: decision.reason for decision in report.decisions}
    assert texts == dict.fromkeys(event.session_keys, "the calendar does not tell its start")


@pytest.mark.parametrize(
    "change",
    [datetime(2025, 3, 9, 10, tzinfo=UTC), datetime(2025, 3, 30, 1, tzinfo=UTC), datetime(2025, 10, 26, 1, tzinfo=UTC)],
)
def test_clocks_that_change_during_a_session_change_nothing(world, change):
    reschedule(world, RACE, change - timedelta(hours=1))
    assert world.start() == change - timedelta(hours=1)
    world.partitions = {RACE.partition}
    world.now = change + timedelta(hours=1) - BASE
    assert reason(world).startswith(f"not ended: it ends at {change + timedelta(hours=1):%H:%M} UTC")
    world.now += BASE
    assert "run requested" in reason(world)


def test_two_sessions_that_end_at_once_are_both_fetched(world):
    other = SessionKey(2025, CHINA, "Race")
    reschedule(world, other, world.start(RACE))
    ended(world)
    world.partitions = {RACE.partition, other.partition}
    world.ticks(timedelta(minutes=20))
    world.assert_all_stored(RACE)
    world.assert_all_stored(other)
    assert len({request.run_key for _, request in world.launched}) == len(world.launched)


def test_a_tick_looks_at_few_sessions_and_gets_to_all(world):
    keys = list(world.season.sessions())
    for key in keys:
        reschedule(world, key, world.start(RACE) + timedelta(hours=2) - NOMINAL_LENGTH[key.session_type])
    world.now = world.end(RACE)
    texts = [decision.reason for decision in world.look()]
    assert sum("left for the next tick" in text for text in texts) == len(keys) - 6
    world.state = None
    world.ticks(timedelta(minutes=20))
    for key in keys:
        world.assert_all_stored(key)


def reschedule(world: World, key: SessionKey, start: datetime) -> None:
    world.season.reschedule(key.event, key.session_type, start)
    refresh(world)


def refresh(world: World) -> None:
    world.cdn.publish("*schedule_2025.json")
    world.materialize_schedule()
