"""What the nightly warm-up is about, and how Dagster is told of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
from pydantic import Field

from tif1_pipeline import api
from tif1_pipeline.calendar import Event, SeasonCalendar
from tif1_pipeline.cdn.base import CdnStats
from tif1_pipeline.defs.io_metadata import data_version_of
from tif1_pipeline.defs.jobs.common import OpConfig, Report, disabled, markdown_table
from tif1_pipeline.defs.jobs.events import log_materialized
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.exceptions import DataNotFoundError, Tif1Error
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry
from tif1_pipeline.warming import (
    DEFAULT_TYPES,
    LASTING,
    NOT_PUBLISHED,
    PASSING,
    TYPES,
    Task,
    Warming,
    kind_of,
    shortcoming,
    starts_of,
)

AHEAD = ("session_info", "drivers", "corners")
"""What can be known of a session before it begins."""


class WarmConfig(OpConfig):
    """What is warmed, and how; a dry run asks the CDN for nothing and goes by the calendars that are stored."""

    data_types: list[str] | None = Field(
        None,
        description=f"Tables: some of {', '.join(TYPES)}; by default {', '.join(DEFAULT_TYPES)}, and what is stored.",
    )
    max_workers: int = Field(4, ge=1, description="Sessions under way at once.")
    min_access_count: int = Field(5, ge=1, description="Reads that make a session a frequently used one.")
    recent_days: float | None = Field(
        None, ge=0, description="Sessions that began in so many days are recent; by default the setting warm_recent."
    )


@dataclass
class Outcome:
    """What became of the tables that an op is about; ``planned`` and ``failed`` as :class:`Warming` reports them."""

    stats: CdnStats = field(default_factory=CdnStats)
    succeeded: int = 0
    skipped: int = 0
    planned: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def failures(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the failures of some kinds."""
        return [item for item in self.failed if item["kind"] in kinds]

    def as_report(self) -> Report:
        """Return what the op says; a table that is not published is no problem."""
        failed, unpublished = self.failures(PASSING, LASTING), self.failures(NOT_PUBLISHED)
        counts = {
            "planned": len(self.planned),
            "succeeded": self.succeeded,
            "skipped": self.skipped,
            "not_published": len(unpublished),
            "failed": len(failed),
            "requests": self.stats.requests,
            "bytes": self.stats.bytes,
        }
        tables = {"would_fetch": self.planned, "failures": failed, "missing_on_the_cdn": unpublished}
        shown = {
            name: markdown_table(["session", "table", "driver", "why"], map(_row, items))
            for name, items in tables.items()
            if items
        }
        problem = None
        if failed:
            session, table, _, why = _row(failed[0])
            problem = f"{len(failed)} tables were not warmed; {table} of {session}: {why}"
        return Report(counts, shown, problem=problem)


def _row(item: Mapping[str, Any]) -> tuple[str, str, str, str]:
    session = " ".join(str(item[name]) for name in ("year", "event", "session_type") if name in item)
    return session, item["data_type"], item.get("driver", ""), item["error"]


class WarmUp:
    """Warms the tables that one op is about, and logs what that stored."""

    def __init__(self, context: dg.OpExecutionContext, timing_data: TimingDataResource, options: WarmConfig) -> None:
        self._context = context
        self._options = options
        self._reader = timing_data.reader
        self._cache = timing_data.cache
        self._config = api.get_config()
        self._warming = Warming(self._reader, self._cache, self._config)
        self._now = datetime.now(UTC)
        days = options.recent_days
        self._recent = self._config.warm_recent if days is None else timedelta(days=days)
        self._calendars: dict[int, SeasonCalendar | None] = {}
        self.outcome = Outcome()
        if reason := disabled():
            raise dg.Failure(f"nothing can be warmed: {reason}", allow_retries=False)
        if unknown := sorted(set(options.data_types or ()) - set(TYPES)):
            raise dg.Failure(
                f"there is no data type {', '.join(unknown)}; choose from {', '.join(TYPES)}", allow_retries=False
            )

    # ---- which sessions

    def years(self) -> list[int]:
        """Return the seasons in which there may be recent sessions."""
        return list(range((self._now - self._recent).year, self._now.year + 1))

    def calendar(self, year: int) -> SeasonCalendar | None:
        """Return a season's calendar; None for one that is not published, or in a dry run not stored."""
        if year not in self._calendars:
            if self._options.dry_run:
                self._calendars[year] = self._reader.stored_calendar(year)
            else:
                self._calendars[year] = self._current_calendar(year)
        return self._calendars[year]

    def _current_calendar(self, year: int) -> SeasonCalendar | None:
        entry = schedule_entry(year)
        before = self._version(entry)
        try:
            table = self._reader.schedule(year, stats=self.outcome.stats).value
        except DataNotFoundError:
            return None
        self._log(year, "schedule", entry, before)
        return SeasonCalendar.from_table(year, table)

    def upcoming(self) -> Event | None:
        """Return the running or coming race weekend, which may be of the next season."""
        for year in (self._now.year, self._now.year + 1):
            calendar = self.calendar(year)
            if calendar is not None and (event := calendar.next_event(self._now)) is not None:
                return event
        return None

    def of_upcoming(self) -> dict[SessionKey, list[Task]]:
        """Return the tables of the upcoming event: of a session that has not begun, those that can exist already."""
        event, chosen = self.upcoming(), self._options.data_types
        ahead = [name for name in AHEAD if chosen is None or name in chosen]
        return {
            key: _tasks(key, chosen or DEFAULT_TYPES) if start is None or start <= self._now else _tasks(key, ahead)
            for key, start in (starts_of(event) if event else ())
        }

    def of_recent(self) -> dict[SessionKey, list[Task]]:
        """Return the tables of the sessions that began a short time ago, those of the upcoming event aside."""
        upcoming = self.upcoming()
        calendars = [calendar for year in self.years() if (calendar := self.calendar(year)) is not None]
        return {
            key: _tasks(key, self._options.data_types or DEFAULT_TYPES)
            for calendar in calendars
            for event in calendar.events
            if event != upcoming
            for key, start in starts_of(event)
            if start is not None and self._now - self._recent <= start <= self._now
        }

    def of_frequent(self) -> dict[SessionKey, list[Task]]:
        """Return the tables of the sessions that are read often, those that the other two return aside.

        No more telemetry than is stored of it, and of the other types those stored and the default ones.
        """
        done = {task for tasks in (self.of_upcoming() | self.of_recent()).values() for task in tasks}
        sessions: dict[SessionKey, list[Task]] = {}
        for row in self._cache.list_sessions(sort_by="access_count"):
            if row["access_count"] < self._options.min_access_count:
                break
            try:
                calendar = self.calendar(row["year"])
                key = calendar.find(row["event"]).key(row["session_type"]) if calendar else None
            except DataNotFoundError:
                key = None
            if key is None:
                self._context.log.warning(f"{row['event']} {row['session_type']} {row['year']} is no longer scheduled")
            else:
                types = self._options.data_types or {*DEFAULT_TYPES, *row["data_types"]}
                sessions[key] = [task for task in self._warming.kept(key, types) if task not in done]
        return sessions

    # ---- warming them

    def warm(self, what: str, sessions: Mapping[SessionKey, Sequence[Task]]) -> None:
        """Fetch what is missing or expired of these tables; in a dry run say so."""
        if self._options.dry_run:
            for task in (task for tasks in sessions.values() for task in tasks):
                self._plan(task)
            return
        # All types of these sessions: telemetry brings the drivers and laps by which its files are found.
        entries = {(key, name): key.entry(name) for key in sessions for name in TYPES}
        before = {about: self._version(entry) for about, entry in entries.items()}
        try:
            report = self._warming.tables(what, sessions, max_workers=self._options.max_workers)
        finally:
            for (key, name), entry in entries.items():
                self._log(key, name, entry, before[key, name])
        self.outcome.succeeded += report["succeeded"]
        self.outcome.skipped += report["skipped"]
        self.outcome.failed += report["failed"]
        self.outcome.stats.requests += report["requests"]
        self.outcome.stats.bytes += report["bytes"]

    def _plan(self, task: Task) -> None:
        entry = task.key.entry(task.data_type)
        info = self._cache.info(entry.of_part(task.driver) if task.driver else entry)
        if reason := shortcoming(info, task.data_type, task.key.year, self._config):
            self.outcome.planned.append(task.about() | {"error": reason})
        else:
            self.outcome.skipped += 1

    def refresh_calendars(self) -> None:
        """Fetch the calendars that are missing or expired; in a dry run say so."""
        for year in [*self.years(), self._now.year + 1]:
            about = {"year": year, "data_type": "schedule"}
            reason = self._shortcoming(year)
            if reason is None:
                self.outcome.skipped += 1
            elif self._options.dry_run:
                self.outcome.planned.append(about | {"error": reason})
            else:
                self._refresh_calendar(year, about)

    def _refresh_calendar(self, year: int, about: dict[str, Any]) -> None:
        try:
            calendar = self.calendar(year)
        except Tif1Error as error:
            self.outcome.failed.append(about | {"error": str(error), "kind": kind_of(error)})
            return
        if calendar is None:
            self.outcome.failed.append(about | {"error": "it is not published", "kind": NOT_PUBLISHED})
        elif self._shortcoming(year) is not None:
            error = "it could not be refreshed, or not be stored; the log says why"
            self.outcome.failed.append(about | {"error": error, "kind": PASSING})
        else:
            self.outcome.succeeded += 1

    # ---- what is stored

    def _shortcoming(self, year: int) -> str | None:
        return shortcoming(self._cache.info(schedule_entry(year)), "schedule", year, self._config)

    def _version(self, entry: EntryKey) -> str | None:
        info = self._cache.info(entry)
        return None if info is None else data_version_of(info)

    def _log(self, key: SessionKey | int, dataset: str, entry: EntryKey, before: str | None) -> None:
        info = self._cache.info(entry)
        if info is not None and data_version_of(info) != before:
            log_materialized(self._context, self._cache, key, dataset, info)


def _tasks(key: SessionKey, types: Iterable[str]) -> list[Task]:
    wanted = set(types)
    return [Task(key, name) for name in TYPES if name in wanted]
