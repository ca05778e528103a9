"""What a dry run foretells is what the cleanup then does, and it changes nothing."""

import hashlib
import pickle
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, removal
from tif1_pipeline.cache import cleanup as cleaning
from tif1_pipeline.cache.stock import Cleaned
from tif1_pipeline.config import MIB, Config
from tif1_pipeline.keys import EntryKey

DAY = 86400.0
ENTRIES = 60


@pytest.fixture
def config(config: Config) -> Config:
    config.update(
        {
            "cache_cleanup_threshold_mb": 40,
            "cache_cleanup_target_mb": 20,
            "cache_cleanup_min_age": "7d",
            "cache_cleanup_min_access": 3,
            "memory_cache_enabled": False,
        }
    )
    return config


def fill(cache: Cache, number: int = ENTRIES) -> None:
    """Store entries of random size, age and use; some are pinned, one lacks a part."""
    for entry in range(number):
        cache.write(EntryKey(f"e{entry}", "x", pinned=entry % 7 == 0), pa.table({"n": [entry]}))
    chance = np.random.default_rng(number)
    now = time.time()
    for path in cache.get_cache_dir().glob("*.db"):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            for (key,) in connection.execute("SELECT key FROM entries ORDER BY key").fetchall():
                values = (
                    now - chance.integers(0, 60) * DAY,
                    now - chance.integers(0, 60) * DAY,
                    int(chance.integers(0, 6)),
                    round(chance.integers(1, 5) * MIB / 2),  # many of them equal
                    key,
                )
                connection.execute(
                    "UPDATE entries SET created_at = ?, accessed_at = ?, access_count = ?, compressed_size = ? "
                    "WHERE key = ?",
                    values,
                )
            connection.execute("DELETE FROM parts WHERE entry_id = (SELECT id FROM entries WHERE key = 'e5')")


def keys(cache: Cache) -> set[str]:
    return {entry["key"] for entry in cache.get_entries()}


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder but SQLite's shared index, which marks its readers."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def check(cache: Cache, clean: Callable[..., Cleaned]) -> Cleaned:
    """The plan leaves every byte as it is, and the cleanup does what it says, in its order."""
    cache.flush()
    before, files = keys(cache), content(cache.get_cache_dir())
    plan = clean(dry_run=True)
    assert content(cache.get_cache_dir()) == files
    done = clean()
    assert (plan, plan.removed, plan.bytes) == (done, done.removed, done.bytes)
    assert before - keys(cache) == {item.key for item in plan.removed}
    assert len(plan.removed) == plan
    assert clean(dry_run=True) == 0
    return plan


@pytest.mark.parametrize("hard", [1000, 30])
@pytest.mark.parametrize("strategy", sorted(cleaning.POLICIES))
def test_the_plan_is_what_the_cleanup_does(config: Config, cache: Cache, strategy: str, hard: int) -> None:
    config.update({"cache_cleanup_strategy": strategy, "cache_max_size_mb": hard})
    fill(cache)
    plan = check(cache, cache.run_auto_cleanup)
    assert 0 < plan < ENTRIES
    assert not {f"e{number}" for number in range(0, ENTRIES, 7)} & {item.key for item in plan.removed}


def test_the_plan_of_a_smart_cleanup_too(config: Config, cache: Cache) -> None:
    fill(cache)
    plan = check(cache, cache.smart_cleanup)
    assert "e5" in {item.key for item in plan.removed}
    check(cache, lambda **dry: cache.smart_cleanup(max_size_mb=5, **dry))


@pytest.mark.parametrize("strategy", ["lru", "smart"])
def test_of_several_files_and_several_batches(
    config: Config, open_cache: Callable[..., Cache], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    # Batches end one file's share before the others': then less valuable entries of another one go first. And what is
    # large by the average is large no more once others have gone.
    monkeypatch.setattr(removal, "BATCH_ENTRIES", 3)
    monkeypatch.setattr(removal, "BATCH_BYTES", 3 * MIB)
    config.update({"cache_shards": 3, "cache_cleanup_strategy": strategy, "cache_max_size_mb": 20})
    cache = open_cache()
    fill(cache)
    assert len(list(cache.get_cache_dir().glob("*.db"))) == 3
    check(cache, cache.run_auto_cleanup)


def test_reads_that_are_not_yet_written_down_count(config: Config, cache: Cache) -> None:
    config.cache_max_size_mb = 1000
    fill(cache)
    likely = cache.run_auto_cleanup(dry_run=True).removed[0].key
    for _ in range(3):
        assert cache.read(likely)
    assert likely not in {item.key for item in cache.run_auto_cleanup(dry_run=True).removed}


def test_nothing_is_planned_at_the_threshold_or_without_a_file(
    config: Config, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache.run_auto_cleanup(dry_run=True) == 0
    assert cache.smart_cleanup(dry_run=True) == 0
    assert not config.cache_path.exists()
    fill(cache, 5)
    with caplog.at_level("INFO"):
        assert cache.run_auto_cleanup(dry_run=True) == 0
        assert cache.smart_cleanup(max_size_mb=0, dry_run=True) > 0
    assert not caplog.records, "a dry run has removed nothing to speak of"


def test_a_read_only_cache_can_be_planned_for(config: Config, open_cache: Callable[..., Cache]) -> None:
    cache = open_cache()
    fill(cache)
    cache.close()
    config.cache_readonly = True
    assert open_cache().run_auto_cleanup(dry_run=True) > 0


def test_what_was_cleaned_is_a_number_and_pickles(config: Config, cache: Cache) -> None:
    fill(cache)
    plan = cache.run_auto_cleanup(dry_run=True)
    again = pickle.loads(pickle.dumps(plan))
    assert (again, again.removed) == (plan, plan.removed)
    assert f"{plan:,}" == str(len(plan.removed))
