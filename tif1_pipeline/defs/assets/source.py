"""Source assets: the tables as the CDN publishes them, one partition a session; the calendars, one a season."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import dagster as dg
import pandas as pd
import pyarrow as pa

from tif1_pipeline import api, plots
from tif1_pipeline.cache.base import Fresh, Source
from tif1_pipeline.cache.frames import to_pandas
from tif1_pipeline.cdn.base import CdnStats
from tif1_pipeline.config import MIB
from tif1_pipeline.datasets import CATEGORY, DATASETS, SCHEDULE, Dataset
from tif1_pipeline.defs.automation import NETWORK_RETRIES, OWNERS, season_freshness
from tif1_pipeline.defs.io_entries import COLUMN_SCHEMA, DATASET, RETRIES
from tif1_pipeline.defs.io_manager import PartitionOutput
from tif1_pipeline.defs.partitions import CALENDARS, season_partitions_def, session_partitions_def
from tif1_pipeline.defs.pictures import pictures
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.fetch import FetchedTable
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry
from tif1_pipeline.reading import Reader

SESSION_BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=25)
SEASON_BACKFILL = dg.BackfillPolicy.single_run()
CDN_POOL = "cdn"

_AT_ONCE = 4
"""Sessions fetched at once. Small tables wait for round trips, which four hide; the CDN client bounds the requests of
all of them together. A race's telemetry fills the line alone and is large on the way: two at once."""
_TELEMETRY_AT_ONCE = 2

_ABANDON_SECONDS = 3.0
_CLOSE_SECONDS = 0.05

Fetch = Callable[[str, CdnStats], FetchedTable]
Draw = Callable[[str, pa.Table], Mapping[str, dg.MetadataValue]]
Delivery = PartitionOutput | Fresh


class FetchedPartitions:
    """Partitions fetched some at a time, handed out in the order asked for; one that fails is its error.

    Iterated by the IO manager, which stores each before the next but few are fetched: a backfill's memory stays flat.

    Args:
        keys: Of the partitions.
        fetch: Fetches one.
        at_once: How many at the same time.
        draw: Gives pictures of one.
        done: Partitions that are stored already.
    """

    def __init__(
        self,
        keys: Sequence[str],
        fetch: Fetch,
        at_once: int,
        *,
        draw: Draw | None = None,
        done: Collection[str] = (),
    ) -> None:
        self._keys = keys
        self._fetch = fetch
        self._at_once = at_once
        self._draw = draw
        self._done = done

    def __iter__(self) -> Iterator[tuple[str, Delivery | Exception]]:
        pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="tif1-fetch")
        under_way: deque[tuple[str, Future[Delivery]]] = deque()
        try:
            for key in self._keys:
                under_way.append((key, pool.submit(self._deliver, key)))
                if len(under_way) >= self._at_once:
                    yield _first(under_way)
            while under_way:
                yield _first(under_way)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            _abandon([future for _, future in under_way if not future.cancelled()])

    def _deliver(self, key: str) -> Delivery:
        if key in self._done:
            return Fresh(None, not_modified=True)
        stats = CdnStats()
        started = time.perf_counter()
        fetched = self._fetch(key, stats)
        seconds = time.perf_counter() - started
        assert fetched.table is not None, "nothing was sent that could be unmodified"  # noqa: S101
        return PartitionOutput(
            fetched.table,
            source=Source(fetched.url, fetched.validators.etag, fetched.validators.last_modified),
            metadata={
                "fetch_seconds": round(seconds, 3),
                "requests": stats.requests,
                "retries": stats.retries,
                "downloaded_mb": round(stats.bytes / MIB, 4),
                "raw_mb": round(fetched.raw_bytes / MIB, 4),
                "files_missing": fetched.files_missing,
                **(self._draw(key, fetched.table) if self._draw else {}),
            },
        )


def _first(under_way: deque[tuple[str, "Future[Delivery]"]]) -> tuple[str, Delivery | Exception]:
    """Wait for the first and take it out."""
    key, future = under_way[0]
    try:
        outcome = future.result()
    except Exception as error:  # noqa: BLE001 - whatever went wrong with one session must not lose the others
        outcome = error
    under_way.popleft()
    return key, outcome


def _abandon(futures: "Sequence[Future[Delivery]]") -> None:
    """End what a run that was terminated has under way: its process ends with its last thread."""
    until = time.monotonic() + _ABANDON_SECONDS
    while wait(futures, _CLOSE_SECONDS).not_done and time.monotonic() < until:
        api.get_client().close()  # again, because a table may begin another request just then


def _stored_before(
    context: dg.AssetExecutionContext, timing_data: TimingDataResource, entry_of: Callable[[str], EntryKey]
) -> set[str]:
    """Return what a former try of this step has stored: it is not fetched again."""
    if not context.op_execution_context.retry_number:
        return set()
    record = context.instance.get_run_record_by_id(context.run.run_id)
    if record is None or record.start_time is None:
        return set()
    stored = {key: timing_data.cache.info(entry_of(key)) for key in context.partition_keys}
    return {key for key, info in stored.items() if info and info.created_at.timestamp() >= record.start_time}


def _metadata(dataset: Dataset) -> dict[str, object]:
    return {
        DATASET: dataset.name,
        RETRIES: NETWORK_RETRIES.max_retries,
        COLUMN_SCHEMA: dg.TableSchema(
            columns=[
                dg.TableColumn(
                    column.name,
                    "category" if column.type == CATEGORY else str(column.type),
                    f"{column.description}{f' ({column.unit})' if column.unit else ''}",
                    constraints=dg.TableColumnConstraints(nullable=not column.required),
                )
                for column in dataset.columns
            ]
        ),
    }


_NEEDS = {"telemetry": ["drivers", "laps"]}
"""Telemetry files are found by the drivers and laps of the session, which are read through the cache."""


_TAGS = {"tif1/source": "cdn"}

_FRESHNESS = season_freshness(CALENDARS)


def _draw_laps(reader: Reader, key: str, table: pa.Table) -> Mapping[str, dg.MetadataValue]:
    return pictures({"lap_times": lambda: plots.lap_times(to_pandas(table))})


def _draw_telemetry(reader: Reader, key: str, table: pa.Table) -> Mapping[str, dg.MetadataValue]:
    frames: dict[str, pd.DataFrame] = {}

    def draw(plot: Callable[[pd.DataFrame, pd.DataFrame], bytes]) -> bytes:
        if not frames:  # not where pictures are switched off
            frames["telemetry"] = to_pandas(table.select(_DRAWN))
            frames["laps"] = reader.table(SessionKey.parse(key), "laps", "pandas").value
        return plot(frames["telemetry"], frames["laps"])

    return pictures({"track_map": lambda: draw(plots.track_map), "speed_trace": lambda: draw(plots.speed_trace)})


_DRAWN = ["Driver", "LapNumber", "Time", "Speed", "Distance", "X", "Y"]
_DRAW = {"laps": _draw_laps, "telemetry": _draw_telemetry}


def _session_asset(dataset: Dataset) -> dg.AssetsDefinition:
    at_once = _TELEMETRY_AT_ONCE if dataset.name == "telemetry" else _AT_ONCE
    draw = _DRAW.get(dataset.name)

    @dg.asset(
        name=dataset.name,
        description=dataset.description,
        group_name="timing",
        kinds={"json", "parquet", "sqlite"},
        owners=OWNERS,
        tags={**_TAGS, "tif1/level": dataset.level},
        partitions_def=session_partitions_def,
        backfill_policy=SESSION_BACKFILL,
        deps=_NEEDS.get(dataset.name),
        metadata=_metadata(dataset),
        code_version=str(dataset.schema_version),
        freshness_policy=_FRESHNESS,
        pool=CDN_POOL,
    )
    def session_table(context: dg.AssetExecutionContext, timing_data: TimingDataResource):
        reader = timing_data.reader
        return FetchedPartitions(
            context.partition_keys,
            lambda key, stats: reader.fetch(SessionKey.parse(key), dataset.name, stats=stats),
            at_once,
            draw=partial(draw, reader) if draw else None,
            done=_stored_before(context, timing_data, lambda key: SessionKey.parse(key).entry(dataset.name)),
        )

    return session_table


session_assets = [_session_asset(dataset) for dataset in DATASETS.values() if dataset.level == "session"]


@dg.asset(
    name=SCHEDULE.name,
    description=f"{SCHEDULE.description} The calendar_sensor makes partitions of new events.",
    group_name="calendar",
    kinds={"json", "parquet", "sqlite"},
    owners=OWNERS,
    tags={**_TAGS, "tif1/level": SCHEDULE.level},
    partitions_def=season_partitions_def,
    backfill_policy=SEASON_BACKFILL,
    metadata=_metadata(SCHEDULE),
    code_version=str(SCHEDULE.schema_version),
    pool=CDN_POOL,
)
def schedule(context: dg.AssetExecutionContext, timing_data: TimingDataResource):  # noqa: D103
    reader = timing_data.reader
    return FetchedPartitions(
        context.partition_keys,
        lambda key, stats: reader.fetch_schedule(int(key), stats=stats),
        _AT_ONCE,
        done=_stored_before(context, timing_data, lambda key: schedule_entry(int(key))),
    )


source_assets = [*session_assets, schedule]
