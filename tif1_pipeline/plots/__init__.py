"""Pictures of the tables: data frames in, small PNG files out.

Every function takes frames with the columns of this package's tables and returns the bytes of a PNG 640 pixels wide. A
frame without anything to show gives a picture that says so. Several threads may draw at the same time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tif1_pipeline.plots.cars import speed_trace, telemetry_shares, track_map
    from tif1_pipeline.plots.laps import fastest_lap_gaps, lap_times, race_pace, tyre_strategy
    from tif1_pipeline.plots.seasons import cached_sessions, event_overview, season_pace

_HOMES = {
    "cached_sessions": "seasons",
    "event_overview": "seasons",
    "fastest_lap_gaps": "laps",
    "lap_times": "laps",
    "race_pace": "laps",
    "season_pace": "seasons",
    "speed_trace": "cars",
    "telemetry_shares": "cars",
    "track_map": "cars",
    "tyre_strategy": "laps",
}

__all__ = [
    "cached_sessions",
    "event_overview",
    "fastest_lap_gaps",
    "lap_times",
    "race_pace",
    "season_pace",
    "speed_trace",
    "telemetry_shares",
    "track_map",
    "tyre_strategy",
]


def __getattr__(name: str) -> Any:
    # Names are imported at first use: what only declares assets must not wait for matplotlib.
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
