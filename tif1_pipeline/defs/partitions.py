"""Seasons, events and sessions as partitions, built from the calendars that are stored when the definitions load.

Static, because only static partitions carry a many-to-one mapping (session to event to season) through Dagster's own
processes, and keep the calendar's order. No network: where no calendar is stored yet there are seasons, but no events
and sessions; ``tif1-pipeline dev`` and ``calendar_sensor`` fetch calendars, and the sensor has the code location
reloaded.
"""

import logging
import re
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import dagster as dg

from tif1_pipeline import api
from tif1_pipeline.cache import Cache
from tif1_pipeline.calendar import Event, SeasonCalendar
from tif1_pipeline.completion import info_of
from tif1_pipeline.defs.seasons import known_seasons
from tif1_pipeline.exceptions import Tif1Error
from tif1_pipeline.keys import SESSION_TYPES, SessionKey, schedule_entry
from tif1_pipeline.reading import Reader

_log = logging.getLogger(__name__)

_NO_KEY = re.compile(r"\.\.\.|[\x00-\x1f\x7f|,\[\]]")
"""What Dagster refuses in static partition keys, or reads as a range or list in commands."""

_LOCK_TIMEOUT = timedelta(seconds=1)
"""How long loading waits for the cache: every run, sensor process and reload of the UI waits for it."""


@dataclass(frozen=True)
class Partitions:
    """The three levels and the mappings between them."""

    seasons: dg.StaticPartitionsDefinition
    events: dg.StaticPartitionsDefinition
    sessions: dg.StaticPartitionsDefinition
    session_to_event: dg.StaticPartitionMapping
    event_to_season: dg.StaticPartitionMapping
    session_to_season: dg.StaticPartitionMapping

    @classmethod
    def from_calendars(cls, calendars: Iterable[SeasonCalendar], seasons: Iterable[int]) -> "Partitions":
        """Build the partitions of these seasons; events and sessions of those with a calendar."""
        calendars = sorted(calendars, key=lambda calendar: calendar.year)
        events = _usable([event for calendar in calendars for event in calendar.events])
        sessions = _usable([key for event in events for key in event.session_keys])
        years = sorted({*seasons, *(calendar.year for calendar in calendars)})
        return cls(
            seasons=dg.StaticPartitionsDefinition([str(year) for year in years]),
            events=dg.StaticPartitionsDefinition([event.partition for event in events]),
            sessions=dg.StaticPartitionsDefinition([key.partition for key in sessions]),
            session_to_event=dg.StaticPartitionMapping({key.partition: key.event_partition for key in sessions}),
            event_to_season=dg.StaticPartitionMapping({event.partition: str(event.year) for event in events}),
            session_to_season=dg.StaticPartitionMapping({key.partition: str(key.year) for key in sessions}),
        )


_Named = TypeVar("_Named", Event, SessionKey)


def _usable(items: list[_Named]) -> list[_Named]:
    """Leave out what cannot be a partition key: names come from the network, and one bad one would hide everything."""
    usable: dict[str, _Named] = {}
    for item in items:
        key = item.partition
        readable = not isinstance(item, SessionKey) or item.session_type in SESSION_TYPES
        if key in usable or not readable or _NO_KEY.search(key):
            _log.warning("%r of the calendar cannot be a partition and is left out", key)
        else:
            usable[key] = item
    return list(usable.values())


def stored_calendars() -> list[SeasonCalendar]:
    """Return the calendars that are stored; none when the cache cannot be read, with a warning that says why.

    A code location that does not load hides everything, also what would repair the cache. So a lock is waited for once,
    and not for as long as ``cache_lock_timeout`` says.
    """
    # A cache of its own: the settings of the process are in use by others.
    config = copy(api.get_config())
    config.update({"cache_lock_timeout": min(config.cache_lock_timeout, _LOCK_TIMEOUT), "cache_enable_metrics": False})
    cache = Cache(config)
    reader = Reader(config, cache, api.get_client)
    calendars = []
    try:
        # One more: the next season's calendar is published before this one is over.
        for year in (*known_seasons(), known_seasons()[-1] + 1):
            # Each process loads this: to read what was never stored would count as a miss every time.
            if info_of(cache, schedule_entry(year)) is None:
                continue
            if (calendar := reader.stored_calendar(year)) is not None:
                calendars.append(calendar)
    except Tif1Error as error:
        _log.warning(
            "there are no event and session partitions, because the stored calendars cannot be read: %s. Once they can "
            "be, calendar_sensor has the code location reloaded; without it reload it yourself",
            error,
        )
        return []
    return calendars


CALENDARS = stored_calendars()
"""The calendars that the definitions are loaded with."""

PARTITIONS = Partitions.from_calendars(CALENDARS, known_seasons())
season_partitions_def = PARTITIONS.seasons
event_partitions_def = PARTITIONS.events
session_partitions_def = PARTITIONS.sessions
