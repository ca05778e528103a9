"""What becomes of sessions that have ended: when to look for their files, and which tables to fetch.

The validators of the stored entries say what is held. So neither a restart, nor a lost state, nor a table that somebody
else has fetched leads to a second fetch, and whatever differs from the CDN is asked for until it is stored. Dagster is
told of what somebody else has fetched.
"""

import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Protocol

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import OUTDATED, EntryInfo
from tif1_pipeline.calendar import SeasonCalendar
from tif1_pipeline.cdn.base import Version
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.completion import state as states
from tif1_pipeline.completion.looking import SINGLE, TABLES, Findings, info_of, look, stored_tables
from tif1_pipeline.completion.state import State, Watch
from tif1_pipeline.completion.times import NOMINAL_LENGTH, Scheduled, at, is_soon, scheduled, without_start
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError
from tif1_pipeline.keys import SessionKey

__all__ = ["NOMINAL_LENGTH", "Completion", "Decision", "Instance", "Report", "Request", "info_of"]

_TICK_SECONDS = 20.0
"""No look begins when a tick has lasted so long: Dagster gives it up after a minute."""
_LOOK_SECONDS = 24.0
"""How long one look may take; with the CDN in order it takes less than one."""
_LOOKS_A_TICK = 6
_LONGEST_WAIT, _LONGEST_WAIT_INCOMPLETE = 3600.0, 600.0
_MOST_INTERVALS, _MOST_INTERVALS_INCOMPLETE = 30, 5
"""Looks are at most so many seconds or ``completion_interval`` apart, whichever is shorter: once everything of a
session is published, and before that."""


class Instance(Protocol):
    """What Dagster knows."""

    def under_way(self, partition: str) -> str | None:
        """Return what to call a run of this partition's tables that is not over; None if there is none."""
        ...

    def exists(self, run_key: str) -> bool:
        """Tell whether there is a run of this key, whatever became of it."""
        ...

    def tell(self, key: SessionKey, table: str, info: EntryInfo) -> bool:
        """Have this version of a table be known as materialized; return whether it was not."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """A run to launch.

    Attributes:
        tables: Names of the assets to materialize.
        outdated: Those of them of which a former version is stored.
        run_key: Differs for each change, and for each further try.
    """

    tables: tuple[str, ...]
    outdated: tuple[str, ...]
    run_key: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided of one session, and why; without ``request`` nothing is to be done."""

    key: SessionKey
    reason: str
    request: Request | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a tick decided, the last of each session on what it does next, and the state for the next tick."""

    decisions: tuple[Decision, ...]
    state: str


class Completion:
    """Watches sessions from their end on, until ``completion_window`` is over.

    Args:
        config: The settings in force.
        cache: Holds the tables; only read.
        client: Asks the CDN.
    """

    def __init__(self, config: Config, cache: Cache, client: CdnClient) -> None:
        self._config = config
        self._cache = cache
        self._client = client

    def tick(
        self,
        now: datetime,
        calendars: Iterable[SeasonCalendar],
        state: str | None,
        instance: Instance,
        partitions: Collection[str],
    ) -> Report:
        """Look at the sessions that are due.

        Args:
            now: This moment (aware).
            calendars: As they are now: a session that was moved or cancelled is so at once.
            state: What the tick before returned; None, or rubbish, starts anew.
            instance: What Dagster knows.
            partitions: Session partitions that can be materialized.
        """
        now = now.astimezone(UTC)
        calendars = tuple(calendars)
        window = self._config.completion_window
        known = {session.key.partition: session for session in scheduled(calendars)}
        before = states.load(state)
        watched = {name: s for name, s in known.items() if s.end <= now < s.end + window}
        after: State = {name: before.get(name) or Watch() for name in watched}
        decisions = [_farewell(name, known.get(name), now) for name in before if name not in watched]
        decisions += [
            Decision(session.key, f"not ended: it ends at {at(session.end, now)} at the earliest")
            for session in known.values()
            if is_soon(session, now)
        ]
        decisions += [
            Decision(key, "the calendar does not tell its start") for key in without_start(calendars, now, window)
        ]
        over_at = time.monotonic() + _TICK_SECONDS
        looks = 0
        unreadable: str | None = None
        for session in sorted(watched.values(), key=lambda session: after[session.key.partition].next):
            key, watch = session.key, after[session.key.partition]
            reason = self._obstacle(key.partition, instance, partitions) or unreadable
            stored: dict[str, EntryInfo] = {}
            if reason is None:
                try:
                    stored = stored_tables(self._cache, key)
                    decisions += self._tell(key, watch, stored, instance)
                except CacheError as error:  # each try may wait for a lock
                    reason = unreadable = error.message
            reason = reason or self._not_due(watch, now)
            if reason is None and (looks >= _LOOKS_A_TICK or time.monotonic() >= over_at):
                reason = "left for the next tick, to keep this one short"
            if reason is not None:
                decisions.append(Decision(key, reason))
                continue
            looks += 1
            found = look(key, watch, stored, self._cache, self._client, _LOOK_SECONDS)
            decisions.append(self._decide(session, watch, found, now, instance))
        return Report(tuple(decisions), states.dump(after))

    # ---- one session

    def _obstacle(self, name: str, instance: Instance, partitions: Collection[str]) -> str | None:
        """Return why nothing can be done for a session, or None."""
        for setting, value in (("offline", True), ("cache_enabled", False), ("cache_readonly", True)):
            if getattr(self._config, setting) is value:
                return f"not looked at, because the setting {setting} is {'on' if value else 'off'}"
        if name not in partitions:
            return "its partition is not loaded yet: waiting for the code location to be reloaded"
        run = instance.under_way(name)
        return f"{run} is under way: waiting for it" if run else None

    def _tell(
        self, key: SessionKey, watch: Watch, stored: dict[str, EntryInfo], instance: Instance
    ) -> Iterator[Decision]:
        """Have Dagster know what was stored by others than its runs; what depends on it follows."""
        news = {
            table: info
            for table, info in stored.items()
            if info.generation != watch.told.get(table) and info.created_at != OUTDATED
        }
        told = [table for table, info in news.items() if instance.tell(key, table, info)]
        watch.told |= {table: info.generation for table, info in news.items()}
        if told:
            yield Decision(key, f"stored outside of runs, logged as materialized: {_listed(told)}")

    def _not_due(self, watch: Watch, now: datetime) -> str | None:
        # A tick comes a little early at times, which must not cost a whole interval. A time far ahead was written by a
        # clock that was wrong.
        ahead = watch.next - now.timestamp()
        if self._base / 4 < ahead <= self._longest + self._base:
            return f"not due until {at(datetime.fromtimestamp(watch.next, UTC), now)}"
        return None

    def _decide(self, session: Scheduled, watch: Watch, found: Findings, now: datetime, instance: Instance) -> Decision:
        name = session.key.partition
        moment = now.timestamp()
        if not found.changed and not found.owed:
            most = self._longest if found.is_complete else self._longest_incomplete
            watch.wait = min(max(2 * watch.wait, self._base), most)
            watch.next = moment + watch.wait
            return Decision(session.key, f"{_state_of(found)}; looked at again at {self._next(watch, now)}")
        changed = {path: version for files in found.changed.values() for path, version in files.items()}
        hashes = {path: _hash(path, version) for path, version in changed.items() if path not in found.new_laps}
        tables = self._tables(found)
        # Telemetry grows lap by lap, and each run fetches all of it.
        hashes |= dict.fromkeys(({"telemetry"} & {*tables}) | (found.owed - found.changed.keys()), "asked")
        is_new = any(watch.asked.get(path) != text for path, text in hashes.items())
        what = _what(found)
        # What is not new is asked for at growing distances.
        again = watch.asked_at + min(self._base * 2 ** (min(watch.tries, 20) - 1), self._longest)
        watch.wait = self._base
        if not is_new and moment < again - self._base / 4 <= moment + self._longest:
            watch.next = again
            asked = at(datetime.fromtimestamp(watch.asked_at, UTC), now)
            return Decision(
                session.key, f"{what}; a run was requested at {asked}, the next at {self._next(watch, now)}"
            )
        run_key = _run_key(name, changed, instance)
        watch.asked |= hashes
        watch.asked_at, watch.tries = moment, 1 if is_new else watch.tries + 1
        watch.pending = {path: version for path, version in changed.items() if "/" in path}
        if "telemetry" in tables and "telemetry" in found.stored:
            watch.replaced = found.stored["telemetry"].generation
        watch.next = moment + self._base
        # Laps that were added make nothing wrong of those that are stored, which are worth more than none.
        request = Request(tables, tuple(table for table in tables if table in found.outdated), run_key)
        return Decision(session.key, f"{what}: run requested for {_listed(tables)}", request)

    def _tables(self, found: Findings) -> tuple[str, ...]:
        wanted = found.changed.keys() | found.owed
        if wanted & {"drivers", "laps"} and found.telemetry:
            wanted.add("telemetry")  # its files are found by these
        return tuple(table for table in TABLES if table in wanted)

    def _next(self, watch: Watch, now: datetime) -> str:
        return at(datetime.fromtimestamp(watch.next, UTC), now)

    @property
    def _base(self) -> float:
        return self._config.completion_interval.total_seconds()

    @property
    def _longest(self) -> float:
        return max(self._base, min(_LONGEST_WAIT, _MOST_INTERVALS * self._base))

    @property
    def _longest_incomplete(self) -> float:
        return max(self._base, min(_LONGEST_WAIT_INCOMPLETE, _MOST_INTERVALS_INCOMPLETE * self._base))


# ---- words


def _farewell(name: str, session: Scheduled | None, now: datetime) -> Decision:
    key = SessionKey.parse(name)
    if session is None:
        return Decision(key, "no longer in the calendar: not watched any more")
    if session.end > now:
        return Decision(key, f"moved: it ends at {at(session.end, now)} at the earliest")
    return Decision(key, "watched for long enough: not watched any more")


def _what(found: Findings) -> str:
    if found.changed:
        return f"{_listed(found.changed)} {'changed' if found.outdated else 'appeared'} on the CDN"
    return f"{_listed(table for table in TABLES if table in found.owed)} still to be fetched"


def _state_of(found: Findings) -> str:
    if found.errors:
        more = f" (and {len(found.errors) - 1} more)" if len(found.errors) > 1 else ""
        return f"the CDN could not be asked: {found.errors[0]}{more}"
    if len(found.missing) == len(SINGLE):
        return "nothing is published yet (404)"
    missing = [*found.missing, *([] if found.telemetry else ["telemetry"])]
    text = "unchanged" + (f", not published yet: {_listed(missing)}" if missing else "")
    return text + (f", not comparable: {_listed(found.unknown)}" if found.unknown else "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


# ---- identity


def _hash(*parts: object) -> str:
    return blake2b(repr(parts).encode(), digest_size=6).hexdigest()


def _run_key(name: str, changed: dict[str, Version], instance: Instance) -> str:
    """Return a key that no run has had: Dagster launches none with one that it knows."""
    first = f"{name}:{_hash(*sorted((path, version.validators) for path, version in changed.items()))}"
    key, number = first, 1
    while instance.exists(key):
        number += 1
        key = f"{first}:{number}"
    return key
