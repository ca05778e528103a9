"""Large tables, read on threads while they are loaded: the same as whole ones, and damage is found all the same."""

import gc
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tif1_pipeline.cache import Cache, codec, decoding, frames, spare, templates, threads
from tif1_pipeline.cache.assembly import Assembly, assembled
from tif1_pipeline.keys import EntryKey

ROWS = 300_000
"""More than two row groups, the last one of another length."""
PARTS = {"A": 150_001, "B": 140_000, "C": 9_999}


def large_table(*, mixed: bool = False) -> pa.Table:
    random = np.random.default_rng(7)
    part = np.repeat(list(PARTS), list(PARTS.values()))
    some = random.random(ROWS) < 0.1
    if mixed:
        part = random.permutation(part)
    return pa.table(
        {
            "part": pa.array(part).dictionary_encode(),
            "float": random.random(ROWS).astype("f4"),
            "gaps": pa.array(random.random(ROWS), mask=some),
            "int": random.integers(0, 9, ROWS).astype("i2"),
            "int_gaps": pa.array(random.integers(0, 9, ROWS), mask=some),
            "flag": random.random(ROWS) < 0.5,
            "flag_gaps": pa.array(random.random(ROWS) < 0.5, mask=some),
            "span": pa.array(random.integers(0, 10**12, ROWS), pa.duration("ns"), mask=some),
            "day": pa.array(random.integers(0, 10**9, ROWS), pa.timestamp("s")),
            "there": pa.array(random.integers(0, 10**9, ROWS), pa.timestamp("us", "Europe/Rome")),
            "words": random.choice(["soft", "medium", "hard"], ROWS),
            "driver": pa.array(random.choice(["VER", "HAM"], ROWS), mask=some).dictionary_encode(),
            "nobody": pa.nulls(ROWS, pa.dictionary(pa.int32(), pa.string())),
            "nothing": pa.nulls(ROWS, pa.float32()),
        }
    )


def with_metadata(table: pa.Table, index: pd.Index) -> pd.DataFrame:
    frame = table.to_pandas()
    frame.index = index
    frame.attrs = {"track": "Monza"}
    return frame


@pytest.fixture
def reads_as(cache: Cache, key: EntryKey) -> Callable[..., Any]:
    def read(value: Any, as_: Any, part_by: str | None = None, **view: Any) -> Any:
        assert cache.write(key, value, part_by=part_by).stored
        cache.clear_memory()
        hit = cache.read(key, as_, **view)
        assert hit.tier == "disk"
        return hit.value

    return read


def test_what_was_read_is_gone_when_nobody_has_it_any_more(cache, key):
    # In a circle it would stay until the collector comes by, and the next read would need memory of its own.
    assert cache.write(key, large_table(), part_by="part").stored
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            cache.clear_memory()
            assert len(cache.read(key, "pandas").value) == ROWS
        left = [kept for kept in gc.get_objects() if isinstance(kept, decoding.Decoding | Assembly)]
    finally:
        gc.enable()
    assert not left


@pytest.mark.parametrize("part_by", [None, "part"])
@pytest.mark.parametrize("mixed", [False, True], ids=["in a row", "mixed"])
def test_a_table_without_metadata(reads_as, part_by, mixed):
    table = large_table(mixed=mixed)
    expected = frames.to_pandas(table)
    pd.testing.assert_frame_equal(reads_as(table, "pandas", part_by), expected, check_exact=True)
    assert reads_as(table, "arrow", part_by).equals(table)
    some = ["span", "int_gaps", "flag"]
    pd.testing.assert_frame_equal(reads_as(table, "pandas", part_by, columns=some), expected[some], check_exact=True)


@pytest.mark.parametrize("part_by", [None, "part"])
@pytest.mark.parametrize(
    "index",
    [
        pd.RangeIndex(ROWS),
        pd.RangeIndex(5, 5 + 2 * ROWS, 2, name="lap"),
        pd.Index(np.arange(ROWS)[::-1], name="number"),
    ],
    ids=["default", "range", "values"],
)
def test_a_pandas_frame(reads_as, part_by, index):
    frame = with_metadata(large_table().drop_columns(["int_gaps", "flag_gaps"]), index)
    back = reads_as(frame, "pandas", part_by)
    pd.testing.assert_frame_equal(back, frame, check_exact=True, check_index_type="exact")
    assert back.attrs == frame.attrs
    assert back.index.name == index.name


def test_parts_that_are_asked_for_alone(reads_as):
    table = large_table()
    frame = with_metadata(table.drop_columns(["int_gaps", "flag_gaps"]), pd.RangeIndex(7, 7 + ROWS))
    back = reads_as(frame, "pandas", "part", parts=["C", "A"])
    a, b = PARTS["A"], PARTS["B"]
    expected = pd.concat([frame.iloc[a + b :], frame.iloc[:a]], ignore_index=True)
    pd.testing.assert_frame_equal(back, expected, check_exact=True)


def test_a_frame_is_its_readers_own(reads_as, cache, key):
    """Neither what is kept in memory nor another reader's frame changes with it; it can be written to."""
    table = large_table()
    frame = reads_as(table, "pandas", "part")
    for name, value in [("float", 1.0), ("int", 3), ("flag", True), ("day", pd.Timestamp(0)), ("driver", "HAM")]:
        frame.loc[5, name] = value
    frame["flag"].array._data[:] = False
    pd.testing.assert_frame_equal(cache.read(key, "pandas").value, frames.to_pandas(table), check_exact=True)


@pytest.mark.parametrize("as_", ["pandas", "arrow"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: blob[:-40],
        lambda blob: b"",
        lambda blob: blob[:2000] + bytes(64) + blob[2064:],
        lambda blob: blob[: len(blob) // 2],
    ],
    ids=["cut", "empty", "zeroed", "halved"],
)
def test_damage_is_found_and_removed(open_cache, config, key, as_, damage):
    config.cache_verify_checksum = True
    cache = open_cache()
    table = large_table()
    assert cache.write(key, table, part_by="part").stored
    with cache._tiered.file_of(key.text).database.raw(5) as connection:
        rowid, data = connection.execute("SELECT id, data FROM parts WHERE name = 'B'").fetchone()
        connection.execute("UPDATE parts SET data = ? WHERE id = ?", (damage(data), rowid))
    cache.clear_memory()
    assert cache.read(key, as_) is None
    assert cache.info(key) is None
    assert cache.write(key, table, part_by="part").stored
    cache.clear_memory()
    assert len(cache.read(key, as_).value) == ROWS


@pytest.mark.parametrize("as_", ["pandas", "arrow"])
@pytest.mark.parametrize(
    "other",
    [
        lambda table: table.slice(0, 100),
        lambda table: table.cast(table.schema.set(1, pa.field("float", pa.float64()))),
        lambda table: table.select(["part", "float"]),
        lambda table: pa.concat_tables([table, table]),
    ],
    ids=["fewer rows", "another type", "fewer columns", "more rows"],
)
def test_a_part_of_another_table_is_never_taken_for_this_one(config, key, open_cache, as_, other):
    """Sound Parquet, of a sound checksum, that does not belong there."""
    cache = open_cache()
    table = large_table()
    assert cache.write(key, table, part_by="part").stored
    wrong = next(blob for blob in codec.encode_table(other(table), 3, "part").blobs if blob.name == "A").data
    with cache._tiered.file_of(key.text).database.raw(5) as connection:
        connection.execute("UPDATE parts SET data = ?, checksum = ? WHERE name = 'A'", (wrong, codec.crc(wrong)))
    cache.clear_memory()
    assert cache.read(key, as_) is None


def address_of(frame: pd.DataFrame) -> int:
    return frame["float"].to_numpy().ctypes.data


def test_memory_of_a_frame_that_is_gone_is_used_for_the_next(cache, key):
    assert cache.write(key, large_table(), part_by="part").stored
    addresses = set()
    for _ in range(3):
        frame = None
        cache.clear_memory()
        frame = cache.read(key, "pandas").value
        addresses.add(address_of(frame))
    assert len(addresses) == 1
    frame = None
    cache.close()
    assert not spare._kept


@pytest.mark.parametrize(
    "keep",
    [
        lambda frame: frame["float"],
        lambda frame: frame["int"].to_numpy(),
        lambda frame: frame.iloc[7:9],
        lambda frame: memoryview(frame["float"].to_numpy()),
        lambda frame: pa.Table.from_pandas(frame[["float"]]),
    ],
    ids=["column", "array", "rows", "view", "arrow"],
)
def test_memory_that_anything_refers_to_is_not_given_to_another_frame(cache, key, keep):
    table = large_table()
    assert cache.write(key, table, part_by="part").stored
    cache.clear_memory()
    frame = cache.read(key, "pandas").value
    address, kept = address_of(frame), keep(frame)
    frame = None
    cache.clear_memory()
    assert not spare._kept
    assert address_of(cache.read(key, "pandas").value) != address
    del kept
    assert spare._kept


def test_threads_that_give_back_and_take_memory_at_once_have_each_its_own(open_cache, config):
    tables = {number: pa.table({"n": np.full(600_000, number), "m": np.arange(600_000) * number}) for number in (3, 5)}
    keys = {number: EntryKey(f"of-{number}", "thing") for number in tables}
    config.memory_cache_enabled = False
    cache = open_cache(config)
    for number, table in tables.items():
        assert cache.write(keys[number], table).stored

    def read(number: int) -> list[bool]:
        found = []
        for _ in range(15):
            frame = cache.read(keys[number], "pandas").value
            found.append(bool((frame["n"] == number).all() and (frame["m"] == np.arange(600_000) * number).all()))
        return found

    with ThreadPoolExecutor(4) as pool:
        assert all(all(found) for found in pool.map(read, [3, 5, 3, 5]))


def test_nothing_is_left_of_a_reading_that_failed(cache, key, monkeypatch):
    """Its tasks do not keep the threads from others."""
    assert cache.write(key, large_table(), part_by="part").stored
    cache.clear_memory()

    def fail(self, part, start):
        raise pa.ArrowInvalid("no")

    with monkeypatch.context() as patch:
        patch.setattr("tif1_pipeline.cache.assembly.Assembly.fill", fail)
        assert cache.read(key, "pandas") is None
    assert threads.each(abs, [-1, -2, -3]) == [1, 2, 3]


def test_threads_in_a_forked_child():
    assert threads.each(abs, [-1, -2]) == [1, 2]
    child = os.fork()
    if not child:
        os._exit(0 if threads.each(abs, [-3, -4]) == [3, 4] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_task_is_done_once_by_whoever_comes_first():
    gate, entered, done = threading.Event(), threading.Event(), []

    def hold():
        entered.set()
        return gate.wait(30)

    blocking = [threads.submit(hold) for _ in range(threads.NUMBER)]
    assert entered.wait(30)
    waiting = threads.submit(lambda: done.append(threading.current_thread()) or "made")
    assert waiting.result() == "made"  # here, as all threads are taken
    cancelled = threads.submit(done.append, None)
    cancelled.cancel()
    gate.set()
    assert [task.result() for task in blocking] == [True] * threads.NUMBER
    over = [threading.Event() for _ in range(threads.NUMBER)]
    for event in over:  # each thread is through with the other two once it is through with as many
        threads.submit(event.set)
    assert all(event.wait(30) for event in over)
    assert done == [threading.current_thread()]
    with pytest.raises(CancelledError):
        cancelled.result()


def test_work_is_done_where_no_thread_can_be_had(monkeypatch):
    def refuse(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", refuse)
    assert threads.each(abs, [-1, -2]) == [1, 2]
    with pytest.raises(TypeError):
        threads.each(abs, ["x", "y"])


def test_small_tables_take_no_thread(cache, key, monkeypatch):
    monkeypatch.setattr(threads, "submit", None)
    assert cache.write(key, pa.table({"n": [1, 2]})).stored
    cache.clear_memory()
    assert cache.read(key, "pandas").value["n"].tolist() == [1, 2]
    assert decoding._LARGE > 1 << 20


def test_what_is_put_together_is_what_arrow_makes():
    table = large_table()
    chunked = pa.concat_tables(
        [table.slice(3, 50), table.slice(200_000, 7), table.slice(0, 0), table.slice(299_000, 9)]
    )
    other = pa.DictionaryArray.from_arrays(pa.array([1, 0, None], pa.int8()), ["LEC", "VER"], ordered=False)
    tables = [
        table.slice(11, 1_000),
        chunked,
        table.slice(0, 1),
        table.slice(0, 0),
        pa.concat_tables([pa.table({"d": table["driver"].slice(0, 3).cast(other.type)}), pa.table({"d": other})]),
        pa.table({"ordered": other.cast(pa.dictionary(pa.int8(), pa.string(), ordered=True)), "": ["x", None, "ü"]}),
        pa.table(
            {"empty": pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int8()), pa.array([], pa.string()))}
        ),
        pa.table({f"{unit}": pa.array([1, None], pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")}),
        pa.table({"large": pa.array(["a", None], pa.large_string()), "u": pa.array([1, 255], pa.uint8())}),
    ]
    for one in tables:
        expected, found = frames.by_arrow(one), frames.to_pandas(one)
        pd.testing.assert_frame_equal(
            found, expected, check_exact=True, check_index_type="exact", check_column_type=True
        )
        assert found.columns.dtype == expected.columns.dtype
        assert [str(dtype) for dtype in found.dtypes] == [str(dtype) for dtype in expected.dtypes]
        found.iloc[:, 0] = found.iloc[:, 0].array.copy()  # it can be written to
    assert assembled(tables[0].drop_columns(["there"])) is not None  # else the comparison was with itself


def test_what_takes_arrow_to_tell_is_left_to_it():
    table = pa.table({"d": pa.array([None, 1], pa.date32()), "n": [[1], None]})
    assert assembled(table) is None
    pd.testing.assert_frame_equal(frames.to_pandas(table), frames.by_arrow(table))
    texts = pa.table({"t": ["a", None]})
    pd.testing.assert_frame_equal(frames.to_pandas(texts), frames.by_arrow(texts), check_exact=True)


@pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning")
def test_what_is_put_together_is_what_arrow_makes_whatever_pandas_was_told_of_texts():
    with pd.option_context("future.infer_string", False):
        texts = pa.table({"t": ["a", None], "d": pa.array(["a", "b"]).dictionary_encode()})
        pd.testing.assert_frame_equal(frames.to_pandas(texts), frames.by_arrow(texts), check_exact=True)


@pytest.mark.parametrize("index", [pd.RangeIndex(3), pd.Index([5, 6, 7], name="n")], ids=["told", "made by Arrow"])
def test_what_a_reader_does_to_a_frame_reaches_no_later_one(cache, key, index):
    frame = pd.DataFrame({"c": pd.Categorical(["a", "b", "a"]), "x": [1.5, None, 2]}, index=index)
    frame.attrs = {"track": ["Monza"]}
    assert cache.write(key, frame).stored
    for _ in range(3):
        if index.name is None:
            templates.forget()
        cache.clear_memory()
        found = cache.read(key, "pandas").value
        pd.testing.assert_frame_equal(found, frame)
        assert (found.attrs, found.columns.name, found["c"].cat.categories.name) == (frame.attrs, None, None)
        found.attrs["track"].append("Spa")
        found.columns.name = found["c"].cat.categories.name = "mine"
        found.loc[found.index[0], "c"] = "b"


def test_what_pandas_has_noted_of_a_column_counts(cache, key):
    """As of a table that was changed after it had been made of a frame."""
    frame = pd.DataFrame({"text": ["a", "b"], "number": [1, 2], "flag": [True, False]})
    table = pa.Table.from_pandas(frame)
    changed = table.set_column(0, "text", table["text"].dictionary_encode()).set_column(
        1, "number", table["number"].cast(pa.int8())
    )
    assert cache.write(key, changed).stored
    for _ in range(2):
        cache.clear_memory()
        pd.testing.assert_frame_equal(cache.read(key, "pandas").value, frames.by_arrow(changed))
