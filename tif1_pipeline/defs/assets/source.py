"""Source assets: the tables as the CDN publishes them, one partition a session; the calendars, one a season."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import dagster as dg

from tif1_pipeline.cache.base import Source
from tif1_pipeline.cdn.base import CdnStats
from tif1_pipeline.config import MIB
from tif1_pipeline.datasets import CATEGORY, DATASETS, SCHEDULE, Dataset
from tif1_pipeline.defs.io_entries import DATASET
from tif1_pipeline.defs.io_manager import PartitionOutput
from tif1_pipeline.defs.partitions import season_partitions_def, session_partitions_def
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.fetch import FetchedTable
from tif1_pipeline.keys import SessionKey

SESSION_BACKFILL = dg.BackfillPolicy.multi_run(max_partitions_per_run=25)
SEASON_BACKFILL = dg.BackfillPolicy.single_run()
CDN_POOL = "cdn"

_AT_ONCE = 4
"""Sessions fetched at once. Small tables wait for round trips, which four hide; the CDN client bounds the requests of
all of them together. A race's telemetry fills the line alone and is large on the way: two at once."""
_TELEMETRY_AT_ONCE = 2

Fetch = Callable[[str, CdnStats], FetchedTable]


class FetchedPartitions:
    """Partitions fetched some at a time, handed out in the order asked for; one that fails is its error.

    Iterated by the IO manager, which stores each before the next but few are fetched: a backfill's memory stays flat.
    """

    def __init__(self, keys: Sequence[str], fetch: Fetch, at_once: int) -> None:
        self._keys = keys
        self._fetch = fetch
        self._at_once = at_once

    def __iter__(self) -> Iterator[tuple[str, PartitionOutput | Exception]]:
        with ThreadPoolExecutor(self._at_once, thread_name_prefix="tif1-fetch") as pool:
            under_way: deque[tuple[str, Future[PartitionOutput]]] = deque()
            try:
                for key in self._keys:
                    under_way.append((key, pool.submit(self._fetch_one, key)))
                    if len(under_way) >= self._at_once:
                        yield _outcome(*under_way.popleft())
                while under_way:
                    yield _outcome(*under_way.popleft())
            finally:
                for _, future in under_way:
                    future.cancel()

    def _fetch_one(self, key: str) -> PartitionOutput:
        stats = CdnStats()
        started = time.perf_counter()
        fetched = self._fetch(key, stats)
        return PartitionOutput(
            fetched.table,
            source=Source(fetched.url, fetched.validators.etag, fetched.validators.last_modified),
            metadata={
                "fetch_seconds": round(time.perf_counter() - started, 3),
                "requests": stats.requests,
                "retries": stats.retries,
                "downloaded_mb": round(stats.bytes / MIB, 4),
                "raw_mb": round(fetched.raw_bytes / MIB, 4),
                "files_missing": fetched.files_missing,
            },
        )


def _outcome(key: str, future: "Future[PartitionOutput]") -> tuple[str, PartitionOutput | Exception]:
    try:
        return key, future.result()
    except Exception as error:  # noqa: BLE001 - whatever went wrong with one session must not lose the others
        return key, error


def _metadata(dataset: Dataset) -> dict[str, object]:
    return {
        DATASET: dataset.name,
        "dagster/column_schema": dg.TableSchema(
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


def _session_asset(dataset: Dataset) -> dg.AssetsDefinition:
    at_once = _TELEMETRY_AT_ONCE if dataset.name == "telemetry" else _AT_ONCE

    @dg.asset(
        name=dataset.name,
        description=dataset.description,
        group_name="timing",
        kinds={"json", "parquet", "sqlite"},
        partitions_def=session_partitions_def,
        backfill_policy=SESSION_BACKFILL,
        deps=_NEEDS.get(dataset.name),
        metadata=_metadata(dataset),
        code_version=str(dataset.schema_version),
        pool=CDN_POOL,
    )
    def session_table(context: dg.AssetExecutionContext, timing_data: TimingDataResource):
        reader = timing_data.reader
        return FetchedPartitions(
            context.partition_keys,
            lambda key, stats: reader.fetch(SessionKey.parse(key), dataset.name, stats=stats),
            at_once,
        )

    return session_table


session_assets = [_session_asset(dataset) for dataset in DATASETS.values() if dataset.level == "session"]


@dg.asset(
    name=SCHEDULE.name,
    description=f"{SCHEDULE.description} New events show as partitions when the code location is reloaded.",
    group_name="calendar",
    kinds={"json", "parquet", "sqlite"},
    partitions_def=season_partitions_def,
    backfill_policy=SEASON_BACKFILL,
    metadata=_metadata(SCHEDULE),
    code_version=str(SCHEDULE.schema_version),
    pool=CDN_POOL,
)
def schedule(context: dg.AssetExecutionContext, timing_data: TimingDataResource):  # noqa: D103
    reader = timing_data.reader
    return FetchedPartitions(
        context.partition_keys, lambda key, stats: reader.fetch_schedule(int(key), stats=stats), _AT_ONCE
    )


source_assets = [*session_assets, schedule]
