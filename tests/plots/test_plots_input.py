"""Tables of any size with any names and holes can be drawn."""

import numpy as np
import pandas as pd
import pytest
import tables_to_draw as tables
from picture_pixels import LARGEST, pixels, says_no_data
from tables_to_draw import DRAWINGS

from tif1_pipeline import plots
from tif1_pipeline.plots.values import clock, clock_tick, fence, numbers


@pytest.mark.parametrize("count", [1, 2, 26, 120])
def test_any_number_of_drivers(count):
    laps = tables.laps(count, 8)
    drawings = {
        "lap_times": plots.lap_times(laps),
        "speed_trace": plots.speed_trace(tables.telemetry(laps, 50), laps),
        "track_map": plots.track_map(tables.telemetry(laps, 50), laps),
        "tyre_strategy": plots.tyre_strategy(tables.stints(count)),
        "fastest_lap_gaps": plots.fastest_lap_gaps(tables.fastest_laps(count)),
        "race_pace": plots.race_pace(tables.race_pace(count)),
        "telemetry_shares": plots.telemetry_shares(tables.telemetry_summary(count)),
        "season_pace": plots.season_pace(tables.season_summary(count)),
    }
    for name, png in drawings.items():
        assert not says_no_data(png), name
        assert len(png) < LARGEST, name
        assert pixels(png).shape[0] < 1000, name


def test_hundreds_of_stints():
    assert len(plots.tyre_strategy(tables.stints(22, 30, 2))) < LARGEST


@pytest.mark.parametrize("events", [1, 30, 100])
def test_any_number_of_events(events):
    png = plots.cached_sessions(tables.season(events))
    assert len(png) < LARGEST
    assert pixels(png).shape[0] < 760


@pytest.mark.parametrize("text", ["Räikkönen", "São Paulo", "周冠宇", "角田 🏎", "$x^2$", "a_b\nc", "x" * 300, ""])
def test_any_name(text):
    frames = {name: frames for name, (_, frames) in DRAWINGS.items()}
    telemetry, laps = frames["speed_trace"]
    telemetry, laps = (frame.assign(Driver=text) for frame in (telemetry[telemetry["Driver"] == "D00"], laps.head(50)))
    for png in (
        plots.speed_trace(telemetry, laps),
        plots.track_map(telemetry, laps),
        plots.tyre_strategy(tables.stints(1).assign(Driver=text)),
        plots.fastest_lap_gaps(tables.fastest_laps(2).assign(Driver=text)),
        plots.event_overview(tables.event_summary().assign(SessionType=text, FastestDriver=text)),
        plots.season_pace(tables.season_summary(3).assign(Team=text)),
        plots.cached_sessions(tables.season(2).rename(index={"Event 1 Grand Prix": text}, columns={"Race": text})),
    ):
        assert not says_no_data(png)


def test_holes_in_telemetry_are_left_out():
    telemetry, laps = DRAWINGS["track_map"][1]
    holes = telemetry.copy()
    holes.loc[holes.index % 7 == 3, ["X", "Speed"]] = np.nan
    holes.loc[holes.index % 11 == 3, "Distance"] = np.inf
    for function in (plots.track_map, plots.speed_trace):
        png = function(holes, laps)
        assert not says_no_data(png)
        assert png != function(telemetry, laps)
    assert says_no_data(plots.track_map(telemetry.assign(X=np.nan), laps))
    assert says_no_data(plots.speed_trace(telemetry.assign(Speed=np.nan), laps))
    assert says_no_data(plots.track_map(telemetry[telemetry["LapNumber"] > 1000], laps))


def test_a_car_that_stands_still():
    telemetry, laps = DRAWINGS["track_map"][1]
    still = telemetry.assign(X=0.0, Y=0.0, Speed=0.0, Distance=0.0)
    assert not says_no_data(plots.track_map(still, laps))
    assert not says_no_data(plots.speed_trace(still, laps))


def test_nullable_and_plain_columns_look_the_same():
    stints = tables.stints()
    nullable = stints.astype({"StartLap": "Int64", "EndLap": "Int64", "Driver": "category", "Compound": "category"})
    assert plots.tyre_strategy(nullable) == plots.tyre_strategy(stints)
    nullable["EndLap"] = nullable["EndLap"].where(nullable["StartLap"] != 1)
    assert plots.tyre_strategy(nullable) != plots.tyre_strategy(stints)


# ---- numbers and text


@pytest.mark.parametrize(
    ("seconds", "digits", "text"),
    [(75.0961, 3, "1:15.096"), (59.96, 1, "1:00.0"), (119.6, 0, "2:00"), (5, 0, "0:05"), (3600, 0, "60:00")],
)
def test_times_are_minutes_and_seconds(seconds, digits, text):
    assert clock(seconds, digits) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(75, "1:15"), (76.5, "1:16.5"), (80.0, "1:20"), (120.0, "2:00"), (80.15, "1:20.15")]
)
def test_ticks_say_where_they_are(seconds, text):
    assert clock_tick(seconds) == text


def test_outliers_are_fenced_off():
    low, high = fence(np.array([80.0, 81, 82, 83, 84, 500, 1]))
    assert 1 < low <= 80
    assert 84 <= high < 500
    assert fence(np.array([7.0])) == (7, 7)


def test_what_is_no_number_is_nan():
    frame = pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [np.inf, 2.0], "c": [None, 3]})
    for column, expected in (("a", [1, np.nan]), ("b", [np.nan, 2]), ("c", [np.nan, 3])):
        np.testing.assert_array_equal(numbers(frame, column), expected)
