"""Verification: is everything that the cache says it holds there, whole and readable?

Each part is read in a transaction of its own, so the log can be written back meanwhile; the database's own check alone
reads the file in one. Both read every page. Memory is bounded by the threads, a batch of parts and one decoded part
each.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from tif1_pipeline.cache import codec, removal
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.schema import ENTRIES, PARTS
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.exceptions import CacheError, CacheVersionError, CorruptEntryError
from tif1_pipeline.keys import EntryKey
from tif1_pipeline.progress import Advance, progress

_log = logging.getLogger(__name__)

_BATCH_BYTES = 8 << 20
"""Stored bytes that one task reads at most, one part aside."""
_MESSAGES = 100
_STORED = "SELECT id, ordinal, name, checksum FROM parts WHERE entry_id = (SELECT id FROM entries WHERE key = ?)"
_HEADER = "header"
_FORMER_LENGTH = 32
"""Of an entry's checksum by the digest of a former version; its parts are checked all the same."""
_UNREADABLE = {"SQLITE_ERROR", "OperationalError"}
"""How SQLite and its driver speak of a value of another type than it should have, of a text that is none, of a table
that is not there."""


@dataclass
class _Entry:
    """What the tables say of one entry."""

    id: int
    key: str
    generation: str
    backend: str
    format_version: int
    checksum: str
    rows: int
    parts: list[str] | None
    sizes: dict[str, int] = field(default_factory=dict)
    header_size: int | None = None


@dataclass
class _Listing:
    """What the tables of a file say."""

    file: File
    entries: list[_Entry] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)
    complete: bool = False
    errors: list[str] = field(default_factory=list)


class _Fault(NamedTuple):
    key: str
    generation: str
    error: str
    is_missing: bool


@dataclass
class _Findings:
    """What came out for one file."""

    listing: _Listing
    total: int = 0
    faults: list[_Fault] = field(default_factory=list)
    database: list[str] = field(default_factory=list)


class _Task(NamedTuple):
    file: File
    entry: _Entry
    names: list[str]


class _Outcome(NamedTuple):
    """What came out for a batch of parts; ``gone`` if the entry was replaced or removed meanwhile."""

    error: str | None = None
    gone: bool = False
    rows: int = 0
    digests: tuple[bytes, ...] | None = None


def is_incomplete() -> sa.ColumnElement[bool]:
    """The condition on entries that lack parts, by the tables alone."""
    found = sa.select(sa.func.count()).select_from(PARTS).where(PARTS.c.entry_id == ENTRIES.c.id).scalar_subquery()
    named = sa.case((sa.func.json_valid(ENTRIES.c.parts), sa.func.json_array_length(ENTRIES.c.parts)), else_=1 << 30)
    header = sa.case((ENTRIES.c.backend == "json", 0), else_=1)
    # How another format stores an entry is not known here, but nothing at all is too little.
    needed = sa.case((ENTRIES.c.format_version == codec.FORMAT_VERSION, named + header), else_=1)
    return found < needed


def verify(tiered: Tiered) -> dict[str, Any]:
    """Check the database and every entry.

    Of each entry: that its parts are there, their checksums, the entry's own, and that they decode to as many rows as
    it should have. Entries of another format are checked by checksum alone, encrypted ones too where the key is not
    at hand. An entry that is replaced or removed meanwhile is not counted.

    Returns:
        total_entries, valid_entries, corrupted_entries, missing_entries, integrity_pct, corrupted_list. The list names
        incomplete entries too, and faults of the database with the key "". The percentage is that of the sound among
        the entries, the blobs without an entry and the faults of the database; 100 when there is nothing.
    """
    found = list(_inspect(tiered))
    faults = [fault for one in found for fault in one.faults]
    database = [message for one in found for message in one.database]
    total = sum(one.total for one in found)
    orphans = sum(len(one.listing.orphans) for one in found)
    valid = total - len(faults)
    everything = total + orphans + len(database)
    listed = [{"key": fault.key, "error": fault.error} for fault in faults]
    listed += [{"key": "", "error": message} for message in database]
    if orphans:
        listed.append({"key": "", "error": f"{orphans} blobs belong to no entry"})
    return {
        "total_entries": total,
        "valid_entries": valid,
        "corrupted_entries": sum(not fault.is_missing for fault in faults),
        "missing_entries": sum(fault.is_missing for fault in faults) + orphans,
        "integrity_pct": 100.0 * valid / everything if everything else 100.0,
        "corrupted_list": listed,
    }


def verify_entry(tiered: Tiered, key: EntryKey | str) -> bool:
    """Tell whether an entry is there, whole and sound."""
    found = False
    for file in tiered.files():
        listing = _list(file, ENTRIES.c.key == str(key))
        if listing.errors:
            return False
        for entry in listing.entries:
            found = True
            outcomes = [_check(task) for task in _tasks(listing, entry)]
            if fault := _judge(listing, entry, outcomes):
                _log.info("%s is not sound: %s", key, fault.error)
                return False
    return found


def corrupted(tiered: Tiered) -> int:
    """Verify everything, then remove the corrupt and incomplete entries and the blobs without one.

    Indexes that do not match their tables are built anew. A file that is too damaged to remove anything from is set
    aside, as on a write.

    Returns:
        The number of entries removed.
    """
    removed = 0
    for found in list(_inspect(tiered)):
        file = found.listing.file
        try:
            if any(" index " in message for message in found.database):
                with file.database.writing() as connection:
                    connection.exec_driver_sql("REINDEX")
            chosen = [(fault.key, fault.generation) for fault in found.faults]
            removed += len(removal.remove_chosen(tiered, file, chosen))
            _remove_orphans(file, found.listing.orphans)
        except CacheError as error:
            if error.details.get("cause") != "damaged":
                raise
            file.database.heal()
            removed += found.total
            continue
        if left := [message for message in found.database if " index " not in message]:
            _log.error(
                "the database file %s is damaged, apart from its entries: %s. Vacuum it, or restore a backup",
                file.database.path,
                left[0],
            )
    return removed


def _remove_orphans(file: File, parts: Sequence[int]) -> None:
    # An entry may get the number that they name: its parts would meet theirs.
    statement = sa.delete(PARTS).where(
        PARTS.c.id == sa.bindparam("of_id"), PARTS.c.entry_id.not_in(sa.select(ENTRIES.c.id))
    )
    for start in range(0, len(parts), 20):
        with file.database.writing() as connection:
            connection.execute(statement, [{"of_id": part} for part in parts[start : start + 20]])


# ---- what there is


def _list(file: File, condition: sa.ColumnElement[bool] | None = None) -> _Listing:
    """Read what the tables say of all entries, or of those a condition holds for."""
    listing = _Listing(file)
    entries: dict[int, _Entry] = {}
    queried = sa.true() if condition is None else condition
    of_entries = sa.select(
        *(ENTRIES.c.id, ENTRIES.c.key, ENTRIES.c.generation, ENTRIES.c.backend, ENTRIES.c.format_version),
        *(ENTRIES.c.checksum, ENTRIES.c.rows, ENTRIES.c.parts),
    ).where(queried)
    of_parts = sa.select(PARTS.c.id, PARTS.c.entry_id, PARTS.c.ordinal, PARTS.c.name, PARTS.c.size)
    if condition is not None:
        of_parts = of_parts.where(PARTS.c.entry_id.in_(sa.select(ENTRIES.c.id).where(condition)))
    try:
        if not file.database.exists():
            return listing
        with file.database.querying() as connection:
            for row in connection.execute(of_entries):
                *fields, parts = row
                names = _names(parts) if isinstance(row.checksum, str) else None
                entries[fields[0]] = _Entry(*fields, parts=names)
                listing.entries.append(entries[fields[0]])
            for part, entry_id, ordinal, name, size in connection.execute(of_parts):
                entry = entries.get(entry_id)
                if entry is None:
                    listing.orphans.append(part)
                elif not isinstance(size, int):
                    continue  # as if it were not there
                elif ordinal == 0:
                    entry.header_size = size
                else:
                    entry.sizes[name] = size
        listing.complete = True
    except CacheVersionError:
        raise
    except CacheError as error:
        if not _is_damage(error):
            raise
        listing.errors.append(error.message)
        listing.orphans.clear()  # their entries may be among those that could not be read
    return listing


def _names(text: Any) -> list[str] | None:
    try:
        names = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _is_damage(error: CacheError) -> bool:
    """Tell what is wrong with the stored from what is wrong with the way to it (a lock, a missing file)."""
    cause = str(error.details.get("cause", ""))
    return isinstance(error, CorruptEntryError) or cause.startswith("damaged") or cause in _UNREADABLE


# ---- the checks


def _inspect(tiered: Tiered) -> Iterator[_Findings]:
    listings = [_list(file) for file in tiered.files()]
    size = sum(sum(entry.sizes.values()) for listing in listings for entry in listing.entries)
    with progress("verifying", size, "bytes") as advance, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for listing in listings:
            yield _inspect_file(listing, pool, advance)


def _inspect_file(listing: _Listing, pool: ThreadPoolExecutor, advance: Advance) -> _Findings:
    found = _Findings(listing, database=list(listing.errors))
    database = listing.file.database
    if not listing.entries and not listing.complete and not listing.errors:
        return found  # there is no file
    try:
        with database.raw(1.0) as connection:
            checking = pool.submit(_check_database, connection)
            try:
                _check_entries(found, pool, advance)
                found.database += [text for text in checking.result() if text not in found.database]
            finally:
                connection.interrupt()
                checking.cancel() or checking.exception()  # the connection is closed next
    except CacheVersionError:
        raise
    except CacheError as error:
        if not _is_damage(error):
            raise
        found.database.append(error.message)
    return found


def _check_database(connection: sqlite3.Connection) -> list[str]:
    # Not quick_check: both read every page of the file to follow the chains of the blobs; comparing the indexes, which
    # only the full check does, adds milliseconds, for the tables have one row an entry or part.
    connection.execute("PRAGMA cache_size=-8192")  # each page is needed once
    messages = [row[0] for row in connection.execute(f"PRAGMA integrity_check({_MESSAGES})")]
    return [] if messages == ["ok"] else messages


def _check_entries(found: _Findings, pool: ThreadPoolExecutor, advance: Advance) -> None:
    def check(task: _Task) -> _Outcome:
        outcome = _check(task)
        advance(sum(task.entry.sizes.get(name, 0) for name in task.names))
        return outcome

    listing = found.listing
    tasks = [list(_tasks(listing, entry)) for entry in listing.entries]
    outcomes = pool.map(check, (task for some in tasks for task in some))
    for entry, some in zip(listing.entries, tasks, strict=True):
        mine = [next(outcomes) for _ in some]
        if any(outcome.gone for outcome in mine):
            continue
        found.total += 1
        if fault := _judge(listing, entry, mine):
            found.faults.append(fault)


def _tasks(listing: _Listing, entry: _Entry) -> Iterator[_Task]:
    """The parts of an entry, in batches; none if it is known to lack some."""
    if entry.parts is None or _missing(listing, entry):
        return
    names: list[str] = []
    size = 0
    for name in entry.parts:
        names.append(name)
        size += entry.sizes.get(name, 0)
        if size >= _BATCH_BYTES:
            yield _Task(listing.file, entry, names)
            names, size = [], 0
    if names:
        yield _Task(listing.file, entry, names)


def _missing(listing: _Listing, entry: _Entry) -> list[str]:
    if not listing.complete:  # then reading it will show
        return []
    missing = [name for name in entry.parts or () if name not in entry.sizes]
    # How another format stores an entry is not known here.
    if entry.backend != "json" and entry.header_size is None and entry.format_version == codec.FORMAT_VERSION:
        missing.insert(0, _HEADER)
    return missing


def _judge(listing: _Listing, entry: _Entry, outcomes: Iterable[_Outcome]) -> _Fault | None:
    """Say what is wrong with an entry, given what came out for its batches of parts."""
    if entry.parts is None:
        return _Fault(entry.key, entry.generation, "the list of its parts cannot be read", False)
    if missing := _missing(listing, entry):
        return _Fault(entry.key, entry.generation, f"it lacks its parts {missing}", True)
    outcomes = list(outcomes)
    error = next((outcome.error for outcome in outcomes if outcome.error), None)
    if error is None and all(outcome.digests is not None for outcome in outcomes):
        rows = sum(outcome.rows for outcome in outcomes)
        whole = _whole(entry, outcomes)
        if whole != entry.checksum and len(entry.checksum) != _FORMER_LENGTH:
            error = "its parts are not those it was stored with: the entry's checksum differs"
        elif rows != entry.rows:
            error = f"it decodes to {rows} rows, stored were {entry.rows}"
    return None if error is None else _Fault(entry.key, entry.generation, error, False)


def _whole(entry: _Entry, outcomes: Sequence[_Outcome]) -> str:
    """Return the entry's checksum from the digests of its batches, in each of which a table's header comes first."""
    first = 0 if entry.backend == "json" else 1
    digests = [digest for outcome in outcomes for digest in (outcome.digests or ())[first:]]
    return codec.entry_checksum([*(outcomes[0].digests or ())[:first], *digests])


def _check(task: _Task) -> _Outcome:
    """Check a batch of parts of an entry; never raises for what is wrong with the entry."""
    try:
        return _check_parts(task)
    except CacheVersionError:
        raise
    except CacheError as error:
        if not _is_damage(error):
            raise
        failure = error.message
    except (ValueError, TypeError, OverflowError, LookupError, AttributeError) as error:
        failure = f"its metadata cannot be read: {error}"  # no row that this package wrote
    try:
        gone = _is_gone(task.entry, task.file.store.info(task.entry.key))
    except (CacheError, ValueError, TypeError, OverflowError):
        gone = False
    return _Outcome(failure, gone=gone)


def _is_gone(entry: _Entry, info: EntryInfo | None) -> bool:
    return info is None or info.generation != entry.generation


def _check_parts(task: _Task) -> _Outcome:
    file, entry, names = task
    info = file.store.info(entry.key)
    if _is_gone(entry, info):
        return _Outcome(gone=True)
    assert info is not None  # noqa: S101 - else it were gone
    is_ours = info.format_version == codec.FORMAT_VERSION
    if info.encryption is not None or not is_ours:
        _check_stored(file, entry, names)
        if not is_ours:
            return _Outcome()
    try:
        loaded = file.store.load(entry.key, lambda now: () if _is_gone(entry, now) else names)
    except CacheError as error:
        if info.encryption is not None and not _is_damage(error):
            return _Outcome()  # the key is not here; what is stored is sound
        raise
    if loaded is None or _is_gone(entry, loaded.info):
        return _Outcome(gone=True)
    if loaded.info.encryption != info.encryption:  # the key was changed just now, which keeps the generation
        return _check_parts(task)
    rows, digests = 0, []
    if loaded.header is not None:
        digests.append(codec.digest(loaded.header.data))
    while loaded.blobs:
        blob = loaded.blobs.pop(0)  # what is decoded is let go
        if info.encryption is None:
            codec.verify(blob)  # else as it was stored, above
        digests.append(codec.digest(blob.data))
        if entry.backend == "json":
            codec.decode_json(blob, info.size_bytes)
            rows += 1
        elif loaded.header is None:
            raise CorruptEntryError(f"{entry.key} lacks its header", key=entry.key)
        else:
            rows += codec.decode_table(loaded.header, [blob], in_order=False).num_rows
    return _Outcome(rows=rows, digests=tuple(digests))


def _check_stored(file: File, entry: _Entry, names: Sequence[str]) -> None:
    """Compare stored bytes, whatever they mean, with their checksums."""
    with file.database.reading() as handle:
        if handle is None:
            return
        connection = handle.connection
        connection.execute("BEGIN")
        try:
            for part, ordinal, name, checksum in connection.execute(_STORED, (entry.key,)).fetchall():
                if ordinal == 0 or name in names:
                    with connection.blobopen("parts", "data", part, readonly=True) as blob:
                        codec.verify(codec.Blob(name, blob.read(), checksum))
        finally:
            connection.execute("ROLLBACK")
