"""Removing entries by what they are, by age, size and use; each call returns how many it removed."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from tif1_pipeline.cache import entries, expiry, removal
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.removal import Removed
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.config import MIB
from tif1_pipeline.keys import EntryKey, SessionKey, event_slug

_NOT_PINNED = sa.not_(ENTRIES.c.pinned)

# ---- what is named, pinned or not; also from memory, which may hold what the disk refused


def everything(tiered: Tiered) -> int:
    """Remove all entries."""
    tiered.memory.clear()
    return len(removal.remove_where(tiered, sa.true()))


def session(tiered: Tiered, key: SessionKey) -> int:
    """Remove the tables of a session."""
    entry = key.entry("")
    tiered.memory.evict_where(
        lambda info: (info.year, info.event, info.session_type) == (entry.year, entry.event, entry.session_type)
    )
    return len(removal.remove_where(tiered, sa.and_(_of_event(key), ENTRIES.c.session_type == entry.session_type)))


def event(tiered: Tiered, key: SessionKey) -> int:
    """Remove the tables of an event's sessions."""
    entry = key.entry("")
    tiered.memory.evict_where(lambda info: (info.year, info.event) == (entry.year, entry.event))
    return len(removal.remove_where(tiered, _of_event(key)))


def year(tiered: Tiered, year: int) -> int:
    """Remove the tables of a season, its calendar too."""
    wanted = entries.checked_count("year", year)
    tiered.memory.evict_where(lambda info: info.year == wanted)
    return len(removal.remove_where(tiered, ENTRIES.c.year == wanted))


def data_type(tiered: Tiered, data_type: str) -> int:
    """Remove the entries of a data type."""
    tiered.memory.evict_where(lambda info: info.data_type == data_type)
    return len(removal.remove_where(tiered, ENTRIES.c.data_type == data_type))


def pattern(tiered: Tiered, pattern: str) -> int:
    """Remove the entries whose key matches a glob."""
    tiered.memory.evict_unsaved()  # only SQLite knows its globs, and it does not have these
    return len(removal.remove_where(tiered, entries.matching(pattern)))


def custom(tiered: Tiered, predicate: Callable[[dict[str, Any]], bool]) -> int:
    """Remove the entries that a function of an entry is true for; nothing if it fails for any."""
    tiered.memory.evict_unsaved()
    tiered.flush()
    query = sa.select(*entries.ENTRY_COLUMNS, ENTRIES.c.generation).order_by(ENTRIES.c.key)
    chosen: list[tuple[File, list[tuple[str, str]]]] = []
    for file in tiered.files():
        if file.database.exists():
            with file.database.querying() as connection:
                rows = connection.execute(query).all()
            described = zip(rows, entries.as_dicts(row[:-1] for row in rows), strict=True)
            chosen.append((file, [(row[0], row[-1]) for row, entry in described if predicate(entry)]))
    return len(_remove(tiered, chosen))


def corrupted(tiered: Tiered) -> int:
    """Verify all entries and remove those that are corrupt or incomplete."""
    from tif1_pipeline.cache import integrity  # not at the top: it decodes, which no other call here needs

    return integrity.corrupted(tiered)


def remove(tiered: Tiered, key: EntryKey | str) -> int:
    """Remove an entry, and those that hold a part of it alone, from both tiers."""
    return tiered.remove(str(key))


def outdate(tiered: Tiered, key: EntryKey | str) -> int:
    """Mark an entry, and those that hold a part of it alone, as out of date."""
    return tiered.outdate(str(key))


# ---- by age, size and use: what is not pinned


def old(tiered: Tiered, days: float) -> int:
    """Remove the entries stored more than so many days ago."""
    return len(removal.remove_where(tiered, sa.and_(_NOT_PINNED, entries.older_than(days))))


def expired(tiered: Tiered) -> int:
    """Remove the entries that are older than they may be and can be fetched again."""
    return len(removal.remove_where(tiered, expiry.condition(tiered.config)))


def low_access(tiered: Tiered, min_access_count: int) -> int:
    """Remove the entries that were read less often than this."""
    few = ENTRIES.c.access_count < entries.checked_count("min_access_count", min_access_count)
    tiered.flush()
    return len(removal.remove_where(tiered, sa.and_(_NOT_PINNED, few)))


def largest(tiered: Tiered, count: int) -> float:
    """Remove the entries with the largest stored size; returns the stored MiB freed."""
    removed = _remove(tiered, _first(tiered, -ENTRIES.c.compressed_size, entries.checked_count("count", count)))
    return sum(item.compressed_size for item in removed) / MIB


def lru(tiered: Tiered, count: int) -> int:
    """Remove the entries that were not used for longest."""
    return len(_remove(tiered, _first(tiered, ENTRIES.c.accessed_at, entries.checked_count("count", count))))


def _of_event(key: SessionKey) -> sa.ColumnElement[bool]:
    return sa.and_(ENTRIES.c.year == key.year, ENTRIES.c.event == event_slug(key.event))


def _first(tiered: Tiered, rank: sa.ColumnElement[Any], count: int) -> list[tuple[File, list[tuple[str, str]]]]:
    """Choose the entries of the lowest ranks over all files."""
    tiered.flush()
    query = sa.select(rank, ENTRIES.c.key, ENTRIES.c.generation).where(_NOT_PINNED).order_by(rank, ENTRIES.c.key)
    files = [file for file in tiered.files() if file.database.exists()]
    found: list[tuple[Any, str, str, int]] = []
    for number, file in enumerate(files):
        with file.database.querying() as connection:
            found += [(*row, number) for row in connection.execute(query.limit(count))]
    first = sorted(found)[:count]
    return [
        (file, [(key, generation) for _, key, generation, of_file in first if of_file == number])
        for number, file in enumerate(files)
    ]


def _remove(tiered: Tiered, chosen: list[tuple[File, list[tuple[str, str]]]]) -> list[Removed]:
    return [item for file, keys in chosen for item in removal.remove_chosen(tiered, file, keys)]
