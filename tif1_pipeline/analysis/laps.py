"""What lap times say at once: who was quickest, and what happened in the sessions of an event."""

from collections.abc import Mapping

import pandas as pd

from tif1_pipeline.analysis.clean import valid_laps
from tif1_pipeline.analysis.tables import DRIVER, INTEGER, TEAM, Result, column
from tif1_pipeline.datasets import DURATION, FLOAT, TEXT
from tif1_pipeline.keys import SessionKey

FASTEST_LAPS = Result(
    {"laps": ("Driver", "Team", "LapNumber", "LapTime", "LapTimeSeconds", "Compound", "TyreLife", "Deleted", "Time")},
    (
        column("Rank", INTEGER, "Place by lap time, from 1", required=True),
        DRIVER,
        TEAM,
        column("LapNumber", FLOAT, "Number of the lap, from 1", required=True),
        column("LapTime", DURATION, "Lap time", required=True),
        column("LapTimeSeconds", FLOAT, "Lap time", "s", required=True),
        column("Compound", TEXT, "Tyre compound"),
        column("TyreLife", FLOAT, "Age of the tyres", "laps"),
        column("GapSeconds", FLOAT, "Gap to the quickest", "s", required=True),
    ),
)

EVENT_SUMMARY = Result(
    {"laps": ("Driver", "Team", "LapTime", "LapTimeSeconds", "Compound", "Deleted", "Time")},
    (
        column("SessionType", TEXT, "Session type", required=True),
        column("Drivers", INTEGER, "Drivers with laps", required=True),
        column("Laps", INTEGER, "Laps of all drivers", required=True),
        column("TimedLaps", INTEGER, "Laps with a time", required=True),
        column("DeletedLaps", INTEGER, "Laps that the stewards deleted", required=True),
        column("FastestDriver", TEXT, "Driver of the fastest lap"),
        column("FastestTeam", TEXT, "Team of the fastest lap"),
        column("FastestLap", DURATION, "Fastest lap that was not deleted"),
        column("MedianLapSeconds", FLOAT, "Median of all timed laps", "s"),
        column("Compounds", TEXT, "Tyre compounds used, by name, comma-separated", required=True),
    ),
)


def fastest_laps_of(laps: pd.DataFrame) -> pd.DataFrame:
    """Return each driver's fastest lap that was not deleted, quickest first.

    Args:
        laps: A ``laps`` table; of its columns those that :data:`FASTEST_LAPS` needs are used.

    Returns:
        One row a driver with a timed lap; the columns of :data:`FASTEST_LAPS`.
    """
    # Of two equal times the one that was set first ranks higher, as the rules have it.
    best = (
        laps[valid_laps(laps) & laps["Driver"].notna()]
        .sort_values(["LapTimeSeconds", "Time"])
        .drop_duplicates("Driver")
    )
    gap = (best["LapTimeSeconds"] - best["LapTimeSeconds"].min()).round(3)
    return FASTEST_LAPS.frame(best.assign(Rank=range(1, len(best) + 1), GapSeconds=gap))


def event_summary_of(sessions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a session of an event.

    Args:
        sessions: ``laps`` tables by session partition key; of their columns those that :data:`EVENT_SUMMARY` needs are
            used.

    Returns:
        The columns of :data:`EVENT_SUMMARY`, sessions in the order given.

    Raises:
        SessionNotFoundError: A key is no session partition.
    """
    rows = []
    for partition, laps in sessions.items():
        timed = laps[laps["LapTimeSeconds"].notna()]
        valid = laps[valid_laps(laps)].sort_values(["LapTimeSeconds", "Time"])
        fastest = valid.iloc[0] if len(valid) else None
        rows.append(
            {
                "SessionType": SessionKey.parse(partition).session_type,
                "Drivers": laps["Driver"].nunique(),
                "Laps": len(laps),
                "TimedLaps": len(timed),
                "DeletedLaps": int(laps["Deleted"].astype("boolean").fillna(False).sum()),
                "FastestDriver": None if fastest is None else fastest["Driver"],
                "FastestTeam": None if fastest is None else fastest["Team"],
                "FastestLap": None if fastest is None else fastest["LapTime"],
                "MedianLapSeconds": round(float(timed["LapTimeSeconds"].median()), 3) if len(timed) else None,
                "Compounds": ", ".join(sorted(laps["Compound"].dropna().astype(str).unique())),
            }
        )
    return EVENT_SUMMARY.frame(rows)
