"""Queries over entries: one SELECT a file, on metadata alone."""

import gc
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.config import MIB
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import EntryKey, SessionKey

DAY = 86_400.0
SESSION_COLUMNS: tuple[str, ...] = (
    "year",
    "event",
    "session_type",
    "size_mb",
    "compressed_mb",
    "created_at",
    "accessed_at",
    "access_count",
    "data_types",
)
ENTRY_COLUMNS = (
    ENTRIES.c.key,
    ENTRIES.c.size_bytes,
    ENTRIES.c.compressed_size,
    ENTRIES.c.accessed_at,
    ENTRIES.c.created_at,
    ENTRIES.c.access_count,
    ENTRIES.c.data_type,
    ENTRIES.c.year,
    ENTRIES.c.event,
    ENTRIES.c.session_type,
)
"""What :func:`as_dicts` needs of an entry."""
_LONGEST_PATTERN = 10_000


class Order(NamedTuple):
    """By which column entries are listed; those that are equal in it by key."""

    column: sa.Column[Any]
    sign: int = 1

    @property
    def clauses(self) -> tuple[sa.ColumnElement[Any], ...]:
        """The same for SQL."""
        return (self.column if self.sign > 0 else self.column.desc(), ENTRIES.c.key)


BY_KEY = Order(ENTRIES.c.key)
BY_SIZE = Order(ENTRIES.c.compressed_size, -1)
BY_AGE = Order(ENTRIES.c.created_at)
BY_ACCESS = Order(ENTRIES.c.accessed_at)


def query(tiered: Tiered, statement: sa.Executable) -> list[Sequence[Any]]:
    """Return the rows of a SELECT over all files of a cache."""
    rows: list[Sequence[Any]] = []
    for file in tiered.files():
        if file.database.exists():
            with file.database.querying() as connection:
                # The driver's own tuples: with SQLAlchemy's rows a listing of 10,000 entries takes an eighth longer.
                rows += connection.execute(statement).cursor.fetchall()  # type: ignore[union-attr] - a SELECT has one
    return rows


def as_dicts(rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Turn rows of :data:`ENTRY_COLUMNS` into what the inspection calls return."""
    now = time.time()
    time_of = datetime.fromtimestamp
    return [
        {
            "key": key,
            "size_mb": size / MIB,
            "compressed_mb": compressed / MIB,
            "compression_ratio": size / compressed if compressed else 0.0,
            "accessed_at": time_of(accessed_at, UTC),
            "created_at": time_of(created_at, UTC),
            "access_count": access_count,
            "age_days": (now - created_at) / DAY,
            "data_type": data_type,
            "year": year,
            "event": event,
            "session_type": session_type,
        }
        for (
            key,
            size,
            compressed,
            accessed_at,
            created_at,
            access_count,
            data_type,
            year,
            event,
            session_type,
        ) in rows
    ]


def listed(
    tiered: Tiered, condition: sa.ColumnElement[bool], order: Order, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return the entries of all files that a condition on :data:`ENTRIES` holds for, the first ``limit`` of them."""
    tiered.flush()
    statement = sa.select(*ENTRY_COLUMNS).where(condition).order_by(*order.clauses).limit(limit)
    with _no_collection():
        rows = query(tiered, statement)
        if len(tiered.files()) > 1:
            place, sign = ENTRY_COLUMNS.index(order.column), order.sign
            rows.sort(key=(lambda row: row[0]) if order is BY_KEY else (lambda row: (sign * row[place], row[0])))
        return as_dicts(rows[:limit])


@contextmanager
def _no_collection() -> Iterator[None]:
    """Make thousands of objects, none of them garbage, without Python looking for some: a fifth of a listing's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# ---- conditions


def checked_number(name: str, value: float) -> float:
    """Return an age or a size that was given.

    Raises:
        InvalidDataError: It is below zero, or no number.
    """
    if not value >= 0:  # so that nan fails too
        raise InvalidDataError(f"{name} is {value!r}: give a number of zero or more", argument=name)
    return value


def checked_count(name: str, value: int) -> int:
    """Return a number of entries, accesses or years that was given.

    Raises:
        InvalidDataError: It is no whole number, or below zero, or larger than any that can be stored.
    """
    try:
        if 0 <= value.__index__() < 1 << 63:
            return value.__index__()
    except AttributeError:
        pass
    raise InvalidDataError(f"{name} is {value!r}: give a whole number of zero or more", argument=name)


def older_than(days: float) -> sa.ColumnElement[bool]:
    """Return what holds for the entries stored more than so many days ago.

    Raises:
        InvalidDataError: ``days`` is below zero.
    """
    return ENTRIES.c.created_at < time.time() - checked_number("days", days) * DAY


def matching(pattern: str) -> sa.ColumnElement[bool]:
    """Return what holds for the entries whose key matches a glob, in either case of ASCII letters.

    Raises:
        InvalidDataError: SQLite cannot be asked for this pattern: it is too long, or holds what no text can.
    """
    pattern = re.sub(r"\*+", "*", pattern)  # each further star would be tried at every place
    # SQLite would take the pattern for ended at the zero: "*\0" would mean everything.
    if len(pattern) > _LONGEST_PATTERN or re.search("[\0\ud800-\udfff]", pattern):
        raise InvalidDataError(
            f"{pattern[:80]!r} is no pattern of keys: it has more than {_LONGEST_PATTERN:,} characters, or holds "
            "zeros or halves of surrogate pairs",
            pattern=pattern[:80],
        )
    return sa.func.lower(ENTRIES.c.key).op("GLOB", is_comparison=True)(sa.func.lower(pattern))


# ---- entries


def largest(tiered: Tiered, limit: int) -> list[dict[str, Any]]:
    """Return the entries with the largest stored size."""
    return listed(tiered, sa.true(), BY_SIZE, checked_count("limit", limit))


def lru(tiered: Tiered, limit: int) -> list[dict[str, Any]]:
    """Return the entries that were not used for longest."""
    return listed(tiered, sa.true(), BY_ACCESS, checked_count("limit", limit))


def by_size(tiered: Tiered, min_size_mb: float) -> list[dict[str, Any]]:
    """Return the entries of at least a stored size, largest first."""
    return listed(tiered, ENTRIES.c.compressed_size >= checked_number("min_size_mb", min_size_mb) * MIB, BY_SIZE)


def old(tiered: Tiered, days: float) -> list[dict[str, Any]]:
    """Return the entries stored more than so many days ago, oldest first."""
    return listed(tiered, older_than(days), BY_AGE)


def search(tiered: Tiered, pattern: str) -> list[dict[str, Any]]:
    """Return the entries whose key matches a glob, by key."""
    return listed(tiered, matching(pattern), BY_KEY)


def select(
    tiered: Tiered,
    *,
    max_age_days: float | None = None,
    min_age_days: float | None = None,
    max_access_count: int | None = None,
    min_size_mb: float | None = None,
    data_type: str | None = None,
    year: int | None = None,
) -> list[dict[str, Any]]:
    """Return the entries that all given conditions hold for, by key; the size is the stored one, as elsewhere."""
    now = time.time()
    conditions: list[sa.ColumnElement[bool]] = []
    if max_age_days is not None:
        conditions.append(ENTRIES.c.created_at >= now - checked_number("max_age_days", max_age_days) * DAY)
    if min_age_days is not None:
        conditions.append(ENTRIES.c.created_at <= now - checked_number("min_age_days", min_age_days) * DAY)
    if max_access_count is not None:
        conditions.append(ENTRIES.c.access_count <= checked_count("max_access_count", max_access_count))
    if min_size_mb is not None:
        conditions.append(ENTRIES.c.compressed_size >= checked_number("min_size_mb", min_size_mb) * MIB)
    if data_type is not None:
        conditions.append(ENTRIES.c.data_type == data_type)
    if year is not None:
        conditions.append(ENTRIES.c.year == checked_count("year", year))
    return listed(tiered, sa.and_(sa.true(), *conditions), BY_KEY)


def exists(tiered: Tiered, session: SessionKey, data_type: str | None) -> bool:
    """Tell whether there is an entry of a session, of one type where it is given."""
    entry = session.entry(data_type or "")
    condition = sa.and_(
        ENTRIES.c.year == entry.year, ENTRIES.c.event == entry.event, ENTRIES.c.session_type == entry.session_type
    )
    if data_type is not None:
        condition = sa.and_(condition, ENTRIES.c.data_type == data_type)
    return any(found for (found,) in query(tiered, sa.select(sa.exists().where(condition))))


def metadata(tiered: Tiered, key: EntryKey) -> dict[str, Any] | None:
    """Return everything known of an entry."""
    tiered.flush()
    info = tiered.info(key)
    return describe(info) if info else None


# ---- sessions


def list_sessions(tiered: Tiered, sort_by: str, limit: int | None) -> list[dict[str, Any]]:
    """Return the stored sessions; texts in alphabetical order, everything else largest or latest first.

    Raises:
        InvalidDataError: ``sort_by`` is none of the columns, or ``limit`` below zero.
    """
    if sort_by not in SESSION_COLUMNS:
        raise InvalidDataError(
            f"cannot sort by {sort_by!r}: choose one of {', '.join(SESSION_COLUMNS)}", sort_by=sort_by
        )
    if limit is not None:
        limit = checked_count("limit", limit)
    tiered.flush()
    group = (ENTRIES.c.year, ENTRIES.c.event, ENTRIES.c.session_type)
    statement = (
        sa.select(
            *group,
            sa.func.sum(ENTRIES.c.size_bytes),
            sa.func.sum(ENTRIES.c.compressed_size),
            sa.func.min(ENTRIES.c.created_at),
            sa.func.max(ENTRIES.c.accessed_at),
            sa.func.sum(ENTRIES.c.access_count),
            sa.func.json_group_array(ENTRIES.c.data_type.distinct()),
        )
        .where(*(column.is_not(None) for column in group))
        .group_by(*group)
    )
    sessions: dict[tuple[Any, ...], list[Any]] = {}
    for year, event, session_type, size, compressed, created_at, accessed_at, accesses, types in query(
        tiered, statement
    ):
        key = (year, event, session_type)
        found = [size, compressed, created_at, accessed_at, accesses, set(json.loads(types))]
        if key in sessions:  # in another file too
            former = sessions[key]
            found = [
                size + former[0],
                compressed + former[1],
                min(created_at, former[2]),
                max(accessed_at, former[3]),
                accesses + former[4],
                found[5] | former[5],
            ]
        sessions[key] = found
    rows = [
        dict(
            zip(
                SESSION_COLUMNS,
                (
                    *key,
                    size / MIB,
                    compressed / MIB,
                    datetime.fromtimestamp(created_at, UTC),
                    datetime.fromtimestamp(accessed_at, UTC),
                    accesses,
                    sorted(types),
                ),
                strict=True,
            )
        )
        for key, (size, compressed, created_at, accessed_at, accesses, types) in sorted(sessions.items())
    ]
    rows.sort(key=lambda row: row[sort_by], reverse=sort_by not in ("event", "session_type", "data_types"))
    return rows[:limit]


def describe(info: EntryInfo) -> dict[str, Any]:
    """Return an entry's metadata as the inspection calls show it."""
    return {
        "key": info.key,
        "year": info.year,
        "event": info.event,
        "session_type": info.session_type,
        "data_type": info.data_type,
        "size_mb": info.size_bytes / MIB,
        "compressed_mb": info.compressed_size / MIB,
        "compression_ratio": info.size_bytes / info.compressed_size if info.compressed_size else 0.0,
        "created_at": info.created_at,
        "accessed_at": info.accessed_at,
        "access_count": info.access_count,
        "age_days": (datetime.now(UTC) - info.created_at).total_seconds() / 86400,
        "backend": info.backend,
        "rows": info.rows,
        "parts": list(info.parts),
        "schema_version": info.schema_version,
        "library_version": info.library_version,
        "format_version": info.format_version,
        "url": info.source.url,
        "etag": info.source.etag,
        "last_modified": info.source.last_modified,
        "checksum": info.checksum,
        "pinned": info.pinned,
    }
