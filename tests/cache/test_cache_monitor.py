"""What a CacheMonitor sees, and what it does not; the word on the cache's health."""

import json
import pickle
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.cache.health import CacheHealth
from tif1_pipeline.cache.monitor import CacheMonitor
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey

SESSION = SessionKey(2025, "Monaco Grand Prix", "Race")
LAPS, WEATHER = SESSION.entry("laps"), SESSION.entry("weather")
TABLE = pa.table({"n": list(range(100))})


@pytest.fixture
def filled(cache: Cache) -> Cache:
    cache.write(LAPS, TABLE)
    cache.read(LAPS)
    cache.read(WEATHER)
    return cache


def test_a_monitor_records_the_look_ups_of_its_block(filled: Cache) -> None:
    with CacheMonitor(filled) as monitor:
        filled.read(LAPS)
        filled.evict_memory(LAPS)
        filled.read(LAPS)
        filled.read(LAPS)
        filled.read(WEATHER)
    filled.read(LAPS)
    assert (monitor.hits, monitor.misses, monitor.hit_rate) == (3, 1, 0.75)
    assert monitor.by_tier == {"disk": 1, "memory": 2}
    assert list(monitor.by_type) == ["laps", "weather"]
    assert monitor.by_type["laps"] == {
        "hits": 3,
        "misses": 0,
        "hit_rate": 1.0,
        "avg_access_ms": monitor.avg_access_ms,
    }
    assert monitor.by_type["weather"] == {"hits": 0, "misses": 1, "hit_rate": 0.0, "avg_access_ms": 0.0}
    assert 0 < monitor.avg_access_ms * 3 / 1000 < monitor.seconds < 60


def test_a_fetch_counts_as_a_miss(cache: Cache) -> None:
    with CacheMonitor(cache) as monitor:
        cache.read_through(LAPS, lambda _: Fresh(TABLE))
        cache.read_through(LAPS, lambda _: Fresh(TABLE))
    assert (monitor.hits, monitor.misses, monitor.by_tier) == (1, 1, {"memory": 1})


def test_an_empty_block(filled: Cache) -> None:
    with CacheMonitor(filled) as monitor:
        pass
    assert monitor.to_dict() == {
        "hits": 0,
        "misses": 0,
        "hit_rate": 0.0,
        "avg_access_ms": 0.0,
        "seconds": monitor.seconds,
        "by_type": {},
        "by_tier": {},
    }


def test_the_figures_can_be_read_within_the_block(filled: Cache) -> None:
    with CacheMonitor(filled) as monitor:
        filled.read(LAPS)
        assert monitor.hits == 1
        early = monitor.seconds
        filled.read(LAPS)
    assert monitor.hits == 2
    assert monitor.seconds > early
    assert monitor.seconds == monitor.seconds


def test_monitors_within_and_beside_each_other(filled: Cache) -> None:
    beside = CacheMonitor(filled)
    with CacheMonitor(filled) as outer:
        filled.read(LAPS)
        beside.__enter__()
        with CacheMonitor(filled) as inner:
            filled.read(LAPS)
        filled.read(LAPS)
    filled.read(LAPS)
    beside.__exit__(None, None, None)
    assert (outer.hits, inner.hits, beside.hits) == (3, 1, 3)


def test_a_monitor_starts_from_zero_in_each_block(filled: Cache) -> None:
    monitor = CacheMonitor(filled)
    with monitor:
        filled.read(LAPS)
        with pytest.raises(RuntimeError, match="another"), monitor:
            pass
        filled.read(LAPS)
    assert monitor.hits == 2
    with monitor:
        filled.read(WEATHER)
    assert (monitor.hits, monitor.misses) == (0, 1)


def test_an_error_ends_the_block(filled: Cache) -> None:
    monitor = CacheMonitor(filled)

    def work() -> None:
        with monitor:
            filled.read(LAPS)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        work()
    filled.read(LAPS)
    assert monitor.hits == 1


def test_all_threads_count_and_other_caches_do_not(filled: Cache, open_cache: Callable[..., Cache]) -> None:
    other = open_cache()
    with CacheMonitor(filled) as monitor:
        threads = [
            threading.Thread(target=lambda: [filled.read(LAPS) and other.read(LAPS) for _ in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert monitor.hits == 800


def test_export(filled: Cache, tmp_path: Path) -> None:
    with CacheMonitor(filled) as monitor:
        filled.read(LAPS)
    target = tmp_path / "monitor.json"
    target.write_text("former")
    monitor.export(target)
    assert json.loads(target.read_text()) == json.loads(monitor.to_json()) == monitor.to_dict()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["monitor.json"]
    with pytest.raises(FileNotFoundError):
        monitor.export(tmp_path / "nowhere" / "monitor.json")


# ---- health


def test_a_cache_that_works_is_healthy(cache: Cache, key: EntryKey) -> None:
    for _ in range(2):
        health = cache.check_health()
        assert health == "healthy"
        assert health.reasons == ()
        cache.write(key, TABLE)


def test_a_file_that_cannot_be_opened_is_said_in_words(config: Config, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config.cache_dir = tmp_path / "file" / "cache"
    health = cache.check_health()
    assert health == "failover"
    assert any(str(config.cache_dir) in reason for reason in health.reasons)
    config.cache_dir = tmp_path / "cache"
    assert cache.check_health() == "healthy"


def test_a_foreign_file_is_said_in_words(config: Config, cache: Cache) -> None:
    config.cache_dir.mkdir(parents=True)
    config.cache_path.write_bytes(b"SQLite format 3\0" + bytes(5000))
    health = cache.check_health()
    assert health == "failover"
    assert "another program" in health.reasons[0]


def test_a_read_only_cache_is_left_alone(config: Config, cache: Cache) -> None:
    config.cache_readonly = True
    cache.check_health()
    assert not config.cache_path.exists()


def test_health_is_a_text_that_pickles_with_its_reasons() -> None:
    health = pickle.loads(pickle.dumps(CacheHealth(["the disk is full"])))
    assert (health, health.reasons, f"{health}") == ("failover", ("the disk is full",), "failover")
    assert isinstance(health, str)
    assert json.dumps(health) == '"failover"'
