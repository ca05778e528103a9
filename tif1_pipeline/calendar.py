"""The events and sessions of a season, and how a name is turned into one of them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

import pyarrow as pa

from tif1_pipeline.datasets import DATETIME
from tif1_pipeline.exceptions import EventNotFoundError, SessionNotFoundError
from tif1_pipeline.keys import SessionKey, event_slug, fold, session_name

_CLOSE_ENOUGH = 85.0
_CLEAR_LEAD = 5.0
_SHORTEST_MISSPELT = 4
"""A spelling is taken for an event's when it scores at least so high, and so far ahead of any other event: "austrlia"
is as near to Austria as to Australia, and must not silently become one of them. Shorter texts are no misspellings."""
_RIGHT_ELSEWHERE = frozenset({"austria", "austrian", "australia", "australian"})
"""Names so close to each other that, where a season lacks the one, the other would be taken for what was meant."""

_EPOCH = datetime(1970, 1, 1)
_LONGEST_SESSION = timedelta(hours=4)
"""A race lasts three hours at most, its podium included; an event is over so long after its last session began."""


@dataclass(frozen=True, slots=True)
class ScheduledSession:
    """One session of an event: its type, and its start in local time (naive) and UTC (aware), where known."""

    name: str
    date: datetime | None
    date_utc: datetime | None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Event(Mapping[str, Any]):
    """One event of a season; also a mapping of its fields, and its name when used as text.

    Attributes:
        year: Season.
        round: Round number; 0 for tests.
        name: ``"Monaco Grand Prix"``; numbered where two events of the season carry one name.
        official_name: With sponsors.
        country: Country.
        location: Place of the circuit.
        event_format: conventional, sprint, sprint_shootout, sprint_qualifying or testing.
        date: Last day, local time.
        sessions: In order.
    """

    year: int
    round: int
    name: str
    official_name: str | None
    country: str | None
    location: str | None
    event_format: str | None
    date: datetime | None
    sessions: tuple[ScheduledSession, ...]

    def __getitem__(self, field: str) -> Any:
        if field not in self.__dataclass_fields__:
            raise KeyError(f"an event has no {field!r}; it has {', '.join(self)}")
        return getattr(self, field)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)

    def __len__(self) -> int:
        return len(self.__dataclass_fields__)

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash((self.year, self.name))

    @property
    def is_testing(self) -> bool:
        """Whether this is a test rather than a race weekend."""
        return self.event_format == "testing"

    @property
    def partition(self) -> str:
        """Partition key of the event."""
        return f"{self.year} {self.name}"

    @cached_property
    def session_keys(self) -> tuple[SessionKey, ...]:
        """Keys of the event's sessions, in order."""
        return tuple(SessionKey(self.year, self.name, session.name) for session in self.sessions)

    @property
    def end_utc(self) -> datetime | None:
        """Start of the last session (UTC), where known."""
        return max((session.date_utc for session in self.sessions if session.date_utc), default=None)

    def session(self, session_type: str) -> ScheduledSession:
        """Return the session of this type, by name or short form.

        Raises:
            SessionNotFoundError: There is no such session type, or the event does not have it.
        """
        name = session_name(session_type)
        for session in self.sessions:
            if session.name == name:
                return session
        raise SessionNotFoundError(
            f"the {self.year} {self.name} has no {name}; it has {', '.join(map(str, self.sessions)) or 'no sessions'}",
            year=self.year,
            event=self.name,
            session_type=name,
        )

    def key(self, session_type: str) -> SessionKey:
        """Return the key of the session of this type.

        Raises:
            SessionNotFoundError: As :meth:`session`.
        """
        return SessionKey(self.year, self.name, self.session(session_type).name)

    @cached_property
    def _names(self) -> tuple[frozenset[str], ...]:
        """Folded names by strength: what it is called, where it is, in which country."""
        called = {fold(self.name), event_slug(self.name).replace("_", " "), fold(self.official_name or "")}
        return (
            frozenset(called - {""}),
            frozenset({fold(self.location or "")} - {""}),
            frozenset({fold(self.country or "")} - {""}),
        )


@dataclass(frozen=True)
class SeasonCalendar:
    """A season's events, in order of the calendar."""

    year: int
    events: tuple[Event, ...]

    @classmethod
    def from_table(cls, year: int, table: pa.Table) -> "SeasonCalendar":
        """Build the calendar from a ``schedule`` table."""
        events = [_event(year, row) for row in _rows(table)]
        # Tests have round 0 and take place before round 1, but the files do not promise that order.
        events.sort(key=lambda event: (event.round, event.date or datetime.max))
        return cls(year, tuple(events))

    def find(self, event: "str | int | Event") -> Event:
        """Return the event meant by a name, slug, location, country, round number or close spelling of these.

        Raises:
            EventNotFoundError: None is meant, or several could be; the message names the closest.
        """
        if isinstance(event, Event):
            event = event.name
        query = re.sub(r"\bgp$", "grand prix", fold(str(event)))
        # By the text as given: folded, "-1" would be 1.
        if number := re.fullmatch(r"(?:round\s*)?(\d{1,2})", str(event).strip(), re.IGNORECASE):
            return self._only([item for item in self.events if item.round == int(number[1])], event)
        for strength in range(3):
            matching = [item for item in self.events if query in item._names[strength]]
            # A country or place is also where tests happen; who asks for it means the race.
            matching = [item for item in matching if not item.is_testing] or matching
            if matching:
                return self._only(matching, event)
        testing = [item for item in self.events if query and item.is_testing and fold(item.name).startswith(query)]
        if testing:
            return self._only(testing, event)
        return self._closest(query, event)

    def _only(self, matching: list[Event], asked: object) -> Event:
        if len(matching) == 1:
            return matching[0]
        raise self._not_found(asked, matching, "several events could be meant" if matching else "no such round")

    def _closest(self, query: str, asked: object) -> Event:
        from rapidfuzz import fuzz  # only misspelt names need it; it costs 20 ms at import

        def score(item: Event) -> float:
            if len(query) < _SHORTEST_MISSPELT or query.removesuffix(" grand prix") in _RIGHT_ELSEWHERE:
                return 0.0
            # Whole names in any order of words; parts of names match too much ("usa" is in "lusail").
            names = {fold(name) for name in (item.name, item.location, item.country) if name}
            names.add(event_slug(item.name).replace("_", " "))
            return max(max(fuzz.ratio(query, name), fuzz.token_sort_ratio(query, name)) for name in names)

        scores = [(score(item), item) for item in self.events]
        scores.sort(key=lambda pair: -pair[0])
        if (
            scores
            and scores[0][0] >= _CLOSE_ENOUGH
            and (len(scores) == 1 or scores[0][0] - scores[1][0] >= _CLEAR_LEAD)
        ):
            return scores[0][1]
        raise self._not_found(asked, [item for score, item in scores[:3] if score >= 50], "no event goes by this name")

    def _not_found(self, asked: object, candidates: list[Event], reason: str) -> EventNotFoundError:
        text = str(asked)[:80]
        if candidates:
            hint = "did you mean " + " or ".join(
                f"{item.name} (round {item.round}, {item.location})" for item in candidates
            )
        else:
            hint = "the events are " + ", ".join(item.name for item in self.events)
        return EventNotFoundError(
            f"{text!r} in {self.year}: {reason}; {hint}?"
            if candidates
            else f"{text!r} in {self.year}: {reason}; {hint}",
            year=self.year,
            event=text,
            candidates=[item.name for item in candidates],
        )

    def next_event(self, now: datetime | None = None) -> Event | None:
        """Return the running or coming race weekend, or None when the season is over."""
        now = now or datetime.now(UTC)
        for event in self.events:
            end = event.end_utc or (event.date and event.date.replace(tzinfo=UTC))
            if not event.is_testing and end and end + _LONGEST_SESSION >= now:
                return event
        return None

    @property
    def session_keys(self) -> tuple[SessionKey, ...]:
        """Keys of all sessions, in order."""
        return tuple(key for event in self.events for key in event.session_keys)


def _event(year: int, row: dict[str, Any]) -> Event:
    sessions = tuple(
        ScheduledSession(name, row[f"Session{number}Date"], _utc(row[f"Session{number}DateUtc"]))
        for number in range(1, 6)
        if (name := row[f"Session{number}"])
    )
    return Event(
        year=year,
        round=row["RoundNumber"],
        name=row["EventName"],
        official_name=row["OfficialEventName"],
        country=row["Country"],
        location=row["Location"],
        event_format=row["EventFormat"],
        date=row["EventDate"],
        sessions=sessions,
    )


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Give the rows, with times as Python has them, and no time spans.

    Made from numbers: Arrow imports its conversion to pandas to make them, which takes as long as the rest of this.
    Not by a cast, which took a fifth of making a calendar.
    """
    names = [field.name for field in table.schema if not pa.types.is_duration(field.type)]
    columns = []
    for column in table.select(names).columns:
        if column.type == DATETIME:
            numbers = [number for chunk in column.chunks for number in chunk.view(pa.int64()).to_pylist()]
            columns.append([None if number is None else _moment(number) for number in numbers])
        else:
            columns.append(column.to_pylist())
    return (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def _moment(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment else None
