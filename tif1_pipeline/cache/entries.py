"""Queries over entries: one SELECT each, on metadata alone."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.config import MIB
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import SessionKey

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


def exists(database: Database, session: SessionKey, data_type: str | None) -> bool:
    """Tell whether there is an entry of a session, of one type where it is given."""
    entry = session.entry(data_type or "")
    condition = sa.and_(
        ENTRIES.c.year == entry.year, ENTRIES.c.event == entry.event, ENTRIES.c.session_type == entry.session_type
    )
    if data_type is not None:
        condition = sa.and_(condition, ENTRIES.c.data_type == data_type)
    if not database.exists():
        return False
    with database.querying() as connection:
        return connection.execute(sa.select(sa.exists().where(condition))).scalar_one()


def list_sessions(database: Database, sort_by: str, limit: int | None) -> list[dict[str, Any]]:
    """Return the stored sessions; texts in alphabetical order, everything else largest or latest first.

    Raises:
        InvalidDataError: ``sort_by`` is none of the columns.
    """
    if sort_by not in SESSION_COLUMNS:
        raise InvalidDataError(
            f"cannot sort by {sort_by!r}: choose one of {', '.join(SESSION_COLUMNS)}", sort_by=sort_by
        )
    if not database.exists():
        return []
    group = (ENTRIES.c.year, ENTRIES.c.event, ENTRIES.c.session_type)
    query = (
        sa.select(
            *group,
            sa.func.sum(ENTRIES.c.size_bytes) / float(MIB),
            sa.func.sum(ENTRIES.c.compressed_size) / float(MIB),
            sa.func.min(ENTRIES.c.created_at),
            sa.func.max(ENTRIES.c.accessed_at),
            sa.func.sum(ENTRIES.c.access_count),
            sa.func.group_concat(ENTRIES.c.data_type.distinct()),
        )
        .where(ENTRIES.c.session_type.is_not(None))
        .group_by(*group)
    )
    with database.querying() as connection:
        rows = [dict(zip(SESSION_COLUMNS, row, strict=True)) for row in connection.execute(query)]
    for row in rows:
        row["created_at"] = datetime.fromtimestamp(row["created_at"], UTC)
        row["accessed_at"] = datetime.fromtimestamp(row["accessed_at"], UTC)
        row["data_types"] = sorted(row["data_types"].split(","))
    rows.sort(key=lambda row: (row["year"], row["event"], row["session_type"]))
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
