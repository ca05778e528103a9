"""When sessions end and which of them are watched; everything in UTC, so that no clock change matters."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from tif1_pipeline.calendar import SeasonCalendar
from tif1_pipeline.keys import SessionKey

_HOUR = timedelta(hours=1)
NOMINAL_LENGTH = {
    "Practice 1": _HOUR,
    "Practice 2": _HOUR,
    "Practice 3": _HOUR,
    "Qualifying": _HOUR,
    "Sprint": _HOUR,
    "Sprint Shootout": _HOUR,
    "Sprint Qualifying": _HOUR,
    # Up to three hours with interruptions; nothing is published before the real end, so asking early is harmless.
    "Race": 2 * _HOUR,
}
"""Scheduled length of a session by its type."""
TEST_DAY = 9 * _HOUR
"""Length of a day of testing, which the calendar calls a practice."""

_SOON = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One session of a calendar.

    Attributes:
        key: The session.
        start: Start (UTC, aware).
        end: Earliest end (UTC, aware).
    """

    key: SessionKey
    start: datetime
    end: datetime


def scheduled(calendars: Iterable[SeasonCalendar]) -> Iterator[Scheduled]:
    """Yield the sessions of known start and type."""
    for calendar in calendars:
        for event in calendar.events:
            for session in event.sessions:
                # What a calendar calls otherwise is no session type, hence no partition.
                if session.date_utc is not None and session.name in NOMINAL_LENGTH:
                    length = TEST_DAY if event.is_testing else NOMINAL_LENGTH[session.name]
                    key = SessionKey(event.year, event.name, session.name)
                    yield Scheduled(key, session.date_utc, session.date_utc + length)


def without_start(calendars: Iterable[SeasonCalendar], now: datetime, window: timedelta) -> Iterator[SessionKey]:
    """Yield the sessions of events around this moment whose start the calendar does not tell."""
    for calendar in calendars:
        for event in calendar.events:
            day = event.date and event.date.replace(tzinfo=now.tzinfo)
            if day and day - window <= now <= day + window:
                yield from (SessionKey(event.year, event.name, s.name) for s in event.sessions if s.date_utc is None)


def is_soon(session: Scheduled, now: datetime) -> bool:
    """Tell whether a session that has not ended is about to begin, or has begun."""
    return now < session.end and session.start <= now + _SOON


def at(moment: datetime, now: datetime) -> str:
    """Return a moment as it stands in reasons."""
    return f"{moment:%H:%M} UTC" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M} UTC"
