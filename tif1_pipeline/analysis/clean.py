"""Which laps show what car and driver can do, and which belong to one set of tyres."""

import numpy as np
import pandas as pd

QUICK_ENOUGH = 1.07
"""A clean lap takes at most this multiple of the quickest one, as a car must in qualifying to start the race."""

SHORTEST_LAP = 40.0
"""Times below, in s, are faults of transmission: no circuit is so short. One would be the quickest of its session."""

MIN_CLEAN_LAPS = 3
"""Fewer clean laps have no pace."""

FUEL_SECONDS_PER_LAP = 0.055
"""What a lap's worth of fuel costs in each lap that carries it: 110 kg for some 60 laps, at 0.03 s a lap and kilogram.

A rule of thumb for a circuit of average length; teams do not publish theirs.
"""

CLEAN_NEEDS = ("LapNumber", "LapTimeSeconds", "Compound", "TrackStatus", "PitInTime", "PitOutTime", "Deleted")
STINT_NEEDS = ("Driver", "LapNumber", "Stint", "Compound", "TyreLife", "PitOutTime")

_GREEN = "1"
_RAIN_TYRES = {"INTERMEDIATE": "intermediate", "WET": "wet"}


def valid_laps(laps: pd.DataFrame) -> pd.Series:
    """Tell which laps have a time that counts: one that can be, and was not deleted by the stewards."""
    return (laps["LapTimeSeconds"] >= SHORTEST_LAP) & ~laps["Deleted"].astype("boolean").fillna(False).astype(bool)


def clean_laps(laps: pd.DataFrame) -> pd.Series:
    """Tell which laps are clean: they show pace, undisturbed.

    A clean lap is valid, neither the first (a start, or out of the garage), nor into or out of the pits, under green
    from start to end (track status ``1`` alone), and within 107 % of the session's quickest such lap on tyres for the
    same conditions: slicks, intermediates or wets. Where a session's file does not say the track status or the pit
    stops, the 107 % alone keep neutralised laps and pit stops out.

    Args:
        laps: A ``laps`` table; of its columns :data:`CLEAN_NEEDS` are used.

    Returns:
        True or False, by the index of ``laps``.
    """
    status = laps["TrackStatus"]
    usable = (
        valid_laps(laps)
        & (laps["LapNumber"] > 1)
        & laps["PitInTime"].isna()
        & laps["PitOutTime"].isna()
        & (status.isna() | status.isin([_GREEN]))
    )
    seconds = laps["LapTimeSeconds"]
    quickest = seconds.where(usable).groupby(_conditions(laps)).transform("min")
    return usable & (seconds <= QUICK_ENOUGH * quickest)


def comparable_laps(laps: pd.DataFrame) -> pd.Series:
    """Tell which laps compare drivers: the clean ones in the conditions in which most of them were driven.

    Where it rains for a part of a session, a median over slicks and intermediates would say who drove when.

    Args:
        laps: As for :func:`clean_laps`.
    """
    clean, conditions = clean_laps(laps), _conditions(laps)
    counts = conditions[clean].value_counts().sort_index()
    return clean if counts.empty else clean & (conditions == counts.idxmax())


def _conditions(laps: pd.DataFrame) -> pd.Series:
    """Return what each lap's tyres are made for; those of unknown compound count as slicks."""
    return laps["Compound"].astype("str").map(_RAIN_TYRES).fillna("dry")


def stint_numbers(laps: pd.DataFrame) -> pd.Series:
    """Return the number of the stint of each lap, from 1.

    It is the published one. A lap without it belongs to the stint of the driver's lap before (else after). Where a
    driver has none at all, a stint begins with each lap out of the pits, on another compound, or on fresher tyres than
    the lap before; a change of tyres that shows in none of these stays unseen.

    Args:
        laps: A ``laps`` table with a unique index; of its columns :data:`STINT_NEEDS` are used.

    Returns:
        Whole numbers, by the index of ``laps``.
    """
    ordered = laps.sort_values(["Driver", "LapNumber"], kind="stable")
    driver = ordered["Driver"].astype("str")
    published = ordered["Stint"].groupby(driver).ffill().groupby(driver).bfill()

    compound = ordered["Compound"].astype("str")
    before = compound.groupby(driver).ffill().groupby(driver).shift()
    other_tyres = compound.notna() & before.notna() & (compound != before)
    fresher = ordered["TyreLife"].groupby(driver).diff() < 0
    begins = ~driver.duplicated() | ordered["PitOutTime"].notna() | other_tyres | fresher
    seen = begins.astype("int64").groupby(driver).cumsum()
    return published.fillna(seen).astype("int64").reindex(laps.index)


def finished_laps(laps: pd.DataFrame) -> pd.Series:
    """Return how many laps each driver finished: all in the table but a last one with neither time nor position.

    Args:
        laps: A ``laps`` table; ``Driver``, ``LapNumber``, ``LapTimeSeconds`` and ``Position`` are used.

    Returns:
        Numbers of laps by driver.
    """
    ordered = laps.sort_values("LapNumber", kind="stable")
    driver = ordered["Driver"].astype("str")
    unfinished = ordered["LapTimeSeconds"].isna() & ordered["Position"].isna() & ~driver.duplicated(keep="last")
    return (~unfinished).groupby(driver).sum().astype("int64")


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Return the median of the slopes between all pairs of points (Theil and Sen): a few odd ones do not move it.

    Returns:
        Units of ``y`` a unit of ``x``; NaN where all ``x`` are the same.
    """
    first, second = np.triu_indices(len(x), 1)
    run = x[second] - x[first]
    apart = run != 0
    return float(np.median((y[second] - y[first])[apart] / run[apart])) if apart.any() else float("nan")
