"""What is stored comes back exactly as it was, or is refused by name: never silently different."""

import datetime as dt
import decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal as assert_polars_equal

from tif1_pipeline import datasets
from tif1_pipeline.cache import Cache, codec, decoding, frames, templates
from tif1_pipeline.cache.exact import same
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey

KEY = EntryKey("thing", "thing")
PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True, params=["at once", "on threads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything comes back by both ways of reading, the second of which is that of large tables."""
    if request.param == "on threads":
        monkeypatch.setattr(decoding, "_LARGE", 0)


def stored(cache: Cache, value: Any, backend: Any, **arguments: Any) -> Any:
    """Write, forget, and read from disk."""
    assert cache.write(KEY, value, **arguments).stored
    from_memory = cache.read(KEY, backend)
    templates.forget()
    cache.clear_memory()
    from_disk = cache.read(KEY, backend)
    cache.clear_memory()
    again = cache.read(KEY, backend)  # by what the first reading has found of the frame
    if backend == "pandas":
        assert_pandas_equal(frames.by_arrow(cache.read(KEY, "arrow").value), from_disk.value)
    assert (from_memory.tier, from_disk.tier, again.tier) == ("memory", "disk", "disk")
    if backend == "pandas":
        assert_pandas_equal(from_memory.value, from_disk.value)
        assert_pandas_equal(again.value, from_disk.value)
    return from_disk.value


def assert_pandas_equal(before: pd.DataFrame, after: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(before, after, check_exact=True, check_index_type="exact", check_freq=True)
    assert same(before.attrs, after.attrs)
    assert [level.names for level in (before.index, before.columns)] == [
        level.names for level in (after.index, after.columns)
    ]
    for position, dtype in enumerate(before.dtypes):
        if dtype.kind == "O" and isinstance(dtype, np.dtype):
            assert same(list(before.iloc[:, position]), list(after.iloc[:, position]))
        if isinstance(dtype, pd.CategoricalDtype):
            pd.testing.assert_index_equal(dtype.categories, after.dtypes.iloc[position].categories)


N = np.arange(3)
FRAMES = {
    "numbers": {"a": N.astype("i1"), "b": N.astype("u8"), "c": N.astype("f2"), "d": N.astype("f4"), "e": N > 1},
    "special floats": {"a": [-0.0, np.inf, -np.inf, np.nan]},
    "nullable": {
        "a": pd.array([1, None, 3], dtype="Int8"),
        "b": pd.array([True, None, False], dtype="boolean"),
        "c": pd.array([1.5, None, 2], dtype="Float32"),
    },
    "texts": {
        "a": pd.array(["a", None, "ü"], dtype="string"),
        "b": ["a\0b", None, "\U0001f600"],
        "c": pd.array(["a", None, ""], dtype="string[python]"),
    },
    "categories": {
        "a": pd.Categorical(["b", None, "a"], categories=["z", "b", "a"], ordered=True),
        "b": pd.Categorical([3, 1, 1], categories=[3, 2, 1]),
        "c": pd.Categorical([None, None, None], categories=["q"]),
        "d": pd.Categorical([1.5, None, 2.5]),
    },
    "times": {
        f"{unit}{number}": values
        for unit in ("s", "ms", "us", "ns")
        for number, values in enumerate(
            (
                pd.array(["2020-01-01", None, "1950-01-01"], dtype=f"datetime64[{unit}]"),
                pd.array([1, None, -3], dtype=f"timedelta64[{unit}]"),
                pd.date_range("2020", periods=3, tz="Europe/Berlin", unit=unit),
            )
        )
    },
    "periods": {"p": pd.array([pd.Period("2020-01"), None]), "i": pd.array([pd.Interval(0, 1), None])},
    "left intervals": {"f": pd.interval_range(0.5, 3.5, closed="left")},
    "nested": {"l": [[1, 2], [], None], "d": [{"a": 1}, {"a": None}, None], "n": [[{"a": [1.5]}], None, []]},
    "objects": {
        "s": pd.Series(["a", None, "b"], dtype=object),
        "i": pd.Series([1, None, 2], dtype=object),
        "d": [dt.date(2020, 1, 1), None, None],
        "t": [dt.time(1, 2, 3), None, None],
        "m": [decimal.Decimal("1.50"), None, decimal.Decimal("2.12")],
        "b": [b"x", None, b""],
        "n": [None, None, None],
    },
    "arrow types": {
        "a": pd.array([1, None], dtype="int64[pyarrow]"),
        "d": pd.array([dt.date(2020, 1, 1), None], dtype="date32[pyarrow]"),
    },
    "names": {"": [1], "ü \n\0": [2], "a": [3], "a.b": [4], "a.list.element": [5]},
}
INDEXES = {
    "named range": pd.RangeIndex(3, 9, 2, name="r"),
    "repeated": pd.Index([5, 5, 1]),
    "dates": pd.date_range("2020", periods=3, freq="D", name="d"),
    "dates of a zone": pd.date_range("2020", periods=3, freq="h", tz="UTC"),
    "durations": pd.timedelta_range("1s", periods=3),
    "periods": pd.period_range("2020", periods=3),
    "categories": pd.CategoricalIndex(["a", "b", "a"], name="c"),
    "intervals": pd.interval_range(0, 3),
    "texts": pd.Index(["a", None, "c"]),
    "levels": pd.MultiIndex.from_tuples([("a", 1), ("b", 2), ("b", 3)], names=["x", "y"]),
    "nameless levels": pd.MultiIndex.from_tuples([("a", 1), ("b", 2), ("b", 3)]),
    "name of a column": pd.Index([3, 4, 5], name="v"),
}
COLUMNS = {
    "numbers": pd.Index([5, 6]),
    "range": pd.RangeIndex(2),
    "dates": pd.date_range("2020", periods=2),
    "named": pd.Index(["a", "b"], name="q"),
    "one missing": pd.Index(["a", None]),
    "levels": pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_pandas_frame(cache: Cache, name: str) -> None:
    frame = pd.DataFrame(FRAMES[name])
    assert_pandas_equal(frame, stored(cache, frame, "pandas"))
    assert_pandas_equal(frame.iloc[:0], stored(cache, frame.iloc[:0], "pandas"))


@pytest.mark.parametrize("name", INDEXES)
def test_pandas_index(cache: Cache, name: str) -> None:
    frame = pd.DataFrame({"v": N, "o": [[1], None, []]}, index=INDEXES[name])
    assert_pandas_equal(frame, stored(cache, frame, "pandas"))


@pytest.mark.parametrize("name", COLUMNS)
def test_pandas_column_labels(cache: Cache, name: str) -> None:
    frame = pd.DataFrame([[1, 2.5]], columns=COLUMNS[name])
    frame = frame.astype({frame.columns[0]: object})
    assert_pandas_equal(frame, stored(cache, frame, "pandas"))


def test_pandas_attributes_and_empty_frames(cache: Cache) -> None:
    frame = pd.DataFrame({"a": N})
    frame.attrs = {"x": 1, "y": ["a", None], "z": {"q": 1.5}}
    for value in (frame, pd.DataFrame(), pd.DataFrame(columns=["a", "b"]), pd.DataFrame(index=["a", "b"])):
        assert_pandas_equal(value, stored(cache, value, "pandas"))


REFUSED = {
    "'a'.*dict": {"a": [{"a": 1}, {"b": 2}]},
    "'b'.*nan": {"a": [1, 2], "b": pd.Series(["a", np.nan], dtype=object)},
    "'mixed'": {"mixed": pd.Series(["a", 1], dtype=object)},
    "'bools'": {"bools": pd.Series([True, 2], dtype=object)},
    "'ints'.*int": {"ints": pd.Series([1, 2.5], dtype=object)},
    "'stamp'": {"stamp": pd.Series([pd.Timestamp(2020, 1, 1)], dtype=object)},
    "'tuple'": {"tuple": [(1, 2)]},
    "'set'": {"set": [{1, 2}]},
    "'array'": {"array": [np.array([1, 2])]},
    "'thing'": {"thing": [object()]},
    "'big'": {"big": [2**70]},
    "'complex'": {"complex": [1j]},
    "'sparse'": {"sparse": pd.arrays.SparseArray([0, 1])},
    "'cut'": {"cut": pd.cut([1, 2, 3], 2)},
    "'surrogate'": {"surrogate": pd.Series(["\ud800"], dtype=object)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_pandas_columns_that_would_change_are_refused_by_name(cache: Cache, message: str) -> None:
    with pytest.raises(InvalidDataError, match=message):
        cache.write(KEY, pd.DataFrame(REFUSED[message]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["a", "a"], "two columns are called 'a'"),
        (["1", 1], "several types"),
        ([True, False], "column labels"),
        (pd.Index([("a", 1), ("b", 2)], tupleize_cols=False), "several types"),
        (pd.Index(["a", "b"], name=7), "called 7"),
    ],
)
def test_pandas_labels_that_would_change_are_refused(cache: Cache, columns: Any, message: str) -> None:
    with pytest.raises(InvalidDataError, match=message):
        cache.write(KEY, pd.DataFrame([[1, 2]], columns=columns))


def test_other_things_that_would_change_are_refused(cache: Cache) -> None:
    class Laps(pd.DataFrame):
        pass

    attributed = pd.DataFrame({"a": N})
    attributed.attrs = {"x": (1, 2)}
    for value, message in (
        (Laps({"a": [1]}), "Laps"),
        (attributed, "attrs"),
        (pd.DataFrame(index=range(5)), "without columns"),
        (pd.DataFrame({"v": [1]}, index=pd.Index(["a"], dtype=object)), "index"),
        (pd.DataFrame({"v": [1, 2]}, index=pd.Index(["a", 1], dtype=object)), "index"),
        (pd.Series([1]), "Series"),
        (pl.LazyFrame({"a": [1]}), "LazyFrame"),
        (pl.DataFrame({"thing": pl.Series([object()], dtype=pl.Object)}), "'thing'"),
        (pl.DataFrame({"wide": pl.Series([1], dtype=pl.Int128)}), "'wide'"),
        (pa.table([[1], [2]], names=["a", "a"]), "'a'"),
    ):
        with pytest.raises(InvalidDataError, match=message):
            cache.write(KEY, value)
    assert cache.info(KEY) is None


def test_polars_frame(cache: Cache) -> None:
    frame = pl.DataFrame(
        {
            "i": [1, None],
            "s": ["x", None],
            "f": [float("nan"), None],
            "b": [True, None],
            "l": [[1.5, float("nan")], None],
            "st": [{"a": 1}, None],
            "d": [dt.date(2020, 1, 1), None],
            "t": [dt.datetime(2020, 1, 1), None],
            "td": [dt.timedelta(1), None],
            "tm": [dt.time(1), None],
            "by": [b"x", None],
            "nothing": [None, None],
            "c": pl.Series(["b", None], dtype=pl.Categorical),
            "e": pl.Series(["a", None], dtype=pl.Enum(["z", "a", "b"])),
            "lc": pl.Series([["a", "b"], ["b"]], dtype=pl.List(pl.Categorical)),
            "ar": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int8, 2)),
            "m": pl.Series(["1.5", None]).cast(pl.Decimal(10, 2)),
            "z": pl.Series([dt.datetime(2020, 1, 1), None]).dt.replace_time_zone("Europe/Berlin"),
        }
    )
    for value in (frame, frame.head(0), pl.DataFrame()):
        back = stored(cache, value, "polars")
        assert_polars_equal(value, back, check_exact=True)
        assert back.schema == value.schema


def test_polars_frames_are_read_as_pandas_and_the_reverse(cache: Cache) -> None:
    columns = {"i": [1, 2], "f": [0.5, None], "s": ["x", None], "b": [True, False]}
    cache.write(KEY, pl.DataFrame(columns).with_columns(c=pl.Series(["u", None], dtype=pl.Categorical)))
    frame = cache.read(KEY, "pandas").value
    assert frame.dtypes.astype(str).to_dict() == {
        "i": "int64", "f": "float64", "s": "str", "b": "boolean", "c": "category"
    }  # fmt: skip
    assert frame["c"].tolist() == ["u", np.nan] or pd.isna(frame["c"][1])
    cache.write(KEY, pd.DataFrame(columns).assign(c=pd.Categorical(["u", None]), p=pd.period_range("2020", periods=2)))
    polars = cache.read(KEY, "polars").value
    assert polars.schema["c"] == pl.Categorical
    assert polars.drop("c", "p").to_dict(as_series=False) == columns


def test_arrow_table_keeps_types_dictionaries_and_metadata(cache: Cache) -> None:
    table = pa.table(
        {
            "d": pa.DictionaryArray.from_arrays(pa.array([2, None, 0], pa.int8()), ["z", "unused", "a"], ordered=True),
            "s": pa.array([1, 2, None], pa.timestamp("s")),
            "t": pa.array([1, 2, None], pa.time32("ms")),
            "u": pa.array([dt.date(2020, 1, 1), None, None], pa.date64()),
            "big": pa.array(["a", None, "b"], pa.large_string()),
            "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
            "h": pa.array([1.5, None, 2], pa.float16()),
        },
        metadata={"who": "me"},
    )
    table = table.replace_schema_metadata({"who": "me"}).cast(
        pa.schema([field.with_metadata({"unit": "m"}) for field in table.schema], metadata={"who": "me"})
    )
    back = stored(cache, table, "arrow")
    assert back.schema.equals(table.schema, check_metadata=True)
    assert back.equals(table)
    assert back.column("d").chunk(0).dictionary.to_pylist() == ["z", "unused", "a"]


@pytest.mark.parametrize("dataset", datasets.DATASETS.values(), ids=lambda dataset: dataset.name)
def test_datasets_have_the_same_pandas_types_whatever_the_data(cache: Cache, dataset: datasets.Dataset) -> None:
    empty = dataset.schema.empty_table()
    nulls = pa.table([pa.nulls(2, field.type) for field in dataset.schema], schema=dataset.schema)
    types = stored(cache, empty, "pandas").dtypes.astype(str)
    after = stored(cache, nulls, "pandas").dtypes.astype(str)
    integers = [field.name for field in dataset.schema if pa.types.is_integer(field.type)]
    assert types.drop(integers).to_dict() == after.drop(integers).to_dict()
    for column in dataset.columns:
        if column.type == datasets.FLAG:
            assert types[column.name] == "boolean"
        if column.type == datasets.DURATION:
            assert types[column.name] == "timedelta64[ns]"
    assert stored(cache, nulls, "arrow").equals(nulls)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@PROPERTY
@given(value=JSON)
def test_json_values(cache: Cache, value: Any) -> None:
    try:
        assert same(stored(cache, value, "json"), value)
    except InvalidDataError as error:
        assert "surrogates" in str(error)  # noqa: PT017 - one of two outcomes


@pytest.mark.parametrize(
    "value",
    [(1, 2), {1: 2}, {"a": {"b": float("nan")}}, [np.float64(1.5)], {1, 2}, b"x", dt.date(2020, 1, 1), object()],
    ids=lambda value: type(value).__name__,
)
def test_values_that_json_would_change_are_refused(cache: Cache, value: Any) -> None:
    with pytest.raises(InvalidDataError, match="value"):
        cache.write(KEY, value)


def test_a_very_deep_json_value_is_refused(cache: Cache) -> None:
    value: list[Any] = []
    for _ in range(5_000):
        value = [value]
    with pytest.raises(InvalidDataError):
        cache.write(KEY, value)


@pytest.mark.parametrize("dtype", ["object", "str", "float64", "int64", "datetime64[ns]", "bool"])
@pytest.mark.parametrize("rows", [0, 6])
def test_categories_of_which_there_is_none(cache: Cache, dtype: str, rows: int) -> None:
    of_none = pd.CategoricalDtype(pd.Index([], dtype=dtype))
    frame = pd.DataFrame({"state": pd.Series([None] * rows, dtype=of_none), "lap": range(rows)})
    assert_pandas_equal(frame, stored(cache, frame, "pandas"))
    assert_pandas_equal(frame, cache.read(KEY, "pandas").value)


def _column(values: st.SearchStrategy[Any], dtype: Any) -> st.SearchStrategy[Any]:
    return st.lists(st.none() | values, min_size=6, max_size=6).map(lambda cells: pd.Series(cells, dtype=dtype))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(lambda text: text != codec.ROW)
SERIES = st.one_of(
    _column(st.floats(), "float64"),
    _column(st.floats(width=32), "float32"),
    _column(st.integers(-(2**63), 2**63 - 1), "Int64"),
    _column(st.integers(0, 255), "UInt8"),
    _column(st.booleans(), "boolean"),
    _column(TEXT, "str"),
    _column(TEXT, "string"),
    _column(TEXT, "category"),
    _column(st.integers(-(2**62), 2**62), "timedelta64[ns]"),
    _column(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)), "datetime64[us]"),
    _column(st.lists(st.integers(-9, 9), max_size=3), object),
)


@PROPERTY
@given(
    columns=st.dictionaries(TEXT, SERIES, min_size=1, max_size=4),
    parts=st.lists(st.sampled_from("abc"), min_size=6, max_size=6),
)
def test_any_frame_whole_and_in_parts(cache: Cache, columns: dict[str, pd.Series], parts: list[str]) -> None:
    frame = pd.DataFrame(columns | {"by": parts})
    assert_pandas_equal(frame, stored(cache, frame, "pandas"))
    assert_pandas_equal(frame, stored(cache, frame, "pandas", part_by="by"))
    for part in dict.fromkeys(parts):
        expected = frame[frame["by"] == part].reset_index(drop=True)
        for _ in range(2):
            assert_pandas_equal(expected, cache.read(KEY, "pandas", parts=[part]).value)
            cache.write(KEY, frame, part_by="by")  # the second time out of the whole table in memory
