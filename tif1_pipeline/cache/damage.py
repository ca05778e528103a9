"""Rows of damaged pages, over which queries of many entries stumble: found, removed, and the query made anew.

SQLite keeps anything in any column, so a page that the disk has changed reads as sound rows of nonsense. What reads one
entry checks its row; checking thousands would take longer than listing them, so here it is done once a call has failed.
"""

import logging
import sqlite3
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import sqlalchemy as sa

from tif1_pipeline.cache import audit
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.store import ENTRY_ROW, entry_info
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.exceptions import CacheError, CorruptEntryError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_NONSENSE = (TypeError, ValueError, OverflowError, OSError)
"""What comes of rows that say what none can."""


def healed(call: Callable[..., _T]) -> Callable[..., _T]:
    """Have a call, whose first argument is the cache, made anew without the damaged rows that made it fail."""

    @wraps(call)
    def anew(tiered: Tiered, *arguments: Any, **options: Any) -> _T:
        try:
            return call(tiered, *arguments, **options)
        except (*_NONSENSE, CacheError) as error:
            damaged = not isinstance(error, CacheError) or str(error.details.get("cause", "")).startswith("damaged")
            if not damaged or not _remove_damaged(tiered):
                raise
        try:
            return call(tiered, *arguments, **options)
        except _NONSENSE as error:
            raise CacheError(
                f"{tiered.path} is damaged beyond its single rows ({type(error).__name__}: {error}): restore a backup, "
                "or move it away, and what can be fetched is fetched again",
                path=str(tiered.path),
                cause="damaged",
            ) from error

    return anew


def _remove_damaged(tiered: Tiered) -> int:
    """Remove the entries whose rows say what no entry can; returns their number.

    Raises:
        CacheError: There are some, and they cannot be removed.
    """
    removed = 0
    for file in tiered.files():
        found = _damaged(file)
        if not found:
            continue
        error = next(iter(found.values()))
        if tiered.config.cache_readonly:
            raise CacheError(
                f"{error.message}; the cache is read-only, so it stays: open it once without cache_readonly, and call "
                "clear_corrupted()",
                **error.details,
            )
        for error in found.values():
            _log.warning("a cache entry is corrupt and is removed, to be fetched again: %s", error)
            audit.record(tiered.config, "remove", str(error.details.get("key")), reason="corrupt")
        try:
            _remove(file, list(found))
        except CacheError as failure:
            if failure.details.get("cause") != "damaged":
                raise
            # Indexes say other than the table: made anew, or the file set aside.
            file.database.heal(indexes=True)
            _remove(file, list(found))
        removed += len(found)
    if removed:
        tiered.note_corrupt(removed)
    return removed


def _remove(file: File, numbers: list[int]) -> None:
    with file.database.writing() as connection:
        connection.execute(sa.delete(ENTRIES).where(ENTRIES.c.id.in_(numbers)))


def _damaged(file: File) -> dict[int, CorruptEntryError]:
    """Return what is wrong with rows of a file, by their numbers."""
    found: dict[int, CorruptEntryError] = {}
    if not file.database.exists():
        return found
    with file.database.raw(file.database.lock_timeout) as connection:
        connection.execute("BEGIN")
        # Not by an index, which may lack them.
        for (number,) in connection.execute("SELECT id FROM entries NOT INDEXED").fetchall():
            try:
                entry_info(_row(connection, number))
            except CorruptEntryError as error:
                found[number] = error
    return found


def _row(connection: sqlite3.Connection, number: int) -> Sequence[Any]:
    reason: object = "it is not where its number leads"
    try:
        if (row := connection.execute(ENTRY_ROW, (number,)).fetchone()) is not None:
            return row
    except sqlite3.OperationalError as error:
        if "decode to UTF-8" not in str(error):
            raise
        reason = error
    raise CorruptEntryError(
        f"the metadata of entry {number} cannot be read: {reason}", key=str(number), cause="damaged entry"
    )
