"""Tables to draw: a race of any size, made of numbers."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from tif1_pipeline import plots

COMPOUNDS = ("SOFT", "MEDIUM", "HARD", "INTERMEDIATE", "WET")
KINDS = ("Practice 1", "Practice 2", "Practice 3", "Qualifying", "Sprint Qualifying", "Sprint", "Race")


def drivers(count: int) -> list[str]:
    return [f"D{number:02}" for number in range(count)]


def laps(count: int = 20, last: int = 50, compounds: tuple[str | None, ...] = COMPOUNDS) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        [(driver, float(lap)) for driver in drivers(count) for lap in range(1, last + 1)],
        columns=["Driver", "LapNumber"],
    )
    stint = (frame["LapNumber"] - 1) * len(compounds) // last
    return frame.assign(
        LapTimeSeconds=80 + rng.uniform(0, 4, len(frame)).round(3),
        Compound=pd.Categorical([compounds[int(number)] for number in stint]),
        Driver=frame["Driver"].astype("category"),
        Deleted=pd.array([False] * len(frame), dtype="boolean"),
    )


def telemetry(laps: pd.DataFrame, samples: int = 300, *, width: float = 8000, height: float = 8000) -> pd.DataFrame:
    """Laps of an ellipse."""
    share = np.linspace(0, 1, samples, dtype=np.float32)
    one = pd.DataFrame(
        {
            "Speed": 200 + 100 * np.sin(9 * share),
            "Distance": 5000 * share,
            "X": width / 2 * np.cos(2 * np.pi * share),
            "Y": height / 2 * np.sin(2 * np.pi * share),
        }
    ).astype("float32")
    quickest = laps.sort_values("LapTimeSeconds").drop_duplicates("Driver")
    parts = [
        one.assign(Driver=driver, LapNumber=np.int32(lap), Speed=one["Speed"] + 5 * row)
        for row, (driver, lap) in enumerate(zip(quickest["Driver"], quickest["LapNumber"], strict=True))
    ]
    return pd.concat(parts, ignore_index=True).astype({"Driver": "category"})


def stints(count: int = 20, each: int = 5, length: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Driver": [driver for driver in drivers(count) for _ in range(each)],
            "Compound": [COMPOUNDS[number % 5] for _ in range(count) for number in range(each)],
            "StartLap": [1 + length * number for _ in range(count) for number in range(each)],
            "EndLap": [length * (number + 1) for _ in range(count) for number in range(each)],
        }
    )


def fastest_laps(count: int = 20) -> pd.DataFrame:
    gaps = np.arange(count) * 0.1
    return pd.DataFrame({"Driver": drivers(count), "LapTimeSeconds": 80 + gaps, "GapSeconds": gaps})


def race_pace(count: int = 20) -> pd.DataFrame:
    gaps = np.arange(count) * 0.1
    return pd.DataFrame(
        {"Driver": drivers(count), "MedianSeconds": 81 + gaps, "GapSeconds": gaps, "SpreadSeconds": 0.4}
    )


def telemetry_summary(count: int = 20) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Driver": drivers(count),
            "FullThrottleShare": np.linspace(0.5, 0.6, count),
            "BrakeShare": np.linspace(0.2, 0.15, count),
            "TopSpeed": np.linspace(310, 330, count),
        }
    )


def event_summary() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "SessionType": ["Practice 1", "Qualifying", "Race"],
            "FastestDriver": ["VER", "NOR", "LEC"],
            "FastestLap": pd.to_timedelta([81.2, 79.5, 83.1], unit="s"),
            "MedianLapSeconds": [84.0, 81.0, 85.5],
            "Laps": pd.array([300, 200, 1000], dtype="Int64"),
        }
    )


def season_summary(count: int = 10) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Team": [f"Team {number}" for number in range(count)],
            "MedianGapPercent": np.arange(count) * 0.2,
            "BestGapPercent": np.arange(count) * 0.1,
            "RaceLapShare": np.linspace(1, 0.8, count),
        }
    )


def season(events: int = 24) -> pd.DataFrame:
    sizes = np.random.default_rng(5).uniform(1, 40, (events, len(KINDS)))
    sizes[np.arange(events) % 3 == 1, 2] = np.nan
    return pd.DataFrame(sizes, index=[f"Event {number} Grand Prix" for number in range(events)], columns=list(KINDS))


_LAPS = laps()
_TELEMETRY = telemetry(_LAPS)

DRAWINGS: dict[str, tuple[Callable[..., bytes], tuple[pd.DataFrame, ...]]] = {
    "lap_times": (plots.lap_times, (_LAPS,)),
    "speed_trace": (plots.speed_trace, (_TELEMETRY, _LAPS)),
    "track_map": (plots.track_map, (_TELEMETRY, _LAPS)),
    "tyre_strategy": (plots.tyre_strategy, (stints(),)),
    "fastest_lap_gaps": (plots.fastest_lap_gaps, (fastest_laps(),)),
    "race_pace": (plots.race_pace, (race_pace(),)),
    "telemetry_shares": (plots.telemetry_shares, (telemetry_summary(),)),
    "event_overview": (plots.event_overview, (event_summary(),)),
    "season_pace": (plots.season_pace, (season_summary(),)),
    "cached_sessions": (plots.cached_sessions, (season(),)),
}
"""Every function with tables of a usual size."""
