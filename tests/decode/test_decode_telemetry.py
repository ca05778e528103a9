"""Telemetry: both paths to the same values, and one table out of many files."""

import json
import random
import struct
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tif1_pipeline.datasets import TELEMETRY
from tif1_pipeline.decode import TelemetryBuilder, telemetry, telemetry_schema
from tif1_pipeline.exceptions import InvalidDataError


def encode(tel: Any) -> bytes:
    return json.dumps({"tel": tel}).encode()


def one(tel: dict[str, Any], dtype: telemetry.Dtype = "float32") -> pa.Table:
    """Decode one lap of these channels, and check that the tolerant path reads the same."""
    body = encode(tel)
    builder, tolerant = TelemetryBuilder(dtype), TelemetryBuilder(dtype)
    tolerant._parse = lambda body, _: json.loads(body)["tel"]  # type: ignore[method-assign]
    rows = builder.add("VER", 1, body)
    assert tolerant.add("VER", 1, body) == rows
    table = builder.table()
    table.validate(full=True)
    assert table.num_rows == rows
    assert table.equals(tolerant.table())
    return table


def lap_of(samples: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    floats = [c.source for c in TELEMETRY.columns if c.source and c.type == pa.float32()]
    tel: dict[str, Any] = {source: [rng.uniform(-1e4, 1e4) for _ in range(samples)] for source in floats}
    tel["time"] = [round(0.12 * at + rng.random() / 10, 3) for at in range(samples)]
    tel["gear"] = [rng.randint(0, 8) for _ in range(samples)]
    tel["drs"] = [rng.choice([0, 1, 8, 10, 12, 14]) for _ in range(samples)]
    tel["brake"] = [rng.choice([0, 1]) for _ in range(samples)]
    tel["driver_ahead"] = [rng.choice(["4", "44", "None"]) for _ in range(samples)]
    return tel


def single(value: float) -> float:
    """Return the value as float32, by another way than the decoder's."""
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_value_is_the_files(dtype: telemetry.Dtype):
    builder = TelemetryBuilder(dtype)
    published = {("VER", 1): lap_of(301, 1), ("VER", 2): lap_of(1, 2), ("HAM", 1): lap_of(99, 3)}
    for (driver, lap), tel in published.items():
        assert builder.add(driver, lap, encode(tel)) == len(tel["time"])
    table = builder.table()
    table.validate(full=True)
    assert table.schema.equals(telemetry_schema(dtype), check_metadata=True)
    joined = {name: [value for tel in published.values() for value in tel[name]] for name in published["VER", 1]}
    exact = float if dtype == "float64" else single
    for source, values in joined.items():
        column = TELEMETRY.by_source[source]
        found = table[column.name]
        if source == "time":
            assert found.cast(pa.int64()).to_pylist() == [round(value * 1000) * 10**6 for value in values]
        elif source == "driver_ahead":
            assert found.to_pylist() == [None if value == "None" else value for value in values]
        elif source == "brake":
            assert found.to_pylist() == [value == 1 for value in values]
        elif source in ("gear", "drs"):
            assert found.to_pylist() == values
        else:
            assert found.to_pylist() == [exact(value) for value in values]
    assert table["Driver"].to_pylist() == ["VER"] * 302 + ["HAM"] * 99
    assert table["LapNumber"].to_pylist() == [1] * 301 + [2] + [1] * 99


def test_laps_are_sorted_and_drivers_in_order_of_first_appearance():
    builder = TelemetryBuilder()
    for driver, lap in [("PIA", 10), ("VER", 2), ("PIA", 9), ("VER", 1), ("ALB", 1)]:
        builder.add(driver, lap, encode({"time": [float(lap)]}))
    table = builder.table()
    assert list(zip(table["Driver"].to_pylist(), table["LapNumber"].to_pylist(), strict=True)) == [
        ("PIA", 9),
        ("PIA", 10),
        ("VER", 1),
        ("VER", 2),
        ("ALB", 1),
    ]
    given = builder.table(["VER", "HAM", "ALB"])["Driver"].combine_chunks()
    assert given.dictionary.to_pylist() == ["VER", "ALB", "PIA"]
    assert given.to_pylist() == ["VER", "VER", "ALB", "PIA", "PIA"]


def test_nothing_is_an_empty_table():
    for dtype in ("float32", "float64"):
        table = TelemetryBuilder(dtype).table()
        assert table.num_rows == 0
        assert table.schema.equals(telemetry_schema(dtype), check_metadata=True)


def test_a_lap_without_samples_is_no_rows():
    table = one({"time": [], "speed": [], "driver_ahead": []})
    assert table.num_rows == 0
    assert table.schema.equals(TELEMETRY.schema, check_metadata=True)


def test_a_lap_added_again_is_replaced():
    builder = TelemetryBuilder()
    builder.add("VER", 1, encode({"time": [0.0, 0.1]}))
    builder.add("VER", 1, encode({"time": [0.5]}))
    assert builder.table()["Time"].cast(pa.int64()).to_pylist() == [500_000_000]


def test_channels_that_a_file_lacks_are_null():
    builder = TelemetryBuilder()
    builder.add("VER", 1, encode({"time": [0.0], "gear": [3], "brake": [1], "driver_ahead": ["4"]}))
    builder.add("VER", 2, encode({"time": [0.0], "speed": [200.5]}))
    table = builder.table()
    assert table["nGear"].to_pylist() == [3, None]
    assert table["Brake"].to_pylist() == [True, None]
    assert table["Speed"].to_pylist() == [None, 200.5]
    assert table["DriverAhead"].to_pylist() == ["4", None]
    assert table["Z"].to_pylist() == [None, None]


@pytest.mark.parametrize("missing", ["None", None, "", "nan", "NaN"])
def test_every_spelling_of_missing_is_null(missing: object):
    table = one({"time": [missing, 0.1], "rpm": [1.5, missing], "gear": [missing, 2], "brake": [1, missing]})
    assert table["Time"].cast(pa.int64()).to_pylist() == [None, 100_000_000]
    assert table["RPM"].to_pylist() == [1.5, None]
    assert table["nGear"].to_pylist() == [None, 2]
    assert table["Brake"].to_pylist() == [True, None]


def test_bare_nan_and_infinity_are_null():
    body = b'{"tel": {"time": [0.0, NaN], "x": [NaN, -Infinity], "y": [1e999, 2], "dataKey": "2025-A-Race-VER-1"}}'
    builder = TelemetryBuilder()
    assert builder.add("VER", 1, body) == 2
    table = builder.table()
    assert table["Time"].to_pylist()[1] is None
    assert table["X"].to_pylist() == [None, None]
    assert table["Y"].to_pylist() == [None, 2.0]


def test_whole_channels_of_none_are_null():
    tel = {source: ["None", "None"] for source in TELEMETRY.by_source} | {"time": [0.0, 0.1]}
    table = one(tel)
    assert all(table[column.name].null_count == 2 for column in TELEMETRY.columns[3:])


def test_brakes_in_all_their_spellings():
    spellings = [0, 1, 100, 0.0, True, False, "True", "False", "1", "None"]
    table = one({"time": [0.1] * 10, "brake": spellings})
    assert table["Brake"].to_pylist() == [False, True, True, False, True, False, True, False, True, None]
    assert one({"time": [0.1] * 2, "brake": [True, False]})["Brake"].to_pylist() == [True, False]
    assert one({"time": [0.1] * 2, "brake": [0, 100]})["Brake"].to_pylist() == [False, True]


def test_integers_for_floats_and_floats_for_integers():
    table = one({"time": [0, 1], "speed": [300, 301], "gear": [7.0, 8.0], "drs": ["12.0", 14]})
    assert table["Speed"].to_pylist() == [300.0, 301.0]
    assert table["nGear"].to_pylist() == [7, 8]
    assert table["DRS"].to_pylist() == [12, 14]


def test_car_numbers_ahead_given_as_numbers_are_text():
    assert one({"time": [0.1, 0.2], "driver_ahead": [4, 44.0]})["DriverAhead"].to_pylist() == ["4", "44"]
    assert one({"time": [0.1, 0.2], "driver_ahead": [4, "None"]})["DriverAhead"].to_pylist() == ["4", None]


def test_one_value_stands_for_the_whole_lap():
    table = one({"time": [0.1, 0.2], "drs": 8, "brake": True, "driver_ahead": "4", "z": "None"})
    assert table["DRS"].to_pylist() == [8, 8]
    assert table["Brake"].to_pylist() == [True, True]
    assert table["DriverAhead"].to_pylist() == ["4", "4"]
    assert table["Z"].to_pylist() == [None, None]


def test_a_giant_value_does_not_stand_for_all_rows():
    with pytest.raises(InvalidDataError, match="'driver_ahead' is one text of 1000000 characters"):
        TelemetryBuilder().add("VER", 1, encode({"time": [0.1] * 10_000, "driver_ahead": "4" * 1_000_000}))


def test_unknown_channels_are_kept_and_null_where_a_lap_lacks_them():
    builder = TelemetryBuilder()
    builder.add("VER", 1, encode({"time": [0.1, 0.2], "fuel": [1, 2], "Speed": [7.5, "None"], "note": ["a", "None"]}))
    builder.add("VER", 2, encode({"time": [0.1]}))
    builder.add("VER", 3, encode({"time": [0.1], "fuel": ["None"], "ers": [[1]], "version": 3}))
    builder.add("VER", 4, encode({"time": [0.1], "fuel": [2.5], "note": [True]}))
    table = builder.table()
    table.validate(full=True)
    assert table.schema.names == [*TELEMETRY.schema.names, "fuel", "Speed_extra", "note", "ers"]
    assert table["fuel"].type == pa.float64()
    assert table["fuel"].to_pylist() == [1.0, 2.0, None, None, 2.5]
    assert table["Speed_extra"].to_pylist() == [7.5, None, None, None, None]
    assert table["note"].to_pylist() == ["a", None, None, None, "true"]
    assert table["ers"].to_pylist() == [None, None, None, "[1]", None]


def test_lists_of_different_length_are_invalid_and_named():
    with pytest.raises(InvalidDataError, match=r"VER/1_tel\.json: .*'time' 2, 'rpm' 3, 'odd' 2"):
        one({"time": [0.1, 0.2], "rpm": [1.0, 2.0, 3.0], "odd": [1, "x"]})


@pytest.mark.parametrize("tel", [{}, {"speed": [1.0]}, {"time": 5.0}, {"time": None}])
def test_a_file_without_times_is_invalid(tel: dict[str, Any]):
    with pytest.raises(InvalidDataError, match="required columns are missing: 'time'"):
        TelemetryBuilder().add("VER", 1, encode(tel))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"5",
        b'"tel"',
        b"null",
        b'{"tel": []}',
        b'{"tel": "None"}',
        b'{"tel": null}',
        b'{"tel": [{"time": 0.1}]}',
        b"<!DOCTYPE html><html></html>",
        b'{"tel": {"time": [0.1, 0.',
        b'{"tel": ' * 100_000,
        b"[" * 1_000_000,
        b'{"tel": {"time": [0.1], "\\ud800": [1]}}',
        b'{"tel": {"time": [0.1], "\\ud800": ["x"]}}',
        b'{"tel": {"time": [0.1], "odd": ["\\ud800"]}}',
    ],
)
def test_other_bodies_are_invalid(body: bytes):
    builder = TelemetryBuilder()
    builder.add("VER", 1, encode({"time": [0.1]}))
    with pytest.raises(InvalidDataError, match=r"^VER/2_tel\.json: "):
        builder.add("VER", 2, body)
    # The builder, and its thread's parser, work on as before.
    assert builder.add("VER", 3, encode({"time": [0.1]})) == 1
    assert builder.table()["LapNumber"].to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("channel", "value"),
    [
        ("speed", "fast"),
        ("speed", [1.0]),
        ("speed", {}),
        ("speed", 1e39),
        ("gear", 3.5),
        ("gear", 40_000),
        ("drs", "open"),
        ("brake", "on"),
        ("time", "soon"),
        ("time", 1e11),
        ("driver_ahead", [4]),
        ("driver_ahead", {}),
    ],
)
@pytest.mark.parametrize("beside", [0, "None"])
def test_values_of_another_type_are_invalid_and_named(channel: str, value: object, beside: object):
    tel = {"time": [0.1, 0.2], channel: [beside, value]}
    with pytest.raises(InvalidDataError, match=rf"VER/1_tel\.json: column '{channel}' .* holds"):
        TelemetryBuilder().add("VER", 1, encode(tel))


def test_lists_in_lists_are_not_flattened():
    for nested in ([[1.0], [2.0]], [1.0, [2.0]], [[1.0, 2.0], []]):
        with pytest.raises(InvalidDataError, match="'speed'"):
            TelemetryBuilder().add("VER", 1, encode({"time": [0.1, 0.2], "speed": nested}))


def test_brackets_in_texts_are_no_lists():
    assert one({"time": [0.1], "driver_ahead": ["[4]"], "dataKey": "2025-[A]-Race-VER-1"})["Driver"].to_pylist() == [
        "VER"
    ]


def test_float64_keeps_numbers_that_float32_cannot():
    assert one({"time": [0.1], "speed": [1e39]}, "float64")["Speed"].to_pylist() == [1e39]


def test_of_a_key_that_occurs_twice_the_last_counts():
    builder = TelemetryBuilder()
    builder.add("VER", 1, b'{"tel": {"time": [0.1], "speed": [1.0], "speed": [2.0]}}')
    builder.add("VER", 2, b'{"tel": {"time": [0.1]}, "tel": {"time": [0.1], "speed": [3.0]}}')
    assert builder.table()["Speed"].to_pylist() == [2.0, 3.0]


@pytest.mark.parametrize("key", ["2025-Dutch Grand Prix-Race-VER-10", "2025-Dutch Grand Prix-Race-VER-10.0", None])
def test_the_data_key_is_checked_and_dropped(key: str | None):
    tel = {"time": [0.1]} | ({"dataKey": key} if key else {})
    builder = TelemetryBuilder(expected="2025-Dutch Grand Prix-Race")
    assert builder.add("VER", 10, encode(tel)) == 1
    assert builder.table().schema.names == TELEMETRY.schema.names


def test_data_keys_are_compared_without_accents():
    builder = TelemetryBuilder(expected="2025-São Paulo Grand Prix-Race")
    assert builder.add("VER", 1, encode({"time": [0.1], "dataKey": "2025-Sa\u0303o Paulo Grand Prix-Race-VER-1"})) == 1


@pytest.mark.parametrize(
    "key",
    [
        "2025-Dutch Grand Prix-Race-VER-1",
        "2025-Dutch Grand Prix-Race-HAM-10",
        "2025-Dutch Grand Prix-Qualifying-VER-10",
        "2024-Dutch Grand Prix-Race-VER-10",
        "VER-10",
        "",
        10,
        ["2025-Dutch Grand Prix-Race-VER-10"],
        {},
    ],
)
def test_another_laps_file_is_invalid(key: object):
    builder = TelemetryBuilder(expected="2025-Dutch Grand Prix-Race")
    with pytest.raises(InvalidDataError, match=r"VER/10_tel\.json: column 'dataKey' is .* another lap's file"):
        builder.add("VER", 10, encode({"time": [0.1], "dataKey": key}))
    assert builder.table().num_rows == 0


def test_a_lap_of_fifty_thousand_samples():
    tel = lap_of(50_000, 4) | {"distance": ["None"] * 50_000}
    table = one(tel)
    assert table.num_rows == 50_000
    assert table["Distance"].null_count == 50_000


def test_laps_of_all_sizes_leave_each_other_alone():
    builder = TelemetryBuilder("float64")
    sizes = {1: 3, 2: 20_000, 3: 1, 4: 500, 5: 0, 6: 40}
    for lap, size in sizes.items():
        builder.add("VER", lap, encode({"time": [0.0] * size, "x": [lap + at / 7 for at in range(size)]}))
    assert builder.table()["X"].to_pylist() == [lap + at / 7 for lap, size in sizes.items() for at in range(size)]


def memory(table: pa.Table) -> list[Any]:
    """Return where the numbers of a table lie."""
    plain = [column.chunk(0) for column in table.columns]
    return [(array.indices if pa.types.is_dictionary(array.type) else array).buffers()[1].address for array in plain]


def test_finished_drivers_are_in_the_table_as_they_were_handed_out():
    builder, plain = TelemetryBuilder(), TelemetryBuilder()
    laps = {(driver, lap): encode(lap_of(40 + lap, lap)) for driver in ("HAM", "VER", "ALB") for lap in (2, 1, 3)}
    handed = {}
    for driver in ("VER", "HAM", "ALB"):
        for (code, lap), body in laps.items():
            if code == driver:
                builder.add(code, lap, body)
                plain.add(code, lap, body)
        handed[driver] = builder.finish(driver)
    assert builder.finish("SAI") is None
    table = builder.table(["VER", "SAI", "HAM"])
    assert table.equals(plain.table(["VER", "SAI", "HAM"]))
    at = 0
    for rows in handed.values():
        part = table.slice(at, rows.num_rows)
        assert part.to_pydict() == rows.to_pydict()  # their dictionaries are shorter
        assert memory(part) == memory(rows)
        at += rows.num_rows
    assert at == table.num_rows
    assert [chunk.dictionary for chunk in table["Driver"].chunks] == 3 * [pa.array(["VER", "HAM", "ALB"])]


def test_more_may_come_after_a_driver_was_finished():
    laps = {("VER", 1): encode(lap_of(9, 1)), ("HAM", 1): encode(lap_of(8, 2)), ("HAM", 2): encode(lap_of(5, 3))}
    builder, plain = TelemetryBuilder(), TelemetryBuilder()
    for place, body in laps.items():
        plain.add(*place, body)
    builder.add("VER", 1, laps["VER", 1])
    builder.add("HAM", 1, laps["HAM", 1])
    builder.finish("VER")
    with pytest.raises(ValueError, match="lap 2 of VER"):
        builder.add("VER", 2, laps["HAM", 2])
    builder.add("HAM", 2, laps["HAM", 2])
    for order in (["ALB", "HAM", "VER"], ["HAM"], ["VER"], ()):
        assert builder.table(order).equals(plain.table(order))


def test_unknown_channels_of_finished_drivers_are_kept():
    builder, plain = TelemetryBuilder(), TelemetryBuilder()
    for driver, more in (("VER", {}), ("HAM", {"tyre": [1.5, None]}), ("ALB", {"tyre": ["soft", "hard"]})):
        body = encode({"time": [0.1, 0.2], **more})
        builder.add(driver, 1, body)
        plain.add(driver, 1, body)
        builder.finish(driver)
    assert builder.table().equals(plain.table())
    assert builder.table()["tyre"].to_pylist() == [None, None, "1.5", None, "soft", "hard"]


def test_threads_fill_one_builder():
    bodies = {(driver, lap): encode(lap_of(200 + lap, lap)) for driver in ("VER", "HAM") for lap in range(1, 41)}
    alone, shared = TelemetryBuilder(), TelemetryBuilder()
    for (driver, lap), body in bodies.items():
        alone.add(driver, lap, body)
    keys = list(bodies)
    random.Random(5).shuffle(keys)
    start = threading.Barrier(4)

    def work(own: list[tuple[str, int]]) -> None:
        start.wait()
        for driver, lap in own:
            shared.add(driver, lap, bodies[driver, lap])

    threads = [threading.Thread(target=work, args=(keys[at::4],)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    order = ["VER", "HAM"]
    assert shared.table(order).equals(alone.table(order))


def test_a_kept_error_does_not_hold_the_parser():
    builder = TelemetryBuilder()
    kept = []
    for lap in range(3):
        try:
            builder.add("VER", lap, encode({"time": [0.1], "speed": ["fast"], "odd": [[[1]]]}))
        except InvalidDataError as error:
            kept.append(error)
    assert len(kept) == 3
    assert telemetry._parse_fast(builder._local.parser, encode({"time": [0.1]})) is not None


def test_values_do_not_change_with_the_next_file():
    builder = TelemetryBuilder()
    builder.add("VER", 1, encode(lap_of(500, 6)))
    before = np.array(builder.table()["X"])
    for lap in range(2, 6):
        builder.add("VER", lap, encode(lap_of(500, lap)))
    assert np.array_equal(before, np.array(builder.table()["X"])[:500])


def test_importing_the_decoders_imports_neither_pandas_nor_simdjson():
    code = "import sys, tif1_pipeline.decode.telemetry; print({'pandas', 'simdjson'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_column_whose_name_holds_a_zero():
    builder = TelemetryBuilder()
    assert builder.add("VER", 1, b'{"tel":{"time":[0.1,0.2],"a\\u0000b":[1,2]}}') == 2
    assert builder.table()["a\0b"].to_pylist() == [1.0, 2.0]
