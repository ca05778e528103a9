"""Entries that are known to be out of date: refreshed at their next use, served where that fails."""

import logging
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta

import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, EntryInfo, Fresh, Source
from tif1_pipeline.cache.base import OUTDATED
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheReadOnlyError, DataNotFoundError, NetworkError
from tif1_pipeline.keys import EntryKey

OLD, NEW = pa.table({"n": [1]}), pa.table({"n": [2]})


class Cdn:
    """A fetch that tells what was stored when it was asked."""

    def __init__(self, answer: Fresh | Exception) -> None:
        self.answer = answer
        self.asked: list[str | None] = []

    def __call__(self, stored: EntryInfo | None) -> Fresh:
        self.asked.append(stored and stored.source.etag)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def cache(open_cache: Callable[..., Cache], key: EntryKey) -> Cache:
    cache = open_cache()
    assert cache.write(key, OLD, source=Source("https://x", '"1"')).stored
    return cache


@pytest.mark.parametrize("memory", [True, False])
def test_it_is_fetched_by_its_etag_at_the_next_use(config: Config, cache: Cache, key: EntryKey, memory: bool) -> None:
    config.memory_cache_enabled = memory
    cdn = Cdn(Fresh(NEW, Source("https://x", '"2"')))
    assert cache.read_through(key, cdn).value == OLD
    assert cache.outdate(key) == 1
    assert cache.read_through(key, cdn).value == NEW
    assert cache.read_through(key, cdn).value == NEW
    assert cdn.asked == ['"1"']


def test_one_that_was_current_after_all_is_so_again(cache: Cache, key: EntryKey) -> None:
    cdn = Cdn(Fresh(None, Source("https://x", '"1"'), not_modified=True))
    cache.outdate(key)
    assert cache.info(key).created_at == OUTDATED
    assert [cache.read_through(key, cdn).value for _ in range(2)] == [OLD, OLD]
    assert cdn.asked == ['"1"']
    assert cache.info(key).created_at > OUTDATED + timedelta(days=1)


def test_what_there_is_is_served_while_it_cannot_be_fetched(
    cache: Cache, key: EntryKey, caplog: pytest.LogCaptureFixture
) -> None:
    cdn = Cdn(NetworkError("no route"))
    cache.outdate(key)
    with caplog.at_level(logging.WARNING):
        assert [cache.read_through(key, cdn).value for _ in range(2)] == [OLD, OLD]
    assert len(cdn.asked) == 2
    assert "could not be refreshed, serving it as it is: no route" in caplog.text
    assert cache.read(key).value == OLD
    cdn.answer = Fresh(NEW, Source())
    assert cache.read_through(key, cdn).value == NEW


def test_what_the_cdn_does_not_have_any_more_is_not_served(cache: Cache, key: EntryKey) -> None:
    cache.outdate(key)
    with pytest.raises(DataNotFoundError):
        cache.read_through(key, Cdn(DataNotFoundError("gone")))


def test_another_cache_with_the_old_version_in_memory_learns_of_it(
    open_cache: Callable[..., Cache], cache: Cache, key: EntryKey
) -> None:
    cdn = Cdn(Fresh(NEW, Source()))
    other = open_cache()
    assert [other.read_through(key, cdn).tier for _ in range(2)] == ["disk", "memory"]
    cache.outdate(key)
    assert other.read_through(key, cdn).value == NEW


def test_parts_that_are_stored_alone_are_outdated_with_the_whole(cache: Cache, key: EntryKey) -> None:
    cache.write(key.of_part("VER"), OLD)
    cache.write(EntryKey("other", "laps"), OLD)
    assert cache.outdate(key) == 2
    assert {entry["key"] for entry in cache.get_expired_entries()} == {key.text, key.of_part("VER").text}
    assert cache.outdate("nothing") == 0


def test_a_read_only_cache_refuses(config: Config, cache: Cache, key: EntryKey) -> None:
    config.cache_readonly = True
    with pytest.raises(CacheReadOnlyError):
        cache.outdate(key)


def test_an_entry_that_a_wrong_clock_stored_in_the_future_has_expired(config: Config, cache: Cache, key: EntryKey):
    with sqlite3.connect(config.cache_path) as connection:
        connection.execute("UPDATE entries SET created_at = ?", (time.time() + 3600,))
    connection.close()
    config.cache_ttl = "1d"
    assert [entry["key"] for entry in cache.get_expired_entries()] == [key.text]
    fetch = Cdn(Fresh(NEW))
    assert cache.read_through(key, fetch, max_age=timedelta(days=1)).value == NEW
    assert cache.get_expired_entries() == []
    assert cache.read_through(key, fetch, max_age=timedelta(days=1)).tier == "memory"
