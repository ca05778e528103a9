"""Rows that a damaged page has turned into nonsense: every call gets over them, and what is sound is still there."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError
from tif1_pipeline.keys import EntryKey, SessionKey

MONACO = SessionKey(2025, "Monaco Grand Prix", "Race")
MONZA = SessionKey(2024, "Italian Grand Prix", "Race")
TABLE = pa.table({"n": list(range(50)), "p": ["a", "b"] * 25})
CALLS: dict[str, Callable[[Cache], Any]] = {
    "verify_integrity": lambda cache: cache.verify_integrity()["valid_entries"],
    "verify_entry": lambda cache: cache.verify_entry(MONZA.entry("laps")),
    "get_stats": lambda cache: cache.get_stats()["total_entries"] >= 1,
    "get_stats_by_type": lambda cache: cache.get_stats_by_type()["laps"]["count"] >= 1,
    "get_stats_by_year": lambda cache: cache.get_stats_by_year()[2024]["session_count"],
    "get_access_stats": lambda cache: 2024 in [entry["year"] for entry in cache.get_access_stats()],
    "get_size_info": lambda cache: cache.get_size_info()["total_entries"] >= 1,
    "get_size_by_type": lambda cache: cache.get_size_by_type()["laps"] > 0,
    "get_size_by_year": lambda cache: cache.get_size_by_year()[2024] > 0,
    "list_sessions": lambda cache: 2024 in [session["year"] for session in cache.list_sessions()],
    "get_largest": lambda cache: MONZA.entry("laps").text in [entry["key"] for entry in cache.get_largest()],
    "search": lambda cache: MONZA.entry("laps").text in [entry["key"] for entry in cache.search("*")],
    "invalidate_custom": lambda cache: cache.invalidate_custom(lambda entry: entry["year"] == 2024),
    "smart_cleanup": lambda cache: cache.smart_cleanup() is not None,
    "clear_year": lambda cache: cache.clear_year(2024),
    "clear": lambda cache: cache.clear(),
    "clear_corrupted": lambda cache: cache.clear_corrupted() is not None and cache.verify_entry(MONZA.entry("laps")),
}
DAMAGES = {
    "no size": ("size_bytes", None),
    "a size of text": ("compressed_size", "text"),
    "a size of bytes": ("compressed_size", b"\xff"),
    "a time after all time": ("created_at", 1 << 62),
    "an infinite time": ("accessed_at", float("inf")),
    "no type": ("data_type", None),
    "no count": ("access_count", None),
    "no parts": ("parts", None),
    "no checksum": ("checksum", None),
    "parts of lists": ("parts", "[[1]]"),
    "a text of no encoding": ("event", "CAST(x'ff' AS TEXT)"),
}


def damage(cache: Cache, column: str, value: object) -> None:
    """Change a row of the file as no statement can while the schema says what may be there."""
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(entries)")]
        sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries'").fetchone()[0]
    kinds = {"id": "INTEGER PRIMARY KEY", "key": "UNIQUE"}
    loose = f"CREATE TABLE entries ({', '.join(' '.join((name, kinds.get(name, ''))) for name in names)})"
    is_sql = str(value).startswith("CAST")
    update = f"UPDATE entries SET {column} = {value if is_sql else '?'} WHERE year = 2025"
    for schema, statement in ((loose, update), (sql, "SELECT 1")):
        with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON")
            connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'entries'", (schema,))
        with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
            connection.execute(statement, () if is_sql or "?" not in statement else (value,))


@pytest.fixture
def damaged(cache: Cache) -> Callable[[str], Cache]:
    def make(name: str) -> Cache:
        for session in (MONACO, MONZA):
            assert cache.write(session.entry("laps"), TABLE, part_by="p").stored
            assert cache.read(session.entry("laps"), columns=["n"])
        assert cache.flush()
        cache.close()
        damage(cache, *DAMAGES[name])
        return cache

    return make


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_gets_over_a_damaged_row(damaged: Callable[[str], Cache], call: str, name: str) -> None:
    cache = damaged(name)
    assert CALLS[call](cache)
    cache.clear_memory()
    assert cache.read(MONACO.entry("laps")) is None or cache.read(MONACO.entry("laps")).value == TABLE
    assert cache.write(MONACO.entry("laps"), TABLE).stored
    assert cache.verify_entry(MONACO.entry("laps"))


def test_a_damaged_row_is_removed_with_a_warning(
    damaged: Callable[[str], Cache], caplog: pytest.LogCaptureFixture
) -> None:
    cache = damaged("no size")
    assert [session["event"] for session in cache.list_sessions()] == ["italian"]
    assert MONACO.entry("laps").text in caplog.text
    assert "removed, to be fetched again" in caplog.text
    assert cache.get_degraded() == {"read: corrupt entry": 1}
    assert cache.verify_integrity()["integrity_pct"] == 100


def test_a_damaged_row_of_a_read_only_cache_is_named(config: Config, damaged: Callable[[str], Cache]) -> None:
    cache = damaged("no size")
    config.cache_readonly = True
    with pytest.raises(CacheError, match=r"monaco_race_laps.*read-only.*clear_corrupted"):
        cache.list_sessions()


def test_an_error_of_the_callers_own_is_not_taken_for_damage(cache: Cache) -> None:
    assert cache.write(EntryKey("thing", "x"), {"a": 1}).stored
    with pytest.raises(TypeError, match="can only concatenate"):
        cache.invalidate_custom(lambda entry: entry["key"] + 1)
    assert cache.read("thing", "json").value == {"a": 1}


def test_a_part_whose_size_is_none_is_found_and_removed(cache: Cache) -> None:
    for session in (MONACO, MONZA):
        assert cache.write(session.entry("laps"), TABLE, part_by="p").stored
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("UPDATE parts SET size = x'ff' WHERE ordinal = 1 AND entry_id = 1")
    report = cache.verify_integrity()
    assert [item["key"] for item in report["corrupted_list"]] == [MONACO.entry("laps").text]
    assert cache.clear_corrupted() == 1
    assert cache.verify_entry(MONZA.entry("laps"))
