"""Cleanup: what goes first, what is spared, and when it happens by itself."""

import logging
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache import cleanup as cleaning
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey

DAY = 86400.0


@pytest.fixture
def config(config: Config) -> Config:
    config.update(
        {
            "cache_max_size_mb": 1000,
            "cache_cleanup_threshold_mb": 4,
            "cache_cleanup_target_mb": 2,
            "cache_cleanup_min_age": "7d",
            "cache_cleanup_min_access": 3,
            "memory_cache_enabled": False,
        }
    )
    return config


def change(cache: Cache, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(statement, values)


def store(
    cache: Cache,
    name: str,
    mib: float = 1.0,
    *,
    age: float = 30,
    unused: float = 30,
    reads: int = 0,
    pinned: bool = False,
) -> None:
    """Store an entry that is so large, was stored and last read so many days ago, and was read so often."""
    cells = np.random.default_rng(len(name)).integers(0, 1 << 62, round(mib * MIB / 8))
    assert cache.write(EntryKey(name, "x", pinned=pinned), pa.table({"n": cells})).stored
    now = time.time()
    change(
        cache,
        "UPDATE entries SET created_at = ?, accessed_at = ?, access_count = ?, compressed_size = ? WHERE key = ?",
        *(now - age * DAY, now - unused * DAY, reads, round(mib * MIB), name),
    )


def keys(cache: Cache) -> set[str]:
    return {entry["key"] for entry in cache.get_entries()}


# ---- order


def store_five(cache: Cache) -> None:
    """Five MiB and a half; by each strategy another one is worth least."""
    store(cache, "unused", unused=90, age=30)
    store(cache, "large", 1.5, unused=12, age=31)
    store(cache, "old", unused=13, age=90)
    store(cache, "b", unused=11, age=20)
    store(cache, "c", unused=10, age=19)


@pytest.mark.parametrize(
    ("strategy", "gone"),
    [
        ("lru", {"unused", "old"}),
        ("size", {"large"}),
        ("age", {"old", "large"}),
        ("smart", {"unused", "old"}),
    ],
)
def test_each_strategy_removes_in_its_order_and_no_more_than_needed(
    config: Config, cache: Cache, strategy: str, gone: set[str]
) -> None:
    config.cache_cleanup_strategy = strategy
    config.cache_cleanup_target_mb = 4
    store_five(cache)
    before = keys(cache)
    assert cache.run_auto_cleanup() == len(gone)
    assert before - keys(cache) == gone
    assert cache.run_auto_cleanup() == 0


def test_smart_goes_from_the_incomplete_over_the_old_and_rare_to_the_large_and_old_and_the_least_recently_used(
    config: Config, cache: Cache
) -> None:
    config.cache_cleanup_strategy = "smart"
    store(cache, "broken", age=0, unused=0, reads=50)
    store(cache, "rare", 0.5, age=20, unused=1, reads=2)
    store(cache, "large and old", 2, age=20, unused=0, reads=9)
    store(cache, "small and old", 0.5, age=20, unused=3, reads=9)
    store(cache, "young", age=1, unused=2, reads=9)
    change(cache, "DELETE FROM parts WHERE ordinal = 1 AND entry_id = (SELECT id FROM entries WHERE key = 'broken')")
    order = []
    # 5 MiB; the hard limit moves down, below it nothing but the incomplete and the rare is not spared.
    for limit in (4, 3, 2, 1):
        config.update({"cache_cleanup_threshold_mb": limit, "cache_max_size_mb": limit, "cache_cleanup_target_mb": 0})
        before = keys(cache)
        cache.run_auto_cleanup()
        order.append(before - keys(cache))
    assert order == [{"broken", "rare"}, {"large and old"}, set(), {"small and old"}]
    assert keys(cache) == {"young"}


# ---- limits


def test_nothing_happens_at_the_threshold(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(4):
        store(cache, f"e{number}")
    with caplog.at_level(logging.INFO):
        assert cache.run_auto_cleanup() == 0
    assert not caplog.records
    store(cache, "more", 0.1)
    assert cache.run_auto_cleanup() == 3


def test_a_cache_without_a_file_is_clean_and_none_is_made(config: Config, cache: Cache) -> None:
    assert cache.run_auto_cleanup() == 0
    assert cache.smart_cleanup() == 0
    assert not config.cache_path.exists()


def test_young_and_much_used_entries_are_spared(cache: Cache) -> None:
    store(cache, "young", age=1, unused=90)
    store(cache, "used", unused=91, reads=3)
    for number in range(4):
        store(cache, f"e{number}", reads=2)
    assert cache.run_auto_cleanup() == 4
    assert keys(cache) == {"young", "used"}


def test_zero_reads_spare_nothing(config: Config, cache: Cache) -> None:
    config.cache_cleanup_min_access = 0
    for number in range(5):
        store(cache, f"e{number}", reads=100)
    assert cache.run_auto_cleanup() == 3


def test_above_the_hard_limit_the_spared_go_too_after_the_others_and_only_down_to_it(
    config: Config, cache: Cache
) -> None:
    config.update({"cache_max_size_mb": 4, "cache_cleanup_threshold_mb": 3, "cache_cleanup_target_mb": 1})
    store(cache, "rare", unused=1)
    for number in range(6):
        store(cache, f"young{number}", age=1, unused=90 - number)
    assert cache.run_auto_cleanup() == 3
    assert keys(cache) == {f"young{number}" for number in range(2, 6)}


@pytest.mark.parametrize("strategy", ["lru", "size", "age", "smart"])
def test_pinned_entries_never_go(config: Config, cache: Cache, strategy: str) -> None:
    config.update({"cache_cleanup_strategy": strategy, "cache_max_size_mb": 1, "cache_cleanup_target_mb": 0})
    for number in range(3):
        store(cache, f"pinned{number}", pinned=True, age=1000, unused=1000)
    change(cache, "DELETE FROM parts WHERE ordinal = 1 AND entry_id = (SELECT id FROM entries WHERE key = 'pinned0')")
    store(cache, "free", 2)
    assert cache.run_auto_cleanup() == 1
    assert cache.smart_cleanup(max_age_days=0, max_size_mb=0) == 0
    assert len(keys(cache)) == 3


def test_what_others_write_meanwhile_is_left_for_the_next_cleanup(
    config: Config, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.cache_max_size_mb = 1
    store(cache, "pinned", 3, pinned=True)  # the limit cannot be reached
    for name in ("a", "b"):
        store(cache, name, 0.1)
    remove_some, batches = cleaning._remove_some, []

    def and_write(*arguments: object) -> int:
        removed = remove_some(*arguments)
        batches.append(removed)
        assert len(batches) < 10, "it removes what is written for ever"
        store(cache, f"later {len(batches)}", 0.1)
        return removed

    monkeypatch.setattr(cleaning, "_remove_some", and_write)
    assert cache.run_auto_cleanup() == 2
    assert cache.read("later 1") is not None


def test_limits_that_contradict_each_other_are_brought_in_order(config: Config, cache: Cache) -> None:
    config.update({"cache_max_size_mb": 3, "cache_cleanup_threshold_mb": 100, "cache_cleanup_target_mb": 200})
    for number in range(5):
        store(cache, f"e{number}")
    assert cache.run_auto_cleanup() == 2  # down to the hard limit


def test_reads_that_are_not_written_down_yet_count(cache: Cache) -> None:
    for number in range(5):
        store(cache, f"e{number}")
    for _ in range(3):
        cache.read("e0")
    cache.run_auto_cleanup()
    assert "e0" in keys(cache)


def test_memory_forgets_what_cleanup_removes(config: Config, cache: Cache) -> None:
    config.memory_cache_enabled = True
    for number in range(5):
        store(cache, f"e{number}")
    cache.run_auto_cleanup()
    assert cache.get_memory_stats()["items"] == len(keys(cache)) == 2


def test_more_than_a_batch_is_removed(config: Config, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tif1_pipeline.cache.removal.BATCH_ENTRIES", 3)
    config.update({"cache_cleanup_threshold_mb": 1, "cache_cleanup_target_mb": 1})
    for number in range(16):
        store(cache, f"e{number:02}", 0.125, unused=100 - number)
    assert cache.run_auto_cleanup() == 8
    assert keys(cache) == {f"e{number:02}" for number in range(8, 16)}


# ---- smart, by hand


def test_smart_cleanup_removes_the_incomplete_and_the_old_and_rare_whatever_the_size(cache: Cache) -> None:
    store(cache, "broken", 0.1, age=0, unused=0)
    store(cache, "rare", 0.1, age=20, reads=2)
    store(cache, "used", 0.1, age=20, reads=3)
    store(cache, "young", 0.1, age=1)
    change(cache, "UPDATE entries SET parts = '[' WHERE key = 'broken'")
    assert cache.smart_cleanup() == 2
    change(cache, "UPDATE entries SET parts = '[\"\"]'")
    assert keys(cache) == {"used", "young"}


def test_smart_cleanup_takes_age_reads_and_size_from_its_caller(cache: Cache) -> None:
    store(cache, "old", 0.5, age=3, unused=1, reads=5)
    store(cache, "large", 1.0, age=1, unused=1, reads=20)
    store(cache, "unused", 0.5, age=1, unused=9, reads=20)
    store(cache, "c", 0.5, age=1, unused=2, reads=20)
    assert cache.smart_cleanup(max_age_days=2, min_access_count=6) == 1
    assert cache.smart_cleanup(max_age_days=2, min_access_count=6, max_size_mb=1.5) == 1
    assert keys(cache) == {"large", "c"}
    assert cache.smart_cleanup(max_age_days=0.5, min_access_count=0, max_size_mb=1) == 1
    assert keys(cache) == {"c"}  # large and old before least recently used


# ---- log


def test_a_cleanup_says_what_it_removed_in_one_line(
    config: Config, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        store(cache, f"e{number}")
    with caplog.at_level(logging.INFO):
        cache.run_auto_cleanup()
    assert [record.message.partition(" in ")[0] for record in caplog.records] == [
        "cleanup removed 3 entries, 3.0 MiB, by strategy lru"
    ]
    caplog.clear()
    config.update({"cache_cleanup_log": False, "cache_cleanup_threshold_mb": 1, "cache_cleanup_target_mb": 1})
    with caplog.at_level(logging.INFO):
        assert cache.run_auto_cleanup() == 1
    assert not caplog.records


# ---- others at work


def test_other_processes_write_and_read_while_one_cleans(
    config: Config, cache: Cache, start: Callable[..., subprocess.Popen[str]]
) -> None:
    for number in range(120):  # four of them leave room in the target for what the other process stores meanwhile
        store(cache, f"e{number:03}", 0.45, unused=200 - number)
    process = start(
        """
        config.cache_auto_cleanup = False
        print("ready")
        for number in range(60):
            assert cache.write(EntryKey(f"new{number}", "x"), {"n": number}).stored
            hit = cache.read(f"new{number}", "json")
            assert hit and hit.value == {"n": number}
        print(cache.get_degraded())
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert cache.run_auto_cleanup() == 116
    output, errors = process.communicate(timeout=30)
    assert (output, errors) == ("{}\n", "")
    assert {key for key in keys(cache) if key.startswith("e")} == {f"e{number}" for number in range(116, 120)}


def test_processes_that_clean_at_once_remove_no_more_than_one_would(
    cache: Cache, start: Callable[..., subprocess.Popen[str]]
) -> None:
    for number in range(60):
        store(cache, f"e{number:02}", 0.5, unused=200 - number)
    script = """
    config.update({"cache_cleanup_threshold_mb": 4, "cache_cleanup_target_mb": 2})
    print(cache.run_auto_cleanup())
    """
    processes = [start(script) for _ in range(3)]
    removed = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert sum(removed) == 56
    assert keys(cache) == {f"e{number}" for number in range(56, 60)}


# ---- by itself


def cleanup_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == "tif1-cleanup":
            thread.join(30)


def last_cleanup(cache: Cache) -> float | None:
    with closing(sqlite3.connect(cache.get_cache_file())) as connection:
        row = connection.execute("SELECT value FROM cache_metadata WHERE key = 'last_cleanup'").fetchone()
        return float(row[0]) if row else None


def test_above_the_hard_limit_a_write_cleans_at_once(config: Config, cache: Cache) -> None:
    for number in range(6):
        store(cache, f"e{number}", age=0)
    config.cache_max_size_mb = 5
    cleaning.after_write(cache._tiered)
    assert len(keys(cache)) == 5
    assert last_cleanup(cache) == pytest.approx(time.time(), abs=60)


def test_between_two_looks_a_write_looks_at_nothing_unless_much_was_written(config: Config, cache: Cache) -> None:
    store(cache, "e", 0.1)
    cleaning.after_write(cache._tiered)
    for number in range(6):
        store(cache, f"e{number}", age=0)
    config.cache_max_size_mb = 5
    cleaning._watches[cache._tiered].next_look += 1000
    cleaning.after_write(cache._tiered, 1000)
    assert len(keys(cache)) == 7
    cleaning.after_write(cache._tiered, cleaning.LOOK_BYTES)
    assert len(keys(cache)) == 5


def test_when_a_time_of_the_schedule_has_passed_a_write_starts_a_cleanup_once(
    config: Config, open_cache: Callable[..., Cache]
) -> None:
    config.cache_cleanup_schedule = "0 2 * * *"
    first, second = open_cache(), open_cache()
    for number in range(5):
        store(first, f"e{number}")
    change(first, "UPDATE cache_metadata SET value = ? WHERE key = 'created_at'", repr(time.time() - 2 * DAY))
    cleaning.after_write(first._tiered)
    cleanup_thread()
    assert len(keys(first)) == 2
    noted = last_cleanup(first)
    assert noted == pytest.approx(time.time(), abs=60)
    for number in range(5):
        store(first, f"f{number}")
    for cache in (first, second):  # the second as another process would
        cleaning._watches[cache._tiered] = cleaning._Watch(threading.Lock())
        cleaning.after_write(cache._tiered)
        cleanup_thread()
    assert len(keys(first)) == 7
    assert last_cleanup(second) == noted


@pytest.mark.parametrize(
    ("schedule", "last", "following"),
    [
        ("0 2 * * *", "2025-03-30T01:59:59", "2025-03-30T02:00:00"),  # UTC knows no summer time
        ("0 2 * * *", "2025-03-30T02:00:00", "2025-03-31T02:00:00"),
        ("30 3 * * 0", "2025-06-02T00:00:00", "2025-06-08T03:30:00"),
    ],
)
def test_the_schedule_is_a_cron_line_in_utc(schedule: str, last: str, following: str) -> None:
    at = datetime.fromisoformat(last).replace(tzinfo=UTC).timestamp()
    assert cleaning._next_time(schedule, at) == datetime.fromisoformat(following).replace(tzinfo=UTC).timestamp()


def test_before_the_scheduled_time_nothing_is_cleaned(config: Config, cache: Cache) -> None:
    tomorrow = datetime.fromtimestamp(time.time() + DAY / 2, UTC)
    config.cache_cleanup_schedule = f"{tomorrow.minute} {tomorrow.hour} * * *"
    for number in range(5):
        store(cache, f"e{number}")
    cleaning.after_write(cache._tiered)
    cleanup_thread()
    assert len(keys(cache)) == 5
    assert last_cleanup(cache) is None


@pytest.mark.parametrize("noted", ["not a number", repr(time.time() + 1000 * DAY)], ids=["no number", "in the future"])
def test_a_note_of_the_last_cleanup_that_makes_no_sense_does_no_harm(config: Config, cache: Cache, noted: str) -> None:
    store(cache, "e", 0.1)
    change(cache, "INSERT INTO cache_metadata VALUES ('last_cleanup', ?)", noted)
    config.cache_cleanup_schedule = "* * * * *"
    cleaning.after_write(cache._tiered)
    cleanup_thread()
    assert cleaning._watches[cache._tiered].due <= time.time() + 60
    assert keys(cache) == {"e"}


def test_a_write_survives_a_cleanup_that_fails(config: Config, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(3):
        store(cache, f"e{number}")
    config.update({"cache_max_size_mb": 1, "cache_lock_timeout": 0.1})
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cleaning.after_write(cache._tiered)
    assert "could not be cleaned" in caplog.text
    assert len(keys(cache)) == 3


def test_what_is_pinned_above_the_hard_limit_is_spoken_about(
    config: Config, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        store(cache, f"e{number}", pinned=True)
    config.cache_max_size_mb = 1
    for _ in range(3):
        cleaning.after_write(cache._tiered, cleaning.LOOK_BYTES // 2)
    assert caplog.text.count("what is left is pinned") == 1


@pytest.mark.parametrize("value", [-1, float("nan")])
@pytest.mark.parametrize("name", ["max_size_mb", "max_age_days", "min_access_count"])
def test_a_smart_cleanup_refuses_what_is_no_number_and_removes_nothing(cache: Cache, name: str, value: float) -> None:
    store(cache, "a")
    with pytest.raises(InvalidDataError, match=name):
        cache.smart_cleanup(**{name: value})
    assert keys(cache) == {"a"}


def test_a_smart_cleanup_may_be_given_no_limit_at_all(cache: Cache) -> None:
    store(cache, "a", reads=9)
    assert cache.smart_cleanup(max_size_mb=float("inf"), max_age_days=float("inf")) == 0
