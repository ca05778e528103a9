"""Entries as files for every tool, and back into a cache exactly as they were."""

import base64
import json
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tif1_pipeline import __version__
from tif1_pipeline.cache import Cache, Source
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import CacheError, CorruptEntryError, InvalidDataError
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry

RACE = SessionKey(2025, "Monaco Grand Prix", "Race")
DRIVERS = ["VER", "NOR", "LEC"]


def telemetry(rows: int = 50, *, interleaved: bool = False) -> pa.Table:
    schema = DATASETS["telemetry"].schema
    number = rows * len(DRIVERS)
    drivers = DRIVERS * rows if interleaved else [driver for driver in DRIVERS for _ in range(rows)]
    random = np.random.default_rng(1)
    columns = []
    for field in schema:
        if field.name == "Driver":
            # A category that no row has, and an order that is not that of the rows.
            indices = pa.array([["HAM", "LEC", "VER", "NOR"].index(driver) for driver in drivers], pa.int32())
            columns.append(pa.DictionaryArray.from_arrays(indices, ["HAM", "LEC", "VER", "NOR"]))
        elif pa.types.is_dictionary(field.type):
            columns.append(pa.array([None, "1"] * (number // 2), pa.string()).dictionary_encode())
        elif pa.types.is_boolean(field.type):
            columns.append(pa.array([True, None] * (number // 2)))
        else:
            columns.append(pa.array(random.integers(0, 1000, number)).cast(field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def of_dataset(name: str, rows: int = 4) -> pa.Table:
    columns = []
    for field in DATASETS[name].schema:
        type_ = field.type
        if pa.types.is_string(type_) or pa.types.is_dictionary(type_):
            columns.append(pa.array([f"é{number}" for number in range(rows)]).cast(type_))
        elif pa.types.is_boolean(type_):
            columns.append(pa.array([True, False] * (rows // 2)))
        else:
            columns.append(pa.array(range(rows), pa.int64()).cast(type_))
    return pa.Table.from_arrays(columns, schema=DATASETS[name].schema)


def fill(cache: Cache) -> None:
    """Every kind of entry that a cache may hold."""
    source = Source("https://example.org/a?b", '"etag"', "Mon, 01 Jan 2024 00:00:00 GMT")
    for name, dataset in DATASETS.items():
        key = schedule_entry(2025) if dataset.level == "season" else RACE.entry(name)
        table = telemetry() if name == "telemetry" else of_dataset(name)
        cache.write(key, table, source=source, part_by=dataset.part_by, schema_version=dataset.schema_version)
    qualifying = SessionKey(2025, "São Paulo Grand Prix", "Qualifying").entry("telemetry")
    cache.write(qualifying, telemetry(interleaved=True), part_by="Driver", schema_version=1)
    cache.write(SessionKey(2024, "x", "Race").entry("telemetry").of_part("VER"), telemetry(2).slice(0, 2))
    cache.write(SessionKey(2024, "x", "Race").entry("telemetry").of_part("VER/10"), telemetry(2).slice(0, 1))
    cache.write(EntryKey("summary", "summary", pinned=True), {"a": [1, 1.5, None, "é", 10**30], "b": {}})
    frame = pd.DataFrame(
        {"c": pd.Categorical(["b", "a"], categories=["z", "b", "a"], ordered=True), "o": [[1], None], "n": [1, 2]},
        index=pd.DatetimeIndex(["2025-01-01", "2025-01-02"], name="day", freq="D"),
    )
    cache.write(EntryKey("frame", "asset"), frame)
    cache.write(EntryKey("polars", "asset"), pl.DataFrame({"t": [None, "x"], "d": [1, 2]}), part_by="d")
    cache.write(EntryKey("empty", "asset"), pa.table({"x": pa.array([], pa.timestamp("s"))}))
    cache.write(EntryKey("nothing", "asset"), pa.table({}))
    types = {
        "seconds": pa.array([1, None], pa.timestamp("s", "Europe/Monaco")),
        "day": pa.array([1, 2], pa.date32()),
        "time": pa.array([1, 2], pa.time32("s")),
        "unsigned": pa.array([2**64 - 1, 0], pa.uint64()),
        "bytes": pa.array([b"\0", None]),
        "numbers": pa.array([5, 5]).dictionary_encode(),
        "nested": pa.array([{"a": [1]}, None]),
        "decimal": pa.array([1, None]).cast(pa.decimal128(30, 2)),
        "null": pa.nulls(2),
        "large": pa.array(["x", None], pa.large_string()),
    }
    cache.write(EntryKey("types", "asset"), pa.table(types))


def keys_of(cache: Cache) -> list[str]:
    return [entry["key"] for entry in cache.get_entries()]


def comparable(info: EntryInfo) -> EntryInfo:
    return replace(info, generation="", access_count=0, accessed_at=info.created_at)


@pytest.fixture
def other(open_cache: Callable[..., Cache], tmp_path: Path) -> Cache:
    return open_cache(Config(cache_dir=tmp_path / "other", memory_cache_max_mb=64))


def test_what_is_exported_and_imported_is_the_same_in_every_respect(cache: Cache, other: Cache, tmp_path: Path) -> None:
    fill(cache)
    assert cache.export(tmp_path / "tree") == len(keys_of(cache))
    assert other.import_(tmp_path / "tree") == len(keys_of(cache))
    assert keys_of(other) == keys_of(cache)
    for key in keys_of(cache):
        before, after = cache.info(key), other.info(key)
        if key == "types":  # nested columns come with masks that the former ones had not: a bit a value
            after = replace(after, size_bytes=before.size_bytes)
        assert comparable(after) == comparable(before)
        if before.backend == "json":
            assert other.read(key, "json").value == cache.read(key, "json").value
            continue
        tables = cache.read(key).value, other.read(key).value
        assert tables[1].schema.equals(tables[0].schema, check_metadata=True)
        assert tables[1].equals(tables[0])
        for name in tables[0].column_names:
            if pa.types.is_dictionary(tables[0].schema.field(name).type) and tables[0].num_rows:
                dictionaries = [table.column(name).chunk(0).dictionary for table in tables]
                assert dictionaries[0].equals(dictionaries[1])
        for part in before.parts if before.parts != ("",) else ():
            assert other.read(key, parts=[part]).value.equals(cache.read(key, parts=[part]).value)
        if before.backend == "pandas":
            pd.testing.assert_frame_equal(cache.read(key, "pandas").value, other.read(key, "pandas").value)


def test_files_lie_where_they_are_looked_for(cache: Cache, tmp_path: Path) -> None:
    fill(cache)
    cache.export(tmp_path / "tree")
    found = {str(path.relative_to(tmp_path / "tree")) for path in (tmp_path / "tree").rglob("*") if path.is_file()}
    assert {
        "2025/schedule.parquet",
        "2025/monaco/race/laps.parquet",
        "2025/sao_paulo/qualifying/telemetry.parquet",
        "2024/x/race/telemetry/VER.parquet",
        "2024/x/race/telemetry/VER%2F10.parquet",
        "assets/summary.json",
        "assets/frame.parquet",
    } <= found
    assert len(found) == len(keys_of(cache))


def test_pandas_polars_and_duckdb_read_the_files(cache: Cache, tmp_path: Path) -> None:
    table = of_dataset("laps")
    cache.write(RACE.entry("laps"), table)
    cache.write(RACE.entry("telemetry"), telemetry(), part_by="Driver")
    cache.export(tmp_path)
    path = tmp_path / "2025/monaco/race/laps.parquet"
    frame = pd.read_parquet(path)
    assert frame["LapTime"].dtype == "timedelta64[ns]"
    assert isinstance(frame["Driver"].dtype, pd.CategoricalDtype)
    assert frame["LapNumber"].tolist() == [0, 1, 2, 3]
    assert pl.read_parquet(path)["LapTime"].dtype == pl.Duration("ns")
    rows = duckdb.sql(f"SELECT Driver, LapTime, LapStartDate FROM '{path}' ORDER BY LapNumber").fetchall()
    assert [row[:2] for row in rows] == [(f"é{number}", number) for number in range(4)]
    with pq.ParquetFile(tmp_path / "2025/monaco/race/telemetry.parquet") as file:
        assert file.num_row_groups == len(DRIVERS)
        assert file.metadata.row_group(1).column(0).statistics.min == "NOR"
        notes = json.loads(file.metadata.metadata[b"tif1_pipeline"])
    assert notes["part_by"] == "Driver"
    assert notes["parts"] == DRIVERS


NAMES = ["../up", "..", ".", "/etc/passwd", "a/b\\c", "nul\0", "", "x" * 500, "x" * 501, "é" * 300, "%2e%2e", "Foo",
         "foo", "FOO", "a.parquet", ".hidden", "con:", "~", "x~y", "\n"]  # fmt: skip


def test_no_key_leaves_the_folder_or_shares_a_file(cache: Cache, other: Cache, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        cache.write(EntryKey(name, "asset"), {"number": number})
        key = f"2025_{name}_race_laps_pandas"
        cache.write(EntryKey(key, "laps", 2025, name, "race"), pa.table({"n": [number]}))
        cache.write(RACE.entry("laps").of_part(name), pa.table({"n": [number]}))
    folder = tmp_path / "a" / "tree"
    number = len(keys_of(cache))
    assert cache.export(folder) == number
    assert list(tmp_path.joinpath("a").iterdir()) == [folder]
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len({name.casefold() for name in files}) == number
    assert all(len(part) <= 200 and not part.startswith(".") for name in files for part in name.split("/"))
    assert other.import_(folder) == number
    assert keys_of(other) == keys_of(cache)


def test_files_are_closed_to_others_whatever_the_umask(cache: Cache, tmp_path: Path) -> None:
    fill(cache)
    before = os.umask(0)
    try:
        cache.export(tmp_path / "tree")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tree").rglob("*") if path.is_file()}
    assert modes == {0o640}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tree").rglob("*") if path.is_dir()} == {0o750}


def test_an_export_replaces_its_files_and_leaves_others_alone(cache: Cache, other: Cache, tmp_path: Path) -> None:
    (tmp_path / "2025").mkdir()
    (tmp_path / "2025" / "notes.txt").write_text("mine")
    for number in range(2):
        cache.write(RACE.entry("laps"), pa.table({"n": [number]}))
        assert cache.export(tmp_path) == 1
    assert (tmp_path / "2025" / "notes.txt").read_text() == "mine"
    assert other.import_(tmp_path) == 1
    assert other.read(RACE.entry("laps")).value["n"].to_pylist() == [1]


def test_a_corrupt_entry_is_named_and_the_others_are_exported(cache: Cache, tmp_path: Path) -> None:
    fill(cache)
    (file,) = cache._tiered.files()
    with file.database.writing() as connection:
        connection.exec_driver_sql(
            "UPDATE parts SET data = zeroblob(length(data)) WHERE entry_id = "
            "(SELECT id FROM entries WHERE key = '2025_monaco_race_laps_pandas')"
        )
    with pytest.raises(CorruptEntryError, match="2025_monaco_race_laps_pandas") as caught:
        cache.export(tmp_path / "tree")
    assert list(caught.value.details["keys"]) == ["2025_monaco_race_laps_pandas"]
    files = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert len(files) == len(keys_of(cache)) - 1


def test_an_import_leaves_memory_alone_and_drops_what_it_replaces(cache: Cache, tmp_path: Path) -> None:
    fill(cache)
    cache.export(tmp_path / "tree")
    cache.clear()
    cache.write(RACE.entry("laps"), pa.table({"old": [1]}))
    (file,) = cache._tiered.files()
    with file.database.writing() as connection:
        connection.execute(ENTRIES.update().values(created_at=1_700_000_000))
    cache.write(EntryKey("mine", "asset"), {"x": 1})
    cache.import_(tmp_path / "tree")
    assert cache.get_memory_stats()["items"] == 1
    assert cache.read("mine", "json").tier == "memory"
    assert cache.read(RACE.entry("laps")).value.num_rows == 4


def test_the_age_of_an_entry_goes_with_it(cache: Cache, other: Cache, tmp_path: Path) -> None:
    fill(cache)
    (file,) = cache._tiered.files()
    with file.database.writing() as connection:
        connection.execute(ENTRIES.update().values(created_at=1_700_000_000.25))
    cache.export(tmp_path / "tree")
    other.import_(tmp_path / "tree")
    assert other.info("summary").created_at.timestamp() == 1_700_000_000.25


# ---- files of strangers


def put(folder: Path, name: str, table: pa.Table, notes: object = None) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if notes is not None:
        table = table.replace_schema_metadata({"tif1_pipeline": notes if isinstance(notes, str) else json.dumps(notes)})
    pq.write_table(table, path)
    return path


def test_a_file_without_metadata_is_stored_under_the_session_of_its_path(
    open_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    asked = []

    def resolve(year: int, event: str, session_type: str | None) -> SessionKey:
        asked.append((year, event, session_type))
        return SessionKey(year, "Monaco Grand Prix", session_type)

    cache = open_cache(resolve=resolve)
    laps = of_dataset("laps")
    laps.to_pandas().to_parquet(tmp_path / "laps.parquet")
    (tmp_path / "2025/monte_carlo/race").mkdir(parents=True)
    (tmp_path / "laps.parquet").rename(tmp_path / "2025/monte_carlo/race/laps.parquet")
    put(tmp_path, "2025/monte_carlo/race/telemetry.parquet", telemetry().replace_schema_metadata(None))
    put(tmp_path, "2025/monte_carlo/race/telemetry/VER%2F10.parquet", telemetry().slice(0, 3))
    put(tmp_path, "2025/schedule.parquet", of_dataset("schedule"))
    assert cache.import_(tmp_path) == 4
    assert set(asked) == {(2025, "monte carlo", "Race")}
    assert cache.read(RACE.entry("laps")).value.equals(laps)
    assert cache.info(RACE.entry("laps")).schema_version == DATASETS["laps"].schema_version
    assert cache.info(RACE.entry("telemetry")).parts == tuple(DRIVERS)
    assert cache.read(schedule_entry(2025)).value.num_rows == 4


def test_what_cannot_be_read_is_named_at_once_and_the_rest_is_stored(
    cache: Cache, other: Cache, tmp_path: Path
) -> None:
    fill(cache)
    cache.export(tmp_path)
    good = len(keys_of(cache))
    good_file = (tmp_path / "2025/monaco/race/laps.parquet").read_bytes()
    folder = tmp_path / "2025" / "bad" / "race"
    folder.mkdir(parents=True)
    bad = {
        "empty.parquet": b"",
        "text.parquet": b"no parquet",
        "cut.parquet": good_file[: len(good_file) // 2],
        "flipped.parquet": good_file[:-200] + bytes(byte ^ 255 for byte in good_file[-200:-100]) + good_file[-100:],
        "deep.json": b'{"tif1_pipeline":' + b"[" * 100_000,
        "foreign.json": b"{}",
        "pickle.json": b"\x80\x04cos\nsystem\n",
    }
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    put(folder, "laps.parquet", pa.table({"x": [1]}))
    put(folder, "weather.parquet", of_dataset("weather").set_column(0, "Time", pa.array(["x"] * 4)))
    put(folder, "unknown.parquet", pa.table({"x": [1]}))
    put(folder, "notes.parquet", pa.table({"x": [1]}), "{")
    put(tmp_path, "2025/bad/no_session/laps.parquet", of_dataset("laps"))
    (folder / "link.parquet").symlink_to(tmp_path / "2025/monaco/race/laps.parquet")
    os.mkfifo(folder / "pipe.parquet")
    with pytest.raises(InvalidDataError) as caught:
        other.import_(tmp_path)
    failed = caught.value.details["files"]
    names = ["laps", "weather", "unknown", "notes", "link", "pipe"]
    expected = {f"2025/bad/race/{name}" for name in (*bad, *(f"{name}.parquet" for name in names))}
    assert set(failed) == expected | {"2025/bad/no_session/laps.parquet"}
    assert all(name in caught.value.message for name in failed)
    assert caught.value.details["stored"] == good
    assert keys_of(other) == keys_of(cache)


NOTES = {
    "format": 1, "key": "k", "data_type": "asset", "year": None, "event": None, "session_type": None, "part": None,
    "backend": "arrow", "schema_version": 1, "library_version": __version__, "created_at": "2025-01-01T00:00:00+00:00",
    "url": None, "etag": None, "last_modified": None, "pinned": False, "parts": [""], "part_by": None,
}  # fmt: skip


def header(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.slice(0, 0))
    return base64.b64encode(sink.getvalue().to_pybytes()).decode()


TABLE = pa.table({"x": [1]})


def put_noted(folder: Path, schema: str | None = None, **changes: object) -> None:
    texts = {"tif1_pipeline": json.dumps(NOTES | changes), "tif1_pipeline_schema": schema or header(TABLE)}
    pq.write_table(TABLE.replace_schema_metadata(texts), folder / "a.parquet")


def test_good_metadata_of_a_stranger_is_taken(cache: Cache, tmp_path: Path) -> None:
    put_noted(tmp_path, created_at="2999-01-01T00:00:00+00:00")
    assert cache.import_(tmp_path) == 1
    assert cache.read("k").value.equals(TABLE)
    assert cache.info("k").created_at.year < 2999


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2}, {"format": True}, {"key": 5}, {"key": "x" * 100_000}, {"data_type": None}, {"year": "x"},
        {"year": 10**9}, {"event": []}, {"backend": "json"}, {"backend": "pickle"}, {"schema_version": -1},
        {"schema_version": 10**30}, {"created_at": "yesterday"}, {"created_at": "2025-01-01"}, {"pinned": 1},
        {"parts": [1]}, {"parts": ["a"]}, {"part_by": "y"}, {"part_by": "x"}, {"url": 1}, {"schema": "!"},
        {"schema": base64.b64encode(b"no arrow").decode()}, {"schema": header(pa.table({"y": [1]}))},
        {"schema": header(pa.table({"x": [[1]]}))},
    ],
)  # fmt: skip
def test_bad_metadata_of_a_stranger_is_refused(cache: Cache, tmp_path: Path, changes: dict[str, object]) -> None:
    put_noted(tmp_path, **changes)
    with pytest.raises(InvalidDataError, match=r"a\.parquet"):
        cache.import_(tmp_path)
    assert not cache.get_entries()


def test_a_file_that_grows_without_end_is_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"x": pa.array([0] * 5_000_000).dictionary_encode()}).cast(pa.schema([("x", pa.int64())]))
    path = put(tmp_path, "assets/x.parquet", table, NOTES)
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr("tif1_pipeline.cache.importing.MAX_TABLE_BYTES", 16 << 20)
    with pytest.raises(InvalidDataError, match=r"assets/x\.parquet"):
        cache.import_(tmp_path)


def test_a_folder_that_is_not_there_is_said_so(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="no folder"):
        cache.import_(tmp_path / "missing")
    assert cache.export(tmp_path / "nothing") == 0


# ---- files that stand for more than they hold


def test_a_text_that_is_stored_once_and_repeated_is_refused_before_it_is_expanded(
    run: Callable[..., str], tmp_path: Path
) -> None:
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 6000, pa.int32()), ["x" * (1 << 20)])
    texts = {"tif1_pipeline": json.dumps(NOTES), "tif1_pipeline_schema": header(pa.table({"x": ["x"]}))}
    nested = pa.ListArray.from_arrays(pa.array([0, 6000], pa.int32()), once)
    tables = {"flat": pa.table({"x": once}), "nested": pa.table({"x": nested})}
    for name, table in tables.items():
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", table.schema, store_schema=False) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(texts)
        assert (tmp_path / f"{name}.parquet").stat().st_size < 1 << 16
    output = run(
        """
        import resource
        from tif1_pipeline.cache import manage
        from tif1_pipeline.exceptions import InvalidDataError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            cache.import_(sys.argv[2])
        except InvalidDataError as error:
            print(sorted(error.details["files"]), *set(error.details["files"].values()))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """,
        str(tmp_path),
    ).splitlines()
    assert output[0] == "['flat.parquet', 'nested.parquet'] is a table of more than 4,294,967,296 bytes in memory"
    assert int(output[1]) < 512 << 10  # KiB


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["abc" * 10] * 400), pa.array([["abc" * 10] * 4] * 100), pa.array([{"a": "abc" * 10}] * 400),
        pa.array([[("k", "abc" * 10)]] * 400, pa.map_(pa.string(), pa.string())), pa.array([b"abc" * 10] * 400),
        pa.array(["abc" * 10] * 400, pa.large_string()), pa.array([b"x" * 30] * 400, pa.binary(30)),
        pa.array(["abc" * 10] * 400).dictionary_encode(),
    ],
    ids=str,
)  # fmt: skip
def test_the_size_of_texts_is_worked_out_wherever_they_stand(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: pa.Array
) -> None:
    table = pa.table({"x": column})
    plain = pa.table({"x": column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column})
    put(tmp_path, "a.parquet", table, "{}")
    texts = {"tif1_pipeline": json.dumps(NOTES), "tif1_pipeline_schema": header(plain)}
    pq.write_table(table.replace_schema_metadata(texts), tmp_path / "a.parquet")
    monkeypatch.setattr("tif1_pipeline.cache.importing.MAX_TABLE_BYTES", 11_000)  # the texts alone take 12,000
    with pytest.raises(InvalidDataError, match=r"a\.parquet.*more than 11,000 bytes"):
        cache.import_(tmp_path)
    monkeypatch.undo()
    assert cache.import_(tmp_path) == 1
    assert cache.read("k").value.equals(plain)


def test_a_type_that_is_wide_where_nothing_is_stored_is_refused(cache: Cache, tmp_path: Path) -> None:
    wide = pa.table({"x": pa.array([], pa.list_(pa.int8(), 1 << 30))})
    texts = {"tif1_pipeline": json.dumps(NOTES), "tif1_pipeline_schema": header(wide)}
    table = pa.table({"x": pa.array([None] * 100, pa.list_(pa.int8()))})
    pq.write_table(table.replace_schema_metadata(texts), tmp_path / "a.parquet")
    with pytest.raises(InvalidDataError, match="is a table of more than"):
        cache.import_(tmp_path)


def test_an_encoding_that_hides_the_size_of_texts_is_refused(cache: Cache, tmp_path: Path) -> None:
    texts = {"tif1_pipeline": json.dumps(NOTES), "tif1_pipeline_schema": header(pa.table({"x": ["x"]}))}
    pq.write_table(
        pa.table({"x": ["x" * 1000] * 50}).replace_schema_metadata(texts),
        tmp_path / "a.parquet",
        use_dictionary=False,
        column_encoding={"x": "DELTA_BYTE_ARRAY"},
    )
    with pytest.raises(InvalidDataError, match="DELTA_BYTE_ARRAY"):
        cache.import_(tmp_path)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_compressed_schema_is_refused_before_it_is_expanded(cache: Cache, tmp_path: Path, codec: str) -> None:
    values = pa.array(["x" * 5_000_000])
    schema = pa.schema([("x", pa.dictionary(pa.int8(), pa.string()))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        batch = pa.record_batch([pa.DictionaryArray.from_arrays(pa.array([], pa.int8()), values)], schema=schema)
        writer.write_batch(batch)
    before = pa.total_allocated_bytes()
    put_noted(tmp_path, base64.b64encode(sink.getvalue().to_pybytes()).decode())
    with pytest.raises(InvalidDataError, match="compressed"):
        cache.import_(tmp_path)
    assert pa.total_allocated_bytes() - before < 5_000_000


def test_a_schema_that_declares_more_than_it_holds_is_refused(cache: Cache, tmp_path: Path) -> None:
    nothing = pa.DictionaryArray.from_arrays(pa.array([], pa.int8()), pa.nulls(1 << 20))
    batch = pa.record_batch([nothing], names=["x"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    put_noted(tmp_path, base64.b64encode(sink.getvalue().to_pybytes()).decode())
    with pytest.raises(InvalidDataError, match="declares more values"):
        cache.import_(tmp_path)


# ---- newer and older


def test_an_entry_that_is_newer_than_its_file_stays(cache: Cache, tmp_path: Path) -> None:
    for name in ("changed", "same"):
        cache.write(EntryKey(name, "asset"), {"old": True})
    cache.write(RACE.entry("laps"), pa.table({"old": [1]}))
    cache.export(tmp_path)
    cache.write(EntryKey("changed", "asset"), {"new": True})
    cache.write(RACE.entry("laps"), pa.table({"new": [1]}))
    assert cache.import_(tmp_path) == 1
    assert cache.read("changed", "json").value == {"new": True}
    assert cache.read(RACE.entry("laps")).value.column_names == ["new"]
    cache.remove("changed")
    assert cache.import_(tmp_path) == 2
    assert cache.read("changed", "json").value == {"old": True}


def test_a_file_of_no_export_replaces_what_is_stored(cache: Cache, tmp_path: Path) -> None:
    cache.write(RACE.entry("laps"), pa.table({"new": [1]}))
    put(tmp_path, "2025/monaco/race/laps.parquet", of_dataset("laps").replace_schema_metadata(None))
    assert cache.import_(tmp_path) == 1
    assert cache.read(RACE.entry("laps")).value.num_rows == 4


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_of_two_files_of_one_entry_the_newer_is_stored(cache: Cache, other: Cache, tmp_path: Path, names: str) -> None:
    for number, name in enumerate(names):
        cache.write(RACE.entry("laps"), pa.table({"n": [number]}))
        cache.export(tmp_path / name)
    assert other.import_(tmp_path) == 1
    assert other.read(RACE.entry("laps")).value["n"].to_pylist() == [1]


# ---- exports that others have been before, or that fail


def test_what_a_former_export_left_is_removed_and_nothing_else(cache: Cache, other: Cache, tmp_path: Path) -> None:
    fill(cache)
    cache.write(EntryKey("Laps", "x"), pa.table({"n": [1]}))
    cache.write(EntryKey("laps", "x"), pa.table({"n": [1]}))
    cache.export(tmp_path)
    derived = pq.read_table(tmp_path / "2025/monaco/race/laps.parquet")  # it has the metadata of its source
    pq.write_table(derived, tmp_path / "2025/monaco/race/mine.parquet")
    strangers = {"2025/monaco/race/mine.parquet", "2025/foreign.parquet", "assets/foreign.json", "assets/notes.txt"}
    pq.write_table(TABLE, tmp_path / "2025/foreign.parquet")
    (tmp_path / "assets/foreign.json").write_text('{"a": 1}')
    (tmp_path / "assets/notes.txt").write_text("mine")
    cache.clear()
    cache.write(EntryKey("laps", "x"), pa.table({"n": [2]}))
    assert cache.export(tmp_path) == 1
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    cache_files = {name for name in files if name.startswith("cache/")}
    assert files - cache_files == {"assets/laps.parquet", *strangers}
    assert not (tmp_path / "2024").exists()


def test_an_export_that_is_not_whole_removes_nothing(config: Config, open_cache: Callable[..., Cache], tmp_path: Path):
    cache = open_cache()
    for name in ("gone", "bad", "good"):
        cache.write(EntryKey(name, "x"), {"a": 1})
    cache.export(tmp_path / "tree")
    cache.remove("gone")
    (file,) = cache._tiered.files()
    with file.database.writing() as connection:
        connection.exec_driver_sql(
            "UPDATE parts SET data = zeroblob(9) WHERE entry_id = (SELECT id FROM entries WHERE key = 'bad')"
        )
    with pytest.raises(CorruptEntryError, match="bad"):
        cache.export(tmp_path / "tree")
    assert len(list((tmp_path / "tree").rglob("*.json"))) == 3
    cache.close()

    config.cache_dir.rename(tmp_path / "away")
    config.cache_dir.write_text("no folder")
    config.cache_fallback_dir = tmp_path / "fallback"
    cache = open_cache()
    assert cache.write(EntryKey("new", "x"), {"a": 1}).stored
    assert cache.export(tmp_path / "tree") == 1
    assert len(list((tmp_path / "tree").rglob("*.json"))) == 4


def test_categories_with_a_null_are_exported(cache: Cache, other: Cache, tmp_path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 0], pa.int8()), pa.array(["x", None]))
    cache.write(EntryKey("a", "asset"), pa.table({"c": column}))
    assert cache.export(tmp_path) == 1
    assert pl.read_parquet(tmp_path / "assets/a.parquet")["c"].to_list() == ["x", None, None, "x"]
    assert other.import_(tmp_path) == 1
    read = other.read("a").value.column("c")
    assert read.type == column.type
    assert read.to_pylist() == ["x", None, None, "x"]


def test_what_cannot_be_exported_is_named_and_the_rest_is_exported(
    open_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    secret = open_cache(Config(cache_dir=tmp_path / "cache", cache_encryption_key="11" * 32))
    secret.write(EntryKey("a secret", "x"), {"a": 1})
    secret.close()
    cache = open_cache(Config(cache_dir=tmp_path / "cache"))
    lists = pa.DictionaryArray.from_arrays(pa.array([0], pa.int8()), pa.array([[1]]))
    cache.write(EntryKey("categories of lists", "x"), pa.table({"c": lists}))
    cache.write(EntryKey("good", "x"), {"a": 1})
    with pytest.raises(CacheError, match="1 entries are exported, 2 could not be: ") as caught:
        cache.export(tmp_path / "tree")
    assert list(caught.value.details["keys"]) == ["a secret", "categories of lists"]
    assert [path.name for path in (tmp_path / "tree").rglob("*") if path.is_file()] == ["good.json"]


def test_the_next_export_removes_what_a_killed_one_left(
    cache: Cache, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    cache.write(EntryKey("a", "x"), {"a": 1})
    process = start(
        """
        from tif1_pipeline.cache import export
        with export._replacing(Path(sys.argv[2]) / "assets" / "a.json", Path(sys.argv[2])):
            print("at work", flush=True)
            time.sleep(60)
        """,
        str(tmp_path),
    )
    (tmp_path / "assets").mkdir()
    assert process.stdout.readline() == "at work\n"
    cache.export(tmp_path)
    left = [path.name for path in (tmp_path / "assets").iterdir()]
    assert len(left) == 2  # that of an export at work stays
    process.kill()
    process.wait()
    cache.export(tmp_path)
    assert [path.name for path in (tmp_path / "assets").iterdir()] == ["a.json"]


def test_a_disk_without_room_is_said_so_before_anything_is_written(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write(EntryKey("a", "x"), {"a": 1})
    (file,) = cache._tiered.files()
    with file.database.writing() as connection:
        connection.execute(ENTRIES.update().values(compressed_size=1 << 60))
    with pytest.raises(CacheError, match=r"the export takes [\d,]+ bytes .* [\d,]+ are free"):
        cache.export(tmp_path / "tree")
    assert list((tmp_path / "tree").iterdir()) == []


def test_an_import_goes_to_the_standin_where_the_folder_cannot_be_used(
    config: Config, open_cache: Callable[..., Cache], other: Cache, tmp_path: Path
) -> None:
    other.write(EntryKey("a", "x"), {"a": 1})
    other.export(tmp_path / "tree")
    config.cache_dir.write_text("no folder")
    config.cache_fallback_dir = tmp_path / "fallback"
    cache = open_cache()
    assert cache.import_(tmp_path / "tree") == 1
    cache.clear_memory()
    assert cache.read("a", "json").value == {"a": 1}
    assert cache.check_health() == "failover"
