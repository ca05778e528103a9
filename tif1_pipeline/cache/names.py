"""Every spelling of a key meets in one stored key."""

import re
from collections.abc import Callable

from tif1_pipeline.exceptions import Tif1Error
from tif1_pipeline.keys import SESSION_TYPES, EntryKey, SessionKey, session_name, slug

Resolve = Callable[[int, str, str | None], SessionKey]
"""Turns year, event and session type, in any spelling, into a session's key; without a session type, into one that
names the event alone."""

_SESSIONS = "|".join(sorted(map(slug, SESSION_TYPES), key=len, reverse=True))
_SESSION_KEY = re.compile(
    rf"(?P<year>\d{{4}})_(?P<event>.+?)_(?P<session>{_SESSIONS})"
    r"_(?P<type>[a-z_]+)_(?:pandas|polars)(?P<part>/.+)?"
)


def unresolved(year: int, event: str, session_type: str | None) -> SessionKey:
    """Take the event as it is given, and the session type by name or short form."""
    return SessionKey(int(year), event, "" if session_type is None else session_name(session_type))


def stored_key(key: EntryKey | str, resolve: Resolve) -> EntryKey | str:
    """Return the key under which an entry is stored: by the calendar's event, for pandas and polars alike."""
    if isinstance(key, EntryKey):
        return key
    found = _SESSION_KEY.fullmatch(key)
    if not found:
        return key
    try:
        session = resolve(int(found["year"]), found["event"].replace("_", " "), found["session"].replace("_", " "))
    except Tif1Error:  # a session that the calendar does not know can be stored all the same
        session = unresolved(int(found["year"]), found["event"], found["session"])
    entry = session.entry(found["type"])
    return entry.of_part(found["part"][1:]) if found["part"] else entry
