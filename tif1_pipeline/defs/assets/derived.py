"""Derived assets: what is worked out from the source tables, loaded through the IO manager with pruned columns.

Who loads a source table looks at its rows by the blocking rules of its checks: only here is it sure that nothing is
derived from a partition at fault, whoever has stored it and whatever requested the run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
import pandas as pd

from tif1_pipeline import analysis, plots
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.defs.assets.source import SEASON_BACKFILL, SESSION_BACKFILL
from tif1_pipeline.defs.automation import FOLLOW_UPSTREAM, NETWORK_RETRIES, OWNERS
from tif1_pipeline.defs.checks import require_sound, required_columns
from tif1_pipeline.defs.io_entries import COLUMN_SCHEMA, RETRIES
from tif1_pipeline.defs.io_manager import PartitionOutput
from tif1_pipeline.defs.jobs.statistics import cached_season
from tif1_pipeline.defs.partitions import (
    PARTITIONS,
    event_partitions_def,
    season_partitions_def,
    session_partitions_def,
)
from tif1_pipeline.defs.pictures import pictures
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import DataNotFoundError, InvalidDataError, Tif1Error
from tif1_pipeline.keys import SessionKey

Tables = dict[str, Any]
"""Tables by partition key, the error where one cannot be had; those neither stored nor published are missing."""


class AnalysedPartitions:
    """Partitions analysed one at a time, in the order asked for; one that fails is its error.

    Iterated by the IO manager, which stores each before the next is worked out.
    """

    def __init__(self, keys: Sequence[str], analyse: Callable[[str], PartitionOutput]) -> None:
        self._keys = keys
        self._analyse = analyse

    def __iter__(self) -> Iterator[tuple[str, PartitionOutput | Exception]]:
        for key in self._keys:
            try:
                yield key, self._analyse(key)
            except Tif1Error as error:
                yield key, error
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one partition must not lose the others
                # No other try finds other data: an error of ours is not retried.
                failure = InvalidDataError(f"{key} cannot be analysed: {type(error).__name__}: {error}", partition=key)
                failure.__cause__ = error
                yield key, failure


def _taken(tables: Tables, partition: str, dataset: str) -> pd.DataFrame:
    """Take a partition's table out of the inputs: it is not needed any more when its result is stored."""
    if partition not in tables:
        rows = {"telemetry": "telemetry samples"}.get(dataset, dataset)
        raise DataNotFoundError(f"there are no {rows} of {partition} yet: neither stored nor published")
    return require_sound(_table(tables.pop(partition)), dataset, partition)


def _table(loaded: pd.DataFrame | Exception) -> pd.DataFrame:
    if isinstance(loaded, Exception):
        raise loaded
    return loaded


def _by_level(tables: Tables, keys: Sequence[str], level_of: Callable[[SessionKey], str]) -> dict[str, Tables]:
    """Return the sessions' tables grouped by the partitions of a higher level, in the order of the calendar."""
    grouped: dict[str, Tables] = {key: {} for key in keys}
    for partition in session_partitions_def.get_partition_keys():
        if partition in tables:
            grouped[level_of(SessionKey.parse(partition))][partition] = tables.pop(partition)
    return grouped


def _existing(sessions: Tables, partition: str, name: str) -> dict[str, pd.DataFrame]:
    if not sessions:
        raise DataNotFoundError(f"there are no {name} of any session of {partition} yet")
    # Without a session that is published but cannot be read the summary would be wrong.
    return {session: _table(loaded) for session, loaded in sessions.items()}


def _sound(sessions: Mapping[str, pd.DataFrame], dataset: str) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return the sessions whose rows are sound, and what is wrong with the others.

    Raises:
        InvalidDataError: No session is sound.
    """
    sound, errors = {}, []
    for session, table in sessions.items():
        try:
            sound[session] = require_sound(table, dataset, session)
        except InvalidDataError as error:
            errors.append(error)
    if not sound:
        raise errors[0]
    return sound, [error.message for error in errors]


def _output(table: pd.DataFrame, picture: dict[str, Callable[[], bytes]], **figures: Any) -> PartitionOutput:
    """Return a result with its picture and its figures; the UI draws the numbers among them over partitions."""
    known = {name: value for name, value in figures.items() if pd.notna(value)}
    return PartitionOutput(table, metadata={**known, **pictures(picture)})


def _options(
    result: analysis.Result, level: str, partitions_def: dg.PartitionsDefinition, policy: dg.BackfillPolicy
) -> Mapping[str, Any]:
    """Return what all derived assets of a level have in common."""
    schema = dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                result.dtypes[column.name],
                f"{column.description}{f' ({column.unit})' if column.unit else ''}",
                constraints=dg.TableColumnConstraints(nullable=not column.required),
            )
            for column in result.columns
        ]
    )
    return {
        "group_name": "analysis",
        "kinds": {"pandas", "matplotlib", "parquet", "sqlite"},
        "owners": OWNERS,
        "tags": {"tif1/source": "derived", "tif1/level": level},
        "partitions_def": partitions_def,
        "backfill_policy": policy,
        "automation_condition": FOLLOW_UPSTREAM,
        # An input that was evicted is fetched again.
        "metadata": {COLUMN_SCHEMA: schema, RETRIES: NETWORK_RETRIES.max_retries},
    }


def _input(result: analysis.Result, name: str, mapping: dg.PartitionMapping | None = None) -> dg.AssetIn:
    columns = dict.fromkeys((*result.needs[name], *(required_columns(name) if name in DATASETS else ())))
    # A session whose table is not to be had must not lose the others of the run.
    metadata = {"columns": list(columns), "allow_missing_partitions": True, "errors_by_partition": True}
    return dg.AssetIn(metadata=metadata, partition_mapping=mapping)


def _inputs(result: analysis.Result) -> dict[str, dg.AssetIn]:
    return {name: _input(result, name) for name in result.needs}


@dg.asset(
    **_options(analysis.FASTEST_LAPS, "session", session_partitions_def, SESSION_BACKFILL),
    ins=_inputs(analysis.FASTEST_LAPS),
    code_version="2",
)
def fastest_laps(context: dg.AssetExecutionContext, laps: Tables):
    """Each driver's fastest lap of a session that was not deleted, quickest first."""

    def analyse(partition: str) -> PartitionOutput:
        table = analysis.fastest_laps_of(_taken(laps, partition, "laps"))
        return _output(
            table,
            {"gaps": lambda: plots.fastest_lap_gaps(table)},
            fastest_lap_seconds=table["LapTimeSeconds"].min(),
        )

    return AnalysedPartitions(context.partition_keys, analyse)


@dg.asset(
    **_options(analysis.STINTS, "session", session_partitions_def, SESSION_BACKFILL),
    ins=_inputs(analysis.STINTS),
    code_version="1",
)
def stints(context: dg.AssetExecutionContext, laps: Tables):
    """Who drove which tyres for how long: one row a driver and stint, with pace and degradation."""

    def analyse(partition: str) -> PartitionOutput:
        table = analysis.stints_of(_taken(laps, partition, "laps"))
        return _output(
            table,
            {"strategy": lambda: plots.tyre_strategy(table)},
            clean_laps=table["CleanLaps"].sum(),
            median_degradation_seconds_per_lap=table["DegradationSecondsPerLap"].median(),
        )

    return AnalysedPartitions(context.partition_keys, analyse)


@dg.asset(
    **_options(analysis.RACE_PACE, "session", session_partitions_def, SESSION_BACKFILL),
    ins=_inputs(analysis.RACE_PACE),
    code_version="1",
)
def race_pace(context: dg.AssetExecutionContext, laps: Tables):
    """Each driver's pace over the clean laps of a session, quickest first; in races corrected for fuel.

    In practice it is the pace of push laps and long runs together, in qualifying that of push laps.
    """

    def analyse(partition: str) -> PartitionOutput:
        race = SessionKey.parse(partition).session_type in analysis.RACES
        own = _taken(laps, partition, "laps")
        # Nobody outside of the teams knows how much fuel a car carries in practice and qualifying.
        table = analysis.race_pace_of(own) if race else analysis.race_pace_of(own, fuel_seconds_per_lap=None)
        return _output(
            table,
            {"pace": lambda: plots.race_pace(table)},
            clean_laps=table["CleanLaps"].sum(),
            quickest_median_seconds=table["MedianSeconds"].min(),
        )

    return AnalysedPartitions(context.partition_keys, analyse)


@dg.asset(
    **_options(analysis.DRIVER_TELEMETRY_SUMMARY, "session", session_partitions_def, SESSION_BACKFILL),
    ins=_inputs(analysis.DRIVER_TELEMETRY_SUMMARY),
    code_version="1",
)
def driver_telemetry_summary(context: dg.AssetExecutionContext, telemetry: Tables, laps: Tables):
    """Speeds, pedals and gears of each driver over the clean laps of a session."""

    def analyse(partition: str) -> PartitionOutput:
        table = analysis.driver_telemetry_summary_of(
            _taken(telemetry, partition, "telemetry"), _taken(laps, partition, "laps")
        )
        return _output(
            table,
            {"pedals": lambda: plots.telemetry_shares(table)},
            top_speed_kmh=table["TopSpeed"].max(),
            samples=table["Samples"].sum(),
        )

    return AnalysedPartitions(context.partition_keys, analyse)


@dg.asset(
    **_options(analysis.EVENT_SUMMARY, "event", event_partitions_def, SEASON_BACKFILL),
    # A running event is summed up by the sessions it has had.
    ins={"laps": _input(analysis.EVENT_SUMMARY, "laps", PARTITIONS.session_to_event)},
    code_version="2",
)
def event_summary(context: dg.AssetExecutionContext, laps: Tables):
    """One row a session of an event: laps, fastest lap, median pace, tyres."""
    events = _by_level(laps, context.partition_keys, lambda key: key.event_partition)

    def analyse(partition: str) -> PartitionOutput:
        # A row is of one session: one with rows at fault is left out, as one that is yet to come, and said so.
        sessions, faults = _sound(_existing(events.pop(partition), partition, "laps"), "laps")
        for fault in faults:
            context.log.warning(f"{partition} is summed up without a session: {fault}")
        table = analysis.event_summary_of(sessions)
        return _output(
            table,
            {"overview": lambda: plots.event_overview(table)},
            sessions=len(table),
            laps=table["Laps"].sum(),
            sessions_left_out=len(faults),
            **({"left_out": "\n".join(faults)} if faults else {}),
        )

    return AnalysedPartitions(context.partition_keys, analyse)


@dg.asset(
    **_options(analysis.SEASON_SUMMARY, "season", season_partitions_def, SEASON_BACKFILL),
    # Of the tables of a session the smallest that has it all: a season of laps would be read for twenty rows a session.
    ins={"race_pace": _input(analysis.SEASON_SUMMARY, "race_pace", PARTITIONS.session_to_season)},
    code_version="1",
)
def season_summary(context: dg.AssetExecutionContext, race_pace: Tables, timing_data: TimingDataResource):
    """One row a team: pace against the quickest team of each session, and reliability; points do not count.

    Shows beside it which sessions of the season are stored.
    """
    seasons = _by_level(race_pace, context.partition_keys, lambda key: str(key.year))

    def analyse(partition: str) -> PartitionOutput:
        sessions = _existing(seasons.pop(partition), partition, "race_pace")
        table = analysis.season_summary_of(sessions)
        return _output(
            table,
            {
                "pace": lambda: plots.season_pace(table),
                "cached_sessions": lambda: plots.cached_sessions(
                    cached_season(timing_data.cache, int(partition), timing_data.reader)
                ),
            },
            sessions=len(sessions),
            retirements=table["Retirements"].sum(),
        )

    return AnalysedPartitions(context.partition_keys, analyse)


derived_assets = [fastest_laps, stints, race_pace, driver_telemetry_summary, event_summary, season_summary]
