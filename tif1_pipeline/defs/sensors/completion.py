"""The sensor that fetches sessions when they have ended, file by file as they are published, and their corrections."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property, lru_cache

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.calendar import SeasonCalendar
from tif1_pipeline.completion import Completion, Request, info_of
from tif1_pipeline.defs.assets.source import session_assets
from tif1_pipeline.defs.io_metadata import CONTENT_VERSION, data_version_of
from tif1_pipeline.defs.io_outputs import DATA_VERSION_TAG
from tif1_pipeline.defs.jobs.events import log_materialized
from tif1_pipeline.defs.partitions import session_partitions_def
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import CacheError
from tif1_pipeline.keys import SessionKey, schedule_entry
from tif1_pipeline.reading import Reader

_TABLES = frozenset(asset.key for asset in session_assets)
_OVER = frozenset({dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED})
_OPEN = [status for status in dg.DagsterRunStatus if status not in _OVER]
_RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
_REASONS_SHOWN = 20


class _Instance:
    """What the instance knows of the sessions' tables."""

    def __init__(self, context: dg.SensorEvaluationContext, cache: Cache, partitions: Sequence[str]) -> None:
        self._context = context
        self._cache = cache
        self._instance = context.instance
        self._places = {partition: place for place, partition in enumerate(partitions)}

    @cached_property
    def _open(self) -> list[dg.DagsterRun]:
        runs = self._instance.get_runs(dg.RunsFilter(statuses=_OPEN))
        return [run for run in runs if run.asset_selection is None or run.asset_selection & _TABLES]

    def under_way(self, partition: str) -> str | None:
        for run in self._open:
            if self._is_about(run, partition):
                return f"run {run.run_id[:8]} ({run.status.value.lower()})"
        return None

    def exists(self, run_key: str) -> bool:
        return self._instance.get_runs_count(dg.RunsFilter(tags={"dagster/run_key": run_key})) > 0

    def tell(self, key: SessionKey, table: str, info: EntryInfo) -> bool:
        records = self._instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(table), asset_partitions=[key.partition]), limit=1
        ).records
        event = records[0].asset_materialization if records else None
        if event is not None:
            known = event.metadata.get(CONTENT_VERSION)  # of a run of many partitions the tag is another
            if data_version_of(info) == (known.value if known else (event.tags or {}).get(DATA_VERSION_TAG)):
                return False
        return log_materialized(self._context, self._cache, key, table, info)

    def _is_about(self, run: dg.DagsterRun, partition: str) -> bool:
        if run.tags.get("dagster/partition") == partition:
            return True
        first, last = (self._places.get(run.tags.get(tag, "")) for tag in _RANGE_TAGS)
        return first is not None and last is not None and first <= self._places.get(partition, -1) <= last


@dg.sensor(
    name="race_completion_sensor",
    target=dg.AssetSelection.assets(*session_assets),
    minimum_interval_seconds=max(1, int(api.get_config().completion_interval.total_seconds())),
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every completion_interval (2 min by default): asks the CDN, by conditional requests, for the files of "
    "the sessions that ended within completion_window (3 days), at growing distances while nothing changes, and "
    "requests a run of the tables that appeared or changed. What others than runs have stored of these sessions, as a "
    "notebook does, is logged as materialized. Each tick says of every session why it did or did not act. Running by "
    "default.",
)
def race_completion_sensor(
    context: dg.SensorEvaluationContext, timing_data: TimingDataResource
) -> dg.SensorResult | dg.SkipReason:
    """Request what has been published of the sessions that have ended."""
    now = datetime.now(UTC)
    config = api.get_config()
    reader, cache = timing_data.reader, timing_data.cache
    try:
        calendars = _calendars(reader, cache, now - config.completion_window - timedelta(days=1))
    except CacheError as error:
        return dg.SkipReason(f"which sessions there are cannot be told: {error.message}")
    if not calendars:
        return dg.SkipReason("no calendar of this season is stored; the calendar sensor or the asset schedule gets it")
    partitions = session_partitions_def.get_partition_keys()
    report = Completion(config, cache, api.get_client()).tick(
        now,
        calendars,
        context.cursor,
        _Instance(context, cache, partitions),
        frozenset(partitions),
    )
    reasons = [f"{decision.key}: {decision.reason}" for decision in report.decisions]
    for reason in reasons:
        context.log.info(reason)
    requests = [
        _launch(context, timing_data, decision.key, decision.request)
        for decision in report.decisions
        if decision.request
    ]
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=report.state)
    return dg.SensorResult(skip_reason=_in_short(reasons, config.completion_window), cursor=report.state)


def _launch(
    context: dg.SensorEvaluationContext, timing_data: TimingDataResource, key: SessionKey, request: Request
) -> dg.RunRequest:
    """Have readers fetch what is out of date, and return the request for the run that fetches it all."""
    for table in request.outdated:
        try:
            # Not removed: if the CDN fails before the run, what there was is better than nothing.
            timing_data.cache.outdate(key.entry(table))
        except CacheError as error:  # the run replaces it all the same
            context.log.warning(f"{key}: the stored {table} could not be marked as out of date: {error}")
    return dg.RunRequest(
        run_key=request.run_key,
        partition_key=key.partition,
        asset_selection=[dg.AssetKey(table) for table in request.tables],
        tags={"tif1/requested_for": ", ".join(request.tables)},
    )


def _calendars(reader: Reader, cache: Cache, since: datetime) -> list[SeasonCalendar]:
    """Return the stored calendars of the seasons that have sessions between then and the day after tomorrow."""
    years = range(since.year, (datetime.now(UTC) + timedelta(days=2)).year + 1)
    stored = {year: info_of(cache, schedule_entry(year)) for year in years}
    return [_calendar(reader, year, info.generation) for year, info in stored.items() if info is not None]


@lru_cache(maxsize=8)
def _calendar(reader: Reader, year: int, generation: str) -> SeasonCalendar:
    # Read once for each version that is stored, not with every tick: reads are counted.
    calendar = reader.stored_calendar(year)
    if calendar is None:
        raise CacheError(f"the stored calendar of {year} cannot be read: see the log, or run verify", year=year)
    return calendar


def _in_short(reasons: list[str], window: timedelta) -> str:
    if not reasons:
        return f"no session has ended within the last {window}, and none is about to"
    more = len(reasons) - _REASONS_SHOWN
    return "\n".join([*reasons[:_REASONS_SHOWN], *([f"… and {more} more, see the log"] if more > 0 else [])])
