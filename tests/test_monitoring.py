"""What is found wrong with a real cache that was made sick, and when that starts and ends."""

import json
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline import monitoring
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import EntryInfo, Fresh, Source
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.keys import EntryKey
from tif1_pipeline.monitoring import Condition, Memory, changes, conditions

NAMES = ["free_disk", "failover", "stored_size", "size_limit", "hit_rate", "integrity", "errors"]
TABLE = pa.table({"n": np.random.default_rng(1).random(2000), "p": ["a", "b"] * 1000})


@pytest.fixture(autouse=True)
def the_same_sample_each_time() -> None:
    random.seed(5)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(cache_dir=tmp_path / "cache", cache_lock_timeout=1, alert_free_disk=0)


@pytest.fixture
def cache(config: Config) -> Iterator[Cache]:
    cache = Cache(config)
    yield cache
    cache.close()


@pytest.fixture
def look(cache: Cache, config: Config) -> Callable[[Memory], dict[str, Condition]]:
    def look(memory: Memory) -> dict[str, Condition]:
        return {condition.name: condition for condition in conditions(cache, config, memory)}

    return look


def fill(cache: Cache, number: int, first: int = 0) -> list[str]:
    keys = [f"e{index}" for index in range(first, first + number)]
    for key in keys:
        assert cache.write(EntryKey(key, "x"), TABLE, part_by="p").stored
    return keys


def change(cache: Cache, *statements: str) -> None:
    # Closing a file of one's own lets go of all locks that the process holds on it.
    cache.close()
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def corrupt(cache: Cache, keys: list[str]) -> None:
    named = ", ".join(f"'{key}'" for key in keys)
    chosen = f"entry_id IN (SELECT id FROM entries WHERE key IN ({named}))"
    change(cache, f"UPDATE parts SET data = zeroblob(length(data)) WHERE ordinal = 1 AND {chosen}")


def active(found: dict[str, Condition]) -> set[str]:
    return {name for name, condition in found.items() if condition.is_active}


def test_a_sound_cache_and_an_empty_one_have_no_active_condition(look, cache: Cache) -> None:
    for _ in range(2):
        found = look(Memory())
        assert list(found) == NAMES
        assert active(found) == set()
        assert changes(list(found.values()), Memory()) == []
        fill(cache, 3)
    assert "100.0% of 3 entries are sound" in found["integrity"].found


# ---- size


def test_size_starts_above_the_threshold_and_is_over_clearly_below_it(look, cache: Cache, config: Config) -> None:
    memory = Memory()
    blob = pa.table({"n": np.random.default_rng(2).integers(-(1 << 63), (1 << 63) - 1, MIB * 98 // 800)})
    for number in range(3):
        cache.write(EntryKey(f"big{number}", "x"), blob)
    stored = cache.get_size_info()["compressed_mb"]
    assert 2.9 < stored < 2.99
    config.cache_max_size_mb, config.cache_cleanup_threshold_mb, config.cache_cleanup_target_mb = 100, 4, 1
    assert active(look(memory)) == set()
    config.cache_cleanup_threshold_mb = 2
    found = look(memory)
    assert active(found) == {"stored_size"}
    assert found["stored_size"].value == pytest.approx(stored)
    assert found["stored_size"].threshold == 2
    (started,) = changes(list(found.values()), memory)
    assert (started.name, started.kind) == ("stored_size", "started")
    assert "cache_cleanup_threshold_mb is 2 MiB" in started.body
    config.cache_cleanup_threshold_mb = 3  # just below it is not over yet
    assert active(look(memory)) == {"stored_size"}
    assert active(look(Memory())) == set()
    cache.remove("big0")
    found = look(memory)
    assert active(found) == set()
    (over,) = changes(list(found.values()), memory)
    assert (over.name, over.kind) == ("stored_size", "over")
    config.cache_max_size_mb = 1
    assert active(look(memory)) == {"stored_size", "size_limit"}


def test_a_cleanup_down_to_the_target_ends_it_wherever_the_target_is(look, cache: Cache, config: Config) -> None:
    memory = Memory(active={"stored_size": 1.0, "size_limit": 1.0})
    fill(cache, 2)
    config.cache_max_size_mb = config.cache_cleanup_threshold_mb = config.cache_cleanup_target_mb = 1
    assert active(look(memory)) == set()


# ---- hit rate


def read(cache: Cache, hits: int, misses: int) -> None:
    for _ in range(hits):
        assert cache.read("e0") is not None
    for number in range(misses):
        assert cache.read(f"nothing{number}") is None


def test_the_hit_rate_is_that_since_the_last_look_and_of_enough_look_ups(look, cache: Cache) -> None:
    fill(cache, 1)
    memory = Memory()
    read(cache, 1000, 0)
    assert look(memory)["hit_rate"].value is None  # what was before the first look is not judged
    read(cache, 10, 80)
    found = look(memory)["hit_rate"]
    assert (found.value, found.is_active) == (None, False)
    assert "90 look-ups" in found.found
    read(cache, 10, 0)
    found = look(memory)["hit_rate"]
    assert found.value == pytest.approx(20.0)
    assert found.is_active
    changes([found], memory)
    assert look(memory)["hit_rate"].is_active  # nothing was read: it is as it was
    read(cache, 71, 29)
    assert look(memory)["hit_rate"].is_active  # at the threshold it is not over
    read(cache, 90, 10)
    assert not look(memory)["hit_rate"].is_active


def test_filling_the_cache_is_no_fault_and_fetching_again_is(look, cache: Cache) -> None:
    memory = Memory()
    look(memory)

    def fetch(_: EntryInfo | None) -> Fresh:
        return Fresh(pa.table({"n": [1]}), Source())

    keys = [EntryKey(f"new{number}", "x") for number in range(120)]
    for key in keys:
        cache.read_through(key, fetch)
    assert cache.get_stats()["total_misses"] == 120
    found = look(memory)["hit_rate"]
    assert (found.value, found.is_active) == (None, False)
    for key in keys:
        cache.read_through(key, fetch)
    assert look(memory)["hit_rate"].value == pytest.approx(100)
    cache.clear()
    look(memory)
    for key in keys:
        cache.read_through(key, fetch)
    found = look(memory)["hit_rate"]
    assert (found.value, found.is_active) == (0.0, True)


def test_counters_that_were_reset_are_a_new_beginning(look, cache: Cache) -> None:
    fill(cache, 1)
    memory = Memory(hits=10_000, misses=10_000)
    read(cache, 0, 150)
    assert look(memory)["hit_rate"].value is None
    read(cache, 100, 0)
    assert look(memory)["hit_rate"].value == pytest.approx(100)


# ---- disk


def test_free_disk_is_that_of_the_file_system_of_the_cache(look, config: Config) -> None:
    memory = Memory()
    config.alert_free_disk = 1.0
    found = look(memory)["free_disk"]
    assert found.is_active
    assert 0 < found.value < 100
    changes([found], memory)
    config.alert_free_disk = found.value / 100 - 0.00001  # there is that much, but not clearly more
    assert look(memory)["free_disk"].is_active
    config.alert_free_disk = found.value / 200
    assert not look(memory)["free_disk"].is_active


# ---- integrity


def test_corrupt_entries_are_named_until_they_are_repaired(look, cache: Cache) -> None:
    keys = fill(cache, 10)
    memory = Memory()
    corrupt(cache, keys[:3])
    found = look(memory)
    assert active(found) == {"integrity"}
    assert found["integrity"].value == pytest.approx(70)  # all are in the sample
    (alert,) = changes(list(found.values()), memory)
    assert all(key in alert.body for key in keys[:3])
    assert keys[5] not in alert.body
    cache.write(EntryKey(keys[0], "x"), TABLE, part_by="p")
    cache.remove(keys[1])
    found = look(memory)
    assert active(found) == {"integrity"}
    assert memory.suspects == [keys[2]]
    cache.clear_corrupted()
    found = look(memory)
    assert active(found) == set()
    (alert,) = changes(list(found.values()), memory)
    assert alert.kind == "over"


def test_one_corrupt_entry_of_many_is_known_but_below_the_alert(look, cache: Cache) -> None:
    keys = fill(cache, monitoring.SAMPLE * 2)
    memory = Memory()
    corrupt(cache, keys[:1])
    for _ in range(60):  # it comes up in the sample some time
        found = look(memory)["integrity"]
        assert not found.is_active
        if memory.suspects:
            break
    assert memory.suspects == keys[:1]
    assert keys[0] in found.found


def test_of_more_entries_than_are_verified_the_share_is_told_by_samples(look, cache: Cache) -> None:
    keys = fill(cache, monitoring.SAMPLE * 5)
    corrupt(cache, keys[::2])
    memory = Memory()
    found = look(memory)["integrity"]
    assert found.is_active
    assert 40 < found.value < 95
    changes([found], memory)
    for _ in range(20):
        found = look(memory)["integrity"]
        assert found.is_active
    assert found.value == pytest.approx(50, abs=15)
    assert set(memory.suspects) <= set(keys[::2])
    cache.clear_corrupted()
    assert not look(memory)["integrity"].is_active


def test_while_a_corrupt_entry_is_left_it_is_not_over_whatever_the_share(look, cache: Cache) -> None:
    keys = fill(cache, 50)
    corrupt(cache, keys[:1])
    found = look(Memory(active={"integrity": 1.0}, suspects=keys[:1]))["integrity"]
    assert found.is_active
    assert found.value == pytest.approx(98)
    assert not look(Memory(suspects=keys[:1]))["integrity"].is_active


def test_entries_that_lack_parts_are_counted_whether_or_not_they_are_in_the_sample(look, cache: Cache) -> None:
    keys = fill(cache, monitoring.SAMPLE * 3)
    memory = Memory()
    change(cache, "DELETE FROM parts WHERE entry_id IN (SELECT id FROM entries LIMIT 6) AND ordinal = 2")
    found = look(memory)["integrity"]
    assert found.is_active
    assert found.value == pytest.approx(90)
    assert memory.suspects == sorted(keys[:6])


# ---- usability and errors


def test_a_file_that_cannot_be_used_is_a_failover(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the place of the folder")
    config = Config(cache_dir=tmp_path / "file", cache_fallback_dir=tmp_path / "other", alert_free_disk=0)
    with closing(Cache(config)) as cache:
        found = {condition.name: condition for condition in conditions(cache, config)}
    assert found["failover"].is_active
    assert str(tmp_path / "file") in found["failover"].found


def test_a_file_that_is_no_cache_is_an_error_and_does_not_hide_the_rest(config: Config, cache: Cache, look) -> None:
    config.cache_path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(config.cache_path)) as connection:
        connection.execute("CREATE TABLE somebody_elses (n)")
        connection.commit()
    config.alert_free_disk = 1.0
    found = look(Memory())
    assert {"failover", "errors", "free_disk"} == active(found)
    assert "integrity" not in found
    assert "tif1-pipeline doctor" in found["errors"].remedy


def test_a_file_that_stays_locked_ends_the_look(config: Config, cache: Cache, look) -> None:
    fill(cache, 3)
    cache.close()
    config.cache_lock_timeout = 0.2
    locked, done = threading.Event(), threading.Event()
    config.cache_wal_mode = False

    def hold() -> None:
        connection = sqlite3.connect(config.cache_path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        locked.set()
        done.wait(60)
        connection.execute("ROLLBACK")
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(60)
    try:
        found = look(Memory())
    finally:
        done.set()
        thread.join()
    assert "errors" in active(found) or "failover" in active(found)
    assert "integrity" not in found


def test_errors_are_over_after_a_quiet_while(look, cache: Cache) -> None:
    keys = fill(cache, 50)
    memory = Memory()
    corrupt(cache, keys[:1])
    cache.open()
    assert cache.read(keys[0]) is None
    found = look(memory)
    assert active(found) == {"errors"}
    assert "read: corrupt entry (1)" in found["errors"].found
    changes(list(found.values()), memory)
    assert active(look(memory)) == {"errors"}
    assert changes(list(look(memory).values()), memory) == []
    memory.failed_at -= 2 * 3600
    assert active(look(memory)) == set()


# ---- memory


def test_a_memory_survives_as_json(look, cache: Cache) -> None:
    fill(cache, 2)
    memory = Memory(active={"x": 1.5})
    look(memory)
    assert Memory.of(json.loads(json.dumps(memory.state))) == memory


@pytest.mark.parametrize("state", [None, 3, "x", [], {}, {"active": 3}, {"active": {}, "hits": "many"}])
def test_anything_else_is_a_memory_of_nothing(state: object) -> None:
    assert Memory.of(state) == Memory()


def test_each_change_alerts_once() -> None:
    memory = Memory()
    sick = Condition("a", "It is sick", 1.0, 0.0, "", True, "Found so", "Do this")
    well = Condition("a", "It is sick", 0.0, 0.0, "", False, "Found well", "Do this")
    (started,) = changes([sick], memory)
    assert (started.title, started.body, started.kind) == ("It is sick", "Found so. Do this.", "started")
    assert changes([sick], memory) == []
    assert changes([], memory) == []
    (over,) = changes([well], Memory.of(memory.state))
    assert over.title == "Over: it is sick"
    assert over.body.startswith("Found well. It had begun at 2")
    changes([well], memory)
    assert changes([well], memory) == []
