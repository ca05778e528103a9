"""Entries in the cache file: metadata in one table, stored bytes in another, written and read whole or not at all."""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tif1_pipeline import __version__
from tif1_pipeline.cache.base import Backend, EntryInfo, Source
from tif1_pipeline.cache.codec import FORMAT_VERSION, Blob, Encoded
from tif1_pipeline.cache.database import Database
from tif1_pipeline.exceptions import CacheError
from tif1_pipeline.keys import EntryKey

_COLUMNS = (
    "key, year, event, session_type, data_type, backend, created_at, accessed_at, access_count, size_bytes, "
    "compressed_size, rows, parts, schema_version, library_version, format_version, source_url, etag, last_modified, "
    "checksum, pinned, generation"
)
_LOOK_UP = f"SELECT id, {_COLUMNS} FROM entries WHERE key = ?"  # noqa: S608 - a constant
_LOOK_UP_PARTS = "SELECT id, ordinal, name, checksum FROM parts WHERE entry_id = ?"
_HEADER_ORDINAL = 0
"""Where a table's header stands among its parts; the parts proper follow."""


def entry_info(row: Sequence[Any]) -> EntryInfo:
    """Build the metadata from a row of the entry columns."""
    return EntryInfo(
        key=row[0],
        year=row[1],
        event=row[2],
        session_type=row[3],
        data_type=row[4],
        backend=row[5],
        created_at=datetime.fromtimestamp(row[6], UTC),
        accessed_at=datetime.fromtimestamp(row[7], UTC),
        access_count=row[8],
        size_bytes=row[9],
        compressed_size=row[10],
        rows=row[11],
        parts=tuple(json.loads(row[12])),
        schema_version=row[13],
        library_version=row[14],
        format_version=row[15],
        source=Source(row[16], row[17], row[18]),
        checksum=row[19],
        pinned=bool(row[20]),
        generation=row[21],
    )


def new_info(key: EntryKey, encoded: Encoded, backend: Backend, source: Source, schema_version: int) -> EntryInfo:
    """Describe a value that is about to be stored."""
    now = datetime.now(UTC)
    header = len(encoded.header.data) if encoded.header else 0
    return EntryInfo(
        key=key.text,
        year=key.year,
        event=key.event,
        session_type=key.session_type,
        data_type=key.data_type,
        backend=backend,
        created_at=now,
        accessed_at=now,
        access_count=0,
        size_bytes=encoded.size_bytes,
        compressed_size=header + sum(len(blob.data) for blob in encoded.blobs),
        rows=encoded.rows,
        parts=tuple(encoded.lies),
        schema_version=schema_version,
        library_version=__version__,
        format_version=FORMAT_VERSION,
        source=source,
        checksum=encoded.checksum,
        pinned=key.pinned,
        generation=uuid.uuid4().hex,
    )


def _values(info: EntryInfo) -> dict[str, Any]:
    values = {field: getattr(info, field) for field in _COLUMNS.split(", ") if hasattr(info, field)}
    return values | {
        "created_at": info.created_at.timestamp(),
        "accessed_at": info.accessed_at.timestamp(),
        "parts": json.dumps(info.parts, ensure_ascii=False),
        "source_url": info.source.url,
        "etag": info.source.etag,
        "last_modified": info.source.last_modified,
    }


class Loaded(NamedTuple):
    """What was read of an entry, of one version."""

    info: EntryInfo
    header: Blob | None
    blobs: list[Blob]


class Store:
    """Entries in a SQLite file.

    Every method raises :class:`CacheError` (its details name the ``cause``) when the file cannot be used, and
    :class:`CacheVersionError` when it is not a cache of this layout.

    Args:
        database: The file.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # ---- reading

    def info(self, key: str) -> EntryInfo | None:
        """Return an entry's metadata."""
        with self._database.reading() as handle:
            row = handle and handle.connection.execute(_LOOK_UP, (key,)).fetchone()
            return entry_info(row[1:]) if row else None

    def load(self, key: str, select: Callable[[EntryInfo], Sequence[str]]) -> Loaded | None:
        """Return an entry's metadata and stored bytes.

        Args:
            key: Stored key.
            select: Says which parts to read, given the metadata. What it raises is passed on.
        """
        with self._database.reading() as handle:
            if handle is None:
                return None
            connection = handle.connection
            connection.execute("BEGIN")  # metadata and parts of one version, whatever is committed meanwhile
            try:
                row = connection.execute(_LOOK_UP, (key,)).fetchone()
                if row is None:
                    return None
                info = entry_info(row[1:])
                wanted = select(info)
                header, stored = None, {}
                for part, ordinal, name, checksum in connection.execute(_LOOK_UP_PARTS, row[:1]):
                    if ordinal == _HEADER_ORDINAL:
                        header = self._blob(connection, part, name, checksum)
                    else:
                        stored[name] = part, checksum
                if missing := [name for name in wanted if name not in stored]:
                    raise CacheError(f"{key} lacks its parts {missing}", key=key, cause="damaged entry")
                return Loaded(
                    info, header, [self._blob(connection, stored[name][0], name, stored[name][1]) for name in wanted]
                )
            finally:
                connection.execute("ROLLBACK")

    @staticmethod
    def _blob(connection: sqlite3.Connection, part: int, name: str, checksum: str) -> Blob:
        # With mmap this is one copy out of the mapped file; SELECT assembles the blob page by page.
        with connection.blobopen("parts", "data", part, readonly=True) as blob:
            return Blob(name, blob.read(), checksum)

    # ---- writing

    def save(self, info: EntryInfo, encoded: Encoded) -> EntryInfo:
        """Replace an entry, and the entries that hold parts of it alone, in one transaction."""
        import sqlalchemy as sa

        from tif1_pipeline.cache.schema import ENTRIES, PARTS

        with self._database.writing() as connection:
            former = connection.execute(sa.select(ENTRIES.c.access_count).where(ENTRIES.c.key == info.key)).scalar()
            info = replace(info, access_count=former or 0)  # a refreshed entry is as popular as before
            connection.execute(sa.delete(ENTRIES).where(sa.or_(ENTRIES.c.key == info.key, parts_of(info.key))))
            entry_id = connection.execute(sa.insert(ENTRIES).returning(ENTRIES.c.id), _values(info)).scalar_one()
            connection.execute(
                sa.insert(PARTS),
                [
                    {
                        "entry_id": entry_id,
                        "ordinal": ordinal,
                        "name": blob.name,
                        "size": len(blob.data),
                        "checksum": blob.checksum,
                        "data": blob.data,
                    }
                    for ordinal, blob in enumerate((encoded.header, *encoded.blobs), _HEADER_ORDINAL)
                    if blob is not None
                ],
            )
        return info

    def touch(self, key: str, generation: str, source: Source) -> EntryInfo | None:
        """Note that an entry is still current: its age starts anew; None if it was replaced meanwhile."""
        import sqlalchemy as sa

        from tif1_pipeline.cache.schema import ENTRIES

        values = {"created_at": time.time()}
        values |= {"etag": source.etag} if source.etag else {}
        values |= {"last_modified": source.last_modified} if source.last_modified else {}
        with self._database.writing() as connection:
            mine = sa.and_(ENTRIES.c.key == key, ENTRIES.c.generation == generation)
            changed = connection.execute(sa.update(ENTRIES).where(mine).values(values)).rowcount
        return self.info(key) if changed else None

    def remove(self, key: str, generation: str | None = None) -> int:
        """Remove an entry and those that hold a part of it alone; returns the number removed.

        With a generation, remove the entry only if it is still that one.
        """
        import sqlalchemy as sa

        from tif1_pipeline.cache.schema import ENTRIES

        if not self._database.exists():
            return 0
        condition = ENTRIES.c.key == key
        if generation is None:
            condition = sa.or_(condition, ENTRIES.c.key.startswith(f"{key}/", autoescape=True))
        else:
            condition = sa.and_(condition, ENTRIES.c.generation == generation)
        with self._database.writing() as connection:
            return connection.execute(sa.delete(ENTRIES).where(condition)).rowcount

    def clear(self) -> int:
        """Remove all entries; returns their number."""
        import sqlalchemy as sa

        from tif1_pipeline.cache.schema import ENTRIES

        if not self._database.exists():
            return 0
        with self._database.writing() as connection:
            return connection.execute(sa.delete(ENTRIES)).rowcount


def parts_of(key: str) -> Any:
    """The condition on entries that hold a part of this one alone; a range, so that it uses the index of the keys."""
    from tif1_pipeline.cache.schema import ENTRIES

    return ENTRIES.c.key.between(f"{key}/", f"{key}/\U0010ffff")
