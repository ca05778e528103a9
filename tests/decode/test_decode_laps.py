"""Lap tables: every kind of untidiness of the published files, by name."""

import contextlib
import json
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from tif1_pipeline.datasets import LAPS
from tif1_pipeline.decode import concat_laps, decode_driver_laps, decode_session_laps
from tif1_pipeline.exceptions import InvalidDataError


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def laps(**columns: object) -> pa.Table:
    """Decode a session file of these columns; of two laps of VER, where nothing else is said."""
    return decode_session_laps(encode({"drv": ["VER", "VER"], "lap": [1.0, 2.0]} | columns))


def nanoseconds(table: pa.Table, column: str) -> list[int | None]:
    return table[column].cast(pa.int64()).to_pylist()


def test_the_schema_is_the_datasets_with_its_metadata():
    table = laps()
    table.validate(full=True)
    assert table.schema.equals(LAPS.schema, check_metadata=True)


def test_columns_that_a_season_lacks_are_present_and_null():
    table = laps(time=[90.5, 91.0])
    absent = [name for name in LAPS.schema.names if name not in ("LapTime", "LapTimeSeconds", "LapNumber", "Driver")]
    assert all(table[name].null_count == 2 for name in absent)


@pytest.mark.parametrize("missing", ["None", None, float("nan"), "", "nan", "NaN", "NaT", float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("source", "name", "value"),
    [
        ("time", "LapTimeSeconds", 90.5),
        ("pos", "Position", 3),
        ("fresh", "FreshTyre", True),
        ("lSD", "LapStartDate", "2025-03-16T04:55:00"),
    ],
)
def test_every_spelling_of_missing_is_null(source: str, name: str, value: object, missing: object):
    table = laps(**{source: [missing, value]})
    assert table[name].null_count == 1
    assert table[name][1].is_valid


@pytest.mark.parametrize("missing", ["None", None, float("nan"), "nan", "NaN", "NaT"])
@pytest.mark.parametrize("source", ["compound", "dNum"])
def test_missing_text_is_null(source: str, missing: object):
    assert laps(**{source: [missing, "x"]})[LAPS.by_source[source].name].to_pylist() == [None, "x"]


def test_empty_text_stays_empty():
    assert laps(delR=["", "TRACK LIMITS"])["DeletedReason"].to_pylist() == ["", "TRACK LIMITS"]


def test_whole_columns_of_none_are_null():
    table = laps(**{source: ["None", "None"] for source in LAPS.by_source if source not in ("drv", "lap")})
    assert all(
        table[column.name].null_count == 2 for column in LAPS.columns if column.name not in ("Driver", "LapNumber")
    )
    assert table.schema.equals(LAPS.schema, check_metadata=True)


def test_integers_stand_for_floats():
    table = laps(lap=[1, 2], time=[90, 91], wWD=[0, 359])
    assert table["LapNumber"].to_pylist() == [1.0, 2.0]
    assert nanoseconds(table, "LapTime") == [90_000_000_000, 91_000_000_000]
    assert table["WindDirection"].type == pa.float64()


def test_numbers_given_as_text_are_read():
    table = laps(lap=["1.0", "2"], time=["119.392", "None"], fresh=["1.0", "0"])
    assert table["LapNumber"].to_pylist() == [1.0, 2.0]
    assert nanoseconds(table, "LapTime") == [119_392_000_000, None]
    assert table["FreshTyre"].to_pylist() == [True, False]


def test_flags_in_all_their_spellings():
    spellings = [True, 1, 1.0, "True", "true", False, 0, 0.0, "False", "false", "None", None]
    table = laps(drv=["VER"] * 12, lap=list(range(12)), pb=spellings)
    assert table["IsPersonalBest"].to_pylist() == [True] * 5 + [False] * 5 + [None] * 2


def test_numbers_in_text_columns_carry_no_decimals():
    table = laps(drv=["VER"] * 4, lap=[1, 2, 3, 4], dNum=[1, 1.0, "1", True], status=[1, 12, "1", 4.5])
    assert table["DriverNumber"].to_pylist() == ["1", "1", "1", "True"]
    assert table["TrackStatus"].to_pylist() == ["1", "12", "1", "4.5"]


def test_categories_are_in_order_of_first_appearance():
    table = laps(drv=["VER"] * 4, lap=[1, 2, 3, 4], compound=["SOFT", "None", "HARD", "SOFT"])
    compounds = table["Compound"].combine_chunks()
    assert compounds.dictionary.to_pylist() == ["SOFT", "HARD"]
    assert compounds.indices.to_pylist() == [0, None, 1, 0]


def test_times_are_exact_to_the_published_decimals():
    published = [
        "119.392",
        "87.9210001",
        "0.001",
        "-12.5",
        "9185.114",
        "0.123456789",
        "1999999.999999999",
        "4.35",
        "1.1",
    ]
    count = len(published)
    # Into the text of the file as they are, past any float.
    body = encode({"drv": ["VER"] * count, "lap": [1] * count, "time": ["@"]}).replace(
        b'"@"', ", ".join(published).encode()
    )
    table = decode_session_laps(body)
    expected = [int(Decimal(text) * 10**9) for text in published]
    assert nanoseconds(table, "LapTime") == expected
    assert expected[0] == 119_392_000_000
    assert table["LapTimeSeconds"].to_pylist() == [float(text) for text in published]


def test_every_millisecond_of_three_hours_is_exact():
    milliseconds = list(range(0, 10_800_000, 37))
    table = laps(drv=["VER"] * len(milliseconds), lap=[1] * len(milliseconds), sesT=[ms / 1000 for ms in milliseconds])
    assert nanoseconds(table, "Time") == [ms * 1_000_000 for ms in milliseconds]


@pytest.mark.parametrize("seconds", [1e10, -1e10, 1e300])
def test_times_beyond_64_bits_are_invalid(seconds: float):
    with pytest.raises(InvalidDataError, match=r"'time' \(LapTime\)"):
        laps(time=[1.0, seconds])


def test_time_stamps_are_exact_to_the_nanosecond():
    table = laps(lSD=["2025-03-16T04:55:00.123456789", "2025-03-16 04:55:01Z"])
    first = int(datetime(2025, 3, 16, 4, 55, tzinfo=UTC).timestamp()) * 10**9
    assert nanoseconds(table, "LapStartDate") == [first + 123_456_789, first + 10**9]


@pytest.mark.parametrize(
    "stamp", ["yesterday", "2025-13-01", "1066-10-14T09:00:00", 5, "2025-03-16T04:55:00+11:00", [1]]
)
def test_other_time_stamps_are_invalid(stamp: object):
    with pytest.raises(InvalidDataError, match=r"'lSD' \(LapStartDate\) holds"):
        laps(lSD=["2025-03-16T04:55:00", stamp])


@pytest.mark.parametrize("value", ["fast", "1,5", [1.0], {"0": 1.0}, "0x10", 10**400])
def test_text_in_a_numeric_column_is_invalid_and_named(value: object):
    with pytest.raises(
        InvalidDataError, match=r"session_laptimes.json: column 'vi1' \(SpeedI1\) holds .* no number"
    ) as error:
        laps(vi1=["None", value])
    assert error.value.details["columns"] == ["vi1"]


def test_lists_of_lists_are_no_column():
    with pytest.raises(InvalidDataError, match=r"'vi1' \(SpeedI1\)"):
        laps(vi1=[[1.0], [2.0]])
    with pytest.raises(InvalidDataError, match=r"'compound' \(Compound\)"):
        laps(compound=[["SOFT"], ["HARD"]])


def test_unknown_columns_are_kept_untouched_at_the_end():
    extra = {
        "int": [1, None],
        "float": [1.5, 2],
        "bool": [True, "None"],
        "text": ["1.0", ""],
        "mixed": ["a", 1],
        "lists": [[1, 2], {"a": "ü"}],
        "big": [2**70, 1],
        "rounded": [2**53 + 1, 0.5],
        "none": ["None", None],
        "nan": [float("nan"), 1.0],
    }
    table = laps(**extra)
    assert table.schema.names == [*LAPS.schema.names, *extra]
    found = {name: (table[name].type, table[name].to_pylist()) for name in extra}
    assert found == {
        "int": (pa.int64(), [1, None]),
        "float": (pa.float64(), [1.5, 2.0]),
        "bool": (pa.bool_(), [True, None]),
        "text": (pa.string(), ["1.0", ""]),
        "mixed": (pa.string(), ["a", "1"]),
        "lists": (pa.string(), ["[1, 2]", '{"a": "ü"}']),
        "big": (pa.string(), [str(2**70), "1"]),
        "rounded": (pa.string(), [str(2**53 + 1), "0.5"]),
        "none": (pa.null(), [None, None]),
        "nan": (pa.float64(), [None, 1.0]),
    }


def test_unknown_columns_called_like_known_ones_are_kept_apart():
    table = laps(time=[90.0, 91.0], LapTime=["a", "b"], LapTimeSeconds=[1, 2], LapTime_extra=[3, 4])
    assert table.schema.names[len(LAPS.columns) :] == ["LapTime_extra", "LapTimeSeconds_extra", "LapTime_extra_extra"]
    assert table["LapTimeSeconds"].to_pylist() == [90.0, 91.0]
    assert table["LapTime_extra"].to_pylist() == ["a", "b"]


def test_one_value_stands_for_all_rows():
    table = laps(team="Haas F1 Team", wAT=21.5, track={"name": "Albert Park"})
    assert table["Team"].to_pylist() == ["Haas F1 Team"] * 2
    assert table["AirTemp"].to_pylist() == [21.5, 21.5]
    assert table["track"].to_pylist() == ['{"name": "Albert Park"}'] * 2


def test_columns_by_row_number_are_in_the_order_of_the_numbers():
    numbered = {str(row): float(row) for row in (10, 9, 0)}
    table = decode_session_laps(encode({"drv": ["VER", "VER", "VER"], "lap": numbered}))
    assert table["LapNumber"].to_pylist() == [0.0, 9.0, 10.0]


def test_columns_with_other_row_numbers_are_invalid():
    with pytest.raises(InvalidDataError, match=r"row numbers differ, among 'drv', 'lap'"):
        decode_session_laps(encode({"drv": {"0": "VER"}, "lap": {"1": 1}}))


def test_unequal_lengths_are_invalid_and_named():
    with pytest.raises(InvalidDataError, match=r"session_laptimes\.json: .*'drv' 2, 'lap' 2, 'time' 1"):
        laps(time=[90.0])


def test_empty_lists_are_an_empty_table():
    table = laps(**{name: [] for name in LAPS.by_source})
    assert table.num_rows == 0
    assert table.schema.equals(LAPS.schema, check_metadata=True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"5",
        b'"None"',
        b"NaN",
        b'[{"drv": "VER", "lap": 1}]',
        b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
        b'{"drv": ["VER"], "lap": [1.0',
        b'{"drv": ["V\xffR"], "lap": [1]}',
        b"\x00" * 100,
        b'{"lap": [' + b"9" * 5000 + b"]}",
    ],
)
def test_other_bodies_are_invalid(body: bytes):
    with pytest.raises(InvalidDataError, match=r"^session_laptimes\.json: "):
        decode_session_laps(body)


@pytest.mark.parametrize("absent", ["drv", "lap"])
def test_a_file_without_a_required_column_is_invalid(absent: str):
    columns = {"drv": ["VER"], "lap": [1], "time": [90.0]}
    del columns[absent]
    with pytest.raises(InvalidDataError, match=f"required columns are missing: '{absent}'; there are .*'time'"):
        decode_session_laps(encode(columns))


def test_of_a_key_that_occurs_twice_the_last_counts():
    table = decode_session_laps(b'{"drv": ["VER"], "lap": [1], "lap": [2]}')
    assert table["LapNumber"].to_pylist() == [2.0]


@pytest.mark.parametrize("depth", [100, 900, 1_100, 200_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_absurd_nesting_does_not_crash(depth: int, opening: str, closing: str):
    body = f'{{"drv": ["VER"], "lap": [1], "odd": [{opening * depth}1{closing * depth}]}}'.encode()
    if depth == 100:
        assert decode_session_laps(body)["odd"].type == pa.string()
        return
    # Between what one parser and the other bear, both outcomes are sound.
    with contextlib.suppress(InvalidDataError):
        decode_session_laps(body)
    if depth > 100_000:
        with pytest.raises(InvalidDataError, match="nested too deeply"):
            decode_session_laps(body)


def test_absurdly_many_columns_and_giant_constants_are_refused():
    with pytest.raises(InvalidDataError, match="100002 columns"):
        laps(**{f"c{number}": 1 for number in range(100_000)})
    with pytest.raises(InvalidDataError, match="'odd' is one text of 1000000 characters"):
        laps(odd="x" * 1_000_000)


def test_giant_keys_and_values_make_no_giant_messages():
    with pytest.raises(InvalidDataError) as error:
        laps(**{"k" * 1_000_000: [1], "lap": ["x" * 1_000_000, 2]})
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize("columns", [{"compound": ["\ud800", "x"]}, {"\ud800": [1, 2]}, {"odd": ["\ud800", "x"]}])
def test_text_that_is_no_unicode_is_invalid(columns: dict[str, list[object]]):
    with pytest.raises(InvalidDataError, match="not Unicode"):
        laps(**columns)


def test_driver_file_of_old_seasons_gets_its_driver():
    body = b'{"time": [119.392, NaN], "lap": [1.0, 2.0], "compound": ["INTERMEDIATE", "nan"]}'
    table = decode_driver_laps(body, "VER", "Red Bull Racing", "1")
    assert table.schema.equals(LAPS.schema, check_metadata=True)
    assert table["Driver"].to_pylist() == ["VER", "VER"]
    assert table["Team"].to_pylist() == ["Red Bull Racing"] * 2
    assert table["DriverNumber"].to_pylist() == ["1", "1"]
    assert table["Compound"].to_pylist() == ["INTERMEDIATE", None]
    assert nanoseconds(table, "LapTime") == [119_392_000_000, None]


def test_driver_file_keeps_what_it_says_itself():
    body = encode({"lap": [1, 2], "drv": ["VER", "None"], "team": ["Red Bull", "None"], "dNum": [33, None]})
    table = decode_driver_laps(body, "VER", "Red Bull Racing", "1")
    assert table["Driver"].to_pylist() == ["VER", "VER"]
    assert table["Team"].to_pylist() == ["Red Bull", "Red Bull Racing"]
    assert table["DriverNumber"].to_pylist() == ["33", "1"]
    assert table.schema.equals(LAPS.schema, check_metadata=True)


def test_driver_file_without_team_leaves_it_null():
    assert decode_driver_laps(b'{"lap": [1]}', "VER")["Team"].to_pylist() == [None]


def test_driver_file_of_another_driver_is_invalid():
    with pytest.raises(InvalidDataError, match="laps of 'HAM' in the file of VER"):
        decode_driver_laps(encode({"lap": [1, 2], "drv": ["VER", "HAM"]}), "VER")


def test_concatenated_laps_share_dictionaries_and_all_columns():
    first = decode_driver_laps(encode({"lap": [1, 2], "compound": ["SOFT", "HARD"], "n": [1, 2], "a": [1, 2]}), "VER")
    second = decode_driver_laps(encode({"lap": [1], "compound": ["HARD"], "n": [0.5], "b": [True]}), "HAM")
    third = decode_driver_laps(encode({"lap": [1], "n": ["None"], "a": ["x"]}), "LEC")
    table = concat_laps([first, second, third])
    table.validate(full=True)
    assert table.schema.names == [*LAPS.schema.names, "n", "a", "b"]
    assert table["Driver"].num_chunks == 1
    assert table["Driver"].chunk(0).dictionary.to_pylist() == ["VER", "HAM", "LEC"]
    assert table["Compound"].to_pylist() == ["SOFT", "HARD", "HARD", None]
    assert table["n"].to_pylist() == [1.0, 2.0, 0.5, None]
    assert table["a"].to_pylist() == ["1", "2", None, "x"]
    assert table["b"].to_pylist() == [None, None, True, None]
    assert table.schema.field("LapTime").equals(LAPS.schema.field("LapTime"), check_metadata=True)
    assert table.schema.metadata == LAPS.schema.metadata


def test_concatenating_nothing_is_an_empty_table():
    table = concat_laps([])
    assert table.num_rows == 0
    assert table.schema.equals(LAPS.schema, check_metadata=True)
