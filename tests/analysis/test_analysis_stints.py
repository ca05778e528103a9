"""Stints and degradation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tif1_pipeline.analysis import STINTS, stints_of

SOON = pd.Timedelta(seconds=1)


def needed(laps):
    return laps[list(STINTS.needs["laps"])]


def test_a_stint_is_tyres_laps_and_pace(lap, laps_table):
    hard = {"Stint": 2.0, "Compound": "HARD", "FreshTyre": True}
    laps = laps_table(
        [
            lap("VER", 1, 95.0, FreshTyre=False, TyreLife=4.0),
            # 0.1 s a lap of tyre age, one lap behind the safety car, one spoilt.
            *[lap("VER", n, 90.0 + 0.1 * n, TyreLife=n + 3.0) for n in (2, 3, 4, 6, 8)],
            lap("VER", 5, 130.0, TyreLife=8.0, TrackStatus="4"),
            lap("VER", 7, 93.5, TyreLife=10.0),
            lap("VER", 9, 91.0, TyreLife=12.0, PitInTime=SOON),
            lap("VER", 10, 110.0, TyreLife=1.0, PitOutTime=SOON, **hard),
            *[lap("VER", n, 89.0, TyreLife=n - 9.0, **hard) for n in (11, 12, 13, 14)],
        ]
    )
    first, second = stints_of(needed(laps), fuel_seconds_per_lap=0.05).to_dict("records")
    assert first == {
        "Driver": "VER",
        "Team": "Team V",
        "Stint": 1,
        "Compound": "MEDIUM",
        "FreshTyre": False,
        "StartLap": 1,
        "EndLap": 9,
        "Laps": 9,
        "CleanLaps": 6,
        "TyreLifeStart": 4.0,
        "MedianSeconds": 90.5,
        "BestSeconds": 90.2,
        "DegradationSecondsPerLap": pytest.approx(0.15),
    }
    assert second["FreshTyre"] is True
    assert (second["StartLap"], second["EndLap"], second["Laps"], second["CleanLaps"]) == (10, 14, 5, 4)
    assert second["MedianSeconds"] == 89.0
    assert np.isnan(second["DegradationSecondsPerLap"]), "four laps are no trend"


def test_without_tyre_age_laps_are_counted(lap, laps_table):
    laps = laps_table([lap("VER", n, 90.0 + 0.2 * n, TyreLife=None if n % 2 else 1.0 * n) for n in range(2, 8)])
    assert stints_of(laps, fuel_seconds_per_lap=0).loc[0, "DegradationSecondsPerLap"] == pytest.approx(0.2)


def test_a_session_that_says_little_still_has_its_stints(lap, laps_table):
    unknown = {"Stint": None, "TyreLife": None, "TrackStatus": None, "Position": None, "FreshTyre": None}
    laps = laps_table(
        [
            *[lap("VER", n, 90.0, Compound="SOFT", **unknown) for n in range(1, 8)],
            *[lap("VER", n, 91.0, Compound="HARD", **unknown) for n in range(8, 10)],
            lap("HAM", 1, None, Compound=None, Team=None, **unknown),
        ]
    )
    table = stints_of(needed(laps), fuel_seconds_per_lap=0.055)
    assert table[["Driver", "Stint", "Laps"]].to_numpy().tolist() == [["VER", 1, 7], ["VER", 2, 2], ["HAM", 1, 1]]
    assert table["DegradationSecondsPerLap"].tolist()[0] == 0.055
    assert table.loc[2, ["Team", "Compound", "FreshTyre", "TyreLifeStart", "MedianSeconds", "BestSeconds"]].isna().all()


@settings(max_examples=15, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(
            st.sampled_from(["VER", "HAM", "LEC"]),
            st.none() | st.floats(60, 200),
            st.none() | st.sampled_from(["1", "4", "24"]),
            st.none() | st.integers(1, 3),
        ),
        max_size=40,
    )
)
def test_every_lap_is_in_one_stint(lap, laps_table, drawn):
    rows = [
        lap(driver, number, seconds, TrackStatus=status, Stint=stint)
        for number, (driver, seconds, status, stint) in enumerate(drawn, 1)
    ]
    laps = laps_table(rows)
    table = stints_of(laps)
    assert table["Laps"].sum() == len(laps)
    assert (table["CleanLaps"] <= table["Laps"]).all()
    assert (table["StartLap"] <= table["EndLap"]).all()
    assert not table.duplicated(["Driver", "Stint"]).any()
    assert (table["DegradationSecondsPerLap"].notna() == (table["CleanLaps"] >= 5)).all()
    assert table.dtypes.astype(str).to_dict() == STINTS.dtypes


def test_the_rows_may_come_in_any_order(lap, laps_table):
    laps = laps_table(
        [lap(driver, n, 90.0 + n % 3, Stint=float(n // 5)) for driver in ("VER", "HAM") for n in range(1, 12)]
    )
    shuffled = laps.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(stints_of(shuffled), stints_of(laps))


def test_rows_that_name_no_lap_are_left_out(lap, laps_table):
    rows = [lap("VER", number, 90.0) for number in range(1, 7)]
    whole = laps_table(rows)
    holes = laps_table([*rows, rows[0] | {"Driver": None}, rows[0] | {"LapNumber": None}])
    pd.testing.assert_frame_equal(stints_of(holes), stints_of(whole))
