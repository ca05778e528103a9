"""A season of invented timing data, generated file by file in the layout of the real CDN."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tif1_pipeline.exceptions import ConfigError, EventNotFoundError, SessionNotFoundError
from tif1_pipeline.keys import SessionKey, session_name
from tif1_pipeline.simulator.events import Event, calendar, schedule_json
from tif1_pipeline.simulator.session import SIZES, Session
from tif1_pipeline.simulator.untidiness import oddities_of

_SESSIONS_KEPT = 24


class Season:
    """All files of one season; the same arguments give the same bytes, in every process and any order of access.

    Args:
        year: Season. 2018 to 2026 have their real calendars and drivers.
        seed: Decides everything that is invented.
        events: Grands Prix, any number; ``None`` for the whole real calendar (24 in an invented year).
        testing: Testing events ahead of them; ``None`` for the real ones if ``events`` is ``None``, else none.
        size: ``full`` like the real ones, ``small`` with fewer laps, ``tiny`` for tests.
        untidy: Make the files untidy in all the ways the real ones are.

    Raises:
        ConfigError: There is no such size.
    """

    def __init__(
        self,
        year: int,
        *,
        seed: int = 0,
        events: int | None = None,
        testing: int | None = None,
        size: str = "full",
        untidy: bool = True,
    ) -> None:
        if size not in SIZES:
            raise ConfigError(f"there is no size {size!r}; choose one of {', '.join(SIZES)}", size=size)
        self.year = year
        self.events: tuple[Event, ...] = calendar(year, events, testing)
        # What the files hold must not depend on what became of the schedule.
        self._sessions_before = [
            sum(len(event.sessions) for event in self.events[:index]) for index in range(len(self.events))
        ]
        self._seed = seed
        self._size = SIZES[size]
        self._untidy = untidy
        self._by_folder = dict(zip(_folders([event.name for event in self.events]), self.events, strict=True))
        self._sessions: OrderedDict[tuple[str, str], Session] = OrderedDict()
        self._lock = threading.Lock()
        self._garage = self._garage_session()

    def _garage_session(self) -> tuple[int, str] | None:
        for event in reversed(self.events):
            practices = [name for name in event.session_types if name.startswith("Practice")]
            if event.round_number and practices:
                return event.index, practices[-1]
        return None

    def schedule(self) -> bytes:
        """Return the season's schedule file."""
        return schedule_json(self.events)

    def sessions(self) -> Iterator[SessionKey]:
        """Yield the sessions that have a folder, in the order of the calendar."""
        for folder, event in self._by_folder.items():
            for session_type in event.session_types:
                yield SessionKey(self.year, folder, session_type)

    def reschedule(self, event: str, session_type: str, start: datetime) -> None:
        """Move a session to another start (aware); a server that has served the schedule publishes it anew when told.

        Raises:
            EventNotFoundError: No event has this name.
            SessionNotFoundError: The event has no such session.
        """
        self.session(event, session_type)  # raises
        found = self._by_folder[event]
        local = start.astimezone(UTC).replace(tzinfo=None) + timedelta(hours=found.facts.gmt_offset)
        moved = session_name(session_type)
        self._replace(
            event, replace(found, sessions=tuple((name, local if name == moved else at) for name, at in found.sessions))
        )

    def cancel(self, event: str) -> None:
        """Strike an event from the schedule; the files that it has stay.

        Raises:
            EventNotFoundError: No event has this name.
        """
        self._replace(event, None)

    def _replace(self, folder: str, event: Event | None) -> None:
        if folder not in self._by_folder:
            raise EventNotFoundError(f"the simulated season {self.year} has no event {folder!r}", event=folder)
        old = self._by_folder[folder]
        with self._lock:
            if event is not None:
                self._by_folder[folder] = event
            kept = (event if other is old else other for other in self.events)
            self.events = tuple(other for other in kept if other is not None)
            for key in [key for key in self._sessions if key[0] == folder]:
                del self._sessions[key]

    def session(self, event: str, session_type: str) -> Session:
        """Return one session by the full name of its event; the session may be given in its short form.

        Raises:
            EventNotFoundError: No event has this name.
            SessionNotFoundError: The event has no such session.
        """
        session_type = session_name(session_type)
        found = self._session(event, session_type)
        if found is None and event not in self._by_folder:
            raise EventNotFoundError(f"the simulated season {self.year} has no event {event!r}", event=event)
        if found is None:
            choices = ", ".join(self._by_folder[event].session_types)
            raise SessionNotFoundError(
                f"{event} {self.year} has no {session_type}; it has {choices}", session_type=session_type
            )
        return found

    def _session(self, name: str, session_type: str) -> Session | None:
        event = self._by_folder.get(name)
        if event is None or session_type not in event.session_types:
            return None
        with self._lock:
            session = self._sessions.get((name, session_type))
            if session is None:
                session = self._sessions[name, session_type] = self._make(event, session_type)
                if len(self._sessions) > _SESSIONS_KEPT:
                    self._sessions.popitem(last=False)
            self._sessions.move_to_end((name, session_type))
        return session

    def _make(self, event: Event, session_type: str) -> Session:
        oddities: frozenset[str] = frozenset()
        if self._untidy:
            index = self._sessions_before[event.index] + event.session_types.index(session_type)
            garage = (event.index, session_type) == self._garage
            oddities = oddities_of(self._seed, self.year, index, session_type, garage=garage)
        return Session(event, session_type, self._seed, self._size, oddities)

    def paths(self) -> Iterator[str]:
        """Yield the path of every file there is; a full season has some 60,000."""
        for key in self.sessions():
            for path in self.session(key.event, key.session_type).paths():
                yield f"{key.event}/{key.session_type}/{path}"

    def file(self, path: str) -> bytes | None:
        """Return a file by its path below the season's prefix, not percent-encoded, ``None`` if there is none.

        Example:
            ``season.file("Monaco Grand Prix/Race/VER/10_tel.json")``
        """
        parts = path.split("/", 2)
        if len(parts) != 3:
            return None
        session = self._session(parts[0], parts[1])
        return session.file(parts[2]) if session else None


def _folders(names: list[str]) -> list[str]:
    """Return the folders of events: their names, numbered where two carry one, as only that keeps their files apart."""
    return [
        f"{name} {names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]
