"""How drivers use pedals and gears."""

import numpy as np
import pandas as pd

from tif1_pipeline.analysis.clean import CLEAN_NEEDS, comparable_laps
from tif1_pipeline.analysis.laps import FASTEST_LAPS, fastest_laps_of
from tif1_pipeline.analysis.tables import DRIVER, INTEGER, TEAM, Result, column
from tif1_pipeline.datasets import FLOAT

FULL_THROTTLE = 97.0
"""From this position on, in %, the pedal is at its stop: some cars publish 98 or 99 for it, never 100."""

_LONGEST_INTERVAL = 2.0
"""A sample holds until the next one, but no longer than this, in s: data were lost, and nobody knows what happened."""
_FASTEST = 400.0
"""Speeds above, in km/h, are faults of transmission."""
_GEARS = (1, 8)
"""Other numbers are neutral or faults of transmission."""

DRIVER_TELEMETRY_SUMMARY = Result(
    {
        "telemetry": ("Driver", "LapNumber", "Time", "Speed", "nGear", "Throttle", "Brake"),
        "laps": tuple(dict.fromkeys((*CLEAN_NEEDS, *FASTEST_LAPS.needs["laps"]))),
    },
    (
        DRIVER,
        TEAM,
        column("TopSpeed", FLOAT, "Highest speed of all laps", "km/h"),
        column("Laps", INTEGER, "Clean laps with telemetry, which the means and shares are made of", required=True),
        column("Samples", INTEGER, "Samples of these laps", required=True),
        column("MeanSpeed", FLOAT, "Mean speed over time", "km/h"),
        column("FullThrottleShare", FLOAT, f"Share of the time at {FULL_THROTTLE:.0f} % throttle or more, 0 to 1"),
        column("BrakeShare", FLOAT, "Share of the time with the brake applied, 0 to 1"),
        column("GearChangesPerLap", FLOAT, "Mean number of gear changes a lap", "1/lap"),
        column("LapNumber", INTEGER, "Number of the driver's fastest lap"),
        column("LapSeconds", FLOAT, "Time of the fastest lap", "s"),
        column("MinSpeed", FLOAT, "Lowest speed of the fastest lap", "km/h"),
    ),
)


def driver_telemetry_summary_of(telemetry: pd.DataFrame, laps: pd.DataFrame) -> pd.DataFrame:
    """Return one row a driver with telemetry.

    Shares and means are over time, because samples come irregularly: each counts for as long as it holds. They are
    over the laps that compare drivers (:func:`~tif1_pipeline.analysis.clean.comparable_laps`): in and out laps and
    those behind the safety car say nothing about driving. A throttle above 100 % is the sign that none was measured.

    Args:
        telemetry: A ``telemetry`` table, the samples of a lap one after the other.
        laps: The ``laps`` table of the same session. Of both the columns that :data:`DRIVER_TELEMETRY_SUMMARY` needs
            are used.

    Returns:
        The columns of :data:`DRIVER_TELEMETRY_SUMMARY`, highest top speed first; null where a driver has no clean lap
        with telemetry.
    """
    by_lap = _by_lap(telemetry)
    compared = laps.loc[comparable_laps(laps), ["Driver", "LapNumber"]]
    sums = by_lap[by_lap.index.isin(_lap_index(compared))].groupby("Driver").sum()

    fastest = fastest_laps_of(laps).set_index("Driver")
    min_speed = by_lap["slowest"].reindex(_lap_index(fastest.reset_index())).droplevel("LapNumber")
    summary = pd.DataFrame(
        {
            # A car that never moved has no top speed: it is one whose sensors sent nothing.
            "TopSpeed": _positive(by_lap.groupby("Driver")["quickest"].max()),
            "Laps": sums["laps"],
            "Samples": sums["samples"],
            "MeanSpeed": (sums["distance"] / _positive(sums["speed_known"])).round(2),
            "FullThrottleShare": (sums["full"] / _positive(sums["throttle_known"])).round(4),
            "BrakeShare": (sums["braking"] / _positive(sums["brake_known"])).round(4),
            "GearChangesPerLap": (sums["changes"] / _positive(sums["laps"])).round(2),
        }
    )
    teams = laps["Team"].astype("str").groupby(laps["Driver"].astype("str")).first()
    known = {
        "Team": teams,
        "LapNumber": fastest["LapNumber"],
        "LapSeconds": fastest["LapTimeSeconds"],
        "MinSpeed": min_speed,
    }
    summary = summary.fillna({"Laps": 0, "Samples": 0}).join(pd.DataFrame(known))
    summary = summary.rename_axis("Driver").reset_index()
    return DRIVER_TELEMETRY_SUMMARY.frame(summary.sort_values(["TopSpeed", "Driver"], ascending=[False, True]))


def _by_lap(telemetry: pd.DataFrame) -> pd.DataFrame:
    """Return sums and extremes of each lap, by driver and number."""
    names = ["Driver", "LapNumber"]
    lap = telemetry.groupby(names, observed=True, sort=False).ngroup().to_numpy()
    first = telemetry[names].drop_duplicates()

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(lap, weights=values, minlength=len(first))

    time = telemetry["Time"].to_numpy().astype("timedelta64[ns]").astype(np.int64) / 1e9
    last = np.diff(lap, append=-1) != 0
    held = np.where(last, 0.0, np.diff(time, append=0.0))
    held = np.where((held > 0) & (held <= _LONGEST_INTERVAL), held, 0.0)

    speed = _numbers(telemetry["Speed"])
    speed[(speed < 0) | (speed > _FASTEST)] = np.nan
    throttle = _numbers(telemetry["Throttle"])
    throttle[(throttle < 0) | (throttle > 100)] = np.nan
    brake = _numbers(telemetry["Brake"])
    extremes = pd.Series(speed).groupby(lap).agg(["min", "max"])
    return pd.DataFrame(
        {
            "laps": 1,
            "samples": total(np.ones(len(lap))),
            "quickest": extremes["max"].to_numpy(),
            "slowest": extremes["min"].to_numpy(),
            "distance": total(held * np.nan_to_num(speed)),
            "speed_known": total(held * ~np.isnan(speed)),
            "full": total(held * (throttle >= FULL_THROTTLE)),
            "throttle_known": total(held * ~np.isnan(throttle)),
            "braking": total(held * (brake > 0)),
            "brake_known": total(held * ~np.isnan(brake)),
            "changes": total(_gear_changes(_numbers(telemetry["nGear"]), lap)),
        },
        index=_lap_index(first),
    )


def _gear_changes(gear: np.ndarray, lap: np.ndarray) -> np.ndarray:
    """Tell at which samples the gear is another than in the lap's last sample with one."""
    known = np.flatnonzero((gear >= _GEARS[0]) & (gear <= _GEARS[1]))
    changed = np.zeros(len(gear))
    changed[known[1:]] = (np.diff(gear[known]) != 0) & (np.diff(lap[known]) == 0)
    return changed


def _lap_index(rows: pd.DataFrame) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays(
        [rows["Driver"].astype("str"), rows["LapNumber"].astype("int64")], names=["Driver", "LapNumber"]
    )


def _numbers(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)


def _positive(values: pd.Series) -> pd.Series:
    return values.where(values > 0)
