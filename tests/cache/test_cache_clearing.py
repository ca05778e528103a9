"""Removing many: what goes, what stays, what is pinned, and that memory and several files follow."""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.ages import max_age
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry

MONACO = SessionKey(2025, "Monaco Grand Prix", "Race")
MONACO_Q = SessionKey(2025, "Monaco Grand Prix", "Qualifying")
SPA = SessionKey(2025, "Belgian Grand Prix", "Race")
FORMER = SessionKey(2024, "Monaco Grand Prix", "Race")
PIN = EntryKey("asset", "asset", pinned=True)
WRITTEN = [
    *(session.entry(kind) for session in (MONACO, MONACO_Q, SPA, FORMER) for kind in ("laps", "weather")),
    MONACO.entry("telemetry").of_part("VER"),
    schedule_entry(2025),
    EntryKey("2025_monaco_race_lapsus", "lapsus"),
]
DAY = 86_400


def noise(rows: int) -> pa.Table:
    return pa.table({"n": [math.sin(number) for number in range(rows)]})


def change(cache: Cache, key: object, **values: object) -> None:
    with cache._tiered.file_of(str(key)).database.raw(5) as connection:
        for name, value in values.items():
            connection.execute(f"UPDATE entries SET {name} = ? WHERE key = ?", (value, str(key)))


def left(cache: Cache) -> set[str]:
    return {entry["key"] for entry in cache.get_entries()}


@pytest.fixture(params=[1, 3], ids=["one file", "three files"])
def filled(request: pytest.FixtureRequest, config: Config, open_cache: Callable[..., Cache]) -> Cache:
    config.cache_shards = request.param
    cache = open_cache()
    for key in (*WRITTEN, PIN):
        cache.write(key, noise(50))
    return cache


@pytest.mark.parametrize(
    ("clear", "goes"),
    [
        (lambda cache: cache.clear_session(2025, "Monaco", "R"), lambda key: about(key) == (2025, "monaco", "race")),
        (lambda cache: cache.invalidate_session(2024, "monaco", "race"), lambda key: key.year == 2024),
        (lambda cache: cache.clear_event(2025, "Monaco"), lambda key: about(key)[:2] == (2025, "monaco")),
        (lambda cache: cache.invalidate_event(2025, "Belgian Grand Prix"), lambda key: key.event == "belgian"),
        (lambda cache: cache.clear_year(2025), lambda key: key.year == 2025),
        (lambda cache: cache.invalidate_year(2024), lambda key: key.year == 2024),
        (lambda cache: cache.clear_type("laps"), lambda key: key.data_type == "laps"),
        (lambda cache: cache.clear_type("asset"), lambda key: key == PIN),
        (lambda cache: cache.clear_pattern("*_LAPS_*"), lambda key: key.data_type == "laps"),
        (lambda cache: cache.invalidate_pattern("a*"), lambda key: key == PIN),
        (
            lambda cache: cache.invalidate_custom(lambda entry: entry["session_type"] == "qualifying"),
            lambda key: key.session_type == "qualifying",
        ),
        (lambda cache: cache.invalidate_session_data(2025, "Monaco", "R", "laps"), lambda key: key == WRITTEN[0]),
        (lambda cache: cache.remove(MONACO.entry("telemetry")), lambda key: key.part is not None),
        (lambda cache: cache.remove(PIN), lambda key: key == PIN),
        (lambda cache: cache.clear(), lambda key: True),
    ],
)
def test_what_is_named_is_removed_from_disk_and_memory_and_nothing_else(
    filled: Cache, clear: Callable[[Cache], int], goes: Callable[[EntryKey], bool]
) -> None:
    gone = {key.text for key in (*WRITTEN, PIN) if goes(key)}
    stays = {key.text for key in (*WRITTEN, PIN)} - gone
    assert clear(filled) == len(gone) > 0
    assert left(filled) == stays
    assert filled.get_memory_stats()["items"] == len(stays)
    assert all(filled.read(key) is None for key in gone)
    assert clear(filled) == 0


def about(key: EntryKey) -> tuple[object, ...]:
    return key.year, key.event, key.session_type


def test_old_spares_what_is_young_or_pinned(filled: Cache) -> None:
    now = time.time()
    for number, key in enumerate(WRITTEN):
        change(filled, key, created_at=now - (5 if number % 2 else 1) * DAY)
    change(filled, PIN, created_at=0)
    assert filled.clear_old(3) == len(WRITTEN[1::2])
    assert left(filled) == {key.text for key in (*WRITTEN[::2], PIN)}
    assert filled.clear_old(3) == 0


def test_largest_frees_what_it_says_and_spares_what_is_pinned(filled: Cache) -> None:
    filled.write(PIN, noise(9000))
    large = {SPA.entry("laps"): 5000, FORMER.entry("weather"): 3000, MONACO.entry("laps"): 1000}
    for key, rows in large.items():
        filled.write(key, noise(rows))
    sizes = {key: filled.info(key).compressed_size / (1 << 20) for key in large}
    total = filled.get_size_info()["compressed_mb"]
    freed = filled.clear_largest(2)
    assert isinstance(freed, float)
    assert freed == pytest.approx(sizes[SPA.entry("laps")] + sizes[FORMER.entry("weather")])
    assert filled.get_size_info()["compressed_mb"] == pytest.approx(total - freed)
    assert not left(filled) & {SPA.entry("laps").text, FORMER.entry("weather").text}
    assert {PIN.text, MONACO.entry("laps").text} <= left(filled)
    assert filled.clear_largest(0) == 0.0
    assert filled.clear_largest(10**6) > 0
    assert left(filled) == {PIN.text}


def test_least_recently_used_go_first_and_a_read_saves(filled: Cache) -> None:
    now = time.time()
    for number, key in enumerate((PIN, *WRITTEN)):
        change(filled, key, accessed_at=now - 1000 + number)
    filled.read(WRITTEN[0])  # counted in memory so far
    assert filled.clear_lru(3) == 3
    assert left(filled) == {key.text for key in (PIN, WRITTEN[0], *WRITTEN[4:])}


def test_low_access_counts_the_reads_that_are_not_flushed(filled: Cache) -> None:
    for key in WRITTEN[:2]:
        filled.read(key)
    filled.read(WRITTEN[0])
    assert filled.clear_low_access(0) == 0
    assert filled.clear_low_access(2) == len(WRITTEN) - 1
    assert left(filled) == {WRITTEN[0].text, PIN.text}


def test_a_predicate_that_fails_removes_nothing(filled: Cache) -> None:
    def fail(entry: dict) -> bool:
        if entry["event"] == "belgian":
            raise ZeroDivisionError
        return True

    with pytest.raises(ZeroDivisionError):
        filled.invalidate_custom(fail)
    assert len(left(filled)) == len(WRITTEN) + 1


def test_a_predicate_sees_what_get_entries_lists(filled: Cache) -> None:
    seen: list[dict] = []
    assert filled.invalidate_custom(lambda entry: bool(seen.append(entry))) == 0
    listed = {entry["key"]: entry for entry in filled.get_entries()}
    assert {entry["key"] for entry in seen} == set(listed)
    for entry in seen:
        assert list(entry) == list(listed[entry["key"]])
        assert entry | {"age_days": 0} == listed[entry["key"]] | {"age_days": 0}


def test_what_is_removed_is_gone_for_another_process_too(
    cache: Cache, open_cache: Callable[..., Cache], run: Callable[..., str]
) -> None:
    other = open_cache()
    for key in WRITTEN:
        cache.write(key, noise(10))
        assert other.read(key)
    assert other.clear_event(2025, "monaco") == 5
    assert cache.read(MONACO.entry("laps")) is None
    assert run("print(cache.read(key), len(cache.get_entries()))").strip() == "None 6"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: cache.clear_old(-1), "days is -1"),
        (lambda cache: cache.clear_largest(-1), "count is -1"),
        (lambda cache: cache.clear_lru(-1), "count is -1"),
        (lambda cache: cache.clear_lru(0.5), "count is 0.5"),
        (lambda cache: cache.clear_low_access(-1), "min_access_count is -1"),
        (lambda cache: cache.clear_year(-5), "year is -5"),
    ],
)
def test_arguments_that_make_no_sense_remove_nothing(
    cache: Cache, call: Callable[[Cache], object], message: str
) -> None:
    cache.write(MONACO.entry("laps"), noise(5))
    with pytest.raises(InvalidDataError, match=message):
        call(cache)
    assert len(left(cache)) == 1


def test_clearing_an_empty_cache_makes_no_file(cache: Cache) -> None:
    assert cache.clear() == cache.clear_year(2025) == cache.clear_lru(5) == cache.clear_largest(5) == 0
    assert cache.clear_expired() == cache.clear_old(1) == cache.clear_low_access(3) == cache.clear_pattern("*") == 0
    assert cache.invalidate_custom(lambda _: True) == 0
    assert not cache.get_cache_dir().exists()


# ---- expiry


def test_nothing_expires_without_a_ttl(config: Config, filled: Cache) -> None:
    config.cache_ttl_schedule = None
    for key in WRITTEN:
        change(filled, key, created_at=1)
    assert filled.get_expired_entries() == []
    assert filled.clear_expired() == 0


def test_expired_entries_are_listed_oldest_first_and_cleared(config: Config, filled: Cache) -> None:
    config.update({"cache_ttl": "10d", "cache_ttl_laps": "2d", "cache_ttl_schedule": "10d"})
    now = time.time()
    for key in (*WRITTEN, PIN, EntryKey("2025_monaco_race_lapsus", "lapsus")):
        change(filled, key, created_at=now - 5 * DAY)
    change(filled, SPA.entry("weather"), created_at=now - 11 * DAY)
    change(filled, FORMER.entry("laps"), created_at=now - 12 * DAY)
    change(filled, PIN, created_at=0)
    change(filled, WRITTEN[-1], created_at=0)  # nobody knows how to fetch it
    expired = filled.get_expired_entries()
    expected = {session.entry("laps").text for session in (MONACO, MONACO_Q, SPA, FORMER)}
    assert [entry["key"] for entry in expired[:2]] == [FORMER.entry("laps").text, SPA.entry("weather").text]
    assert {entry["key"] for entry in expired} == expected | {SPA.entry("weather").text}
    assert filled.clear_expired() == 5
    assert filled.get_expired_entries() == []
    assert {PIN.text, WRITTEN[-1].text, MONACO.entry("weather").text} <= left(filled)


def test_a_pinned_entry_called_like_a_table_does_not_expire(config: Config, cache: Cache) -> None:
    config.cache_ttl = "1d"
    pinned, other = EntryKey("my/laps", "laps", pinned=True), MONACO.entry("laps")
    for key in (pinned, other):
        cache.write(key, {"a": 1})
        change(cache, key, created_at=0)
    assert [entry["key"] for entry in cache.get_expired_entries()] == [other.text]
    assert cache.clear_expired() == 1
    assert left(cache) == {pinned.text}


def test_what_is_expired_is_what_a_read_would_fetch_again(config: Config, cache: Cache) -> None:
    """The rule for one entry and the condition on all of them agree, for every type, season and age."""
    config.update({"cache_ttl": "400d", "cache_ttl_laps": "2d", "cache_ttl_schedule": "1d"})
    now = datetime.now(UTC)
    ages = [timedelta(hours=hours) for hours in (1, 23, 25, 47, 49)] + [timedelta(days=d) for d in (399, 401, 3000)]
    boundaries = [now - datetime(year, 1, 1, tzinfo=UTC) for year in (now.year, now.year - 1)]
    ages += [boundary + timedelta(seconds=step) for boundary in boundaries for step in (-1, 0, 1)]
    expected = set()
    for year in (None, now.year - 2, now.year - 1, now.year):
        for data_type in (*DATASETS, "asset"):
            for number, age in enumerate(ages):
                key = EntryKey(f"{year}/{data_type}/{number}", data_type, year)
                cache.write(key, {"a": 1})
                change(cache, key, created_at=(now - age).timestamp())
                limit = max_age(config, data_type, year, now - age)
                if data_type in DATASETS and limit is not None and age > limit:
                    expected.add(key.text)
    assert {entry["key"] for entry in cache.get_expired_entries()} == expected
    assert 50 < len(expected) < len(left(cache)) - 50


def test_a_season_that_is_over_has_a_calendar_for_good(config: Config) -> None:
    config.cache_ttl_schedule = "1d"
    during, after = datetime(2024, 12, 31, 23, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)
    for data_type in ("schedule", "session_info"):
        assert max_age(config, data_type, 2024, during) == timedelta(days=1)
        assert max_age(config, data_type, 2024, None) == timedelta(days=1)
        assert max_age(config, data_type, 2024, after) is None
        assert max_age(config, data_type, 2025, after) == timedelta(days=1)
    config.cache_ttl = "90d"
    assert max_age(config, "schedule", 2024, after) == timedelta(days=90)
    assert max_age(config, "laps", 2024, after) == timedelta(days=90)


def test_the_rule_of_ages_needs_no_sqlalchemy(run: Callable[..., str]) -> None:
    script = """
        from tif1_pipeline.cache import ages
        print(ages.max_age(config, "laps", 2025, None), "sqlalchemy" in sys.modules)
    """
    assert run(script).strip() == "None False"


@pytest.mark.parametrize(
    "drop",
    [
        lambda cache: cache.invalidate_session(2025, "Monaco", "R"),
        lambda cache: cache.invalidate_event(2025, "Monaco"),
        lambda cache: cache.invalidate_year(2025),
        lambda cache: cache.clear_type("laps"),
        lambda cache: cache.invalidate_pattern("2025_monaco_*"),
        lambda cache: cache.invalidate_custom(lambda entry: True),
    ],
    ids=["session", "event", "year", "type", "pattern", "custom"],
)
def test_what_the_disk_refused_goes_from_memory_too(
    config: Config, open_cache: Callable[..., Cache], drop: Callable[[Cache], int]
) -> None:
    cache = open_cache()
    cache.open()
    config.cache_readonly = True
    assert not cache.write(WRITTEN[0], noise(5)).stored
    assert cache.read(WRITTEN[0]).tier == "memory"
    config.cache_readonly = False
    assert drop(cache) == 0
    assert cache.read(WRITTEN[0]) is None
