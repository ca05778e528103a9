"""Fastest laps and summaries of events."""

import pandas as pd
import pytest

from tif1_pipeline.analysis import EVENT_SUMMARY, FASTEST_LAPS, event_summary_of, fastest_laps_of
from tif1_pipeline.exceptions import SessionNotFoundError


def needed(laps, result):
    """The table with the columns that the analysis says it needs, and no more."""
    return laps[list(result.needs["laps"])]


def test_the_fastest_lap_of_each_driver_ranks_them(lap, laps_table):
    laps = laps_table(
        [
            lap("VER", 1, 91.0),
            lap("VER", 2, 90.5, TyreLife=None, Compound="SOFT"),
            lap("HAM", 2, 80.0, Deleted=True),
            lap("HAM", 3, 90.0, Deleted=None),
            lap("LEC", 1, None),
            lap("SAI", 1, 88.0, Deleted=True),
        ]
    )
    fastest = fastest_laps_of(needed(laps, FASTEST_LAPS))
    assert fastest["Driver"].tolist() == ["HAM", "VER"]
    assert fastest["Rank"].tolist() == [1, 2]
    assert fastest["LapNumber"].tolist() == [3.0, 2.0]
    assert fastest["GapSeconds"].tolist() == [0.0, 0.5]
    assert fastest["LapTime"].tolist() == [pd.Timedelta(seconds=90), pd.Timedelta(seconds=90.5)]
    assert fastest["Compound"].tolist() == ["MEDIUM", "SOFT"]
    assert fastest["Team"].tolist() == ["Team H", "Team V"]


def test_of_equal_times_the_earlier_one_ranks_higher(lap, laps_table):
    laps = laps_table([lap("VER", 5, 90.0), lap("HAM", 4, 90.0), lap("HAM", 3, 90.0)])
    fastest = fastest_laps_of(laps)
    assert fastest[["Driver", "LapNumber"]].to_numpy().tolist() == [["HAM", 3.0], ["VER", 5.0]]


def test_an_event_is_a_row_a_session(lap, laps_table):
    race = laps_table(
        [
            lap("VER", 1, 90.0, Deleted=True),
            lap("VER", 2, 92.0, Compound="HARD"),
            lap("HAM", 1, 94.0, Compound=None),
            lap("HAM", 2, None),
        ]
    )
    never_green = laps_table([lap("VER", 1, None)])
    event = {"2025 Monaco Grand Prix Sprint Qualifying": never_green, "2025 Monaco Grand Prix Race": race}
    summary = event_summary_of({key: needed(laps, EVENT_SUMMARY) for key, laps in event.items()})
    assert summary["SessionType"].tolist() == ["Sprint Qualifying", "Race"]
    assert summary["Drivers"].tolist() == [1, 2]
    assert summary["Laps"].tolist() == [1, 4]
    assert summary["TimedLaps"].tolist() == [0, 3]
    assert summary["DeletedLaps"].tolist() == [0, 1]
    assert summary["Compounds"].tolist() == ["MEDIUM", "HARD, MEDIUM"]
    assert summary.loc[0, ["FastestDriver", "FastestTeam", "FastestLap", "MedianLapSeconds"]].isna().all()
    assert summary.loc[1, "FastestDriver"] == "VER"
    assert summary.loc[1, "FastestTeam"] == "Team V"
    assert summary.loc[1, "FastestLap"] == pd.Timedelta(seconds=92)
    assert summary.loc[1, "MedianLapSeconds"] == 92.0


def test_a_key_that_is_no_session_is_refused(laps_table):
    with pytest.raises(SessionNotFoundError):
        event_summary_of({"2025 Monaco": laps_table([])})
