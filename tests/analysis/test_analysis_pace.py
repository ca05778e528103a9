"""Pace over a session and over a season."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tif1_pipeline.analysis import RACE_PACE, SEASON_SUMMARY, race_pace_of, season_summary_of

EVENT = "2025 Monaco Grand Prix"


def needed(laps):
    return laps[list(RACE_PACE.needs["laps"])]


def test_pace_is_the_median_of_clean_laps_corrected_for_fuel(lap, laps_table):
    laps = laps_table(
        [
            *[lap("VER", n, seconds) for n, seconds in ((2, 91.0), (3, 90.0), (4, 90.5), (5, 92.0))],
            lap("VER", 1, 99.0),
            lap("VER", 6, 120.0, TrackStatus="4"),
            *[lap("HAM", n, 91.0) for n in (4, 5, 6)],
            *[lap("LEC", n, 89.0) for n in (2, 3)],
            lap("SAI", 1, None, Position=None),
        ]
    )
    pace = race_pace_of(needed(laps), fuel_seconds_per_lap=0.5).set_index("Driver")
    # With the fuel of lap 6: 91 - 2, 90 - 1.5, 90.5 - 1, 92 - 0.5; and 91 - 1, 91 - 0.5, 91.
    assert pace.loc["VER"].drop("Team").to_dict() == {
        "Rank": 1,
        "Laps": 6,
        "CleanLaps": 4,
        "BestSeconds": 90.0,
        "MedianSeconds": 90.75,
        "FuelCorrectedMedianSeconds": 89.25,
        "GapSeconds": 0.0,
        "SpreadSeconds": 1.125,
    }
    assert pace.loc["HAM", "GapSeconds"] == 1.25
    assert pace.index.tolist() == ["VER", "HAM", "LEC", "SAI"], "who has no pace comes last"
    assert pace["Rank"].isna().tolist() == [False, False, True, True]
    assert pace.loc["LEC", "BestSeconds"] == 89.0
    assert pace.loc["LEC", ["MedianSeconds", "GapSeconds", "SpreadSeconds"]].isna().all(), "two laps are no pace"
    assert pace.loc["SAI", "Laps"] == 0
    assert pace.loc["SAI", "Team"] == "Team S"


def test_where_the_fuel_is_not_known_nothing_is_corrected(lap, laps_table):
    laps = laps_table([lap("VER", n, 90.0 + n) for n in (2, 3, 4)] + [lap("HAM", n, 94.0) for n in (20, 21, 22)])
    pace = race_pace_of(laps, fuel_seconds_per_lap=None)
    assert pace["FuelCorrectedMedianSeconds"].isna().all()
    assert pace["MedianSeconds"].tolist() == [93.0, 94.0]
    assert pace["GapSeconds"].tolist() == [0.0, 1.0]


def test_a_race_in_two_weathers_is_compared_in_one(lap, laps_table):
    inter = {"Compound": "INTERMEDIATE"}
    laps = laps_table(
        [
            *[lap("VER", n, 90.0, **inter) for n in range(2, 12)],
            *[lap("VER", n, 80.0) for n in range(12, 15)],
            *[lap("HAM", n, 91.0, **inter) for n in range(2, 6)],
            *[lap("HAM", n, 79.0) for n in range(6, 15)],
        ]
    )
    pace = race_pace_of(laps, fuel_seconds_per_lap=0)
    assert pace[["Driver", "CleanLaps", "MedianSeconds"]].to_numpy().tolist() == [["VER", 10, 90.0], ["HAM", 4, 91.0]]


@settings(max_examples=15, deadline=None)
@given(
    drawn=st.lists(st.tuples(st.sampled_from(["VER", "HAM", "LEC"]), st.none() | st.floats(80, 99)), max_size=40),
    shift=st.floats(0, 5),
)
def test_gaps_depend_on_differences_alone(lap, laps_table, drawn, shift):
    # Within 107 % whatever the shift.
    times = [(driver, None if seconds is None else round(90 + (seconds - 80) / 19 * 5, 3)) for driver, seconds in drawn]
    laps = laps_table([lap(driver, n, seconds) for n, (driver, seconds) in enumerate(times, 2)])
    slower = laps.assign(LapTimeSeconds=laps["LapTimeSeconds"] + round(shift, 3))
    pace, later = race_pace_of(laps), race_pace_of(slower)
    assert pace["Driver"].tolist() == later["Driver"].tolist()
    np.testing.assert_allclose(pace["GapSeconds"], later["GapSeconds"], atol=0.0011)
    gaps = pace["GapSeconds"].dropna()
    assert gaps.is_monotonic_increasing
    assert gaps.empty or gaps.iloc[0] == 0
    assert pace["Rank"].dropna().tolist() == list(range(1, len(gaps) + 1))
    assert set(pace["Driver"]) == {driver for driver, _ in times}
    assert pace.dtypes.astype(str).to_dict() == RACE_PACE.dtypes


def pace_table(*rows):
    names = ["Driver", "Team", "Laps", "BestSeconds", "FuelCorrectedMedianSeconds"]
    return RACE_PACE.frame([dict(zip(names, row, strict=True), CleanLaps=0) for row in rows])[
        list(SEASON_SUMMARY.needs["race_pace"])
    ]


def test_a_season_is_pace_and_reliability_by_team():
    sessions = {
        f"{EVENT} Practice 1": pace_table(("VER", "Red Bull", 20, 101.0, None), ("LEC", "Ferrari", 30, 100.0, None)),
        f"{EVENT} Qualifying": pace_table(("VER", "Red Bull", 9, 100.0, None), ("LEC", "Ferrari", 8, 102.0, None)),
        f"{EVENT} Race": pace_table(
            ("VER", "Red Bull", 57, 100.0, 100.0),
            ("LAW", "Red Bull", 50, 103.0, 104.0),
            ("LEC", "Ferrari", 57, 103.0, 101.0),
            ("HAM", "Ferrari", 51, 104.0, 103.0),
            ("ALO", "Aston Martin", 0, None, None),
            ("XXX", None, 57, 103.0, 101.0),
        ),
        f"{EVENT} Sprint": pace_table(
            ("VER", "Red Bull", 20, 110.0, 110.0),
            ("LEC", "Ferrari", 20, 104.5, 104.5),
            ("HAM", "Ferrari", 17, None, None),
        ),
    }
    season = season_summary_of(sessions).set_index("Team")
    assert season.index.tolist() == ["Red Bull", "Ferrari", "Aston Martin"]
    assert season["Sessions"].tolist() == [4, 4, 1]
    assert season["Races"].tolist() == [2, 2, 1]
    assert season["Laps"].tolist() == [156, 183, 0]
    # Red Bull: 1, 0, 0 and 5.263 %; Ferrari: 0, 2, 3 and 0 %.
    assert season["MedianGapPercent"].tolist() == pytest.approx([0.5, 1.0, np.nan], nan_ok=True)
    assert season["BestGapPercent"].tolist() == pytest.approx([0.0, 0.0, np.nan], nan_ok=True)
    assert season["QualifyingGapPercent"].tolist() == pytest.approx([0.0, 2.0, np.nan], nan_ok=True)
    assert season["RaceGapPercent"].tolist() == pytest.approx([2.632, 0.5, np.nan], nan_ok=True)
    assert season["RaceLapShare"].tolist() == [0.9478, 0.9416, 0.0]
    # 51 laps are 90 % of 57, rounded down: who has driven 50 is not classified; nor 17 of 20.
    assert season["Retirements"].tolist() == [1, 1, 1]


def test_a_season_without_races_has_no_reliability():
    season = season_summary_of({f"{EVENT} Practice 1": pace_table(("VER", "Red Bull", 20, 101.0, None))})
    assert season["Races"].tolist() == [0]
    assert season[["RaceGapPercent", "RaceLapShare", "QualifyingGapPercent"]].isna().all().all()
    assert season["Retirements"].tolist() == [0]


def test_a_session_of_nobody_changes_nothing():
    race = {f"{EVENT} Race": pace_table(("VER", "Red Bull", 57, 100.0, 100.0))}
    both = {f"{EVENT} Practice 1": pace_table()} | race
    pd.testing.assert_frame_equal(season_summary_of(both), season_summary_of(race))
    assert len(season_summary_of({f"{EVENT} Race": pace_table()})) == 0
