"""Fetching tables again whose entries were lost."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import NetworkError, Tif1Error
from tif1_pipeline.keys import EntryKey, SessionKey, schedule_entry
from tif1_pipeline.reading import Reader

_GIVE_UP = 3
"""After so many tables in a row for which the CDN could not be reached, it is not asked for the others."""
_SEASON = re.compile(r"(\d{4})_")

OnStored = Callable[[SessionKey | int, str, EntryInfo], object]


@dataclass(frozen=True)
class _Table:
    """A table that a lost entry held, or a part of one.

    Attributes:
        about: Session, or season of a schedule.
        dataset: Its name.
        entry: The key of the entry.
        part: ``VER`` or ``VER/10`` for an entry that held this part alone.
    """

    about: SessionKey | int
    dataset: str
    entry: EntryKey
    part: str | None = None


@dataclass
class Refetched:
    """What became of lost entries, by their keys.

    Attributes:
        stored: They are there again.
        derived: Nothing that can be fetched: made from other tables, or somebody else's.
        unavailable: The CDN does not have them, or not sound ones, with the reason.
        unreachable: The CDN could not be reached, with the reason.
    """

    stored: list[str] = field(default_factory=list)
    derived: list[str] = field(default_factory=list)
    unavailable: dict[str, str] = field(default_factory=dict)
    unreachable: dict[str, str] = field(default_factory=dict)


def is_source(key: str) -> bool:
    """Tell whether an entry looks like a table that can be fetched."""
    return _SEASON.match(key) is not None


def refetch(keys: Sequence[str], reader: Reader, cache: Cache, on_stored: OnStored) -> Refetched:
    """Fetch lost entries again, one at a time; those that somebody has stored meanwhile are left alone.

    Args:
        keys: Their keys.
        reader: Fetches and stores.
        cache: Where they belong.
        on_stored: Told of each whole table that was fetched and stored.
    """
    result = Refetched(derived=[key for key in keys if not is_source(key)])
    run = _Run(reader, cache, on_stored, result)
    by_season: dict[int, set[str]] = {}
    for key in keys:
        if season := _SEASON.match(key):
            by_season.setdefault(int(season[1]), set()).add(key)
    for year, wanted in sorted(by_season.items()):
        schedule = schedule_entry(year)
        if schedule.text in wanted:  # first: without the calendar nobody knows what the other keys mean
            run.fetch(_Table(year, "schedule", schedule))
        tables = run.tables_of(year, wanted - {schedule.text})
        for table in sorted(tables, key=lambda table: (table.dataset == "telemetry", table.entry.text)):
            run.fetch(table)
    return result


class _Run:
    def __init__(self, reader: Reader, cache: Cache, on_stored: OnStored, result: Refetched) -> None:
        self._reader = reader
        self._cache = cache
        self._on_stored = on_stored
        self._result = result
        self._failures = 0

    def tables_of(self, year: int, keys: set[str]) -> list[_Table]:
        """Return what the keys of a season mean by its calendar."""
        if not keys:
            return []
        try:
            calendar = self._reader.calendar(year)
        except Tif1Error as error:
            reasons = self._result.unreachable if isinstance(error, NetworkError) else self._result.unavailable
            reasons |= dict.fromkeys(keys, str(error))
            return []
        known = {
            session.entry(name).text: (session, name)
            for event in calendar.events
            for session in event.session_keys
            for name, dataset in DATASETS.items()
            if dataset.level == "session"
        }
        tables = []
        for key in sorted(keys):
            whole, _, part = key.partition("/")
            if whole not in known:
                self._result.unavailable[key] = f"the calendar of {year} has no such session"
                continue
            session, name = known[whole]
            entry = session.entry(name)
            tables.append(_Table(session, name, entry.of_part(part) if part else entry, part or None))
        return tables

    def fetch(self, table: _Table) -> None:
        key = table.entry.text
        if self._cache.info(table.entry) is not None:
            self._result.stored.append(key)
            return
        if self._failures >= _GIVE_UP:
            self._result.unreachable[key] = "not asked for, because the CDN could not be reached for others"
            return
        try:
            self._read(table)
        except NetworkError as error:
            self._failures += 1
            self._result.unreachable[key] = str(error)
            return
        except Tif1Error as error:
            self._result.unavailable[key] = str(error)
            return
        self._failures = 0
        info = self._cache.info(table.entry)
        if table.part is None and info is None:
            self._result.unavailable[key] = "it was fetched, but the cache did not store it; its log says why"
            return
        self._result.stored.append(key)  # a part also if the whole has been stored meanwhile
        if table.part is None and info is not None:
            self._on_stored(table.about, table.dataset, info)

    def _read(self, table: _Table) -> None:
        if isinstance(table.about, int):
            self._reader.schedule(table.about)
        elif table.part is None:
            self._reader.table(table.about, table.dataset)
        else:
            driver, _, lap = table.part.partition("/")
            self._reader.driver_telemetry(table.about, driver, int(lap) if lap else None)
