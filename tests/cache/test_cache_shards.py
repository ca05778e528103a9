"""Entries spread over several files: the calls are the same, and another number of files loses nothing."""

import sqlite3
from collections.abc import Callable

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, Fresh
from tif1_pipeline.cache.shards import shard_of, shard_path
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheVersionError
from tif1_pipeline.keys import EntryKey, SessionKey

EVENTS = ("Monaco", "British", "Dutch", "Italian", "Austrian", "Qatar", "Belgian", "Spanish")
KEYS = [SessionKey(2025, f"{event} Grand Prix", "Race").entry("laps") for event in EVENTS]


def table(number: int) -> pa.Table:
    return pa.table({"Driver": ["VER", "NOR"], "n": [number, number + 100]})


@pytest.fixture
def sharded(config: Config) -> Config:
    config.cache_shards = 3
    return config


def fill(cache: Cache) -> None:
    for number, key in enumerate(KEYS):
        assert cache.write(key, table(number), part_by="Driver").stored


def check(cache: Cache) -> None:
    cache.clear_memory()
    for number, key in enumerate(KEYS):
        hit = cache.read(key)
        assert hit is not None, key
        assert hit.tier == "disk"
        assert hit.value.equals(table(number))
    assert cache.get_stats()["total_entries"] == len(KEYS)
    assert len(cache.list_sessions()) == len(KEYS)
    assert [entry["key"] for entry in cache.search("2025_*")] == sorted(key.text for key in KEYS)
    report = cache.verify_integrity()
    assert (report["total_entries"], report["valid_entries"]) == (len(KEYS), len(KEYS)), report


def rows_in(config: Config, index: int) -> int:
    path = shard_path(config.cache_path, index)
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as connection:
        number = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    connection.close()
    return number


def test_entries_are_spread_and_every_call_sees_them_all(sharded: Config, open_cache: Callable[..., Cache]):
    cache = open_cache()
    fill(cache)
    check(cache)
    cache.close()
    numbers = [rows_in(sharded, index) for index in range(3)]
    assert sum(numbers) == len(KEYS)
    assert max(numbers) < len(KEYS)
    assert cache.clear_session(2025, "Monaco", "R") == 1
    assert cache.clear_pattern("*_dutch_*") == 1
    assert cache.clear() == len(KEYS) - 2
    assert not cache.list_sessions()


def test_a_part_lies_with_its_whole_and_goes_with_it(sharded: Config, open_cache: Callable[..., Cache]):
    cache = open_cache()
    for key in KEYS:
        cache.write(key.of_part("VER"), table(1))
        assert shard_of(key.of_part("VER").text, 3) == shard_of(key.text, 3)
    fill(cache)
    assert cache.get_stats()["total_entries"] == len(KEYS)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (3, 2), (2, 5)])
def test_another_number_of_files_moves_the_entries(
    config: Config, open_cache: Callable[..., Cache], before: int, after: int
):
    config.cache_shards = before
    cache = open_cache()
    fill(cache)
    for key in KEYS:
        cache.read(key)
    generations = [cache.info(key).generation for key in KEYS]
    hits = cache.get_stats()["total_hits"]
    config.cache_shards = after
    check(cache)
    assert [cache.info(key).generation for key in KEYS] == generations
    assert cache.get_stats()["total_hits"] == hits + len(KEYS)
    cache.close()
    for index in range(after, before):  # left behind empty: a process that still writes to it loses nothing
        assert rows_in(config, index) == 0


def test_another_process_with_the_same_number_sees_them(
    sharded: Config, open_cache: Callable[..., Cache], run: Callable[..., str]
):
    fill(open_cache())
    said = run("config.cache_shards = 3; print(sum(s['access_count'] >= 0 for s in cache.list_sessions()))")
    assert said == f"{len(KEYS)}\n"
    said = run("config.cache_shards = 2; print(len(cache.list_sessions()))")
    assert said == f"{len(KEYS)}\n"


@pytest.mark.slow
def test_a_spreading_that_was_killed_is_completed(
    config: Config, open_cache: Callable[..., Cache], start: Callable[..., object]
):
    cache = open_cache()
    fill(cache)
    cache.close()
    for attempt in range(4):
        process = start(
            """
            from tif1_pipeline.cache import transfer
            stop = int(sys.argv[2])
            move_one, moved = transfer._move_one, 0
            def kill_in_between(source, target, id_):
                global moved
                moved += 1
                if moved > stop:
                    os.kill(os.getpid(), signal.SIGKILL)
                return move_one(source, target, id_)
            transfer._move_one = kill_in_between
            config.cache_shards = 4
            cache.list_sessions()
            """,
            str(attempt),
        )
        process.communicate(timeout=60)
        assert process.returncode in (0, -9)
    config.cache_shards = 4
    check(open_cache())


def test_read_only_reads_them_where_they_are(sharded: Config, open_cache: Callable[..., Cache], run):
    run(
        """
        config.cache_shards = 3
        for name in ("Monaco", "British", "Dutch", "Italian"):
            cache.write(SessionKey(2025, name + " Grand Prix", "Race").entry("laps"), table(1))
        cache.close()
        """
    )
    settings = Config(cache_dir=sharded.cache_dir, cache_readonly=True, cache_shards=1)
    assert len(open_cache(settings).list_sessions()) == 4


def test_read_through_fetches_once_whatever_the_shard(sharded: Config, open_cache: Callable[..., Cache]):
    cache = open_cache()
    calls = []

    def fetch(stored: object) -> Fresh:
        calls.append(stored)
        return Fresh(table(1))

    for key in KEYS:
        for _ in range(2):
            assert cache.read_through(key, fetch).value.equals(table(1))
    assert len(calls) == len(KEYS)


def test_a_fixed_path_has_shards_of_its_own_name(config: Config, open_cache: Callable[..., Cache], tmp_path):
    config.cache_shards = 2
    cache = open_cache(path=tmp_path / "shop.db")
    for number in range(8):
        cache.write(EntryKey(f"asset:{number}", "x", pinned=True), table(number))
    assert {path.name for path in tmp_path.glob("*.db")} == {"shop.db", "shop.1.db"}


def test_a_key_in_any_share_is_found_whatever_other_shares_hold(config: Config, open_cache: Callable[..., Cache]):
    config.cache_shards = 4
    key = next(key for number in range(99) if shard_of((key := EntryKey(f"asset:{number}", "x")).text, 4) == 3)
    cache = open_cache()
    cache.write(key, table(1))
    for number in (2, 1, 4, 3):
        config.cache_shards = number
        cache.clear_memory()
        assert cache.read(key) is not None, number


def test_what_a_process_with_another_number_writes_is_found_by_the_next(
    config: Config, open_cache: Callable[..., Cache], run: Callable[..., str]
):
    cache = open_cache()
    cache.write(KEYS[0], table(0))
    spread = "config.cache_shards = 4\nprint(len(cache.list_sessions()))"
    assert run(spread) == "1\n"
    fill(cache)  # this process lives on with one file
    assert run(spread) == f"{len(KEYS)}\n"


def test_a_cache_of_its_own_that_is_called_like_a_share_is_left_alone(
    config: Config, open_cache: Callable[..., Cache], tmp_path
):
    other = open_cache(path=tmp_path / "a.1.db")
    other.write(KEYS[0], table(7))
    cache = open_cache(path=tmp_path / "a.db")
    cache.write(KEYS[1], table(1))
    assert len(cache.list_sessions()) == 1
    config.cache_shards = 2
    with pytest.raises(CacheVersionError, match="is a cache of its own"):
        open_cache(path=tmp_path / "a.db").list_sessions()
    config.cache_shards = 1
    assert other.read(KEYS[0]).value.equals(table(7))


def test_an_incomplete_entry_does_not_keep_the_others_from_being_spread(
    config: Config, open_cache: Callable[..., Cache]
):
    cache = open_cache()
    fill(cache)
    cache.close()
    with sqlite3.connect(config.cache_path) as connection:
        connection.execute("DELETE FROM parts WHERE entry_id = (SELECT id FROM entries WHERE key = ?)", (KEYS[2].text,))
    connection.close()
    config.cache_shards = 5
    assert sum(open_cache().read(key) is not None for key in KEYS) == len(KEYS) - 1


def test_a_damaged_share_is_set_aside_and_the_others_serve_on(sharded: Config, open_cache: Callable[..., Cache]):
    cache = open_cache()
    fill(cache)
    cache.close()
    path = shard_path(sharded.cache_path, 1)
    path.unlink()
    path.write_bytes(b"damaged" * 1000)
    cache = open_cache()
    lost = [key for key in KEYS if cache.read(key) is None]
    assert 0 < len(lost) < len(KEYS)
    assert all(shard_of(key.text, 3) == 1 for key in lost)
    fill(cache)
    check(cache)
