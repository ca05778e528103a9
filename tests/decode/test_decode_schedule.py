"""The calendar."""

import json

import pyarrow as pa
import pytest

from tif1_pipeline.datasets import SCHEDULE
from tif1_pipeline.decode import decode_schedule
from tif1_pipeline.exceptions import InvalidDataError


def schedule(*events: dict[str, object], **columns: object) -> pa.Table:
    """Decode a file of these events, in pandas' column-oriented form."""
    rows = [{"round_number": number, "event_name": f"Event {number}"} | event for number, event in enumerate(events)]
    names = dict.fromkeys(name for row in rows for name in row)
    oriented = {name: {str(at): row.get(name) for at, row in enumerate(rows)} for name in names}
    return decode_schedule(json.dumps(oriented | columns).encode())


def test_the_schema_is_the_datasets_with_its_metadata():
    table = schedule({}, {})
    table.validate(full=True)
    assert table.schema.equals(SCHEDULE.schema, check_metadata=True)


@pytest.mark.parametrize(
    ("offset", "utc"),
    [
        ("+11:00", "2025-03-16T04:00:00"),
        ("-05:00", "2025-03-16T20:00:00"),
        ("+05:30", "2025-03-16T09:30:00"),
        ("-03:30", "2025-03-16T18:30:00"),
        ("+00:00", "2025-03-16T15:00:00"),
    ],
)
def test_utc_is_local_time_minus_the_offset(offset: str, utc: str):
    table = schedule({"session5": "Race", "session5_date": "2025-03-16T15:00:00", "gmt_offset": offset})
    assert table["Session5DateUtc"][0].as_py().isoformat() == utc
    assert table["Session5Date"][0].as_py().isoformat() == "2025-03-16T15:00:00"


@pytest.mark.parametrize("offset", [None, "None", "", "NaT"])
def test_without_offset_utc_is_unknown(offset: object):
    table = schedule({"session1_date": "2025-03-14T12:30:00", "gmt_offset": offset})
    assert table["Session1Date"].null_count == 0
    assert table["Session1DateUtc"].to_pylist() == [None]
    assert table["GmtOffset"].to_pylist() == [None]


@pytest.mark.parametrize("offset", ["Melbourne", 11, "11", ["+11:00"], "+99999:00"])
def test_other_offsets_are_invalid(offset: object):
    with pytest.raises(InvalidDataError, match="'gmt_offset' holds"):
        schedule({"gmt_offset": offset})


def test_utc_beyond_64_bits_is_invalid():
    with pytest.raises(InvalidDataError, match=r"schedule\.json"):
        schedule({"session1_date": "1677-09-21T01:00:00", "gmt_offset": "+11:00"})


@pytest.mark.parametrize("nothing", [None, "None", ""])
def test_sessions_that_a_weekend_lacks_are_null(nothing: object):
    table = schedule({"session4": nothing, "session4_date": nothing, "gmt_offset": "+01:00"})
    assert [table[f"Session4{part}"].to_pylist() for part in ("", "Date", "DateUtc")] == [[None]] * 3


def test_rows_are_in_the_order_of_their_numbers():
    names = {str(row): f"Event {row}" for row in (10, 2, 1)}
    rounds = {str(row): row for row in (1, 2, 10)}
    table = decode_schedule(json.dumps({"event_name": names, "round_number": rounds}).encode())
    assert table["EventName"].to_pylist() == ["Event 1", "Event 2", "Event 10"]
    assert table["RoundNumber"].to_pylist() == [1, 2, 10]


def test_events_of_one_name_are_numbered_by_date_and_stay_in_place():
    table = schedule(
        {"event_name": "Pre-Season Testing", "event_date": "2026-02-20T19:00:00"},
        {"event_name": "Australian Grand Prix", "event_date": "2026-03-08T17:00:00"},
        {"event_name": "Pre-Season Testing", "event_date": None},
        {"event_name": "Pre-Season Testing", "event_date": "2026-02-13T19:00:00"},
    )
    assert table["EventName"].to_pylist() == [
        "Pre-Season Testing 2",
        "Australian Grand Prix",
        "Pre-Season Testing 3",
        "Pre-Season Testing 1",
    ]


def test_numbered_names_do_not_meet_names_that_are_there():
    names = ["Test", "Test 1", "test", "Tést 3"]
    table = schedule(*({"event_name": name} for name in names))
    assert table["EventName"].to_pylist() == ["Test 2", "Test 1", "test 4", "Tést 3"]


def test_names_that_share_a_cache_key_are_numbered():
    table = schedule({"event_name": "São Paulo Grand Prix"}, {"event_name": "Sao Paulo"})
    assert table["EventName"].to_pylist() == ["São Paulo Grand Prix 1", "Sao Paulo 2"]


def test_unknown_columns_are_kept():
    table = schedule({"circuit_key": 10}, {"circuit_key": 49}, season=2026)
    assert table["circuit_key"].to_pylist() == [10, 49]
    assert table["season"].to_pylist() == [2026, 2026]


def test_rounds_and_support_flags():
    table = schedule({"round_number": 1.0, "f1_api_support": True}, {"round_number": "2", "f1_api_support": "None"})
    assert table["RoundNumber"].to_pylist() == [1, 2]
    assert table["F1ApiSupport"].to_pylist() == [True, None]


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"event_name": {"0": "Monaco"}}', b"<html>"])
def test_other_bodies_are_invalid(body: bytes):
    with pytest.raises(InvalidDataError, match=r"^schedule\.json: "):
        decode_schedule(body)


def test_an_event_without_name_is_null():
    assert schedule({"event_name": None}, {"event_name": "None"})["EventName"].to_pylist() == [None, None]
