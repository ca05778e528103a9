"""Entries in the cache file: metadata in one table, stored bytes in another, written and read whole or not at all."""

import hashlib
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
from tif1_pipeline.cache.failures import check_numbers
from tif1_pipeline.cache.flight import END_LEASE
from tif1_pipeline.exceptions import CacheError, CorruptEntryError
from tif1_pipeline.keys import EntryKey

_COLUMNS = (
    "key, year, event, session_type, data_type, backend, created_at, accessed_at, access_count, size_bytes, "
    "compressed_size, rows, parts, schema_version, library_version, format_version, source_url, etag, last_modified, "
    "checksum, pinned, generation, encryption"
)
_LOOK_UP = f"SELECT id, {_COLUMNS} FROM entries WHERE key = ?"  # noqa: S608 - a constant
ENTRY_ROW = f"SELECT {_COLUMNS} FROM entries WHERE id = ?"  # noqa: S608 - as above
"""Query for the row that :func:`entry_info` takes."""
# The statements of a replacement, the most frequent write: all others wait meanwhile, and to have SQLAlchemy make them
# each time had taken longer than SQLite itself. With an entry go those that hold a part of it alone, see parts_of.
_REPLACED = "key = :key OR key BETWEEN :key || '/' AND :key || '/\U0010ffff'"
_SELECT_REPLACED = f"SELECT key, access_count, encryption FROM entries WHERE {_REPLACED}"  # noqa: S608 - as above
_DELETE_REPLACED = f"DELETE FROM entries WHERE {_REPLACED}"  # noqa: S608 - as above
_INSERT_ENTRY = f"INSERT INTO entries ({_COLUMNS}) VALUES (:{_COLUMNS.replace(', ', ', :')}) RETURNING id"  # noqa: S608
_INSERT_PART = (
    "INSERT INTO parts (entry_id, ordinal, name, size, checksum, data) "
    "VALUES (:entry_id, :ordinal, :name, :size, :checksum, :data)"
)
_LOOK_UP_PARTS = "SELECT id, ordinal, name, checksum FROM parts WHERE entry_id = ?"
HEADER_ORDINAL = 0
"""Where a table's header stands among its parts; the parts proper follow."""


_TYPES = {"created_at": (int, float), "accessed_at": (int, float)} | dict.fromkeys(
    ("access_count", "size_bytes", "compressed_size", "rows", "schema_version", "format_version"), (int,)
)
_OPTIONAL = {"year": (int, type(None))} | dict.fromkeys(
    ("event", "session_type", "source_url", "etag", "last_modified", "encryption"), (str, type(None))
)
_ALLOWED = tuple(({"pinned": (int,)} | _TYPES | _OPTIONAL).get(name, (str,)) for name in _COLUMNS.split(", "))


def entry_info(row: Sequence[Any]) -> EntryInfo:
    """Build the metadata from a row of the entry columns.

    Raises:
        CorruptEntryError: It is no row that was written.
    """
    try:
        # SQLite stores anything in any column, and so reads anything out of a damaged one.
        for value, types in zip(row, _ALLOWED, strict=True):
            if type(value) not in types:
                raise TypeError(f"a value is of type {type(value).__name__}")  # noqa: TRY301
        return _entry_info(row)
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise CorruptEntryError(
            f"the metadata of {row[0]!r} cannot be read: {error}", key=str(row[0]), cause="damaged entry"
        ) from error


def _entry_info(row: Sequence[Any]) -> EntryInfo:
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
    info = EntryInfo(
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
    stored = [(ordinal, blob.name, blob.checksum) for ordinal, blob in _numbered(encoded)]
    return replace(info, generation=f"{info.generation}-{_seal(*_sealed(info))}-{_seal(*stored)}")


def _numbered(encoded: Encoded) -> list[tuple[int, Blob]]:
    """Return header and parts, each with where it stands."""
    blobs = enumerate((encoded.header, *encoded.blobs), HEADER_ORDINAL)
    return [(ordinal, blob) for ordinal, blob in blobs if blob is not None]


# An entry's generation carries two seals: one of what its row says of it, and one of the checksums of its parts. So a
# row and parts that do not belong together, or to the key, are told at a glance: pages of a file that were lost,
# written to another place or exchanged are sound in themselves, and so are the checksums in them.


def _sealed(info: EntryInfo) -> tuple[Any, ...]:
    about = (info.key, info.year, info.event, info.session_type, info.data_type)
    return (*about, info.backend, info.size_bytes, info.rows, *info.parts)


def _seal(*values: Any) -> str:
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


def _fits(info: EntryInfo, number: int, *values: Any) -> bool | None:
    """Tell whether values are those of a seal; None for an entry of a former version, which has none."""
    seals = info.generation.split("-")
    return seals[number : number + 1] == [_seal(*values)] if len(seals) > 1 else None


def _check_row(info: EntryInfo, key: str) -> None:
    if info.key != key:
        raise CorruptEntryError(f"{key} leads to {info.key!r}", key=key, cause="damaged entry")
    if info.format_version == FORMAT_VERSION and _fits(info, 1, *_sealed(info)) is False:
        raise CorruptEntryError(f"{key} has other metadata than it was stored with", key=key, cause="damaged entry")


def _check_parts(info: EntryInfo, parts: Sequence["_Part"]) -> None:
    if info.format_version != FORMAT_VERSION:
        return
    for part in parts:
        if not (type(part.ordinal) is int and type(part.name) is type(part.checksum) is str):
            raise CorruptEntryError(f"a part of {info.key} is not named", key=info.key, cause="damaged entry")
    # Once encrypted, parts have other checksums, and each is bound to its place instead.
    fits = _fits(info, 2, *sorted(part[1:] for part in parts))
    if fits is (info.encryption is not None):
        what = "has other parts or checksums than it was stored with" if not fits else "is not encrypted as it says"
        raise CorruptEntryError(f"{info.key} {what}", key=info.key, cause="damaged entry")


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
                _check_row(info, key)
                wanted = select(info)
                if not wanted:
                    return Loaded(info, None, [])
                parts = list(map(_Part._make, connection.execute(_LOOK_UP_PARTS, row[:1])))
                check_numbers(row[0], *(part.id for part in parts))
                _check_parts(info, parts)
                keyring = self._keyring(info)
                read = partial(self._blob, connection, info, keyring)
                header, stored = None, {}
                for part in parts:
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
        """Replace an entry, and the entries that hold parts of it alone, in one transaction; ends a lease on the key.

        Raises:
            CacheError: With the cause ``no key``: one of them is encrypted with a key that is not given. A process with
                other settings must not remove what it cannot read.
        """
        parts = dict(_numbered(encoded))
        keyring = Keyring.of(self._database.config)
        if keyring is not None:  # before the write lock is taken
            for ordinal, blob in parts.items():
                parts[ordinal] = keyring.seal_blob(blob, context_of(info.key, info.generation, ordinal, blob.name))
            size = sum(len(blob.data) for blob in parts.values())
            info = replace(info, encryption=keyring.current, compressed_size=size)
        mine = {"key": info.key}
        with self._database.writing(size=info.compressed_size) as connection:
            former = connection.exec_driver_sql(_SELECT_REPLACED, mine).all()
            unknown = {row.encryption for row in former} - {None}
            if unknown := {key_id for key_id in unknown if keyring is None or key_id not in keyring}:
                raise no_key(f"what is stored of {info.key} is not replaced", unknown)
            # A refreshed entry is as popular as before.
            info = replace(info, access_count=next((row.access_count for row in former if row.key == info.key), 0))
            if former:
                connection.exec_driver_sql(_DELETE_REPLACED, mine)
            entry_id = connection.exec_driver_sql(_INSERT_ENTRY, _values(info)).scalar_one()
            connection.exec_driver_sql(
                _INSERT_PART,
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
            connection.exec_driver_sql(END_LEASE, mine)
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
