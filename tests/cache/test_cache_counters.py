"""The counters of all processes: sums that add up, by type; reads that write nothing; and what a kill can lose."""

import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.usage import FLUSH_NUMBER
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, SessionKey

MONACO = SessionKey(2025, "Monaco Grand Prix", "Race")
SPA = SessionKey(2024, "Belgian Grand Prix", "Race")
TABLE = pa.table({"n": [1.0] * 1000})
READS = """
    for _ in range(int(sys.argv[2])):
        cache.read(key)
        cache.read(key)
        cache.read(SessionKey(2025, "Monaco Grand Prix", "Race").entry("weather"))
"""
READS_AND_FLUSHES = (
    READS
    + """
        cache.flush()
"""
)


def written(cache: Cache) -> tuple[int, dict[str, float]]:
    """What the file says, asked without the cache: the accesses of the entry, and the counters."""
    with closing(sqlite3.connect(cache.get_cache_file())) as connection:
        counts = connection.execute("SELECT sum(access_count) FROM entries").fetchone()[0]
        counters = connection.execute("SELECT key, CAST(value AS REAL) FROM cache_metadata WHERE key LIKE '%s:%'")
        return counts, dict(counters)


def files(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Sizes, times and contents of the files in a folder that nobody has open here."""
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.iterdir())
        if not path.name.endswith("-shm")  # readers mark in shared memory which version they look at
    }


def test_the_counters_add_up_over_processes_one_after_another(
    cache: Cache, key: EntryKey, run: Callable[..., str]
) -> None:
    cache.write(key, TABLE)
    for times in ("1", "2", "3"):
        run(READS, times)
    stats = cache.get_stats()
    assert (stats["total_hits"], stats["total_misses"]) == (12, 6)
    assert (stats["hit_rate"], stats["miss_rate"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert 0 < stats["avg_access_ms"] < 10_000
    assert cache.info(key).access_count == 12
    cache.read(key)  # still in memory here
    assert cache.get_stats()["total_hits"] == 13


def test_the_counters_add_up_over_processes_at_once(
    cache: Cache, key: EntryKey, start: Callable[..., subprocess.Popen[str]]
) -> None:
    cache.write(key, TABLE)
    processes = [start(READS_AND_FLUSHES, "40") for _ in range(4)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    stats = cache.get_stats()
    assert (stats["total_hits"], stats["total_misses"]) == (4 * 80, 4 * 40)
    assert cache.info(key).access_count == 4 * 80


@pytest.mark.parametrize("shards", [1, 3])
def test_rates_and_times_are_by_type(config: Config, open_cache: Callable[..., Cache], shards: int) -> None:
    config.cache_shards = shards
    cache = open_cache()
    for session in (MONACO, SPA):
        cache.write(session.entry("laps"), TABLE)
    cache.write(MONACO.entry("weather"), TABLE)
    cache.write(MONACO.entry("drivers"), TABLE)
    for key, times in ((MONACO.entry("laps"), 2), (SPA.entry("laps"), 1), (MONACO.entry("weather"), 1)):
        for _ in range(times):
            assert cache.read(key)
    assert cache.read(SPA.entry("weather")) is None
    assert cache.read(SPA.entry("weather")) is None
    assert cache.read(SPA.entry("telemetry")) is None
    for again in (False, True):  # pending here, and written down and read from the file
        by_type = cache.get_stats_by_type()
        assert {name: (row["count"], row["hit_rate"]) for name, row in by_type.items()} == {
            "drivers": (1, 0.0),
            "laps": (2, 1.0),
            "weather": (1, pytest.approx(1 / 3)),
        }
        assert all(
            list(row) == ["count", "size_mb", "avg_size_mb", "hit_rate", "avg_access_ms"] for row in by_type.values()
        )
        assert by_type["drivers"]["avg_access_ms"] == 0.0
        assert by_type["laps"]["avg_access_ms"] > 0
        assert by_type["laps"]["size_mb"] == pytest.approx(2 * by_type["weather"]["size_mb"])
        assert by_type["laps"]["avg_size_mb"] == pytest.approx(by_type["weather"]["avg_size_mb"])
        stats = cache.get_stats()
        assert (stats["total_hits"], stats["total_misses"]) == (4, 3)
        assert stats["avg_access_ms"] == pytest.approx(
            (3 * by_type["laps"]["avg_access_ms"] + by_type["weather"]["avg_access_ms"]) / 4
        )
        if not again:
            cache.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_seasons_and_sessions_by_use(config: Config, open_cache: Callable[..., Cache], shards: int) -> None:
    config.cache_shards = shards
    cache = open_cache()
    qualifying = SessionKey(2025, "Monaco Grand Prix", "Qualifying")
    other = SessionKey(2025, "British Grand Prix", "Race")
    for session in (MONACO, qualifying, other, SPA):
        cache.write(session.entry("laps"), TABLE)
    cache.write(EntryKey("2025_schedule", "schedule", 2025), TABLE)
    cache.write(EntryKey("asset", "asset"), TABLE)
    for key, times in ((other.entry("laps"), 3), (MONACO.entry("laps"), 2), (qualifying.entry("laps"), 2)):
        for _ in range(times):
            cache.read(key)
    years = cache.get_stats_by_year()
    assert {year: (row["session_count"], row["most_accessed_event"]) for year, row in years.items()} == {
        2024: (1, None),
        2025: (3, "monaco"),
    }
    assert years[2025]["size_mb"] == pytest.approx(4 * years[2024]["size_mb"])
    assert list(years[2025]) == ["session_count", "size_mb", "most_accessed_event"]
    assert cache.get_access_stats() == [
        {"year": 2025, "event": "british", "session_type": "race", "access_count": 3},
        {"year": 2025, "event": "monaco", "session_type": "qualifying", "access_count": 2},
        {"year": 2025, "event": "monaco", "session_type": "race", "access_count": 2},
        {"year": 2024, "event": "belgian", "session_type": "race", "access_count": 0},
    ]


@pytest.mark.parametrize("shards", [1, 3])
def test_sizes_add_up(config: Config, open_cache: Callable[..., Cache], shards: int) -> None:
    config.cache_shards = shards
    cache = open_cache()
    for session in (MONACO, SPA):
        cache.write(session.entry("laps"), TABLE)
        cache.write(session.entry("weather"), TABLE)
    cache.write(EntryKey("asset", "asset"), {"a": 1})
    info = cache.get_size_info()
    assert list(info) == [
        "total_entries", "uncompressed_mb", "compressed_mb", "disk_mb", "compression_ratio", "space_saved_mb",
        "space_saved_pct",
    ]  # fmt: skip
    entries = cache.get_entries()
    assert info["total_entries"] == len(entries) == 5
    assert info["uncompressed_mb"] == pytest.approx(sum(entry["size_mb"] for entry in entries))
    assert info["compressed_mb"] == pytest.approx(sum(entry["compressed_mb"] for entry in entries))
    assert info["space_saved_mb"] == pytest.approx(info["uncompressed_mb"] - info["compressed_mb"])
    assert info["compression_ratio"] == pytest.approx(info["uncompressed_mb"] / info["compressed_mb"])
    on_disk = sum(path.stat().st_size for path in cache.get_cache_dir().iterdir() if path.name.startswith("tif1_cache"))
    assert cache.get_size_mb() == info["disk_mb"] == on_disk / (1 << 20)
    assert cache.get_size_mb() > info["compressed_mb"]
    by_type, by_year = cache.get_size_by_type(), cache.get_size_by_year()
    assert list(by_type) == ["asset", "laps", "weather"]
    assert list(by_year) == [2024, 2025]
    assert sum(by_type.values()) == pytest.approx(info["compressed_mb"])
    assert sum(by_year.values()) == pytest.approx(info["compressed_mb"] - by_type["asset"])


def test_a_read_writes_nothing(
    config: Config, cache: Cache, key: EntryKey, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Not one byte in any file while a process reads from disk and from memory, hits and misses."""
    cache.write(key, TABLE)
    cache.close()
    script = """
        def wait_for(name):
            while not (Path(sys.argv[2]) / name).exists():
                time.sleep(0.01)
        cache.read(key)  # opens the file, which makes the log and its index
        print("open", flush=True)
        wait_for("go")
        for number in range(300):
            assert cache.read(key).tier == "memory"
            cache.clear_memory()
            assert cache.read(key).tier == "disk"
            assert cache.read(key, "pandas", columns=["n"])
            assert cache.read(f"missing {number}") is None
        print("read", flush=True)
        wait_for("end")
    """
    process = start(script, str(tmp_path))
    assert process.stdout.readline() == "open\n"
    before = files(config.cache_dir)
    (tmp_path / "go").touch()
    assert process.stdout.readline() == "read\n"
    assert files(config.cache_dir) == before
    (tmp_path / "end").touch()
    assert process.communicate(timeout=30)[1] == ""
    assert cache.info(key).access_count == 901
    assert cache.get_stats()["total_misses"] == 300


def test_a_kill_loses_what_was_not_flushed_and_nothing_else(
    cache: Cache, key: EntryKey, start: Callable[..., subprocess.Popen[str]]
) -> None:
    cache.write(key, TABLE)
    script = """
        for _ in range(10):
            cache.read(key)
        assert cache.flush()
        for _ in range(5):
            cache.read(key)
        print("done", flush=True)
        time.sleep(60)
    """
    process = start(script)
    assert process.stdout.readline() == "done\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert written(cache)[0] == 10
    assert written(cache)[1]["hits:laps"] == 10
    assert cache.get_stats()["total_hits"] == 10
    assert cache.read(key).value.equals(TABLE)


def test_counts_are_written_down_by_themselves_after_the_interval(
    cache: Cache, key: EntryKey, start: Callable[..., subprocess.Popen[str]]
) -> None:
    cache.write(key, TABLE)
    script = """
        from tif1_pipeline.cache import usage
        usage.FLUSH_SECONDS = 0.2
        for _ in range(7):
            cache.read(key)
        print("done", flush=True)
        time.sleep(60)
    """
    process = start(script)
    assert process.stdout.readline() == "done\n"
    wait_for(lambda: written(cache)[0] == 7)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    assert written(cache)[1]["hits:laps"] == 7


def test_many_reads_are_written_down_before_the_interval(cache: Cache, key: EntryKey) -> None:
    cache.write(key, TABLE)
    for _ in range(FLUSH_NUMBER):
        cache.read(key)
    wait_for(lambda: written(cache)[0] == FLUSH_NUMBER)
    assert cache.get_stats()["total_hits"] == FLUSH_NUMBER


def test_counts_that_could_not_be_written_are_written_later(cache: Cache, key: EntryKey) -> None:
    cache.write(key, TABLE)
    for _ in range(3):
        cache.read(key)
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not cache.flush()
        assert cache.read(key).tier == "memory"
        assert cache.get_stats()["total_hits"] == 4
        other.execute("ROLLBACK")
    assert cache.flush()
    assert written(cache)[0] == 4
    assert written(cache)[1]["hits:laps"] == 4


def test_a_process_that_ends_while_it_writes_counts_down_loses_none(
    cache: Cache, key: EntryKey, run: Callable[..., str]
) -> None:
    cache.write(key, TABLE)
    script = """
        from tif1_pipeline.cache import usage
        for _ in range(usage.FLUSH_NUMBER):
            cache.read(key)
    """
    for number in range(1, 6):
        run(script)
        assert written(cache)[0] == number * FLUSH_NUMBER


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
