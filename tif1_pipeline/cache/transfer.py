"""Moving entries as they are stored from one cache file to another."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.schema import CACHE_METADATA, ENTRIES, PARTS
from tif1_pipeline.cache.store import parts_of
from tif1_pipeline.cache.usage import add_counters, take_counters
from tif1_pipeline.exceptions import CacheError

_log = logging.getLogger(__name__)


def move(source: Database, target: Database, wanted: Callable[[str], bool] = lambda _: True) -> int:
    """Move entries; where both files have one, the newer stays.

    One entry at a time: in the target it is visible whole or not at all, and it leaves the source when it is there. A
    move that was killed is completed by the next one.

    Args:
        source: Taken from; need not exist.
        target: Created if it does not exist.
        wanted: Which keys.

    Returns:
        The number of entries that left the source.

    Raises:
        CacheError: One of the files cannot be used.
    """
    if not source.exists():
        return 0
    with source.querying() as connection:
        keys = [(row.key, row.id) for row in connection.execute(sa.select(ENTRIES.c.key, ENTRIES.c.id))]
    moved = 0
    for key, id_ in keys:
        if wanted(key):
            moved += _move_one(source, target, id_)
    return moved


def move_counters(source: Database, target: Database) -> None:
    """Add the counters of one file to those of another; a kill in between loses them, never counts them twice."""
    if not source.exists():
        return
    taken = take_counters(source)
    try:
        add_counters(target, taken)
    except CacheError:
        add_counters(source, taken)
        raise


def _move_one(source: Database, target: Database, id_: int) -> int:
    with source.querying() as connection:
        found = connection.execute(sa.select(ENTRIES).where(ENTRIES.c.id == id_)).mappings().one_or_none()
        if found is None:  # replaced or removed meanwhile
            return 0
        parts = [dict(row) for row in connection.execute(sa.select(PARTS).where(PARTS.c.entry_id == id_)).mappings()]
    entry: dict[str, Any] = {name: value for name, value in found.items() if name != "id"}
    if not parts:  # a row alone cannot be read: a damaged file must not keep the others from being moved
        _log.warning("the cache entry %s in %s has no content; it is dropped", entry["key"], source.path)
    # Synced, because its removal from the source may be on disk before a later sync of the target.
    with target.writing(synced=True) as connection:
        there = connection.execute(
            sa.select(ENTRIES.c.generation, ENTRIES.c.created_at, ENTRIES.c.access_count).where(
                ENTRIES.c.key == entry["key"]
            )
        ).one_or_none()
        if there is not None and there.generation != entry["generation"]:
            entry["access_count"] += there.access_count
        if parts and (
            there is None or (there.generation != entry["generation"] and there.created_at <= entry["created_at"])
        ):
            connection.execute(sa.delete(ENTRIES).where(sa.or_(ENTRIES.c.key == entry["key"], parts_of(entry["key"]))))
            new_id = connection.execute(sa.insert(ENTRIES).returning(ENTRIES.c.id), entry).scalar_one()
            for part in parts:
                part["entry_id"] = new_id
                del part["id"]
            connection.execute(sa.insert(PARTS), parts)
        else:  # changes nothing, but makes the commit sync what is there
            connection.execute(sa.update(ENTRIES).filter_by(key=entry["key"]).values(key=entry["key"]))
    with source.writing() as connection:
        same = sa.and_(ENTRIES.c.id == id_, ENTRIES.c.generation == entry["generation"])
        return connection.execute(sa.delete(ENTRIES).where(same)).rowcount


def shrink(database: Database) -> None:
    """Give back the pages of what was moved away, which hold it still; left for later while others are reading."""
    with suppress(CacheError), database.raw(1.0) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def set_note(database: Database, name: str, value: str) -> None:
    """Set a value of the table ``cache_metadata``; creates the file when there is none."""
    with database.writing() as connection:
        connection.execute(sa.delete(CACHE_METADATA).filter_by(key=name))
        connection.execute(sa.insert(CACHE_METADATA), {"key": name, "value": value})
