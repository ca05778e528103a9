"""Upkeep of the files: vacuum, checkpoint, indexes and statistics, also while others are at work."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, upkeep
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.exceptions import CacheError, CacheLockedError
from tif1_pipeline.keys import EntryKey


def fill(cache: Cache, number: int = 8) -> None:
    """Store one MiB and a bit each."""
    for index in range(number):
        cells = np.random.default_rng(index).integers(0, 1 << 62, MIB // 8)
        assert cache.write(EntryKey(f"e{index}", "x"), pa.table({"n": cells})).stored


def ask(cache: Cache, statement: str) -> object:
    with closing(sqlite3.connect(cache.get_cache_file())) as connection:
        return connection.execute(statement).fetchone()[0]


def log_size(cache: Cache) -> int:
    path = cache.get_cache_file()
    return path.with_name(path.name + "-wal").stat().st_size


def test_without_a_file_there_is_nothing_to_do_and_none_is_made(config: Config, cache: Cache) -> None:
    assert cache.vacuum() == 0.0
    assert cache.checkpoint() is None
    cache.rebuild_indexes()
    cache.optimize()
    assert not config.cache_path.exists()


def test_the_first_read_of_a_new_file_leaves_the_connections_and_the_log_as_they_are(cache: Cache) -> None:
    fill(cache, 1)
    size = log_size(cache)
    assert cache.info("e0") is not None
    assert log_size(cache) == size > 0


def test_vacuum_returns_what_it_freed_on_disk(cache: Cache) -> None:
    fill(cache)
    cache.checkpoint()
    for index in range(6):
        cache.remove(f"e{index}")
    before = cache.get_size_mb()
    freed = cache.vacuum()
    assert freed > 5.5
    assert before - cache.get_size_mb() == pytest.approx(freed, abs=0.2)
    assert log_size(cache) == 0
    assert ask(cache, "PRAGMA freelist_count") == 0
    assert ask(cache, "PRAGMA journal_mode") == "wal"
    assert cache.read("e7") is not None
    assert cache.vacuum() == 0.0


def test_vacuum_refuses_when_the_disk_cannot_hold_the_copy(cache: Cache) -> None:
    fill(cache)
    cache.remove("e0")
    cache.checkpoint()
    before = cache.get_cache_file().stat().st_size
    with pytest.raises(CacheError, match=r"takes [\d.]+ MiB of free space in .* 3\.0 MiB are free") as raised:
        upkeep.vacuum(cache._tiered, lambda _: 3 * MIB)
    assert raised.value.details["needed_bytes"] > 7 * MIB
    assert raised.value.details["free_bytes"] == 3 * MIB
    assert cache.get_cache_file().stat().st_size == before
    assert ask(cache, "PRAGMA freelist_count") != 0


def test_vacuum_empties_the_log_before_it_asks_for_room(cache: Cache) -> None:
    fill(cache)
    cache.remove("e0")
    assert log_size(cache) > 0
    logs: list[int] = []

    def free_bytes(_: Path) -> int:
        logs.append(log_size(cache))
        return 100 * MIB

    assert upkeep.vacuum(cache._tiered, free_bytes) > 0
    assert logs
    assert set(logs) == {0}


def test_both_the_folder_and_that_of_temporary_files_must_have_room(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == cache.get_cache_dir().parent.stat().st_dev:
        pytest.skip("there is no second file system here")
    monkeypatch.setenv("SQLITE_TMPDIR", str(shm))
    fill(cache)
    cache.remove("e0")
    for full in (shm, cache.get_cache_dir()):
        with pytest.raises(CacheError, match=f"free space in {full}"):
            upkeep.vacuum(cache._tiered, lambda place, full=full: 0 if place == full else 1 << 40)
    assert upkeep.vacuum(cache._tiered, lambda _: 9 * MIB) > 0.9


def test_a_disk_that_is_full_after_all_leaves_the_cache_as_it_was(cache: Cache, run: Callable[..., str]) -> None:
    fill(cache)
    cache.remove("e0")
    cache.checkpoint()
    cache.close()
    script = """
    import resource
    from tif1_pipeline.exceptions import CacheError
    cache.open()
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        cache.vacuum()
    except CacheError as error:
        print(error.details["cause"])
    """
    assert run(script).strip()
    assert cache.verify_integrity()["valid_entries"] == 7
    assert cache.vacuum() > 0.9


def test_vacuum_applies_a_changed_page_size(config: Config, cache: Cache) -> None:
    fill(cache, 2)
    config.cache_page_size = 4096
    cache.vacuum()
    assert ask(cache, "PRAGMA page_size") == 4096
    assert ask(cache, "PRAGMA journal_mode") == "wal"
    assert cache.verify_integrity()["valid_entries"] == 2


def test_the_page_size_stays_while_another_has_the_file_open(
    config: Config, open_cache: Callable[..., Cache], caplog: pytest.LogCaptureFixture
) -> None:
    cache, other = open_cache(), open_cache()
    fill(cache, 4)
    cache.remove("e0")
    assert other.read("e1") is not None
    config.cache_lock_timeout = 0.2
    former = config.cache_page_size
    changed = Config(cache_dir=config.cache_dir, cache_page_size=4096, cache_lock_timeout=0.2)
    assert open_cache(changed).vacuum() > 0.5
    assert "keeps its page size" in caplog.text
    assert ask(cache, "PRAGMA page_size") == former
    assert cache.verify_integrity()["valid_entries"] == 3


def test_vacuum_waits_no_longer_for_a_writer_than_the_lock_timeout(config: Config, cache: Cache) -> None:
    fill(cache, 2)
    cache.remove("e0")
    config.cache_lock_timeout = 0.2
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(CacheLockedError, match=r"cache_lock_timeout"):
            cache.vacuum()
    assert cache.vacuum() > 0.9


def test_checkpoint_empties_the_log(cache: Cache) -> None:
    fill(cache, 2)
    assert log_size(cache) > 0
    assert cache.checkpoint() is None
    assert log_size(cache) == 0
    assert cache.read("e1") is not None


def test_checkpoint_says_that_a_reader_prevents_it(config: Config, cache: Cache) -> None:
    config.cache_lock_timeout = 0.3
    fill(cache, 1)
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        fill(cache, 2)
        with pytest.raises(CacheLockedError, match="could not write all of the log"):
            cache.checkpoint()
    cache.checkpoint()
    assert log_size(cache) == 0


def test_checkpoint_is_content_with_a_log_written_back_where_others_always_read(config: Config, cache: Cache) -> None:
    config.cache_lock_timeout = 0.3
    fill(cache, 2)
    with closing(sqlite3.connect(cache.get_cache_file(), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM entries").fetchone() == (2,)
        cache.checkpoint()
        assert log_size(cache) > 0
        copy = cache.get_cache_file().with_name("without its log.db")
        copy.write_bytes(cache.get_cache_file().read_bytes())
    with closing(sqlite3.connect(copy)) as alone:
        assert alone.execute("SELECT count(*) FROM entries").fetchone() == (2,)


def test_without_a_log_checkpoint_has_nothing_to_do(config: Config, cache: Cache) -> None:
    config.cache_wal_mode = False
    fill(cache, 3)
    cache.checkpoint()
    cache.remove("e0")
    assert cache.vacuum() > 0.9
    assert ask(cache, "PRAGMA journal_mode") == "delete"


def test_indexes_are_built_anew_and_statistics_gathered(cache: Cache) -> None:
    fill(cache, 3)
    cache.rebuild_indexes()
    cache.optimize()
    assert ask(cache, "SELECT count(*) FROM sqlite_stat1 WHERE tbl = 'entries'") != 0
    assert cache.verify_integrity()["valid_entries"] == 3


def test_several_files_are_kept_as_one(config: Config, open_cache: Callable[..., Cache]) -> None:
    config.cache_shards = 3
    cache = open_cache()
    fill(cache, 9)
    cache.clear()
    assert cache.vacuum() > 8
    cache.checkpoint()
    cache.rebuild_indexes()
    cache.optimize()
