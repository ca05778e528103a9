"""Pedals, gears and speeds over time."""

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from tif1_pipeline.analysis import DRIVER_TELEMETRY_SUMMARY, driver_telemetry_summary_of


def needed(table, name):
    return table[list(DRIVER_TELEMETRY_SUMMARY.needs[name])]


def summary_of(telemetry, laps):
    return driver_telemetry_summary_of(needed(telemetry, "telemetry"), needed(laps, "laps"))


def test_samples_count_for_as_long_as_they_hold(lap, laps_table, telemetry_table):
    telemetry = telemetry_table(
        ("VER", 1, 0.0, 350.0, 100.0, False, 8),
        ("VER", 1, 1.0, 350.0, 100.0, False, 8),
        ("VER", 2, 0.0, 100.0, 98.0, False, 3),
        ("VER", 2, 1.0, 200.0, 50.0, True, 4),
        ("VER", 2, 1.5, 300.0, 0.0, True, 4),
        ("VER", 2, 2.0, 40.0, 100.0, False, 3),
        ("VER", 3, 0.0, 200.0, 97.0, False, 4),
        ("VER", 3, 2.0, 200.0, 0.0, True, 5),
    )
    laps = laps_table([lap("VER", 1, 99.0), lap("VER", 2, 90.0), lap("VER", 3, 91.0)])
    (row,) = summary_of(telemetry, laps).to_dict("records")
    assert row == {
        "Driver": "VER",
        "Team": "Team V",
        "TopSpeed": 350.0,
        "Laps": 2,
        "Samples": 6,
        # Lap 2 lasts 2 s: 1 s at 100, 0.5 s at 200, 0.5 s at 300; lap 3 lasts 2 s at 200.
        "MeanSpeed": 187.5,
        "FullThrottleShare": 0.75,
        "BrakeShare": 0.25,
        "GearChangesPerLap": 1.5,
        "LapNumber": 2,
        "LapSeconds": 90.0,
        "MinSpeed": 40.0,
    }


def test_what_was_not_measured_does_not_count(lap, laps_table, telemetry_table):
    telemetry = telemetry_table(
        ("VER", 2, 0.0, None, None, None, None),
        ("VER", 2, 1.0, 200.0, 104.0, True, 3),
        ("VER", 2, 1.5, 1000.0, 100.0, False, 128),
        ("VER", 2, 2.0, 100.0, 0.0, None, 0),
        ("VER", 2, 2.5, 100.0, 0.0, None, 3),
        # Nothing for three seconds: nobody knows what was done in them.
        ("VER", 2, 5.5, 100.0, 0.0, False, 3),
    )
    (row,) = summary_of(telemetry, laps_table([lap("VER", 2, 90.0)])).to_dict("records")
    assert row["TopSpeed"] == 200.0
    assert row["MeanSpeed"] == 150.0
    assert row["FullThrottleShare"] == 0.5
    assert row["BrakeShare"] == 0.5
    assert row["GearChangesPerLap"] == 0.0, "a glitch is no change"
    assert row["Samples"] == 6


def test_drivers_without_clean_laps_have_a_top_speed_alone(lap, laps_table, telemetry_table):
    telemetry = telemetry_table(
        ("VER", 2, 0.0, 300.0, 100.0, False, 8),
        ("VER", 2, 1.0, 300.0, 100.0, False, 8),
        ("HAM", 2, 0.0, 320.0, 100.0, False, 8),
        ("SAI", 1, 0.0, 0.0, 104.0, False, 0),
        ("XXX", 1, 0.0, 310.0, 100.0, False, 8),
    )
    laps = laps_table(
        [lap("VER", 2, 90.0), lap("HAM", 2, 90.0, TrackStatus="4"), lap("SAI", 1, None), lap("ALO", 2, 91.0)]
    )
    table = summary_of(telemetry, laps).set_index("Driver")
    assert table.index.tolist() == ["HAM", "XXX", "VER", "SAI"], "ALO has no telemetry"
    assert table["TopSpeed"].isna().tolist() == [False, False, False, True]
    assert table["Laps"].tolist() == [0, 0, 1, 0]
    assert table["FullThrottleShare"].isna().tolist() == [True, True, False, True]
    assert table.loc["HAM", "MinSpeed"] == 320.0
    assert table.loc["HAM", "LapNumber"] == 2
    assert pd.isna(table.loc["XXX", "Team"])
    assert pd.isna(table.loc["SAI", "LapNumber"])


states = st.tuples(st.floats(0.01, 1.9), st.floats(0, 350), st.floats(0, 100), st.booleans(), st.integers(1, 8))


@settings(max_examples=12, deadline=None)
@given(drawn=st.lists(states, min_size=2, max_size=20), cut=st.floats(0.1, 0.9))
def test_more_samples_of_the_same_driving_change_nothing(lap, laps_table, telemetry_table, drawn, cut):
    once, twice, now = [], [], 0.0
    for lasts, *state in drawn:
        # Whole milliseconds, as published; else rounding alone would differ.
        lasts = round(lasts, 3)
        once.append(("VER", 2, now, *state))
        twice += [("VER", 2, now, *state), ("VER", 2, now + lasts * cut, *state)]
        now += lasts
    end = ("VER", 2, now, 0.0, 0.0, False, 1)
    laps = laps_table([lap("VER", 2, 90.0)])
    few = summary_of(telemetry_table(*once, end), laps).drop(columns="Samples")
    many = summary_of(telemetry_table(*twice, end), laps).drop(columns="Samples")
    pd.testing.assert_frame_equal(few, many, rtol=0, atol=0.011)
    assert few["FullThrottleShare"].between(0, 1).all()
    assert few["BrakeShare"].between(0, 1).all()


def test_the_order_of_laps_does_not_matter(lap, laps_table, telemetry_table):
    samples = [(d, n, t, 100.0 * t, 50.0, t > 1, 3) for d in ("VER", "HAM") for n in (2, 3) for t in (0.0, 1.0, 2.0)]
    laps = laps_table([lap(d, n, 90.0 + n) for d in ("VER", "HAM") for n in (2, 3)])
    first = summary_of(telemetry_table(*samples), laps)
    last = summary_of(telemetry_table(*samples[6:], *samples[3:6], *samples[:3]), laps)
    pd.testing.assert_frame_equal(first, last)
