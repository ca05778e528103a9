"""What the cache says about itself: the keys of the contract, and numbers that add up."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, Source
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey, SessionKey

MONACO = SessionKey(2025, "Monaco Grand Prix", "Race")
SPA = SessionKey(2024, "Belgian Grand Prix", "Qualifying")
TABLE = pa.table({"n": [1.0] * 10_000})


@pytest.fixture
def filled(cache: Cache) -> Cache:
    for session in (MONACO, SPA):
        cache.write(session.entry("laps"), TABLE)
    cache.write(MONACO.entry("weather"), TABLE, source=Source("https://x", '"1"', "today"), schema_version=4)
    cache.write(EntryKey("asset", "asset"), {"a": 1})
    return cache


def test_get_stats(filled: Cache) -> None:
    filled.read(MONACO.entry("laps"))
    filled.read(MONACO.entry("laps"))
    filled.read(MONACO.entry("telemetry"))
    stats = filled.get_stats()
    assert list(stats) == [
        "total_entries",
        "total_size_mb",
        "compressed_size_mb",
        "compression_ratio",
        "space_saved_mb",
        "space_saved_pct",
        "hit_rate",
        "miss_rate",
        "total_hits",
        "total_misses",
        "avg_access_ms",
        "memory_entries",
        "memory_size_mb",
        "memory_hit_rate",
    ]
    assert (stats["total_entries"], stats["total_hits"], stats["total_misses"], stats["memory_entries"]) == (4, 2, 1, 4)
    assert stats["hit_rate"] == stats["memory_hit_rate"] == pytest.approx(2 / 3)
    assert stats["total_size_mb"] == pytest.approx(3 * 80_000 / (1 << 20), rel=0.01)
    assert stats["space_saved_mb"] == pytest.approx(stats["total_size_mb"] - stats["compressed_size_mb"])
    assert stats["compression_ratio"] == pytest.approx(stats["total_size_mb"] / stats["compressed_size_mb"])
    assert stats["space_saved_pct"] == pytest.approx(100 * stats["space_saved_mb"] / stats["total_size_mb"])


def test_statistics_of_an_empty_cache(cache: Cache) -> None:
    assert set(cache.get_stats().values()) == {0}
    assert cache.get_memory_stats() == {"items": 0, "size_mb": 0, "hit_rate": 0, "evictions": 0, "hits": 0, "misses": 0}


def test_list_sessions(filled: Cache) -> None:
    for _ in range(3):
        filled.read(SPA.entry("laps"))
    rows = filled.list_sessions()
    assert [list(row) for row in rows] == [
        [
            "year",
            "event",
            "session_type",
            "size_mb",
            "compressed_mb",
            "created_at",
            "accessed_at",
            "access_count",
            "data_types",
        ]
    ] * 2
    assert [(row["event"], row["access_count"], row["data_types"]) for row in rows] == [
        ("belgian", 3, ["laps"]),
        ("monaco", 0, ["laps", "weather"]),
    ]
    assert rows[0]["accessed_at"] > rows[0]["created_at"]
    assert rows[0]["created_at"].tzinfo is UTC
    assert [row["event"] for row in filled.list_sessions(sort_by="size_mb")] == ["monaco", "belgian"]
    assert [row["event"] for row in filled.list_sessions(sort_by="event", limit=1)] == ["belgian"]
    assert [row["year"] for row in filled.list_sessions(sort_by="year")] == [2025, 2024]
    with pytest.raises(InvalidDataError, match="choose one of year"):
        filled.list_sessions(sort_by="colour")


def test_exists_and_metadata(filled: Cache) -> None:
    assert filled.exists(2025, "Monaco", "R")
    assert filled.exists(2025, "monaco grand prix", "race", "weather")
    assert not filled.exists(2025, "monaco", "race", "telemetry")
    assert not filled.exists(2025, "monaco", "qualifying")
    assert filled.get_metadata(2025, "monaco", "race", "telemetry") is None
    metadata = filled.get_metadata(2025, "Monaco", "Race", "weather")
    assert {
        "key", "size_mb", "compressed_mb", "compression_ratio", "accessed_at", "created_at", "access_count", "age_days",
        "data_type", "year", "event", "session_type",
    } <= set(metadata)  # fmt: skip
    assert (metadata["etag"], metadata["url"], metadata["rows"], metadata["schema_version"]) == (
        '"1"',
        "https://x",
        10_000,
        4,
    )
    assert 0 <= metadata["age_days"] < 0.01
    assert metadata["created_at"] <= datetime.now(UTC)


def test_removing_counts(filled: Cache) -> None:
    assert filled.remove(MONACO.entry("laps")) == 1
    assert filled.remove(MONACO.entry("laps")) == 0
    assert filled.read(MONACO.entry("laps")) is None
    assert filled.clear() == 3
    assert filled.get_memory_stats()["items"] == 0
    assert filled.get_stats()["total_entries"] == 0
