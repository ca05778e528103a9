"""What becomes of tables that are older than their TTL: they are refreshed, or dropped."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

import dagster as dg
from pydantic import Field

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.ages import OF_THE_CALENDAR, max_age
from tif1_pipeline.cdn.base import CdnStats, Validators
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.defs.automation import NETWORK_RETRIES
from tif1_pipeline.defs.jobs.common import (
    OpConfig,
    Report,
    hindrance,
    markdown_table,
    op_output,
    perform,
    skipped,
    try_again,
)
from tif1_pipeline.defs.jobs.events import log_materialized
from tif1_pipeline.defs.refreshing import refresh
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import CacheLockedError, DataNotFoundError, NetworkError, Tif1Error
from tif1_pipeline.fetch import FetchedTable, fetch_telemetry
from tif1_pipeline.keys import EntryKey, SessionKey, event_slug, slug
from tif1_pipeline.reading import Reader

_AT_ONCE = 4
_TELEMETRY_AT_ONCE = 2
"""As for the assets: small tables wait for round trips, a race's telemetry is large on its way."""
_GIVE_UP = 3
"""After so many tables for which the CDN could not be reached, it is not asked for the others."""


class ExpiryAction(Enum):
    """What becomes of expired tables."""

    refresh = "refresh"
    drop = "drop"


class ExpiryConfig(OpConfig):
    """What becomes of expired tables, and of how many."""

    action: ExpiryAction | None = Field(
        default=None,
        description="refresh asks the CDN, by conditional request where it can be; drop has them fetched at their next "
        "use. By default the setting expiry_action.",
    )
    limit: int = Field(default=500, ge=1, description="Tables of one run, oldest first; the others are for the next.")


@dataclass(frozen=True)
class Expired:
    """A table, or a part of one, that is older than its TTL.

    Attributes:
        key: The stored key.
        data_type: Name of the dataset.
        created_at: When it was stored, or last found current.
        session: The session it is of; None where the calendar does not know it any more.
    """

    key: str
    data_type: str
    created_at: datetime
    session: SessionKey | None

    @property
    def entry(self) -> EntryKey:
        """Its key, of a known session."""
        assert self.session is not None  # noqa: S101 - for the type checker
        _, _, part = self.key.partition("/")
        whole = self.session.entry(self.data_type)
        return whole.of_part(part) if part else whole


def has_ttl() -> bool:
    """Tell whether the settings let any table expire that the calendars do not govern."""
    config = api.get_config()
    return any(config.ttl_of(name) for name in DATASETS if name not in OF_THE_CALENDAR)


def find_expired(reader: Reader, cache: Cache) -> list[Expired]:
    """Return the expired tables, oldest first, without those that follow from the calendars.

    ``calendar_sensor`` keeps these right, and without the calendars nobody knew what the other tables are.

    Raises:
        CacheError: The cache cannot be read.
    """
    if not has_ttl():
        return []
    rows = [row for row in cache.get_expired_entries() if row["data_type"] not in OF_THE_CALENDAR]
    calendars = {year: reader.stored_calendar(year) for year in {row["year"] for row in rows if row["year"]}}
    sessions = {
        (year, event_slug(key.event), slug(key.session_type)): key
        for year, calendar in calendars.items()
        if calendar is not None
        for key in calendar.session_keys
    }
    return [
        Expired(
            row["key"],
            row["data_type"],
            row["created_at"],
            sessions.get((row["year"], row["event"], row["session_type"])),
        )
        for row in rows
    ]


@dataclass
class _Refreshed:
    changed: list[Expired] = field(default_factory=list)
    unchanged: list[Expired] = field(default_factory=list)
    gone: dict[str, str] = field(default_factory=dict)
    failed: dict[str, Tif1Error] = field(default_factory=dict)


class _Refreshing:
    """Asks the CDN for expired tables, several at once."""

    def __init__(self, timing_data: TimingDataResource) -> None:
        self._reader = timing_data.reader
        self._cache = timing_data.cache
        self._unreached = 0
        self._lock = threading.Lock()
        self.stats = CdnStats()

    def run(self, tables: Sequence[Expired]) -> Iterator[tuple[Expired, str | Tif1Error]]:
        """Refresh tables; yields what came of each, in any order."""
        small = [table for table in tables if table.data_type != "telemetry"]
        yield from self._several(small, _AT_ONCE)
        # After the laps and drivers, by which its files are found.
        yield from self._several([table for table in tables if table.data_type == "telemetry"], _TELEMETRY_AT_ONCE)

    def _several(self, tables: Sequence[Expired], at_once: int) -> Iterator[tuple[Expired, str | Tif1Error]]:
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="tif1-expiry")
        try:
            futures = {pool.submit(self._one, table): table for table in tables}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _one(self, table: Expired) -> str | Tif1Error:
        if self._unreached >= _GIVE_UP:
            return NetworkError("not asked for, because the CDN could not be reached for others", key=table.key)
        age = max_age(api.get_config(), table.data_type, None, None)
        try:
            done = refresh(
                self._cache, table.entry, DATASETS[table.data_type], lambda held: self._fetch(table, held), age
            )
        except NetworkError as error:
            with self._lock:
                self._unreached += 1
            return error
        except Tif1Error as error:
            return error
        self._unreached = 0
        return done

    def _fetch(self, table: Expired, held: Validators | None) -> FetchedTable:
        entry, session = table.entry, table.session
        assert session is not None  # noqa: S101 - for the type checker
        if entry.part is None:
            return self._reader.fetch(session, table.data_type, held, self.stats)
        driver, _, lap = entry.part.partition("/")
        return fetch_telemetry(
            api.get_client(),
            session,
            lambda name: self._reader.table(session, name, stats=self.stats).value,
            driver=driver,
            lap=int(lap) if lap else None,
            stats=self.stats,
            dtype=api.get_config().telemetry_dtype,  # type: ignore[arg-type] - checked by the setting
        )


def _refresh(
    context: dg.OpExecutionContext, timing_data: TimingDataResource, tables: Sequence[Expired], counts: dict[str, int]
) -> Report:
    refreshing, found = _Refreshing(timing_data), _Refreshed()
    for table, outcome in refreshing.run(tables):
        if isinstance(outcome, DataNotFoundError):
            found.gone[table.key] = outcome.message
            context.log.warning(f"{table.key} is no longer on the CDN and is dropped: {outcome.message}")
        elif isinstance(outcome, Tif1Error):
            found.failed[table.key] = outcome
        elif outcome == "unchanged":
            found.unchanged.append(table)
        else:
            found.changed.append(table)
            info = timing_data.cache.info(table.entry)
            if info is not None and table.session is not None and table.entry.part is None:
                log_materialized(context, timing_data.cache, table.session, table.data_type, info)
    gone = [table for table in tables if table.key in found.gone]
    done = _counts(
        **counts,
        refreshed=len(found.changed),
        unchanged=len(found.unchanged),
        dropped=_drop(timing_data.cache, gone) if gone else 0,
        failed=len(found.failed),
        requests=refreshing.stats.requests,
        bytes=refreshing.stats.bytes,
    )
    metadata: dict[str, Any] = {}
    if found.gone:
        metadata["dropped_entries"] = markdown_table(("key", "reason"), found.gone.items())
    if found.failed:
        metadata["failures"] = markdown_table(("key", "reason"), found.failed.items())
        problem = (
            f"{len(found.failed)} of {len(tables)} expired tables could not be refreshed and are kept: "
            f"{', '.join(sorted(found.failed)[:10])}{' …' if len(found.failed) > 10 else ''}; the first because "
            f"{next(iter(found.failed.values())).message}"
        )
        if any(isinstance(error, NetworkError | CacheLockedError) for error in found.failed.values()):
            seconds = NETWORK_RETRIES.calculate_delay(context.retry_number + 1)
            try_again(context, problem, times=NETWORK_RETRIES.max_retries, seconds=seconds)
        raise dg.Failure(problem, metadata={**done, **metadata}, allow_retries=False)
    return Report(done, metadata)


def _drop(cache: Cache, tables: Sequence[Expired]) -> int:
    # Not what was refreshed by somebody since it was listed.
    listed = {table.key: table.created_at for table in tables}
    return cache.invalidate_custom(lambda entry: listed.get(entry["key"]) == entry["created_at"])


def _counts(**known: int) -> dict[str, int]:
    names = ("expired", "refreshed", "unchanged", "dropped", "failed", "unknown", "left", "requests", "bytes")
    return {name: known.get(name, 0) for name in names}


@dg.op(
    description="Refreshes or drops the tables that are older than their TTL, those aside that follow from the "
    "calendars, which calendar_sensor keeps. One that the CDN does not have any more is dropped; one of a session that "
    "the calendar does not know any more is kept. What cannot be reached is kept, tried again, and named.",
    out=op_output(),
    pool="cdn",
)
def refresh_expired(context: dg.OpExecutionContext, config: ExpiryConfig, timing_data: TimingDataResource):  # noqa: D103
    def work() -> Report:
        cache = timing_data.cache
        if reason := hindrance(cache):
            return skipped(reason)
        found = find_expired(timing_data.reader, cache)
        action = config.action or ExpiryAction(api.get_config().expiry_action)
        wanted = found if action is ExpiryAction.drop else [table for table in found if table.session is not None]
        tables, unknown = wanted[: config.limit], len(found) - len(wanted)
        counts = {"expired": len(found), "unknown": unknown, "left": len(wanted) - len(tables)}
        if config.dry_run:
            listed = [(table.key, table.created_at.isoformat(timespec="seconds")) for table in tables]
            return Report(
                _counts(**counts),
                {"action": action.value, "entries": markdown_table(("key", "stored or found current"), listed)},
            )
        if action is ExpiryAction.drop:
            return Report(_counts(**counts, dropped=_drop(cache, tables)))
        return _refresh(context, timing_data, tables, counts)

    return perform(context, config, work)


@dg.job(
    description="Refreshes or drops the tables that are older than their TTL; requested by ttl_expiry_sensor.",
    tags={"tif1/kind": "expiry"},
)
def expiry_job() -> None:  # noqa: D103
    refresh_expired()
