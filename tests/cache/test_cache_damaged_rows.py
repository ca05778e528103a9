"""Rows that a damaged page has turned into nonsense: every call gets over them, and what is sound is still there."""

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
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


def damage(cache: Cache, column: str, value: object, *, every: bool = False) -> None:
    """Change a row of the file as no statement can while the schema says what may be there."""
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(entries)")]
        sql = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entries'").fetchone()[0]
    kinds = {"id": "INTEGER PRIMARY KEY", "key": "UNIQUE"}
    loose = f"CREATE TABLE entries ({', '.join(' '.join((name, kinds.get(name, ''))) for name in names)})"
    is_sql = str(value).startswith("CAST")
    update = f"UPDATE entries SET {column} = {value if is_sql else '?'} WHERE {every} OR year = 2025"
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


# ---- more than a row


def change_file(cache: Cache, *statements: tuple[str, tuple[object, ...]]) -> None:
    """Change the file through the schema that says where its tables are, each time as one who opens it anew."""
    for statement, values in statements:
        with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema=ON")
            connection.execute(statement, values)


def empty_index(cache: Cache, name: str) -> None:
    """Let an index have no rows, as after its pages were lost."""
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as connection:
        connection.execute("CREATE INDEX other ON entries (rows) WHERE 0")
        pages = dict(connection.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'index'"))
    swap = "UPDATE sqlite_master SET rootpage = ? WHERE name = ?"
    change_file(cache, (swap, (pages["other"], name)), (swap, (pages[name], "other")), ("DROP INDEX other", ()))


@pytest.mark.parametrize("index", [None, "entries_session", "entries_data_type", "entries_size", "entries_created_at"])
@pytest.mark.parametrize("call", CALLS)
def test_every_call_gets_over_a_damaged_row_that_an_index_lacks(
    damaged: Callable[[str], Cache], call: str, index: str | None
) -> None:
    cache = damaged("no size")
    empty_index(cache, index or "sqlite_autoindex_entries_1")
    with suppress(KeyError):  # of this test: by an index without rows there is nothing of 2024
        CALLS[call](cache)
    assert cache.read(MONACO.entry("laps")) is None
    assert cache.write(MONACO.entry("laps"), TABLE).stored
    cache.clear_corrupted()
    assert cache.verify_integrity()["integrity_pct"] == 100
    assert cache.write(MONACO.entry("laps"), TABLE).stored
    assert cache.read(MONACO.entry("laps")).value == TABLE


def take_numbers(cache: Cache) -> None:
    """Give all rows of the entries' page the number 0."""
    path = cache.get_cache_file()
    with closing(sqlite3.connect(path)) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entries'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    data = bytearray(path.read_bytes())
    begin = (page - 1) * size
    assert data[begin] == 13  # a leaf of a table
    cells = int.from_bytes(data[begin + 3 : begin + 5], "big")
    for place in range(begin + 8, begin + 8 + 2 * cells, 2):
        number = begin + int.from_bytes(data[place : place + 2], "big")
        while data[number] & 0x80:  # the length of the row, in seven bits a byte
            number += 1
        data[number + 1] = 0
    path.write_bytes(data)


@pytest.mark.parametrize("call", ["get_stats_by_type", "list_sessions", "get_largest", "search", "invalidate_custom"])
def test_where_rows_have_lost_their_numbers_a_call_says_what_to_do(damaged: Callable[[str], Cache], call: str) -> None:
    cache = damaged("no size")
    damage(cache, "size_bytes", None, every=True)
    take_numbers(cache)
    with pytest.raises(CacheError, match=r"damaged beyond its single rows .*: restore a backup, or move it away"):
        CALLS[call](cache)
    cache.close()
    cache.get_cache_file().rename(cache.get_cache_file().with_name("away"))
    assert cache.write(MONZA.entry("laps"), TABLE).stored
    assert CALLS[call](cache)
