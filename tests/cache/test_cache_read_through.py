"""Get or fetch: one fetch for many, expiry, conditional requests, and what happens when the fetch fails."""

import logging
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, EntryInfo, Fresh, Source
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.flight import Leases
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import DataNotFoundError, NetworkError
from tif1_pipeline.keys import EntryKey

TABLE = pa.table({"d": ["a", "a", "b"], "n": [1, 2, 3]})
AT_ONCE = timedelta(microseconds=1)


class Cdn:
    """A fetch that counts, and can be slow, fail, or say that nothing has changed."""

    def __init__(self) -> None:
        self.calls: list[EntryInfo | None] = []
        self.answer: Fresh | Exception = Fresh(TABLE, Source("https://x", '"1"'))
        self.seconds = 0.0

    def __call__(self, stored: EntryInfo | None) -> Fresh:
        self.calls.append(stored)
        time.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def cdn() -> Cdn:
    return Cdn()


def test_a_miss_is_fetched_and_stored(open_cache: Callable[..., Cache], key: EntryKey, cdn: Cdn) -> None:
    cache = open_cache()
    hit = cache.read_through(key, cdn, schema_version=2)
    assert (hit.tier, hit.value, hit.info.source.etag, hit.info.schema_version) == ("cdn", TABLE, '"1"', 2)
    assert cache.read_through(key, cdn, schema_version=2).tier == "memory"
    assert open_cache().read_through(key, cdn, schema_version=2).tier == "disk"
    assert cdn.calls == [None]
    assert cache.read_through(key, cdn, schema_version=3).tier == "cdn"
    assert cdn.calls == [None, None]


@pytest.mark.parametrize("memory", [True, False])
def test_cold_and_warm_answers_are_the_same(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, cdn: Cdn, memory: bool
) -> None:
    config.memory_cache_enabled = memory
    cdn.answer = Fresh(pa.table({"d": ["a", "b", "a"], "t": [True, None, False], "n": [1, 2, 3]}))
    for arguments in (
        {},
        {"columns": ["n"]},
        {"parts": ["b", "a"]},
        {"parts": ["a"], "columns": ["t", "d"]},
        {"parts": []},
    ):
        cache = open_cache()
        cache.clear()
        frames = [cache.read_through(key, cdn, "pandas", part_by="d", **arguments).value for _ in range(2)]
        frames.append(open_cache().read(key, "pandas", **arguments).value)
        for frame in frames:
            pd.testing.assert_frame_equal(frame, frames[0])
        assert cache.read_through(key, cdn, "polars", part_by="d", **arguments).value.height == len(frames[0])


def test_a_disabled_cache_is_neither_read_nor_written(config: Config, cache: Cache, key: EntryKey, cdn: Cdn) -> None:
    config.cache_enabled = False
    assert [cache.read_through(key, cdn, "pandas").tier for _ in range(2)] == ["cdn", "cdn"]
    cdn.answer = Fresh({"a": 1})
    assert cache.read_through(key, cdn, "json").value == {"a": 1}
    assert not cache.get_cache_dir().exists()


def test_threads_that_miss_the_same_fetch_once(cache: Cache, key: EntryKey, cdn: Cdn) -> None:
    cdn.seconds = 0.2
    with ThreadPoolExecutor(12) as pool:
        asked = [
            pool.submit(cache.read_through, key, cdn, ("pandas", "polars", "arrow")[number % 3], columns=["n"])
            for number in range(12)
        ]
        assert {len(future.result().value) for future in asked} == {3}
    assert cdn.calls == [None]


def test_different_keys_are_fetched_side_by_side(cache: Cache, cdn: Cdn) -> None:
    cdn.seconds = 0.4
    cache.open()
    started = time.perf_counter()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: cache.read_through(EntryKey(str(number), "x"), cdn), range(6)))
    assert time.perf_counter() - started < 2
    assert len(cdn.calls) == 6


def test_a_failing_fetch_reaches_everybody_who_waits(cache: Cache, key: EntryKey, cdn: Cdn) -> None:
    cdn.seconds, cdn.answer = 0.3, DataNotFoundError("no such file", url="https://x")
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(cache.read_through, key, cdn) for _ in range(5)]
        for future in asked:
            with pytest.raises(DataNotFoundError, match="no such file"):
                future.result()
    assert len(cdn.calls) == 1
    cdn.answer = Fresh(TABLE)
    assert cache.read_through(key, cdn).tier == "cdn"


def test_an_expired_entry_is_asked_for_with_its_metadata_and_replaced(cache: Cache, key: EntryKey, cdn: Cdn) -> None:
    first = cache.read_through(key, cdn).info
    cdn.answer = Fresh(pa.table({"n": [9]}), Source("https://x", '"2"'))
    assert cache.read_through(key, cdn, max_age=timedelta(hours=1)).tier == "memory"
    hit = cache.read_through(key, cdn, max_age=AT_ONCE)
    assert (hit.tier, hit.value.num_rows, hit.info.source.etag) == ("cdn", 1, '"2"')
    assert [call and call.generation for call in cdn.calls] == [None, first.generation]
    assert cache.read(key).value.num_rows == 1


def test_not_modified_keeps_the_entry_and_makes_it_young(
    open_cache: Callable[..., Cache], key: EntryKey, cdn: Cdn
) -> None:
    cache, other = open_cache(), open_cache()
    first = cache.read_through(key, cdn).info
    assert other.read(key).info == first
    cdn.answer = Fresh(None, not_modified=True)
    time.sleep(0.3)
    hit = cache.read_through(key, cdn, max_age=timedelta(seconds=0.25))
    assert (hit.tier, hit.value) == ("memory", TABLE)
    assert hit.info.generation == first.generation
    assert hit.info.created_at > first.created_at
    assert hit.info.source.etag == '"1"'
    assert other.read_through(key, cdn, max_age=timedelta(seconds=5)).info == hit.info
    assert len(cdn.calls) == 2


def test_a_stale_table_is_served_with_a_warning_when_the_network_is_down(
    cache: Cache, key: EntryKey, cdn: Cdn, caplog: pytest.LogCaptureFixture
) -> None:
    cdn.answer = NetworkError("no route")
    with pytest.raises(NetworkError):
        cache.read_through(key, cdn)
    cdn.answer = Fresh(TABLE)
    cache.read_through(key, cdn)
    cdn.answer = NetworkError("no route")
    with caplog.at_level(logging.WARNING):
        assert cache.read_through(key, cdn, max_age=AT_ONCE).value == TABLE
    assert "no route" in caplog.text
    assert key.text in caplog.text
    cdn.answer = DataNotFoundError("gone")
    with pytest.raises(DataNotFoundError):
        cache.read_through(key, cdn, max_age=AT_ONCE)


def test_a_stale_entry_of_another_schema_is_not_served(cache: Cache, key: EntryKey, cdn: Cdn) -> None:
    cache.read_through(key, cdn, schema_version=1)
    cdn.answer = NetworkError("no route")
    with pytest.raises(NetworkError):
        cache.read_through(key, cdn, schema_version=2)
    assert cdn.calls == [None, None]


def test_an_entry_removed_while_its_fetch_says_not_modified_is_fetched_whole(cache: Cache, key: EntryKey) -> None:
    calls = []

    def fetch(stored: EntryInfo | None) -> Fresh:
        calls.append(stored)
        if stored is None:
            return Fresh(TABLE)
        cache.remove(key)
        return Fresh(None, not_modified=True)

    cache.write(key, TABLE)
    assert cache.read_through(key, fetch, max_age=AT_ONCE).tier == "cdn"
    assert [call is None for call in calls] == [False, True]


FETCHES = """
def fetch(stored):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    time.sleep(float(sys.argv[3]))
    return Fresh(table(1))
print("ready", flush=True)
sys.stdin.readline() if len(sys.argv) > 4 else None
hit = cache.read_through(key, fetch)
print(hit.tier, hit.value.num_rows, flush=True)
"""


def test_processes_that_miss_the_same_fetch_once(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    processes = [start(FETCHES, str(tmp_path / "log"), "1.5") for _ in range(3)]
    answers = sorted(process.communicate(timeout=60)[0].split()[1] for process in processes)
    assert answers == ["cdn", "disk", "disk"]
    assert len((tmp_path / "log").read_text().split()) == 1


@pytest.fixture
def database(config: Config, open_cache: Callable[..., Cache]) -> Database:
    cache = open_cache()
    cache.open()
    return cache._tiered.files()[0].database


def test_a_lease_is_renewed_while_its_holder_lives(database: Database) -> None:
    one, other = Leases(database, 0.6), Leases(database, 0.6)
    release = one.acquire("key", lambda: False)
    waits: list[bool] = []
    thread = threading.Thread(target=lambda: waits.append(other.acquire("key", lambda: False)()))
    thread.start()
    time.sleep(1.5)
    assert not waits
    other.acquire("another key", lambda: False)()
    release()
    thread.join(5)
    assert waits == [None]


def test_a_lease_is_given_back_however_long_others_write(database: Database) -> None:
    release = Leases(database).acquire("key", lambda: False)
    busy = sqlite3.connect(database.path, isolation_level=None, check_same_thread=False)
    busy.execute("BEGIN IMMEDIATE")
    writing = threading.Timer(3, lambda: busy.execute("COMMIT"))
    writing.start()
    release()
    writing.join()
    started = time.perf_counter()
    Leases(database).acquire("key", lambda: False)()
    assert time.perf_counter() - started < 2  # else it runs out after ten
    busy.close()


@pytest.mark.parametrize(
    ("expires_in", "is_taken_over"),
    [(-1.0, True), (5.0, False), (19.0, False), (3600.0, True)],  # the last by a clock that was wrong
)
def test_a_lease_is_taken_over_when_it_cannot_run(database: Database, expires_in: float, is_taken_over: bool) -> None:
    with closing(sqlite3.connect(database.path)) as connection, connection:
        connection.execute("INSERT INTO leases VALUES ('key', 'other', ?)", [time.time() + expires_in])
    assert Leases(database)._take("key", "me") is is_taken_over
    with closing(sqlite3.connect(database.path)) as connection:
        owner, expires_at = connection.execute("SELECT owner, expires_at FROM leases WHERE key = 'key'").fetchone()
    assert owner == ("me" if is_taken_over else "other")
    assert expires_at == pytest.approx(time.time() + (10.0 if is_taken_over else expires_in), abs=2)


def test_storing_what_was_fetched_gives_the_lease_back(cache: Cache, key: EntryKey, database: Database) -> None:
    release = Leases(database).acquire(key.text, lambda: False)
    cache.write(key, TABLE)
    with closing(sqlite3.connect(database.path, isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        started = time.perf_counter()
        release()
        assert time.perf_counter() - started < 2  # it waits for no other writer
    Leases(database).acquire(key.text, lambda: pytest.fail("the lease is still taken"))()


def test_waiting_for_a_lease_ends_when_the_work_is_done(database: Database) -> None:
    release = Leases(database).acquire("key", lambda: False)
    started = time.perf_counter()
    Leases(database).acquire("key", lambda: True)()
    assert time.perf_counter() - started < 2
    release()


@pytest.mark.slow
def test_the_lease_of_a_killed_process_is_taken_over(
    cache: Cache, key: EntryKey, cdn: Cdn, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(FETCHES, str(log), "60")
    while not log.exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    started = time.perf_counter()
    assert cache.read_through(key, cdn).tier == "cdn"
    assert time.perf_counter() - started < 15  # a lease lasts ten seconds
    assert len(cdn.calls) == 1
