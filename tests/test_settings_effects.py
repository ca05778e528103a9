"""Each setting has an effect that is seen, at runtime, on a live cache: the cases of the script ``every_call.py``."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import every_call
import pytest
from every_call import OF_THE_CACHE, SETTINGS, World, world

from tif1_pipeline.simulator import CdnServer


@pytest.fixture
def empty(cdn: CdnServer, tmp_path: Path) -> Iterator[World]:
    with world(cdn, tmp_path) as made:
        yield made


@pytest.mark.parametrize("name", OF_THE_CACHE)
def test_a_setting_has_an_effect_at_runtime(empty: World, name: str) -> None:
    assert name in SETTINGS, f"the setting {name} has no case in {every_call.__file__}"
    assert SETTINGS[name](empty)


def test_no_case_is_of_a_setting_that_is_gone() -> None:
    assert set(SETTINGS) == set(OF_THE_CACHE)


def test_the_cases_leave_the_settings_as_they_were(cdn: CdnServer, tmp_path: Path) -> None:
    config = every_call.tif1.get_config()
    before = config.to_dict()
    with world(cdn, tmp_path, cache_ttl=5) as made:
        assert made.config.cache_ttl == timedelta(seconds=5)
        assert config.cache_dir == tmp_path / "cache"
    assert config.to_dict() == before


def test_the_journal_mode_of_a_file_in_use_changes_with_the_setting(empty: World) -> None:
    """The other settings of the file count at once, too."""
    empty.put("a")
    assert empty.sql("PRAGMA journal_mode") == [("wal",)]
    empty.config.cache_wal_mode = False
    empty.put("a")
    assert empty.sql("PRAGMA journal_mode") == [("delete",)]
    empty.config.cache_wal_mode = True
    empty.put("a")
    assert empty.sql("PRAGMA journal_mode") == [("wal",)]


def test_limits_of_memory_count_from_the_next_table_on(empty: World) -> None:
    for number in range(6):
        empty.put(f"a{number}")
    assert empty.cache.get_memory_stats()["items"] == 6
    empty.config.memory_cache_size = 3
    empty.put("a6")
    assert empty.cache.get_memory_stats()["items"] == 3
    empty.config.memory_cache_size = 100
    for number in range(6):
        empty.tier(f"a{number}")
    assert empty.cache.get_memory_stats()["items"] == 7


def test_settings_of_connections_count_for_each_thread_and_for_the_pool(empty: World) -> None:
    empty.put("a")
    empty.cache.get_stats()
    empty.config.update({"cache_cache_size": 77, "cache_mmap_size": 8192, "cache_wal_autocheckpoint": 9})
    with empty.database.querying() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("cache_size", "mmap_size", "wal_autocheckpoint")
        ]
    assert found == [77, 8192, 9]
