"""Derived assets: what is worked out from the source tables, loaded through the IO manager with pruned columns."""

import dagster as dg
import pandas as pd

from tif1_pipeline.defs.assets.source import SEASON_BACKFILL, SESSION_BACKFILL
from tif1_pipeline.defs.partitions import PARTITIONS, event_partitions_def, session_partitions_def
from tif1_pipeline.keys import SessionKey

_FASTEST_COLUMNS = ["Driver", "Team", "LapNumber", "LapTime", "LapTimeSeconds", "Compound", "TyreLife"]
_NEEDED = ["Deleted", "Time"]
_SUMMARY_COLUMNS = ["Driver", "Team", "LapTime", "LapTimeSeconds", "Compound", *_NEEDED]


def fastest_laps_of(laps: pd.DataFrame) -> pd.DataFrame:
    """Return each driver's fastest lap that was not deleted, quickest first.

    Args:
        laps: A ``laps`` table; of its columns those of the result, ``Deleted`` and ``Time`` are used.

    Returns:
        One row a driver with a timed lap: Rank, Driver, Team, LapNumber, LapTime, LapTimeSeconds (s), Compound,
        TyreLife (laps), GapSeconds (s to the quickest).
    """
    valid = laps[laps["LapTimeSeconds"].notna() & ~laps["Deleted"].fillna(False)]
    # Of two equal times the one that was set first ranks higher, as the rules have it.
    best = valid.sort_values(["LapTimeSeconds", "Time"]).drop_duplicates("Driver")
    best = best[_FASTEST_COLUMNS].reset_index(drop=True)
    best.insert(0, "Rank", best.index + 1)
    quickest = best["LapTimeSeconds"].min()
    best["GapSeconds"] = (best["LapTimeSeconds"] - quickest).round(3)
    return best


def event_summary_of(sessions: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return one row a session of an event.

    Args:
        sessions: ``laps`` tables by session partition key.

    Returns:
        SessionType, Drivers, Laps, TimedLaps, DeletedLaps, FastestDriver, FastestTeam, FastestLap, MedianLapSeconds
        (s), Compounds (comma-separated), in the order given.
    """
    rows = []
    for partition, laps in sessions.items():
        timed = laps[laps["LapTimeSeconds"].notna()]
        valid = timed[~timed["Deleted"].fillna(False)]
        fastest = valid.sort_values(["LapTimeSeconds", "Time"]).iloc[0] if len(valid) else None
        rows.append(
            {
                "SessionType": SessionKey.parse(partition).session_type,
                "Drivers": laps["Driver"].nunique(),
                "Laps": len(laps),
                "TimedLaps": len(timed),
                "DeletedLaps": int(laps["Deleted"].fillna(False).sum()),
                "FastestDriver": None if fastest is None else fastest["Driver"],
                "FastestTeam": None if fastest is None else fastest["Team"],
                "FastestLap": pd.NaT if fastest is None else fastest["LapTime"],
                "MedianLapSeconds": round(float(timed["LapTimeSeconds"].median()), 3) if len(timed) else None,
                "Compounds": ", ".join(sorted(laps["Compound"].dropna().astype(str).unique())),
            }
        )
    summary = pd.DataFrame(rows)
    return summary.astype({"FastestLap": "timedelta64[ns]"}) if rows else summary


@dg.asset(
    group_name="analysis",
    kinds={"pandas", "parquet", "sqlite"},
    partitions_def=session_partitions_def,
    backfill_policy=SESSION_BACKFILL,
    # A session whose laps are not to be had must not lose the others of the run: it is missing in what is returned.
    ins={"laps": dg.AssetIn(metadata={"columns": [*_FASTEST_COLUMNS, *_NEEDED], "allow_missing_partitions": True})},
    code_version="1",
)
def fastest_laps(laps: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Each driver's fastest lap of a session, quickest first."""
    return {partition: fastest_laps_of(table) for partition, table in laps.items()}


@dg.asset(
    group_name="analysis",
    kinds={"pandas", "parquet", "sqlite"},
    partitions_def=event_partitions_def,
    backfill_policy=SEASON_BACKFILL,
    ins={
        "laps": dg.AssetIn(
            partition_mapping=PARTITIONS.session_to_event,
            # A running event is summed up by the sessions it has had.
            metadata={"columns": _SUMMARY_COLUMNS, "allow_missing_partitions": True},
        )
    },
    code_version="1",
)
def event_summary(context: dg.AssetExecutionContext, laps: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """One row a session of an event: laps, fastest lap, median pace, tyres."""
    events: dict[str, dict[str, pd.DataFrame]] = {partition: {} for partition in context.partition_keys}
    in_order = [partition for partition in session_partitions_def.get_partition_keys() if partition in laps]
    for partition in in_order:
        events[SessionKey.parse(partition).event_partition][partition] = laps[partition]
    return {partition: event_summary_of(sessions) for partition, sessions in events.items()}


derived_assets = [fastest_laps, event_summary]
