"""Weather, race control messages, drivers and corners."""

import json
from collections.abc import Callable
from functools import partial

import pyarrow as pa
import pytest

from tif1_pipeline.datasets import CORNERS, DRIVERS, LAPS, MESSAGES, SCHEDULE, WEATHER, Dataset
from tif1_pipeline.decode import (
    decode_corners,
    decode_driver_laps,
    decode_drivers,
    decode_messages,
    decode_schedule,
    decode_session_laps,
    decode_weather,
)
from tif1_pipeline.exceptions import InvalidDataError


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def test_weather():
    table = decode_weather(
        encode({"wT": [18.586, 78.586], "wAT": [20, "None"], "wR": [0, 1], "wWD": [235, 0], "dew": [1.5, 2.5]})
    )
    assert table.schema.names == [*WEATHER.schema.names, "dew"]
    assert table["Time"].cast(pa.int64()).to_pylist() == [18_586_000_000, 78_586_000_000]
    assert table["AirTemp"].to_pylist() == [20.0, None]
    assert table["Rainfall"].to_pylist() == [False, True]
    assert table["Pressure"].null_count == 2


def test_messages():
    table = decode_messages(
        encode(
            {
                "time": ["2025-03-16T04:00:01.000000000", "2025-03-16T04:01:01.5"],
                "cat": ["Flag", "Other"],
                "msg": ["CLEAR IN TRACK SECTOR 10", ""],
                "sector": [10, "None"],
                "dNum": ["None", 22],
                "lap": [1, 2.0],
            }
        )
    )
    assert table.schema.equals(MESSAGES.schema, check_metadata=True)
    assert table["Time"].cast(pa.int64()).to_pylist() == [1742097601 * 10**9, 1742097661 * 10**9 + 500_000_000]
    assert table["Message"].to_pylist() == ["CLEAR IN TRACK SECTOR 10", ""]
    assert table["Sector"].to_pylist() == [10.0, None]
    assert table["RacingNumber"].to_pylist() == [None, "22"]
    assert table["Lap"].to_pylist() == [1.0, 2.0]


def test_drivers_of_old_and_new_seasons():
    table = decode_drivers(
        encode(
            {
                "drivers": [
                    {"driver": "VER", "team": "Red Bull Racing"},
                    {"driver": "HAD", "team": "Racing Bulls", "dn": 6, "fn": "Isack", "tc": "6692FF", "seat": 2},
                ]
            }
        )
    )
    assert table.schema.names == [*DRIVERS.schema.names, "seat"]
    assert table["Driver"].to_pylist() == ["VER", "HAD"]
    assert table["DriverNumber"].to_pylist() == [None, "6"]
    assert table["seat"].to_pylist() == [None, 2]


def test_no_drivers_are_an_empty_table():
    assert decode_drivers(b'{"drivers": []}').schema.equals(DRIVERS.schema, check_metadata=True)


@pytest.mark.parametrize(
    "drivers", [None, {}, {"driver": ["VER"]}, "VER", ["VER"], [{"driver": "VER"}, None], [{"team": "Haas"}], [{}]]
)
def test_other_shapes_of_drivers_are_invalid(drivers: object):
    with pytest.raises(InvalidDataError, match=r"^drivers\.json: "):
        decode_drivers(encode({"drivers": drivers}))


def test_corners_with_one_rotation_for_all():
    table = decode_corners(
        encode({"CornerNumber": [1, 2.0], "X": [-3650.594482421875, 7], "Rotation": 44.0, "Letter": ["", "A"]})
    )
    assert table.schema.names == [*CORNERS.schema.names, "Letter"]
    assert table["CornerNumber"].to_pylist() == [1, 2]
    assert table["X"].to_pylist() == [-3650.594482421875, 7.0]
    assert table["Rotation"].to_pylist() == [44.0, 44.0]
    assert table["Letter"].to_pylist() == ["", "A"]


@pytest.mark.parametrize("number", [1.5, "1a", 2.0**63, -(2.0**64), 1e300])
def test_corner_numbers_that_are_no_whole_numbers_are_invalid(number: object):
    with pytest.raises(InvalidDataError, match="'CornerNumber'"):
        decode_corners(encode({"CornerNumber": [number, None]}))


def test_corners_without_numbers_are_null_there():
    assert decode_corners(encode({"CornerNumber": [1, "None"]}))["CornerNumber"].to_pylist() == [1, None]


@pytest.mark.parametrize(
    ("decode", "file", "columns"),
    [
        (decode_weather, "weather.json", {"wAT": [20.0]}),
        (decode_messages, "rcm.json", {"msg": ["DRS ENABLED"]}),
        (decode_corners, "corners.json", {"X": [1.0]}),
    ],
)
def test_errors_name_the_file(decode: Callable[[bytes], pa.Table], file: str, columns: dict[str, list[object]]):
    with pytest.raises(InvalidDataError, match=f"{file}: required columns are missing") as error:
        decode(encode(columns))
    assert error.value.details["file"] == file


@pytest.mark.parametrize("value", [5, None, "VER", {}, True])
@pytest.mark.parametrize(
    ("decode", "dataset"),
    [
        (decode_weather, WEATHER),
        (decode_messages, MESSAGES),
        (decode_corners, CORNERS),
        (decode_schedule, SCHEDULE),
        (decode_session_laps, LAPS),
        (partial(decode_driver_laps, driver="VER"), LAPS),
    ],
)
def test_a_file_of_single_values_is_no_table(decode: Callable[[bytes], pa.Table], dataset: Dataset, value: object):
    """A truncated or mistaken answer like ``{"wT": 5}`` must not be stored as a table of one row."""
    with pytest.raises(InvalidDataError, match="columns were expected, but each value is a single one"):
        decode(encode(dict.fromkeys(dataset.by_source, value)))
