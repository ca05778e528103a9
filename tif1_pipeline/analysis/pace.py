"""Pace over a session and over a season."""

from collections.abc import Mapping

import pandas as pd

from tif1_pipeline.analysis.clean import (
    CLEAN_NEEDS,
    FUEL_SECONDS_PER_LAP,
    MIN_CLEAN_LAPS,
    comparable_laps,
    finished_laps,
    valid_laps,
)
from tif1_pipeline.analysis.tables import DRIVER, INTEGER, TEAM, Result, column
from tif1_pipeline.datasets import FLOAT, TEXT
from tif1_pipeline.keys import SessionKey

RACES = ("Race", "Sprint")
_QUALIFYING = ("Qualifying", "Sprint Qualifying", "Sprint Shootout")

CLASSIFIED_PERCENT = 90
"""Who has driven less of the winner's laps, rounded down, is not classified (Sporting Regulations)."""

RACE_PACE = Result(
    {"laps": ("Driver", "Team", "Position", *CLEAN_NEEDS)},
    (
        column("Rank", INTEGER, f"Place by pace, from 1; null below {MIN_CLEAN_LAPS} clean laps"),
        DRIVER,
        TEAM,
        column("Laps", INTEGER, "Laps finished", required=True),
        column("CleanLaps", INTEGER, "Laps that the pace is made of", required=True),
        column("BestSeconds", FLOAT, "Fastest lap that was not deleted", "s"),
        column("MedianSeconds", FLOAT, "Median of the clean laps", "s"),
        column(
            "FuelCorrectedMedianSeconds",
            FLOAT,
            "Median of the clean laps as they would be with the fuel of the last lap; races and sprints only",
            "s",
        ),
        column("GapSeconds", FLOAT, "Gap to the quickest, fuel-corrected where that is known", "s"),
        column("SpreadSeconds", FLOAT, "Range of the middle half of the clean laps, corrected likewise", "s"),
    ),
)

SEASON_SUMMARY = Result(
    {
        "race_pace": (
            "Driver",
            "Team",
            "Laps",
            "BestSeconds",
            "FuelCorrectedMedianSeconds",
        )
    },
    (
        column("Team", TEXT, "Team", required=True),
        column("Sessions", INTEGER, "Sessions with laps of the team", required=True),
        column("Races", INTEGER, "Races and sprints among them", required=True),
        column("Laps", INTEGER, "Laps finished in all sessions", required=True),
        column("MedianGapPercent", FLOAT, "Gap of the team's fastest lap, median of all sessions", "%"),
        column("BestGapPercent", FLOAT, "Smallest such gap of all sessions", "%"),
        column("QualifyingGapPercent", FLOAT, "Median such gap of the qualifying sessions alone", "%"),
        column("RaceGapPercent", FLOAT, "Gap in race pace, fuel-corrected, median of races and sprints", "%"),
        column("RaceLapShare", FLOAT, "Share of the winners' laps that the cars finished in races and sprints, 0 to 1"),
        column("Retirements", INTEGER, "Starts that ended before 90 % of the winner's laps", required=True),
    ),
)


def race_pace_of(laps: pd.DataFrame, fuel_seconds_per_lap: float | None = FUEL_SECONDS_PER_LAP) -> pd.DataFrame:
    """Return each driver's pace: the median over comparable laps.

    Comparable are the clean laps in the conditions, dry or wet, of which the field drove most
    (:func:`~tif1_pipeline.analysis.clean.comparable_laps`). In a race each is corrected to the fuel of the last lap:
    less ``fuel_seconds_per_lap`` for each lap to go. In practice the pace is that of push laps and long runs, with
    fuel that nobody knows; in qualifying it is that of push laps, of which those out early have too few.

    Args:
        laps: A ``laps`` table; of its columns those that :data:`RACE_PACE` needs are used.
        fuel_seconds_per_lap: What a lap's worth of fuel costs a lap, in s. None where the fuel is not known, in
            sessions other than races: then there are no corrected values, and gaps are those of the medians.

    Returns:
        One row a driver, the columns of :data:`RACE_PACE`; at the end, without rank, those with too few clean laps.
    """
    laps = laps.reset_index(drop=True)
    driver = laps["Driver"].astype("str")
    seconds = laps["LapTimeSeconds"]
    corrected = seconds - (fuel_seconds_per_lap or 0.0) * (laps["LapNumber"].max() - laps["LapNumber"])
    comparable = comparable_laps(laps)
    count = comparable.groupby(driver).sum()
    paced = comparable & (driver.map(count) >= MIN_CLEAN_LAPS)
    medians = corrected[paced].groupby(driver[paced]).median()
    quartiles = corrected[paced].groupby(driver[paced]).quantile([0.25, 0.75]).unstack()
    pace = pd.DataFrame(
        {
            "Team": laps["Team"].astype("str").groupby(driver).first(),
            "Laps": finished_laps(laps),
            "CleanLaps": count,
            "BestSeconds": seconds[valid_laps(laps)].groupby(driver).min(),
            "MedianSeconds": seconds[paced].groupby(driver[paced]).median().round(3),
            "FuelCorrectedMedianSeconds": None if fuel_seconds_per_lap is None else medians.round(3),
            "GapSeconds": (medians - medians.min()).round(3),
            "SpreadSeconds": (quartiles[0.75] - quartiles[0.25]).round(3) if len(quartiles) else float("nan"),
            "Rank": medians.rank(method="first"),
        }
    )
    pace = (
        pace.rename_axis("Driver").reset_index().sort_values(["Rank", "Laps", "Driver"], ascending=[True, False, True])
    )
    return RACE_PACE.frame(pace)


def season_summary_of(sessions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a team of a season, by the pace of its better car, quickest first.

    A start ends in retirement when the car has not finished 90 % of the winner's laps, as for classification. Cars
    that did not start have no laps and do not count; nor do laps of drivers without a team.

    Args:
        sessions: Tables of :func:`race_pace_of` by session partition key.

    Returns:
        The columns of :data:`SEASON_SUMMARY`.

    Raises:
        SessionNotFoundError: A key is no session partition.
    """
    by_team = [_teams(SessionKey.parse(partition).session_type, pace) for partition, pace in sessions.items()]
    rows = pd.concat([part for part in by_team if len(part)]) if any(map(len, by_team)) else _teams("Race", _NO_PACE)
    teams = rows.groupby("Team")
    races = rows[rows["race"]].groupby("Team")
    summary = pd.DataFrame(
        {
            "Sessions": teams.size(),
            "Races": teams["race"].sum(),
            "Laps": teams["laps"].sum(),
            "MedianGapPercent": teams["gap"].median().round(3),
            "BestGapPercent": teams["gap"].min().round(3),
            "QualifyingGapPercent": rows[rows["qualifying"]].groupby("Team")["gap"].median().round(3),
            "RaceGapPercent": races["race_gap"].median().round(3),
            "RaceLapShare": (races["laps"].sum() / races["possible_laps"].sum()).round(4),
            "Retirements": teams["retirements"].sum(),
        }
    )
    return SEASON_SUMMARY.frame(summary.rename_axis("Team").reset_index().sort_values(["MedianGapPercent", "Team"]))


def _teams(session_type: str, pace: pd.DataFrame) -> pd.DataFrame:
    """Return one row a team of a session."""
    race = session_type in RACES
    winner_laps = pace["Laps"].max() if len(pace) else 0
    retired = (pace["Laps"] < winner_laps * CLASSIFIED_PERCENT // 100) & race
    teams = pace.assign(retired=retired).groupby("Team")
    return pd.DataFrame(
        {
            "laps": teams["Laps"].sum(),
            "gap": _percent_behind(teams["BestSeconds"].min()),
            "race_gap": _percent_behind(teams["FuelCorrectedMedianSeconds"].min()),
            "possible_laps": teams.size() * winner_laps,
            "retirements": teams["retired"].sum(),
        }
    ).assign(race=race, qualifying=session_type in _QUALIFYING)


def _percent_behind(seconds: pd.Series) -> pd.Series:
    return (seconds / seconds.min() - 1) * 100


_NO_PACE = RACE_PACE.frame([])
