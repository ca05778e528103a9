"""The files as published, where they are at hand: every value equal to what the standard library reads."""

import json
import math
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.datasets import LAPS, SCHEDULE, TELEMETRY
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

EVENT = "TracingInsights/2025@main/Australian Grand Prix"
SESSIONS = ["Practice 1", "Qualifying", "Race"]


@pytest.fixture(scope="module")
def event(real_folder: Path) -> Path:
    return real_folder / EVENT


def telemetry_files(session: Path) -> list[tuple[str, int, Path]]:
    return sorted((path.parent.name, int(path.name.split("_")[0]), path) for path in session.glob("*/*_tel.json"))


def collect(session: Path, dtype: str = "float32") -> pa.Table:
    builder = TelemetryBuilder(dtype, f"2025-Australian Grand Prix-{session.name}")
    for driver, lap, path in telemetry_files(session):
        assert builder.add(driver, lap, path.read_bytes()) > 0
    return builder.table()


@pytest.mark.parametrize(("session", "rows", "drivers"), [("Qualifying", 203, 19), ("Race", 927, 20)])
def test_session_laps(event: Path, session: str, rows: int, drivers: int):
    body = (event / session / "session_laptimes.json").read_bytes()
    table, published = decode_session_laps(body), json.loads(body)
    table.validate(full=True)
    assert table.schema.equals(LAPS.schema, check_metadata=True)
    assert table.num_rows == rows
    assert len(table["Driver"].unique()) == drivers
    times = [None if value == "None" else value for value in published["time"]]
    assert table["LapTimeSeconds"].to_pylist() == times
    assert table["LapTime"].cast(pa.int64()).to_pylist() == [value and round(value * 1000) * 10**6 for value in times]
    assert table["LapNumber"].to_pylist() == published["lap"]
    assert table["Compound"].to_pylist() == [
        None if text in ("None", "nan") else text for text in published["compound"]
    ]
    assert table["FreshTyre"].to_pylist() == published["fresh"]


@pytest.mark.parametrize("session", SESSIONS)
def test_driver_laps(event: Path, session: str):
    tables, times = [], []
    for path in sorted((event / session).glob("*/laptimes.json")):
        tables.append(decode_driver_laps(path.read_bytes(), path.parent.name))
        times += [value if isinstance(value, float) else math.nan for value in json.loads(path.read_bytes())["time"]]
    table = concat_laps(tables)
    table.validate(full=True)
    # Who set no lap has a file of empty lists.
    assert len(table["Driver"].chunk(0).dictionary) == sum(laps.num_rows > 0 for laps in tables)
    found = table["LapTimeSeconds"]
    assert found.null_count == sum(map(math.isnan, times))
    assert [value for value in found.to_pylist() if value is not None] == [value for value in times if value == value]


def test_race_telemetry_equals_the_files(event: Path):
    table = collect(event / "Race")
    table.validate(full=True)
    assert table.schema.equals(TELEMETRY.schema, check_metadata=True)
    files = telemetry_files(event / "Race")
    assert len(files) == 927
    columns = {name: table[name].combine_chunks() for name in table.schema.names}
    at, with_nan = 0, 0
    for driver, lap, path in files:
        body = path.read_bytes()
        with_nan += b"NaN" in body
        tel = json.loads(body)["tel"]
        rows = len(tel["time"])
        assert columns["Driver"][at].as_py() == columns["Driver"][at + rows - 1].as_py() == driver
        assert columns["LapNumber"][at].as_py() == columns["LapNumber"][at + rows - 1].as_py() == lap
        for source, column in TELEMETRY.by_source.items():
            found = columns[column.name].slice(at, rows)
            if source not in tel:
                assert found.null_count == rows
            elif source == "time":
                expected = np.rint(np.array(tel[source]) * 1000).astype(np.int64) * 10**6
                assert np.array_equal(found.view(pa.int64()).to_numpy(), expected)
            elif found.null_count == 0:
                values = np.array(tel[source], dtype=np.float32)
                assert np.array_equal(found.to_numpy(zero_copy_only=False).astype(np.float32), values)
            else:
                values = [
                    None if value != value else struct.unpack("f", struct.pack("f", value))[0] for value in tel[source]
                ]
                assert found.to_pylist() == values
        at += rows
    assert at == table.num_rows == 751_872
    assert with_nan == 1


def test_qualifying_telemetry_includes_laps_that_the_lap_table_lacks(event: Path):
    table = collect(event / "Qualifying", "float64")
    table.validate(full=True)
    laps = Counter(zip(table["Driver"].to_pylist(), table["LapNumber"].to_pylist(), strict=True))
    assert len(laps) == 297
    speeds = [
        value
        for _, _, path in telemetry_files(event / "Qualifying")
        for value in json.loads(path.read_bytes())["tel"]["speed"]
    ]
    assert table["Speed"].to_pylist() == speeds


@pytest.mark.parametrize("session", SESSIONS)
def test_small_files(event: Path, session: str):
    read = {name: (event / session / f"{name}.json").read_bytes() for name in ("weather", "rcm", "drivers", "corners")}
    weather, messages = decode_weather(read["weather"]), decode_messages(read["rcm"])
    assert weather["AirTemp"].to_pylist() == json.loads(read["weather"])["wAT"]
    assert messages["Message"].to_pylist() == json.loads(read["rcm"])["msg"]
    assert messages["Time"].null_count == 0
    drivers, corners = decode_drivers(read["drivers"]), decode_corners(read["corners"])
    assert drivers.num_rows == 20
    assert drivers["Driver"].null_count == 0
    assert corners["Distance"].to_pylist() == json.loads(read["corners"])["Distance"]


@pytest.mark.parametrize("year", range(2018, 2027))
def test_schedules(real_folder: Path, year: int):
    body = (real_folder / f"theOehrly/f1schedule@master/schedule_{year}.json").read_bytes()
    table, published = decode_schedule(body), json.loads(body)
    table.validate(full=True)
    assert table.schema.equals(SCHEDULE.schema, check_metadata=True)
    assert table["RoundNumber"].to_pylist() == list(published["round_number"].values())
    names = table["EventName"].to_pylist()
    assert len(set(names)) == len(names)
    if year == 2026:
        assert names[:3] == ["Pre-Season Testing 1", "Pre-Season Testing 2", "Australian Grand Prix"]
    else:
        assert names == list(published["event_name"].values())
    for number in range(1, 6):
        dates = [date.replace("T", " ") if date else None for date in published[f"session{number}_date"].values()]
        found = table[f"Session{number}Date"].to_pylist()
        assert [date and str(date) for date in found] == dates
        assert table[f"Session{number}DateUtc"].null_count == table[f"Session{number}Date"].null_count
