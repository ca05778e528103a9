"""Keeping the stored calendars current, and finding what follows from their changes. Knows the time only as told."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.tiered import is_compatible
from tif1_pipeline.calendar import SeasonCalendar
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import SCHEDULE
from tif1_pipeline.defs.io_metadata import data_version_of
from tif1_pipeline.defs.partitions import Partitions
from tif1_pipeline.defs.refreshing import refresh
from tif1_pipeline.defs.seasons import known_seasons
from tif1_pipeline.exceptions import CacheError, DataNotFoundError, NetworkError, Tif1Error
from tif1_pipeline.fetch import session_info
from tif1_pipeline.keys import FIRST_SEASON, schedule_entry
from tif1_pipeline.reading import Reader

_VERSION = 1
_FIRST_WAIT = 60.0
"""Seconds until the CDN is asked again after a failure; they double with each further one."""


@dataclass
class State:
    """What is remembered from tick to tick; all of it can be lost without harm.

    Attributes:
        asked: When a season that is not published was last asked for (Unix time).
        failures: Looks in a row that failed.
        retry_at: When the CDN may be asked again after a failure (Unix time).
        settled: Data versions of the calendars whose changes have been dealt with in the cache, by season.
        told: Data versions of the calendars that Dagster knows of, by season.
        announced: Which partitions the webserver was last known to have, as :func:`fingerprint` says it.
        difference: Between stored and loaded calendars, for which a reload was asked.
        reloaded_at: When that was (Unix time).
    """

    asked: dict[int, float] = field(default_factory=dict)
    failures: int = 0
    retry_at: float = 0.0
    settled: dict[int, str] = field(default_factory=dict)
    told: dict[int, str] = field(default_factory=dict)
    announced: str = ""
    difference: str = ""
    reloaded_at: float = 0.0

    @classmethod
    def of(cls, cursor: str | None) -> "State":
        """Read a cursor; one that is not ours counts as none."""
        with suppress(TypeError, ValueError, KeyError, AttributeError):
            known = json.loads(cursor or "")
            if known.pop("version") == _VERSION:
                return cls(
                    asked={int(year): float(at) for year, at in known["asked"].items()},
                    failures=int(known["failures"]),
                    retry_at=float(known["retry_at"]),
                    settled={int(year): str(version) for year, version in known["settled"].items()},
                    told={int(year): str(version) for year, version in known["told"].items()},
                    announced=str(known["announced"]),
                    difference=str(known["difference"]),
                    reloaded_at=float(known["reloaded_at"]),
                )
        return cls()

    @property
    def cursor(self) -> str:
        """The same as text."""
        return json.dumps({"version": _VERSION, **asdict(self)})


@dataclass
class Look:
    """What a look at the calendars found.

    Attributes:
        state: As it is after the look.
        said: What was done, and why anything was not.
        stored: The stored calendars, by season.
        calendars: The same, read; none where one cannot be.
        partitions: The partitions of the stored calendars; None where they cannot be read.
    """

    state: State
    said: list[str] = field(default_factory=list)
    stored: dict[int, EntryInfo] = field(default_factory=dict)
    calendars: tuple[SeasonCalendar, ...] = ()
    partitions: Partitions | None = None


class Calendars:
    """The calendars of all seasons in one cache.

    Args:
        config: The settings in force.
        reader: Fetches.
        cache: Where the calendars belong.
    """

    def __init__(self, config: Config, reader: Reader, cache: Cache) -> None:
        self._config = config
        self._reader = reader
        self._cache = cache

    def look(self, now: datetime, state: State) -> Look:
        """Refresh the calendars that are due, drop what a change made wrong, and see which partitions there should be.

        Args:
            now: The present (aware).
            state: Of the former look; it is changed.
        """
        found = Look(state)
        try:
            self._refresh(now, found)
            found.stored = self._stored(now)
            self._settle(found)
            read = _read(self._reader, _generations(found.stored), known_seasons())
            if read is None:
                found.said.append("a stored calendar cannot be read, which the log explains; it is fetched again")
            else:
                found.calendars, found.partitions = read
        except Tif1Error as error:
            found.said.append(f"the cache could not be used, so nothing changes: {error}")
        return found

    # ---- asking the CDN

    def _refresh(self, now: datetime, found: Look) -> None:
        state, at = found.state, now.timestamp()
        due = self._due(now, state)
        if not due:
            return
        seasons = _listed(due)
        if self._config.offline:
            found.said.append(f"the CDN is not asked for {seasons}: the setting offline is on")
            return
        if self._config.cache_readonly:
            found.said.append(f"the CDN is not asked for {seasons}: the setting cache_readonly is on")
            return
        if at < state.retry_at:
            found.said.append(
                f"the CDN is asked for {seasons} again in {state.retry_at - at:.0f} s, after {state.failures} failures"
            )
            return
        failed = False
        for year in due:
            try:
                found.said.append(f"{year}: {self._ask(year)}")
            except DataNotFoundError:
                state.asked[year] = at
                kept = "; the stored calendar is kept" if self._cache.info(schedule_entry(year)) else ""
                found.said.append(f"{year}: no calendar is published{kept}")
            except Tif1Error as error:
                failed = True
                found.said.append(f"{year}: what is stored is kept, because {error.message}")
                if isinstance(error, NetworkError | CacheError):
                    break  # it would fail for the others, too
        if not failed:
            state.failures, state.retry_at = 0, 0.0
            return
        wait = min(_FIRST_WAIT * 2**state.failures, self._config.calendar_interval.total_seconds())
        state.failures, state.retry_at = min(state.failures + 1, 30), at + wait
        found.said.append(f"the CDN is asked again in {wait:.0f} s")

    def _due(self, now: datetime, state: State) -> list[int]:
        """Return the seasons to ask for: the running one first, then the others, latest first.

        A calendar that was stored after its season is final; of the next season it may be published at any time.
        """
        interval = self._config.calendar_interval.total_seconds()
        due = []
        for year in sorted(_seasons(now), key=lambda year: (year != now.year, -year)):
            info = self._usable(year)
            if info is not None and info.created_at.year > year:
                continue
            last = max(state.asked.get(year, 0.0), info.created_at.timestamp() if info else 0.0)
            if now.timestamp() - last >= interval:
                due.append(year)
        return due

    def _ask(self, year: int) -> str:
        """Ask for a season, by conditional request where it is stored; returns what came of it.

        Raises:
            DataNotFoundError: No calendar is published.
            Tif1Error: It could not be fetched, or not be stored.
        """
        return refresh(
            self._cache,
            schedule_entry(year),
            SCHEDULE,
            lambda validators: self._reader.fetch_schedule(year, validators),
            max_age=timedelta(0),
        )

    # ---- what is stored

    def _usable(self, year: int) -> EntryInfo | None:
        info = self._cache.info(schedule_entry(year))
        return info if info and is_compatible(info, SCHEDULE.schema_version) else None

    def _stored(self, now: datetime) -> dict[int, EntryInfo]:
        return {year: info for year in _seasons(now) if (info := self._usable(year)) is not None}

    def _settle(self, found: Look) -> None:
        """Drop the ``session_info`` that changed calendars contradict, whoever stored them."""
        settled = found.state.settled
        for year, info in found.stored.items():
            version = data_version_of(info)
            if settled.get(year) == version or self._config.cache_readonly:
                continue
            outdated = self._outdated(year)
            if outdated:
                dropped = self._cache.invalidate_custom(lambda entry, keys=outdated: entry["key"] in keys)
                found.said.append(f"{year}: dropped the session_info of {dropped} sessions that were changed")
            settled[year] = version

    def _outdated(self, year: int) -> set[str]:
        entries = self._cache.get_entries(data_type="session_info", year=year)
        calendar = self._reader.stored_calendar(year) if entries else None
        if calendar is None:
            return set()
        expected = {
            key.entry("session_info").text: (event, key) for event in calendar.events for key in event.session_keys
        }
        outdated = set()
        for text in (entry["key"] for entry in entries):
            event, key = expected.get(text, (None, None))
            if event is not None and key is not None:
                hit = self._cache.read(key.entry("session_info"))
                if hit is not None and hit.value.to_pylist() == session_info(event, key).to_pylist():
                    continue
            outdated.add(text)
        return outdated


@lru_cache(maxsize=2)
def _read(
    reader: Reader, versions: tuple[tuple[int, str], ...], seasons: range
) -> tuple[tuple[SeasonCalendar, ...], Partitions] | None:
    # Read once for each version that is stored, not with every tick: reads are counted.
    calendars: list[SeasonCalendar] = []
    for year, _ in versions:
        calendar = reader.stored_calendar(year)
        if calendar is None:
            return None
        calendars.append(calendar)
    return tuple(calendars), Partitions.from_calendars(calendars, seasons)


def _generations(stored: dict[int, EntryInfo]) -> tuple[tuple[int, str], ...]:
    return tuple((year, info.generation) for year, info in stored.items())


def _seasons(now: datetime) -> range:
    # One more than have begun: the next season's calendar is published before this one is over.
    return range(FIRST_SEASON, now.astimezone(UTC).year + 2)


def _listed(years: Iterable[int]) -> str:
    return ", ".join(map(str, years))


# ---- comparing


def lost_seasons(loaded: Partitions, stored: Partitions) -> list[str]:
    """Return the seasons that have events among the loaded partitions, but no stored calendar any more."""
    return sorted(_years(loaded) - _years(stored))


def fingerprint(*partitions: Partitions) -> str:
    """Return a text that differs for other partitions."""
    return blake2b(json.dumps([_keys(each) for each in partitions]).encode(), digest_size=8).hexdigest()


def described(loaded: Partitions, stored: Partitions) -> str:
    """Return in words how the stored calendars differ from the loaded partitions."""
    before, after = ({key for keys in _keys(partitions) for key in keys} for partitions in (loaded, stored))
    if before == after:
        return "the same events and sessions in another order"
    return f"{len(after - before)} new and {len(before - after)} former seasons, events and sessions"


def _keys(partitions: Partitions) -> list[list[str]]:
    levels = (partitions.seasons, partitions.events, partitions.sessions)
    return [list(level.get_partition_keys()) for level in levels]


def _years(partitions: Partitions) -> set[str]:
    return {key.partition(" ")[0] for key in partitions.events.get_partition_keys()}
