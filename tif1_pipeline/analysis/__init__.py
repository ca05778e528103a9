"""Analyses of a session, an event and a season: functions from tables to tables, without Dagster, cache or network."""

from tif1_pipeline.analysis.laps import EVENT_SUMMARY, FASTEST_LAPS, event_summary_of, fastest_laps_of
from tif1_pipeline.analysis.pace import RACE_PACE, RACES, SEASON_SUMMARY, race_pace_of, season_summary_of
from tif1_pipeline.analysis.stints import STINTS, stints_of
from tif1_pipeline.analysis.tables import Result
from tif1_pipeline.analysis.telemetry import DRIVER_TELEMETRY_SUMMARY, driver_telemetry_summary_of

__all__ = [
    "DRIVER_TELEMETRY_SUMMARY",
    "EVENT_SUMMARY",
    "FASTEST_LAPS",
    "RACES",
    "RACE_PACE",
    "SEASON_SUMMARY",
    "STINTS",
    "Result",
    "driver_telemetry_summary_of",
    "event_summary_of",
    "fastest_laps_of",
    "race_pace_of",
    "season_summary_of",
    "stints_of",
]
