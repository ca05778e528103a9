"""Listing and searching entries: the keys of the contract, order, limits, globs, several files, and odd arguments."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey, SessionKey

MONACO = SessionKey(2025, "Monaco Grand Prix", "Race")
SPA = SessionKey(2024, "Belgian Grand Prix", "Qualifying")
KEYS = [
    "key", "size_mb", "compressed_mb", "compression_ratio", "accessed_at", "created_at", "access_count", "age_days",
    "data_type", "year", "event", "session_type",
]  # fmt: skip
DAY = 86_400


def noise(rows: int) -> pa.Table:
    """A table that does not compress."""
    return pa.table({"n": [math.sin(number) for number in range(rows)]})


def change(cache: Cache, key: str, **values: object) -> None:
    with cache._tiered.file_of(key).database.raw(5) as connection:
        for name, value in values.items():
            connection.execute(f"UPDATE entries SET {name} = ? WHERE key = ?", (value, key))


def keys(entries: list[dict]) -> list[str]:
    return [entry["key"] for entry in entries]


@pytest.fixture(params=[1, 3], ids=["one file", "three files"])
def filled(request: pytest.FixtureRequest, config: Config, open_cache: Callable[..., Cache]) -> Cache:
    config.cache_shards = request.param
    cache = open_cache()
    for rows, session in ((1000, MONACO), (3000, SPA)):
        cache.write(session.entry("laps"), noise(rows))
    cache.write(MONACO.entry("weather"), noise(2000))
    cache.write(EntryKey("Asset/One", "asset", pinned=True), {"a": 1})
    return cache


L, S, W, A = MONACO.entry("laps").text, SPA.entry("laps").text, MONACO.entry("weather").text, "Asset/One"


def test_every_listing_has_the_keys_of_the_contract(filled: Cache) -> None:
    for entries in (
        filled.get_largest(),
        filled.get_lru(),
        filled.get_by_type("laps"),
        filled.get_by_size(0),
        filled.get_old_entries(0),
        filled.get_entries(),
        filled.search("*"),
    ):
        assert entries
        assert all(list(entry) == KEYS for entry in entries)


def test_what_a_listing_says_of_an_entry(filled: Cache) -> None:
    stored = datetime.now(UTC) - timedelta(days=3)
    change(filled, W, created_at=stored.timestamp(), access_count=7)
    (entry,) = filled.get_by_type("weather")
    info = filled.info(W)
    assert (entry["key"], entry["data_type"], entry["year"]) == (W, "weather", 2025)
    assert (entry["event"], entry["session_type"], entry["access_count"]) == ("monaco", "race", 7)
    assert entry["size_mb"] == info.size_bytes / (1 << 20)
    assert entry["compressed_mb"] == info.compressed_size / (1 << 20)
    assert entry["compression_ratio"] == pytest.approx(entry["size_mb"] / entry["compressed_mb"])
    assert (entry["created_at"], entry["accessed_at"]) == (info.created_at, info.accessed_at)
    assert entry["created_at"].tzinfo is UTC
    assert entry["age_days"] == pytest.approx(3, abs=0.01)


def test_largest_and_least_recently_used_come_first_over_all_files(filled: Cache) -> None:
    now = time.time()
    for number, key in enumerate((W, A, S, L)):
        change(filled, key, accessed_at=now - 100 + number, created_at=now - 1000 - number)
    assert keys(filled.get_largest()) == [S, W, L, A]
    assert keys(filled.get_largest(2)) == [S, W]
    assert keys(filled.get_lru()) == [W, A, S, L]
    assert keys(filled.get_lru(limit=1)) == [W]
    assert keys(filled.get_old_entries(0)) == [L, S, A, W]
    assert filled.get_lru(0) == filled.get_largest(0) == []
    assert keys(filled.get_entries()) == keys(filled.search("*")) == sorted([A, L, S, W])


def test_reads_count_in_the_order_of_use_without_a_flush(filled: Cache) -> None:
    filled.read(L)
    filled.read(L)
    (entry,) = filled.search(L)
    assert entry["access_count"] == 2
    assert keys(filled.get_lru())[-1] == L


def test_conditions_combine(filled: Cache) -> None:
    now = time.time()
    for key, days, count in ((L, 1, 5), (S, 10, 0), (W, 20, 2), (A, 30, 9)):
        change(filled, key, created_at=now - days * DAY, access_count=count)
    assert keys(filled.get_entries(max_age_days=10.5)) == sorted([L, S])
    assert keys(filled.get_entries(min_age_days=10)) == sorted([S, W, A])
    assert keys(filled.get_entries(min_age_days=5, max_age_days=25)) == sorted([S, W])
    assert keys(filled.get_entries(max_access_count=2)) == sorted([S, W])
    assert keys(filled.get_entries(max_access_count=0)) == [S]
    assert keys(filled.get_entries(year=2025, data_type="laps")) == [L]
    assert keys(filled.get_entries(data_type="laps", year=2025, max_access_count=4)) == []
    stored = filled.info(W).compressed_size / (1 << 20)
    assert keys(filled.get_entries(min_size_mb=stored)) == sorted([S, W])
    assert keys(filled.get_by_size(min_size_mb=stored)) == [S, W]
    assert filled.get_by_size() == []
    assert keys(filled.get_old_entries(10.5)) == [A, W]
    assert filled.get_old_entries(1e9) == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*monaco*", {L, W}),
        ("*MONACO*", {L, W}),
        ("2025_*_laps_*", {L}),
        ("202[45]*laps*", {L, S}),
        ("202[^5]*", {S}),
        ("202?_monaco_race_weather_pandas", {W}),
        ("asset/one", {A}),
        ("ASSET/*", {A}),
        ("[A-B]sset*", {A}),
        ("monaco", set()),
        ("", set()),
        ("%monaco%", set()),
        ("2025_monaco_race_lap__pandas", set()),
        ("*%*", set()),
        ("[", set()),
        ("[]", set()),
        ("*[", set()),
        ("2025\\_*", set()),
        ("' OR 1=1 --", set()),
        ("*" * 5_000, {A, L, S, W}),
        ("*a" * 2_000, set()),
        ("é*", set()),
        ("🏁", set()),
    ],
)
def test_globs(filled: Cache, pattern: str, found: set[str]) -> None:
    assert set(keys(filled.search(pattern))) == found


@pytest.mark.timeout(30)
def test_a_glob_with_many_stars_does_not_hang(cache: Cache) -> None:
    cache.write(EntryKey("a" * 5_000, "asset"), {"a": 1})
    assert cache.search("*a" * 4_000 + "*b") == []
    assert len(cache.search("*a" * 4_000 + "*")) == 1
    assert cache.search("*[a-z]?" * 1_000 + "b") == []


@pytest.mark.parametrize("pattern", ["x" * 10_001, "*\0", "*\ud800"], ids=["long", "zero", "half a pair"])
def test_a_pattern_that_cannot_be_asked_for_is_refused_not_cut(filled: Cache, pattern: str) -> None:
    with pytest.raises(InvalidDataError, match="no pattern of keys"):
        filled.search(pattern)
    with pytest.raises(InvalidDataError, match="no pattern of keys"):
        filled.clear_pattern(pattern)
    assert filled.get_stats()["total_entries"] == 4


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda cache: cache.get_largest(-1), "limit is -1"),
        (lambda cache: cache.get_largest(1.5), "limit is 1.5"),
        (lambda cache: cache.get_lru(-3), "limit is -3"),
        (lambda cache: cache.get_lru(1 << 63), "limit is 9223372036854775808"),
        (lambda cache: cache.list_sessions(limit=-1), "limit is -1"),
        (lambda cache: cache.get_by_size(-0.1), "min_size_mb is -0.1"),
        (lambda cache: cache.get_old_entries(-1), "days is -1"),
        (lambda cache: cache.get_old_entries(math.nan), "days is nan"),
        (lambda cache: cache.get_entries(max_age_days=-1), "max_age_days is -1"),
        (lambda cache: cache.get_entries(min_age_days=-1), "min_age_days is -1"),
        (lambda cache: cache.get_entries(max_access_count=-1), "max_access_count is -1"),
        (lambda cache: cache.get_entries(min_size_mb=-1), "min_size_mb is -1"),
        (lambda cache: cache.get_entries(year=10**30), "year is 1000"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(cache: Cache, call: Callable[[Cache], object], name: str) -> None:
    with pytest.raises(InvalidDataError, match=name):
        call(cache)


def test_sizes_and_ages_without_end_are_no_error(filled: Cache) -> None:
    assert filled.get_by_size(math.inf) == filled.get_old_entries(math.inf) == []
    assert len(filled.get_entries(max_age_days=math.inf)) == 4


def test_an_empty_cache_lists_nothing_and_makes_no_file(cache: Cache) -> None:
    assert cache.get_largest() == cache.search("*") == cache.get_entries() == cache.list_sessions() == []
    assert cache.get_expired_entries() == cache.get_access_stats() == []
    assert cache.get_stats_by_type() == cache.get_stats_by_year() == cache.get_size_by_type() == {}
    assert cache.get_size_mb() == 0
    assert not cache.exists(2025, "monaco", "race")
    assert not cache.get_cache_dir().exists()


def test_a_session_spread_over_files_is_listed_once(filled: Cache) -> None:
    for number in range(8):  # enough for every file to have some
        filled.write(MONACO.entry(f"type_{number}"), noise(100))
    types = sorted(["laps", "weather", *(f"type_{number}" for number in range(8))])
    of_monaco = [filled.info(MONACO.entry(kind)) for kind in types]
    filled.read(L)
    change(filled, W, created_at=1e9)
    session = next(row for row in filled.list_sessions() if row["event"] == "monaco")
    assert session["data_types"] == types
    assert session["size_mb"] == pytest.approx(sum(info.size_bytes for info in of_monaco) / (1 << 20))
    assert session["compressed_mb"] == pytest.approx(sum(info.compressed_size for info in of_monaco) / (1 << 20))
    assert session["created_at"] == datetime.fromtimestamp(1e9, UTC)
    assert session["accessed_at"] == filled.info(L).accessed_at
    assert session["access_count"] == 1


def test_assets_named_with_commas_keep_their_name_in_the_types_of_a_session(cache: Cache) -> None:
    cache.write(EntryKey("x", 'a,b"c', 2025, "monaco", "race"), {"a": 1})
    cache.write(EntryKey("y", "z", 2025, None, "race"), {"a": 1})
    assert [row["data_types"] for row in cache.list_sessions()] == [['a,b"c']]


def test_metadata_has_the_counts_of_now(filled: Cache) -> None:
    filled.read(L)
    metadata = filled.get_metadata(2025, "Monaco", "Race", "laps")
    assert set(KEYS) < set(metadata)
    assert (metadata["access_count"], metadata["key"], metadata["pinned"]) == (1, L, False)
