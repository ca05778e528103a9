"""Whatever the JSON, tables or InvalidDataError; and values equal to a slow reading of them in plain Python."""

import json
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tif1_pipeline.datasets import CORNERS, DRIVERS, LAPS, MESSAGES, SCHEDULE, TELEMETRY, WEATHER, Column, Dataset
from tif1_pipeline.decode import (
    TelemetryBuilder,
    concat_laps,
    decode_corners,
    decode_driver_laps,
    decode_drivers,
    decode_messages,
    decode_schedule,
    decode_session_laps,
    decode_weather,
)
from tif1_pipeline.exceptions import InvalidDataError

relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def decode_telemetry(body: bytes) -> pa.Table:
    builder = TelemetryBuilder()
    builder.add("VER", 1, body)
    return builder.table()


DECODERS: dict[Callable[[bytes], pa.Table], Dataset] = {
    decode_session_laps: LAPS,
    lambda body: decode_driver_laps(body, "VER", "Haas F1 Team", "1"): LAPS,
    decode_telemetry: TELEMETRY,
    decode_weather: WEATHER,
    decode_messages: MESSAGES,
    decode_drivers: DRIVERS,
    decode_corners: CORNERS,
    decode_schedule: SCHEDULE,
}
KNOWN_NAMES = sorted(
    {name for dataset in DECODERS.values() for name in dataset.by_source} | {"tel", "drivers", "dataKey"}
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from(["None", "", "NaT", "1.0", "2025-03-16T04:55:00", "+11:00", "True", "VER"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from([*KNOWN_NAMES, "0", "1", "odd"]) | st.text(), inner, max_size=6),
    ),
    max_leaves=30,
)


def check(decode: Callable[[bytes], pa.Table], body: bytes) -> None:
    dataset = DECODERS[decode]
    try:
        table = decode(body)
    except InvalidDataError:
        return
    table.validate(full=True)
    fields = pa.schema(list(table.schema)[: len(dataset.columns)], metadata=table.schema.metadata)
    assert fields.equals(dataset.schema, check_metadata=True)
    if dataset is LAPS:
        assert concat_laps([table, table]).num_rows == 2 * table.num_rows


@relaxed
@given(decode=st.sampled_from(list(DECODERS)), value=JSON)
def test_arbitrary_json_is_a_table_or_invalid(decode: Callable[[bytes], pa.Table], value: object):
    check(decode, json.dumps(value).encode())


@relaxed
@given(decode=st.sampled_from(list(DECODERS)), body=st.binary() | st.text().map(str.encode))
def test_arbitrary_bytes_are_invalid(decode: Callable[[bytes], pa.Table], body: bytes):
    check(decode, body)


@relaxed
@given(data=st.data(), decode=st.sampled_from(list(DECODERS)), rows=st.integers(0, 4))
def test_arbitrary_values_in_known_columns_are_a_table_or_invalid(data: st.DataObject, decode: Any, rows: int):
    dataset = DECODERS[decode]
    names = [*(name for name in dataset.by_source), "odd"]
    chosen = {c.source for c in dataset.columns if c.required} | set(data.draw(st.lists(st.sampled_from(names))))
    columns = {name: data.draw(st.lists(SCALARS, min_size=rows, max_size=rows)) for name in names if name in chosen}
    if dataset is DRIVERS:
        columns = {"drivers": [{name: values[row] for name, values in columns.items()} for row in range(rows)]}
    check(decode, json.dumps({"tel": columns} if dataset is TELEMETRY else columns).encode())


@relaxed
@given(
    decode=st.sampled_from([decode_session_laps, decode_telemetry, decode_schedule]),
    at=st.integers(0, 400),
    junk=st.binary(max_size=4),
)
def test_damaged_files_are_a_table_or_invalid(decode: Callable[[bytes], pa.Table], at: int, junk: bytes):
    columns = {
        "drv": ["VER", "HAM"],
        "lap": [1.0, 2.0],
        "time": [90.5, "None"],
        "round_number": [1, 2],
        "event_name": ["Monaco", "Monaco"],
        "gmt_offset": ["+02:00", None],
    }
    body = json.dumps(columns | {"tel": {"time": [0.1, 0.2], "x": [1.5, 2.5]}}).encode()
    at %= len(body)
    check(decode, body[:at] + junk + body[at + len(junk) :])
    check(decode, body[:at])


# Values of a column as they may be written, each with what it means.
MISSING = st.sampled_from([("None", None), (None, None), (math.nan, None), ("NaT", None)])
REALS = st.floats(-1e6, 1e6).map(lambda value: (value, value))
DECIMALS = st.decimals(-100_000, 100_000, places=6).map(lambda value: (float(value), value))
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(lambda value: (value.isoformat(), value))


def written(column: Column) -> st.SearchStrategy[tuple[object, object]]:
    kind = column.type
    if pa.types.is_duration(kind):
        values = DECIMALS | DECIMALS.map(lambda pair: (str(pair[1]), pair[1]))
    elif pa.types.is_timestamp(kind):
        values = MOMENTS
    elif pa.types.is_boolean(kind):
        values = st.sampled_from(
            [(True, True), (False, False), (1, True), (0, False), ("True", True), ("False", False), (1.0, True)]
        )
    elif pa.types.is_integer(kind):
        values = st.integers(-1000, 1000).flatmap(
            lambda value: st.sampled_from([(value, value), (float(value), value), (str(value), value)])
        )
    elif pa.types.is_floating(kind):
        whole = st.integers(-(10**6), 10**6).map(lambda value: (value, float(value)))
        values = REALS | whole | REALS.map(lambda pair: (repr(pair[0]), pair[1]))
    else:
        text = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda value: value not in ("nan", "NaN"))
        values = text.map(lambda value: (value, None if value in ("None", "NaT") else value))
        values |= st.integers(-99, 99).map(lambda value: (value, str(value)))
    return values | MISSING


def meaning(column: Column, scalar: pa.Scalar) -> object:
    if not scalar.is_valid:
        return None
    if pa.types.is_duration(column.type):
        return Decimal(scalar.value) / 10**9
    if pa.types.is_timestamp(column.type):
        assert scalar.value % 1000 == 0
        return datetime(1970, 1, 1) + timedelta(microseconds=scalar.value // 1000)
    return scalar.as_py()


@relaxed
@given(data=st.data(), decode=st.sampled_from([decode_session_laps, decode_weather, decode_messages, decode_corners]))
def test_values_are_those_of_a_slow_reading(data: st.DataObject, decode: Callable[[bytes], pa.Table]):
    dataset = DECODERS[decode]
    rows = data.draw(st.integers(1, 5))
    columns = [column for column in dataset.columns if column.source and (column.required or data.draw(st.booleans()))]
    pairs = {column: data.draw(st.lists(written(column), min_size=rows, max_size=rows)) for column in columns}
    body = json.dumps({column.source: [text for text, _ in pairs[column]] for column in columns}).encode()
    table = decode(body)
    for column in columns:
        assert [meaning(column, scalar) for scalar in table[column.name]] == [value for _, value in pairs[column]]


@relaxed
@given(data=st.data(), rows=st.integers(0, 5))
def test_telemetry_is_that_of_a_slow_reading(data: st.DataObject, rows: int):
    columns = [
        column for column in TELEMETRY.columns if column.source and (column.required or data.draw(st.booleans()))
    ]
    pairs = {column: data.draw(st.lists(written(column), min_size=rows, max_size=rows)) for column in columns}
    builder = TelemetryBuilder("float64")
    builder.add("VER", 1, json.dumps({"tel": {c.source: [text for text, _ in pairs[c]] for c in columns}}).encode())
    table = builder.table()
    for column in columns:
        assert [meaning(column, scalar) for scalar in table[column.name]] == [value for _, value in pairs[column]]
