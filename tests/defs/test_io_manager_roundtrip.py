"""Property: a frame that is stored comes back as it was, or is refused."""

import contextlib
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import polars.testing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tif1_pipeline.cache import Cache
from tif1_pipeline.defs.io_manager import CacheIOManager

ROWS = 6
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
NANOSECONDS = st.integers(-(2**55), 2**55)


def column(values: st.SearchStrategy[Any], make: Any, missing: Any = None) -> st.SearchStrategy[Any]:
    with_gaps = values if missing is ... else values | st.just(missing)
    return st.lists(with_gaps, min_size=ROWS, max_size=ROWS).map(make)


PANDAS_COLUMNS = st.one_of(
    column(st.integers(-(2**63), 2**63 - 1), lambda v: pd.Series(v, dtype="int64"), ...),
    column(st.integers(0, 255), lambda v: pd.Series(v, dtype="uint8"), ...),
    column(st.integers(-(2**31), 2**31 - 1), lambda v: pd.array(v, dtype="Int32"), pd.NA),
    column(st.floats(), lambda v: pd.Series(v, dtype="float64"), ...),
    column(st.floats(width=32), lambda v: pd.Series(v, dtype="float32"), ...),
    column(st.booleans(), lambda v: pd.Series(v, dtype="bool"), ...),
    column(st.booleans(), lambda v: pd.array(v, dtype="boolean"), pd.NA),
    column(TEXT, lambda v: pd.Series(v, dtype="str"), None),
    column(TEXT, lambda v: pd.array(v, dtype="string"), pd.NA),
    column(TEXT, lambda v: pd.Categorical(v), None),
    column(TEXT, lambda v: pd.Categorical(v, categories=sorted({*v, "unused"} - {None}), ordered=True), None),
    column(NANOSECONDS, lambda v: pd.Series(v, dtype="timedelta64[ns]"), pd.NaT),
    column(NANOSECONDS, lambda v: pd.Series(v, dtype="datetime64[ns]"), pd.NaT),
    column(NANOSECONDS, lambda v: pd.Series(v, dtype="datetime64[ns]").dt.tz_localize("UTC"), pd.NaT),
    column(
        NANOSECONDS,
        lambda v: pd.Series(v, dtype="datetime64[ns]").dt.tz_localize("UTC").dt.tz_convert("Australia/Melbourne"),
        pd.NaT,
    ),
    column(st.lists(st.integers(-9, 9), min_size=1, max_size=3), lambda v: pd.Series(v, dtype=object), ...),
)

INDEXES = st.one_of(
    st.just(None),
    st.just(pd.RangeIndex(5, 5 + 3 * ROWS, 3, name="step")),
    st.lists(TEXT, min_size=ROWS, max_size=ROWS).map(lambda v: pd.Index(v, name="label", dtype="str")),
    st.just(pd.MultiIndex.from_product([["x", "y"], [1, 2, 3]], names=["one", "two"])),
    st.just(pd.date_range("2024-01-01", periods=ROWS, freq="h", tz="UTC", name="when")),
)


@st.composite
def pandas_frames(draw: Any) -> pd.DataFrame:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    frame = pd.DataFrame({name: draw(PANDAS_COLUMNS) for name in names}, columns=pd.Index(names, dtype="str"))
    index = draw(INDEXES)
    if index is not None and not set(index.names) & set(names):
        frame.index = index
    return frame.iloc[: draw(st.sampled_from([0, 1, ROWS]))]


class Passage:
    """Stores a value and loads it again. The contexts serve many examples: each opens an instance of its own."""

    def __init__(self, io_manager: CacheIOManager, cache: Cache, type_: type) -> None:
        self.io_manager = io_manager
        self.cache = cache
        kind = dg.PythonObjectDagsterType(type_)
        self.contexts = contextlib.ExitStack()
        self.output = self.contexts.enter_context(dg.build_output_context(asset_key="value", dagster_type=kind))
        self.input = self.contexts.enter_context(dg.build_input_context(asset_key="value", dagster_type=kind))

    def __call__(self, value: Any, *, warm: bool) -> Any:
        self.io_manager.handle_output(self.output, value)
        self.output.consume_logged_metadata()
        if not warm:
            self.cache.clear_memory()
        return self.io_manager.load_input(self.input)


@pytest.fixture
def passage(request: pytest.FixtureRequest, io_manager: CacheIOManager, cache: Cache) -> Iterator[Passage]:
    passage = Passage(io_manager, cache, request.param)
    with passage.contexts:
        yield passage


@pytest.mark.parametrize("passage", [pd.DataFrame], indirect=True)
@SETTINGS
@given(frame=pandas_frames(), warm=st.booleans())
def test_pandas_frames_come_back(passage, frame, warm):
    pd.testing.assert_frame_equal(passage(frame, warm=warm), frame, check_freq=False)


POLARS_TYPES = [
    (pl.Int8, st.integers(-128, 127)),
    (pl.UInt64, st.integers(0, 2**64 - 1)),
    (pl.Float32, st.floats(width=32)),
    (pl.Float64, st.floats()),
    (pl.Boolean, st.booleans()),
    (pl.String, TEXT),
    (pl.Categorical, TEXT),
    (pl.Duration("ns"), NANOSECONDS),
    (pl.Duration("us"), NANOSECONDS),
    (pl.Datetime("ms", "Europe/London"), st.integers(0, 10**12)),
    (pl.Datetime("ns"), NANOSECONDS),
    (pl.Date, st.integers(-10_000, 100_000)),
    (pl.List(pl.Int64), st.lists(st.integers(-9, 9), max_size=3)),
    (pl.Struct({"x": pl.Int64, "y": pl.String}), st.fixed_dictionaries({"x": st.integers(-9, 9), "y": TEXT})),
    (pl.Binary, st.binary(max_size=5)),
]


@st.composite
def polars_frames(draw: Any) -> pl.DataFrame:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    columns = []
    for name in names:
        dtype, values = draw(st.sampled_from(POLARS_TYPES))
        data = draw(st.lists(values | st.none(), min_size=ROWS, max_size=ROWS))
        if isinstance(dtype, pl.Duration | pl.Datetime) or dtype is pl.Date:
            columns.append(pl.Series(name, data, pl.Int32 if dtype is pl.Date else pl.Int64).cast(dtype))
        else:
            columns.append(pl.Series(name, data, dtype))
    return pl.DataFrame(columns)[: draw(st.sampled_from([0, 1, ROWS]))]


@pytest.mark.parametrize("passage", [pl.DataFrame], indirect=True)
@SETTINGS
@given(frame=polars_frames(), warm=st.booleans())
def test_polars_frames_come_back(passage, frame, warm):
    polars.testing.assert_frame_equal(passage(frame, warm=warm), frame, categorical_as_str=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("passage", [dict], indirect=True)
@SETTINGS
@given(value=JSON, warm=st.booleans())
def test_json_values_come_back(passage, value, warm):
    assert passage({"value": value}, warm=warm) == {"value": value}


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@settings(SETTINGS, max_examples=6)
@given(keys=st.lists(KEYS, min_size=2, max_size=3, unique=True), path=st.lists(KEYS, min_size=1, max_size=3))
def test_partition_keys_of_any_characters_stay_apart(io_manager, keys, path):
    # Without their definition, contexts built by hand take any partition.
    for key in keys:
        only = dg.PartitionKeyRange(key, key)
        with dg.build_output_context(asset_key=dg.AssetKey(path), asset_partition_key_range=only) as context:
            io_manager.handle_output(context, {"value": key})
    for key in keys:
        only = dg.PartitionKeyRange(key, key)
        with dg.build_input_context(asset_key=dg.AssetKey(path), asset_partition_key_range=only) as context:
            assert io_manager.load_input(context) == {"value": key}
