"""Stints: who drove which tyres for how long, and how fast they went off."""

import numpy as np
import pandas as pd

from tif1_pipeline.analysis.clean import (
    CLEAN_NEEDS,
    FUEL_SECONDS_PER_LAP,
    STINT_NEEDS,
    clean_laps,
    slope,
    stint_numbers,
    valid_laps,
)
from tif1_pipeline.analysis.tables import DRIVER, INTEGER, TEAM, Result, column
from tif1_pipeline.datasets import FLAG, FLOAT, TEXT

MIN_DEGRADATION_LAPS = 5
"""A trend over fewer clean laps is noise."""

STINTS = Result(
    {"laps": tuple(dict.fromkeys(("Team", "FreshTyre", *STINT_NEEDS, *CLEAN_NEEDS)))},
    (
        DRIVER,
        TEAM,
        column("Stint", INTEGER, "Number of the stint, from 1", required=True),
        column("Compound", TEXT, "Tyre compound"),
        column("FreshTyre", FLAG, "Whether the tyres were new at the start of the stint"),
        column("StartLap", INTEGER, "Number of the first lap", required=True),
        column("EndLap", INTEGER, "Number of the last lap", required=True),
        column("Laps", INTEGER, "Laps of the stint", required=True),
        column("CleanLaps", INTEGER, "Laps that show pace: green, timed, not through the pits", required=True),
        column("TyreLifeStart", FLOAT, "Age of the tyres at the end of the first lap", "laps"),
        column("MedianSeconds", FLOAT, "Median of the clean laps", "s"),
        column("BestSeconds", FLOAT, "Fastest lap that was not deleted", "s"),
        column(
            "DegradationSecondsPerLap",
            FLOAT,
            f"Lap time lost to a lap of tyre age, the gain by burnt fuel taken out; null below {MIN_DEGRADATION_LAPS} "
            "clean laps",
            "s/lap",
        ),
    ),
)


def stints_of(laps: pd.DataFrame, fuel_seconds_per_lap: float = FUEL_SECONDS_PER_LAP) -> pd.DataFrame:
    """Return the stints of a session.

    Degradation is the median of the slopes of lap time over tyre life between all pairs of the stint's clean laps
    (:func:`~tif1_pipeline.analysis.clean.clean_laps`), plus what the burnt fuel of a lap gained meanwhile. It holds
    what the track did, too: on one that dries it is below zero.

    Args:
        laps: A ``laps`` table of any kind of session; of its columns those that :data:`STINTS` needs are used.
        fuel_seconds_per_lap: What a lap's worth of fuel costs a lap, in s; 0 gives the bare slope.

    Returns:
        One row a driver and stint, drivers in the order of the table's category or else of the alphabet; the columns of
        :data:`STINTS`. Laps without stint numbers are assigned by
        :func:`~tif1_pipeline.analysis.clean.stint_numbers`.
    """
    laps = laps.dropna(subset=["Driver", "LapNumber"]).reset_index(drop=True)
    laps = laps.assign(Stint=stint_numbers(laps), clean=clean_laps(laps), valid=valid_laps(laps))
    laps = laps.sort_values("LapNumber", kind="stable")
    stints = laps.groupby(["Driver", "Stint"], observed=True)
    return STINTS.frame([_stint(rows, fuel_seconds_per_lap) for _, rows in stints])


def _stint(rows: pd.DataFrame, fuel_seconds_per_lap: float) -> dict[str, object]:
    clean = rows[rows["clean"]]
    seconds = clean["LapTimeSeconds"].to_numpy()
    degradation = None
    if len(clean) >= MIN_DEGRADATION_LAPS:
        # The age of the tyres grows by one a lap, so that the number of the lap has the same slope.
        age = clean["LapNumber"] if clean["TyreLife"].isna().any() else clean["TyreLife"]
        degradation = round(slope(age.to_numpy(), seconds) + fuel_seconds_per_lap, 4)
    compounds, fresh = rows["Compound"].astype("str").mode(), rows["FreshTyre"].dropna()
    first, last = rows.iloc[0], rows.iloc[-1]
    return {
        "Driver": first["Driver"],
        "Team": first["Team"],
        "Stint": first["Stint"],
        "Compound": compounds.iloc[0] if len(compounds) else None,
        "FreshTyre": fresh.iloc[0] if len(fresh) else None,
        "StartLap": first["LapNumber"],
        "EndLap": last["LapNumber"],
        "Laps": len(rows),
        "CleanLaps": len(clean),
        "TyreLifeStart": first["TyreLife"],
        "MedianSeconds": round(float(np.median(seconds)), 3) if len(seconds) else None,
        "BestSeconds": rows.loc[rows["valid"], "LapTimeSeconds"].min(),
        "DegradationSecondsPerLap": degradation,
    }
