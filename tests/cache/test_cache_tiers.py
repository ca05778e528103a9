"""Reads, writes, pruning and the memory tier, on one cache in one process."""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, Source
from tif1_pipeline.cache.codec import FORMAT_VERSION
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import DataNotFoundError, InvalidDataError
from tif1_pipeline.keys import EntryKey, SessionKey

DRIVERS = ("VER", "HAM", "NOR")


def telemetry(rows: int = 50) -> pa.Table:
    drivers = [driver for driver in DRIVERS for _ in range(rows)]
    return pa.table(
        {
            "Driver": pa.array(drivers).dictionary_encode(),
            "Speed": pa.array(np.arange(3.0 * rows), pa.float32()),
            "Brake": pa.array([True, None, False] * rows),
            "Note": ["x"] * 3 * rows,
        }
    )


def test_a_write_is_read_back_from_memory_and_by_others_from_disk(
    open_cache: Callable[..., Cache], key: EntryKey
) -> None:
    one, other = open_cache(), open_cache()
    assert one.read(key) is None
    written = one.write(
        key, pa.table({"a": [1, 2]}), source=Source("https://x", '"tag"', "yesterday"), schema_version=3
    )
    assert written.stored
    assert written.reason is None
    assert written.seconds > 0
    info = written.info
    assert (info.key, info.year, info.event, info.session_type) == (
        "2025_monaco_race_laps_pandas",
        2025,
        "monaco",
        "race",
    )
    assert (info.rows, info.backend, info.schema_version, info.parts) == (2, "arrow", 3, ("",))
    assert info.source == Source("https://x", '"tag"', "yesterday")
    assert info.created_at.tzinfo is UTC
    assert abs(info.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    for cache, tiers in ((one, ["memory", "memory"]), (other, ["disk", "memory"])):
        hits = [cache.read(key), cache.read(key)]
        assert [hit.tier for hit in hits] == tiers
        assert all(hit.value.equals(pa.table({"a": [1, 2]})) for hit in hits)
        assert all(hit.info == info for hit in hits)
        assert cache.info(key) == info


def test_every_spelling_of_a_key_meets_in_one_entry(open_cache: Callable[..., Cache]) -> None:
    def resolve(year: int, event: str, session_type: str) -> SessionKey:
        return SessionKey(year, {"silverstone": "British Grand Prix"}.get(event, event), session_type.title())

    cache = open_cache(resolve=resolve)
    cache.write(SessionKey(2024, "British Grand Prix", "Race").entry("laps"), {"a": 1})
    for text in ("2024_silverstone_race_laps_polars", "2024_british_race_laps_pandas"):
        assert cache.read(text, "json").value == {"a": 1}
    assert cache.read("2024_silverstone_race_weather_pandas") is None
    assert cache.exists(2024, "silverstone", "race", "laps")
    cache.write(EntryKey("some/asset", "asset"), {"b": 2})
    assert cache.read("some/asset", "json").value == {"b": 2}
    assert cache.evict_memory("2024_silverstone_race_laps_pandas") == 1
    assert cache.evict_memory("2024_silverstone_race_laps_pandas") == 0
    assert cache.remove("2024_silverstone_race_laps_pandas") == 1
    assert cache.remove("2024_silverstone_race_laps_pandas") == 0


@pytest.mark.parametrize("memory", [True, False])
def test_columns_and_parts_are_pruned_and_ordered_as_asked(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, memory: bool
) -> None:
    config.memory_cache_enabled = memory
    cache = open_cache()
    table = telemetry()
    assert cache.write(key, table, part_by="Driver").info.parts == DRIVERS
    for _ in range(2):
        hit = cache.read(key, parts=["NOR", "VER"], columns=["Speed", "Driver"])
        assert hit.value.column_names == ["Speed", "Driver"]
        assert hit.value.equals(pa.concat_tables([table.slice(100), table.slice(0, 50)]).select(["Speed", "Driver"]))
        assert cache.read(key, parts=[]).value.equals(table.slice(0, 0))
        frame = cache.read(key, "pandas", parts=["HAM"]).value
        assert frame.index.equals(pd.RangeIndex(50))
        assert list(frame["Driver"].cat.categories) == list(DRIVERS)
        assert cache.read(key, "polars", columns=["Brake"]).value.columns == ["Brake"]
        cache.clear_memory()


def test_a_part_reads_its_own_blob_alone(cache: Cache, key: EntryKey) -> None:
    cache.write(key, telemetry(2000), part_by="Driver")
    with sqlite3.connect(cache.get_cache_file()) as connection:
        connection.execute("UPDATE parts SET data = zeroblob(length(data)) WHERE name <> 'HAM' AND ordinal > 0")
    connection.close()
    cache.clear_memory()
    assert cache.read(key, parts=["HAM"]).value.num_rows == 2000
    assert cache.read(key) is None


def test_columns_of_an_index_come_with_a_pandas_frame_alone(cache: Cache, key: EntryKey) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [[1], None]}, index=pd.Index(["x", "y"], name="i"))
    cache.write(key, frame)
    for _ in range(2):
        pd.testing.assert_frame_equal(cache.read(key, "pandas", columns=["b"]).value, frame[["b"]])
        assert cache.read(key, columns=["b"]).value.column_names == ["b"]
        assert cache.read(key, "pandas", columns=["i", "b"]).value.index.name == "i"
        cache.clear_memory()


@pytest.mark.parametrize("from_disk", [True, False])
def test_what_is_not_there_is_named_with_the_closest(cache: Cache, key: EntryKey, from_disk: bool) -> None:
    cache.write(key, telemetry(), part_by="Driver")
    cache.write(EntryKey("j", "j"), [1])
    if from_disk:
        cache.clear_memory()
    with pytest.raises(InvalidDataError, match="no column 'Sped': did you mean 'Speed'"):
        cache.read(key, columns=["Sped"])
    with pytest.raises(DataNotFoundError, match="no part 'XXX'; its parts: VER, HAM, NOR"):
        cache.read(key, parts=["XXX"])
    with pytest.raises(InvalidDataError, match="is a table"):
        cache.read(key, "json")
    with pytest.raises(InvalidDataError, match="is a JSON value"):
        cache.read("j", "pandas")
    with pytest.raises(InvalidDataError, match="is a JSON value"):
        cache.read("j", "json", columns=["a"])
    with pytest.raises(InvalidDataError, match="choose pandas"):
        cache.read(key, "csv")
    with pytest.raises(InvalidDataError, match="give a list"):
        cache.read(key, columns="Speed")
    assert cache.read(key).value.num_rows == 150


def test_a_table_that_cannot_be_split_is_refused(cache: Cache, key: EntryKey) -> None:
    with pytest.raises(InvalidDataError, match="no column 'Drivr': did you mean 'Driver'"):
        cache.write(key, telemetry(), part_by="Drivr")
    with pytest.raises(InvalidDataError, match="nulls"):
        cache.write(key, telemetry(), part_by="Brake")


def test_an_empty_table_in_parts_has_one(cache: Cache, key: EntryKey) -> None:
    cache.write(key, telemetry().slice(0, 0), part_by="Driver")
    assert cache.info(key).parts == ("",)
    assert cache.read(key).value.equals(telemetry().slice(0, 0))


def test_writing_a_table_removes_the_entries_of_its_parts(open_cache: Callable[..., Cache], key: EntryKey) -> None:
    cache, other = open_cache(), open_cache()
    beside = EntryKey(key.text + "2", "laps")
    for entry in (key.of_part("VER"), key.of_part("VER/10"), beside):
        cache.write(entry, {"a": 1})
    assert cache.info(key.of_part("VER")).year == 2025
    cache.write(key, telemetry(), part_by="Driver")
    for reader in (cache, other):
        assert reader.read(key.of_part("VER"), "json") is None
        assert reader.read(key.of_part("VER/10"), "json") is None
        assert reader.read(beside, "json").value == {"a": 1}


def test_another_schema_version_library_major_or_format_is_a_miss(cache: Cache, key: EntryKey) -> None:
    cache.write(key, {"a": 1}, schema_version=1)
    for _ in range(2):
        assert cache.read(key, "json", schema_version=1)
        assert cache.read(key, "json")
        assert cache.read(key, "json", schema_version=2) is None
        cache.clear_memory()
    for change in (f"format_version = {FORMAT_VERSION + 1}", "library_version = '99.0'"):
        cache.write(key, {"a": 1})
        cache.clear_memory()
        with sqlite3.connect(cache.get_cache_file()) as connection:
            connection.execute(f"UPDATE entries SET {change}")
        connection.close()
        assert cache.read(key, "json") is None
        assert cache.info(key)
    assert cache.write(key, {"a": 2}).stored
    assert cache.read(key, "json").value == {"a": 2}


def test_settings_count_at_once(config: Config, cache: Cache, key: EntryKey, tmp_path: Path) -> None:
    cache.write(key, {"a": 1})
    config.cache_enabled = False
    assert cache.read(key, "json") is None
    assert not cache.write(key, {"a": 2}).stored
    config.cache_enabled = True
    config.memory_cache_enabled = False
    assert [cache.read(key, "json").tier for _ in range(2)] == ["disk", "disk"]
    config.memory_cache_enabled = True
    config.cache_dir = tmp_path / "elsewhere"
    assert cache.read(key, "json") is None
    cache.write(key, {"a": 3})
    assert cache.get_cache_file() == tmp_path / "elsewhere" / "tif1_cache.db"
    assert cache.get_cache_dir() == tmp_path / "elsewhere"
    config.cache_dir = tmp_path / "cache"
    assert cache.read(key, "json").value == {"a": 1}
    config.cache_mmap_size, config.cache_cache_size, config.cache_max_connections = 0, 10, 1
    assert cache.read(key, "json").value == {"a": 1}


def test_pragmas_come_from_the_settings(config: Config, open_cache: Callable[..., Cache], key: EntryKey) -> None:
    config.update({"cache_page_size": 8192, "cache_wal_mode": False})
    cache = open_cache()
    cache.write(key, {"a": 1})
    connection = sqlite3.connect(cache.get_cache_file())
    assert connection.execute("PRAGMA page_size").fetchone() == (8192,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    assert open_cache().read(key, "json").value == {"a": 1}


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_folder_and_files_are_closed_to_others_under_any_umask(
    config: Config, open_cache: Callable[..., Cache], key: EntryKey, mask: int
) -> None:
    config.cache_dir = config.cache_dir / "a" / "b"
    former = os.umask(mask)
    try:
        cache = open_cache()
        cache.write(key, {"a": 1})
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in cache.get_cache_dir().iterdir()}
    finally:
        os.umask(former)
    assert modes == dict.fromkeys(("tif1_cache.db", "tif1_cache.db-wal", "tif1_cache.db-shm"), "0o640")
    assert oct(cache.get_cache_dir().stat().st_mode & 0o777) == "0o750"
    assert oct(cache.get_cache_dir().parent.stat().st_mode & 0o777) == "0o750"


def test_many_threads_read_and_write_one_cache(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    keys = [EntryKey(str(number), "x") for number in range(4)]
    for key in keys:
        cache.write(key, pa.table({"n": [0] * 100, "p": ["a", "b"] * 50}), part_by="p")
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(40):
                key = keys[random.integers(4)]
                if random.random() < 0.2:
                    cache.write(
                        key, pa.table({"n": [int(random.integers(9))] * 100, "p": ["a", "b"] * 50}), part_by="p"
                    )
                else:
                    parts = [["a"], None][random.integers(2)]
                    frame = cache.read(key, ["pandas", "polars"][random.integers(2)], parts=parts).value
                    assert frame["n"].n_unique() == 1 if isinstance(frame, pl.DataFrame) else frame["n"].nunique() == 1
                if random.random() < 0.05:
                    cache.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert not caplog.records
    assert cache.get_degraded() == {}


def test_a_closed_cache_opens_again(cache: Cache, key: EntryKey) -> None:
    cache.open()
    assert cache.get_cache_file().exists()
    cache.write(key, {"a": 1})
    cache.close()
    cache.close()
    assert cache.read(key, "json").tier == "disk"
    assert cache.clear() == 1
    assert cache.clear() == 0


def test_reading_creates_no_file(cache: Cache, key: EntryKey) -> None:
    assert cache.read(key) is None
    assert cache.info(key) is None
    assert cache.remove(key) == cache.clear() == 0
    assert not cache.exists(2025, "monaco", "race")
    assert cache.list_sessions() == []
    assert cache.get_stats()["total_entries"] == 0
    assert cache.flush()
    assert not cache.get_cache_dir().exists()


def test_a_file_that_is_deleted_while_in_use_is_made_anew(cache: Cache, key: EntryKey) -> None:
    cache.write(key, {"a": 1})
    assert cache.read(key, "json")
    for path in cache.get_cache_dir().iterdir():
        path.unlink()
    assert cache.read(key, "json") is None
    assert cache.write(key, {"a": 2}).stored
    assert cache.get_cache_file().exists()
    assert cache.read(key, "json").value == {"a": 2}
