"""Entries in the cache file: metadata in one table, stored bytes in another, written and read whole or not at all."""

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from tif1_pipeline import __version__
from tif1_pipeline.cache.base import OUTDATED, Backend, EntryInfo, Source
from tif1_pipeline.cache.cipher import Keyring, context_of, no_key
from tif1_pipeline.cache.codec import FORMAT_VERSION, Blob, Encoded
from tif1_pipeline.cache.database import Database
from tif1_pipeline.exceptions import CacheError
from tif1_pipeline.keys import EntryKey

_COLUMNS = (
    "key, year, event, session_type, data_type, backend, created_at, accessed_at, access_count, size_bytes, "
    "compressed_size, rows, parts, schema_version, library_version, format_version, source_url, etag, last_modified, "
    "checksum, pinned, generation, encryption"
)
_LOOK_UP = f"SELECT id, {_COLUMNS} FROM entries WHERE key = ?"  # noqa: S608 - a constant
_LOOK_UP_PARTS = "SELECT id, ordinal, name, checksum FROM parts WHERE entry_id = ?"
HEADER_ORDINAL = 0
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
        encryption=row[22],
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


class _Part(NamedTuple):
    id: int
    ordinal: int
    name: str
    checksum: str


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
        return self._database.stable(lambda: self._info(key))

    def _info(self, key: str) -> EntryInfo | None:
        with self._database.reading() as handle:
            row = handle and handle.connection.execute(_LOOK_UP, (key,)).fetchone()
            return entry_info(row[1:]) if row else None

    def load(
        self,
        key: str,
        select: Callable[[EntryInfo], Sequence[str]],
        use: Callable[[EntryInfo, Blob | None], Callable[[Blob], None]] | None = None,
    ) -> Loaded | None:
        """Return an entry's metadata and stored bytes.

        Args:
            key: Stored key.
            select: Says which parts to read, given the metadata. What it raises is passed on.
            use: Given the metadata and the header, returns what is called with each part as soon as it is read, in
                their order, instead of all being returned; called anew if the file is replaced meanwhile.
        """
        return self._database.stable(lambda: self._load(key, select, use))

    def _load(self, key: str, select: Any, use: Any) -> Loaded | None:
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
                if not wanted:
                    return Loaded(info, None, [])
                keyring = self._keyring(info)
                read = partial(self._blob, connection, info, keyring)
                header, stored = None, {}
                for part in map(_Part._make, connection.execute(_LOOK_UP_PARTS, row[:1])):
                    if part.ordinal == HEADER_ORDINAL:
                        header = read(part)
                    else:
                        stored[part.name] = part
                if missing := [name for name in wanted if name not in stored]:
                    raise CacheError(f"{key} lacks its parts {missing}", key=key, cause="damaged entry")
                blobs: list[Blob] = []
                take = use(info, header) if use else blobs.append
                for name in wanted:
                    take(read(stored[name]))
            finally:
                connection.execute("ROLLBACK")
        return Loaded(info, header, blobs)

    def _keyring(self, info: EntryInfo) -> Keyring | None:
        """Return the keys to open an entry with; None if it is not encrypted."""
        if info.encryption is None:
            return None
        keyring = Keyring.of(self._database.config)
        if keyring is None or info.encryption not in keyring:
            raise no_key(f"{info.key} cannot be read", {info.encryption})
        return keyring

    @staticmethod
    def _blob(connection: sqlite3.Connection, info: EntryInfo, keyring: Keyring | None, part: "_Part") -> Blob:
        # With mmap this is one copy out of the mapped file; SELECT assembles the blob page by page.
        with connection.blobopen("parts", "data", part.id, readonly=True) as stored:
            blob = Blob(part.name, stored.read(), part.checksum)
        if keyring is None or info.encryption is None:
            return blob
        return keyring.open_blob(info.encryption, blob, context_of(info.key, info.generation, part.ordinal, part.name))

    # ---- writing

    def save(self, info: EntryInfo, encoded: Encoded) -> EntryInfo:
        """Replace an entry, and the entries that hold parts of it alone, in one transaction.

        Raises:
            CacheError: With the cause ``no key``: one of them is encrypted with a key that is not given. A process with
                other settings must not remove what it cannot read.
        """
        import sqlalchemy as sa

        from tif1_pipeline.cache.schema import ENTRIES, PARTS

        parts = {
            ordinal: blob
            for ordinal, blob in enumerate((encoded.header, *encoded.blobs), HEADER_ORDINAL)
            if blob is not None
        }
        keyring = Keyring.of(self._database.config)
        if keyring is not None:  # before the write lock is taken
            for ordinal, blob in parts.items():
                parts[ordinal] = keyring.seal_blob(blob, context_of(info.key, info.generation, ordinal, blob.name))
            size = sum(len(blob.data) for blob in parts.values())
            info = replace(info, encryption=keyring.current, compressed_size=size)
        replaced = sa.or_(ENTRIES.c.key == info.key, parts_of(info.key))
        with self._database.writing(size=info.compressed_size) as connection:
            columns = (ENTRIES.c.key, ENTRIES.c.access_count, ENTRIES.c.encryption)
            former = connection.execute(sa.select(*columns).where(replaced)).all()
            unknown = {row.encryption for row in former} - {None}
            if unknown := {key_id for key_id in unknown if keyring is None or key_id not in keyring}:
                raise no_key(f"what is stored of {info.key} is not replaced", unknown)
            # A refreshed entry is as popular as before.
            info = replace(info, access_count=next((row.access_count for row in former if row.key == info.key), 0))
            connection.execute(sa.delete(ENTRIES).where(replaced))
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
                    for ordinal, blob in parts.items()
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

    def outdate(self, key: str) -> int:
        """Mark an entry and those that hold a part of it alone as out of date; returns the number marked."""
        import sqlalchemy as sa

        from tif1_pipeline.cache.schema import ENTRIES

        if not self._database.exists():
            return 0
        mine = sa.or_(ENTRIES.c.key == key, parts_of(key))
        with self._database.writing() as connection:
            marked = sa.update(ENTRIES).where(mine).values(created_at=OUTDATED.timestamp())
            return connection.execute(marked).rowcount

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
            condition = sa.or_(condition, parts_of(key))
        else:
            condition = sa.and_(condition, ENTRIES.c.generation == generation)
        with self._database.writing() as connection:
            return connection.execute(sa.delete(ENTRIES).where(condition)).rowcount


def parts_of(key: str) -> Any:
    """The condition on entries that hold a part of this one alone; a range, so that it uses the index of the keys."""
    from tif1_pipeline.cache.schema import ENTRIES

    return ENTRIES.c.key.between(f"{key}/", f"{key}/\U0010ffff")
