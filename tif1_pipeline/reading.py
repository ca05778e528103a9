"""Tables of Formula 1 through the cache: what is stored and fresh is read, anything else is fetched and stored."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.ages import OF_THE_CALENDAR, max_age
from tif1_pipeline.cache.assembly import values_of
from tif1_pipeline.cache.base import Backend, EntryInfo, Fresh, Hit, Source
from tif1_pipeline.cache.early import EarlyParts
from tif1_pipeline.cache.frames import from_table
from tif1_pipeline.cache.templates import is_number, number_type
from tif1_pipeline.calendar import SeasonCalendar
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import DataNotFoundError
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry

if TYPE_CHECKING:
    from tif1_pipeline.cdn.base import CdnFile, CdnStats
    from tif1_pipeline.cdn.client import CdnClient
    from tif1_pipeline.fetch import FetchedTable, OnPart

OnDone = Callable[["CdnFile"], None]


class Reader:
    """Reads tables through one cache, or straight from the CDN where ``cache`` is None.

    Args:
        config: The settings in force.
        cache: The cache; None bypasses it.
        client: Gives the CDN client. A function, because a warm read never needs one and its imports take longer than
            the read.
    """

    def __init__(self, config: Config, cache: Cache | None, client: Callable[[], "CdnClient"]) -> None:
        self._config = config
        self._cache = cache
        self._client = client
        self._calendars: dict[int, tuple[str, SeasonCalendar]] = {}

    # ---- calendar

    def schedule(self, year: int, as_: Backend = "arrow", *, stats: "CdnStats | None" = None) -> Hit:
        """Return a season's ``schedule`` table.

        Raises:
            EventNotFoundError: There is no such season.
            NetworkError: It is not stored and the CDN cannot be reached.
        """
        return self._through(
            schedule_entry(year),
            "schedule",
            lambda validators, _: self.fetch_schedule(year, validators, stats),
            as_,
            max_age=self._max_age(schedule_entry(year)),
        )

    def _max_age(self, entry: EntryKey) -> timedelta | None:
        """Return how old a stored table may be."""
        stored_at = None
        if entry.data_type in OF_THE_CALENDAR and self._cache is not None:
            stored = self._cache.info(entry)
            stored_at = stored and stored.created_at
        return max_age(self._config, entry.data_type, entry.year, stored_at)

    def calendar(self, year: int) -> SeasonCalendar:
        """Return a season's calendar.

        Raises:
            EventNotFoundError: There is no such season.
            NetworkError: It is not stored and the CDN cannot be reached.
        """
        return self._calendar_of(year, self.schedule(year))

    def stored_calendar(self, year: int) -> SeasonCalendar | None:
        """Return a season's calendar as it is stored, however old, without asking the CDN; None when it is not."""
        if self._cache is None:
            return None
        hit = self._cache.read(schedule_entry(year), schema_version=DATASETS["schedule"].schema_version)
        return None if hit is None else self._calendar_of(year, hit)

    def _calendar_of(self, year: int, hit: Hit) -> SeasonCalendar:
        generation = hit.info.generation if hit.info else ""
        known = self._calendars.get(year)
        if known and generation and known[0] == generation:
            return known[1]
        calendar = SeasonCalendar.from_table(year, hit.value)
        self._calendars[year] = (generation, calendar)
        return calendar

    # ---- tables of a session

    def table(
        self,
        key: SessionKey,
        dataset: str,
        as_: Backend = "arrow",
        *,
        columns: Sequence[str] | None = None,
        drivers: Sequence[str] | None = None,
        stats: "CdnStats | None" = None,
        on_done: OnDone | None = None,
    ) -> Hit:
        """Return one table of a session.

        Args:
            key: The session.
            dataset: Name of the dataset.
            as_: Kind of frame.
            columns: Only these columns.
            drivers: Only these drivers' rows; for tables that are stored by driver, only their parts are read.
            stats: Counts what the CDN was asked for.
            on_done: Called after each file of a table made of many.

        Raises:
            DataNotFoundError: The CDN does not have it (yet).
            NetworkError: It is not stored and the CDN cannot be reached.
            InvalidDataError: No mirror has a sound copy.
        """
        part_by = DATASETS[dataset].part_by
        if drivers is not None and part_by is None and self._cache is not None:
            whole = self.table(key, dataset, stats=stats, on_done=on_done)
            rows = rows_of(whole.value, "Driver", drivers)
            return Hit(from_table(rows if columns is None else rows.select(list(columns)), as_), whole.tier, whole.info)
        entry = key.entry(dataset)
        return self._through(
            entry,
            dataset,
            lambda validators, on_part: self.fetch(key, dataset, validators, stats, on_done, on_part),
            as_,
            columns=columns,
            parts=drivers,
            part_by=part_by,
            max_age=self._max_age(entry),
        )

    def driver_telemetry(
        self,
        key: SessionKey,
        driver: str,
        lap: int | None = None,
        as_: Backend = "arrow",
        *,
        stats: "CdnStats | None" = None,
    ) -> Hit:
        """Return one driver's telemetry, or one lap of it, fetching no more than that.

        What is stored of the session's telemetry is used; a driver or lap that was asked for alone has an entry of its
        own until the whole table is stored.

        Raises:
            DataNotFoundError: There is no telemetry of this driver or lap.
            NetworkError: It is not stored and the CDN cannot be reached.
            InvalidDataError: No mirror has a sound copy.
        """
        whole = key.entry("telemetry")
        if self._cache is not None and self._config.cache_enabled:
            info = self._cache.info(whole)
            if info is not None and info.schema_version == DATASETS["telemetry"].schema_version:
                try:
                    hit = self.table(key, "telemetry", as_ if lap is None else "arrow", drivers=[driver], stats=stats)
                except DataNotFoundError as error:
                    raise DataNotFoundError(f"no telemetry of {driver} is published, {key}", driver=driver) from error
                return hit if lap is None else self._lap_of(hit, key, driver, lap, as_)
            if lap is not None and self._cache.info(whole.of_part(driver)) is not None:
                return self._lap_of(self.driver_telemetry(key, driver, stats=stats), key, driver, lap, as_)

        def fetch(*_: Any) -> "FetchedTable":
            from tif1_pipeline.fetch import fetch_telemetry

            return fetch_telemetry(
                self._client(),
                key,
                self._look_up(key, stats),
                driver=driver,
                lap=lap,
                stats=stats,
                dtype=self._config.telemetry_dtype,  # type: ignore[arg-type] - checked by the setting
            )

        part = driver if lap is None else f"{driver}/{lap}"
        return self._through(whole.of_part(part), "telemetry", fetch, as_, max_age=self._max_age(whole))

    # ---- the CDN

    def fetch(
        self,
        key: SessionKey,
        dataset: str,
        validators: Any = None,
        stats: "CdnStats | None" = None,
        on_done: OnDone | None = None,
        on_part: "OnPart | None" = None,
    ) -> "FetchedTable":
        """Fetch one table of a session from the CDN, whatever is stored; what else it takes comes through the cache."""
        from tif1_pipeline.fetch import fetch_table

        return fetch_table(
            self._client(),
            key,
            dataset,
            self._look_up(key, stats),
            event=self.calendar(key.year).find(key.event) if dataset == "session_info" else None,
            validators=validators,
            stats=stats,
            telemetry_dtype=self._config.telemetry_dtype,  # type: ignore[arg-type] - checked by the setting
            on_done=on_done,
            on_part=on_part,
        )

    def fetch_schedule(self, year: int, validators: Any = None, stats: "CdnStats | None" = None) -> "FetchedTable":
        """Fetch a season's schedule from the CDN, whatever is stored."""
        from tif1_pipeline.fetch import fetch_schedule

        return fetch_schedule(self._client(), year, validators=validators, stats=stats)

    # ---- helpers

    def _look_up(self, key: SessionKey, stats: "CdnStats | None") -> Callable[[str], pa.Table]:
        return lambda dataset: self.table(key, dataset, "arrow", stats=stats).value

    def _through(
        self,
        entry: Any,
        dataset: str,
        fetch: Callable[[Any, "OnPart | None"], "FetchedTable"],
        as_: Backend,
        *,
        columns: Sequence[str] | None = None,
        parts: Sequence[str] | None = None,
        max_age: timedelta | None = None,
        part_by: str | None = None,
    ) -> Hit:
        if self._cache is None:
            table = fetch(None, None).table
            assert table is not None, "nothing was sent that could be unmodified"  # noqa: S101
            if parts is not None:
                table = rows_of(table, "Driver", parts)
            return Hit(from_table(table if columns is None else table.select(list(columns)), as_), "cdn", None)

        def fresh(stored: EntryInfo | None) -> Fresh:
            early = EarlyParts(self._config.cache_compression_level) if part_by else None
            fetched = fetch(_validators(stored), early.add if early else None)
            source = Source(fetched.url, fetched.validators.etag, fetched.validators.last_modified)
            return Fresh(fetched.table, source, fetched.not_modified, early)

        return self._cache.read_through(
            entry,
            fresh,
            as_,
            columns=columns,
            parts=parts,
            part_by=part_by,
            schema_version=DATASETS[dataset].schema_version,
            max_age=max_age,
        )

    def _lap_of(self, hit: Hit, key: SessionKey, driver: str, lap: int, as_: Backend) -> Hit:
        table = _rows_of_lap(hit.value, lap)
        if not table.num_rows:
            raise DataNotFoundError(
                f"no telemetry of {driver} in lap {lap}, {key}: it is not published", driver=driver, lap=lap
            )
        return Hit(from_table(table, as_), hit.tier, hit.info)


def _rows_of_lap(table: pa.Table, lap: int) -> pa.Table:
    """Return the rows of one lap; of telemetry they lie together, and to find them takes no more than numpy."""
    column = table["LapNumber"]
    if is_number(column.type) and not column.null_count and len(column):
        dtype = number_type(column.type)
        numbers = np.concatenate([values_of(chunk, dtype) for chunk in column.chunks if len(chunk)])
        found = np.flatnonzero(numbers == lap)
        if not len(found):
            return table.slice(0, 0)
        first, last = int(found[0]), int(found[-1])
        if last - first + 1 == len(found):
            return table.slice(first, len(found))
    return rows_of(table, "LapNumber", [lap])


def rows_of(table: pa.Table, column: str, values: Sequence[Any]) -> pa.Table:
    """Return the rows whose column has one of these values, in their order."""
    import pyarrow.compute as pc  # not at the top: a read of a stored part does without

    plain = table[column]
    if pa.types.is_dictionary(plain.type):
        plain = plain.cast(plain.type.value_type)
    return table.filter(pc.call_function("is_in", [plain], pc.SetLookupOptions(pa.array(values, plain.type))))


def _validators(stored: EntryInfo | None) -> Any:
    if stored is None or not (stored.source.etag or stored.source.last_modified):
        return None
    from tif1_pipeline.cdn.base import Validators

    return Validators(stored.source.etag, stored.source.last_modified)
