"""Backups of a cache in use, and putting them back.

Both go through SQLite's backup API, page by page: it copies one state of the database while others write, and it puts a
database into a live file in one transaction, so that every process that has the file open sees the old or the new
content, and a kill leaves the old one. Renaming a file over a live one would do neither.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from tif1_pipeline import __version__
from tif1_pipeline.cache import archive
from tif1_pipeline.cache.archive import Manifest, Member
from tif1_pipeline.cache.connection import LAYOUT_VERSION, check_marks, create_file, make_folder, sync_folder
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.failures import opening
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.layout import create_tables
from tif1_pipeline.cache.schema import ENTRIES, PARTS
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.cache.usage import ADD_COUNTER
from tif1_pipeline.exceptions import (
    CacheError,
    CacheLockedError,
    CacheReadOnlyError,
    CorruptEntryError,
    InvalidDataError,
)
from tif1_pipeline.progress import Advance, progress

_NAME = re.compile(r"tif1_cache-\d{8}T\d{6}\.\d{3}Z\.tar\.zst")
_STEP_BYTES = 16 << 20
_SLACK = 16 << 20
"""Room that is wanted beyond what the bytes themselves take."""
_CACHE_KIB = 8192


def backup(tiered: Tiered, dir: str | Path | None, keep: int) -> Path:
    """Store a compressed and verified copy of all entries; returns its path.

    Backups in the folder but the newest ``keep`` are removed once the new one is complete.

    Raises:
        InvalidDataError: ``keep`` is less than 1.
        CacheError: There is nothing to back up, a part of it cannot be read, it is damaged, or the disk cannot hold the
            copy.
    """
    if keep < 1:
        raise InvalidDataError(f"cannot keep {keep} backups: the least is 1, the new one", keep=keep)
    if unread := out_of_reach(tiered):
        path, reason = unread
        raise CacheError(
            f"no backup was made, and none removed: it would lack what is stored in {path}, which cannot be read "
            f"({reason}). Make cache_dir usable again and repeat it; what can be read meanwhile, export() writes",
            path=str(path),
        )
    folder = tiered.path.parent / "backups" if dir is None else Path(dir).expanduser()
    tiered.flush()
    timeout = tiered.config.cache_lock_timeout.total_seconds()
    shards = [[file for file in shard.files() if file.database.exists()] for shard in tiered.shards()]
    total = sum(_size(file.database) for files in shards for file in files)
    if not total:
        raise CacheError(f"there is nothing to back up: {tiered.path} does not exist", path=str(tiered.path))
    try:
        make_folder(folder)
        # The copy of the database, and the archive, which is no smaller when everything in it is compressed already.
        archive.require_room(folder, 2 * total + _SLACK, "the backup")
        with (
            archive.work_folder(folder) as work,
            progress("Copying, packing and checking the cache", 4 * total, "bytes") as advance,
        ):
            now = datetime.now(UTC)
            members = [_copy_shard(files, work, number, timeout, advance) for number, files in enumerate(shards)]
            manifest = Manifest(now.isoformat(), __version__, LAYOUT_VERSION, tuple(members))
            packed = work / "backup.tar.zst"
            archive.write(packed, manifest, work, advance)
            with archive.reading(packed) as reader:
                reader.read_members(None, advance)
                if reader.manifest != manifest:
                    raise CorruptEntryError(f"the backup in {folder} did not come back as written", path=str(folder))
            return _publish(packed, folder, now, keep)
    except OSError as error:
        raise CacheError(
            f"the backup to {folder} failed: {error}. If it is full, free some space there or name another folder",
            path=str(folder),
        ) from error


def out_of_reach(tiered: Tiered) -> tuple[Path, str] | None:
    """Return a file whose entries cannot be reached while another stands in for it, and why; None if all can be."""
    for shard in tiered.shards():
        if shard.primary not in shard.files():
            return shard.primary.database.path, shard.failure or "it cannot be opened"
    return None


def _size(database: Database) -> int:
    with database.querying() as connection:
        return (
            connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            * connection.exec_driver_sql("PRAGMA page_size").scalar_one()
        )


def _copy_shard(files: list[File], work: Path, number: int, timeout: float, advance: Advance) -> Member:
    """Copy the file of one share, together with the file that stands in for it."""
    path = work / archive.member_name(number)
    if not files:  # a share that nothing was written to yet
        with closing(_open(path, create=True)) as connection:
            _bring_up_to_date(connection)
    for position, file in enumerate(reversed(files)):  # the first counts, so it comes last
        copy = path if position == 0 else work / "standin.db"
        _copy(file.database, copy, timeout, advance)
        _check(copy)
        if position:
            with _damage_of(path):
                _merge(path, copy)
            copy.unlink()
    with closing(_open(path)) as connection:
        entries = connection.execute("SELECT count(*) FROM entries").fetchone()[0]
    return Member(path.name, path.stat().st_size, archive.hash_file(path, advance), entries)


def _copy(database: Database, path: Path, timeout: float, advance: Advance) -> None:
    with database.raw(timeout) as live:
        _take_little_memory(live)
        with closing(_open(path, create=True)) as copy:
            # While this transaction lasts, the backup cannot be made to start anew by what others commit.
            live.execute("BEGIN")
            live.execute("SELECT count(*) FROM sqlite_master").fetchone()
            page_size = live.execute("PRAGMA page_size").fetchone()[0]
            with _room_for(path):
                live.backup(copy, pages=_STEP_BYTES // page_size, progress=_reporting(page_size, advance, timeout))
            live.execute("ROLLBACK")
            with _room_for(path):
                copy.execute("PRAGMA journal_mode=delete")  # one file without a log beside it


@contextmanager
def _room_for(path: Path) -> Iterator[None]:
    """Speak of the place of the copies where SQLite cannot write there, not of the cache or of damage."""
    try:
        yield
    except (sqlite3.Error, DBAPIError) as error:
        cause = getattr(error, "orig", error)
        if getattr(cause, "sqlite_errorname", None) not in _CANNOT_WRITE:
            raise
        # Of the work folder: it is gone when somebody reads this.
        folder = path.parent.parent
        raise CacheError(
            f"the work folder in {folder} cannot be written ({cause}): free some space there or name another folder",
            path=str(folder),
            cause="disk full",
        ) from error


_CANNOT_WRITE = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_TRUNCATE"}


def _check(path: Path) -> None:
    """Refuse a copy that is damaged or no cache."""
    with _damage_of(path), closing(_open(path)) as connection:
        check_marks(path, *(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _MARKS))
        # Not the schema alone: every page is visited.
        found = [row[0] for row in connection.execute("PRAGMA quick_check(5)")]
        if found != ["ok"]:
            raise CorruptEntryError(f"the database {path.name} is damaged: {'; '.join(found)}", cause="damaged")


_MARKS = ("application_id", "user_version")


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    try:
        with _room_for(path):
            yield
    except (sqlite3.DatabaseError, DBAPIError) as error:
        raise CorruptEntryError(f"the database {path.name} cannot be read: {error}", cause="damaged") from error


def _merge(path: Path, standin: Path) -> None:
    """Put the entries of the stand-in's copy in place of those of the same keys, and add what it has counted."""
    for each in (path, standin):
        with closing(_open(each)) as connection:
            _bring_up_to_date(connection)
    entries = ", ".join(column.name for column in ENTRIES.columns if column.name != "id")
    parts = ", ".join(column.name for column in PARTS.columns if column.name not in ("id", "entry_id"))
    with closing(_open(path)) as connection:
        connection.execute("ATTACH ? AS standin", (str(standin),))
        connection.execute("BEGIN")
        # Reads of the former entry are the key's; one that is being moved back is in both files, with its count.
        connection.execute(_ADD_ACCESSES)
        counters = connection.execute("SELECT key, value FROM standin.cache_metadata WHERE key LIKE '%:%'").fetchall()
        connection.executemany(ADD_COUNTER, counters)
        connection.execute("DELETE FROM entries WHERE key IN (SELECT key FROM standin.entries)")
        offset = connection.execute("SELECT coalesce(max(id), 0) FROM entries").fetchone()[0]
        for statement in (
            f"INSERT INTO entries (id, {entries}) SELECT id + ?, {entries} FROM standin.entries",  # noqa: S608 - constants
            f"INSERT INTO parts (entry_id, {parts}) SELECT entry_id + ?, {parts} FROM standin.parts",  # noqa: S608
        ):
            connection.execute(statement, (offset,))
        connection.execute("COMMIT")


_ADD_ACCESSES = """
UPDATE standin.entries AS newer
SET access_count = newer.access_count + former.access_count, accessed_at = max(newer.accessed_at, former.accessed_at)
FROM main.entries AS former WHERE former.key = newer.key AND former.generation != newer.generation
"""


def _publish(packed: Path, folder: Path, now: datetime, keep: int) -> Path:
    """Give a complete backup its name, and remove the oldest ones."""
    with archive.locked(folder):
        milliseconds = int(now.timestamp() * 1000)
        while (path := folder / _name(milliseconds)).exists():
            milliseconds += 1
        packed.rename(path)
        sync_folder(folder)
        others = sorted(found for found in folder.iterdir() if _NAME.fullmatch(found.name) and found != path)
        for old in others[: max(0, len(others) - (keep - 1))]:
            old.unlink(missing_ok=True)
    return path


def _name(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"tif1_cache-{datetime.fromtimestamp(seconds, UTC):%Y%m%dT%H%M%S}.{rest:03d}Z.tar.zst"


# ---- restore


def restore(tiered: Tiered, path: str | Path) -> None:
    """Replace what is stored by a backup, after all of it was verified.

    Each file is replaced whole or not at all. A cache of several files that is interrupted between two of them has the
    old content in some and the new in others, which running it again completes.

    Raises:
        CacheReadOnlyError: The cache is opened read-only.
        CacheVersionError: The backup is of a newer version, or holds another program's database.
        CacheError: The backup is damaged, of another number of files, or the disk cannot hold it.
    """
    path = Path(path).expanduser()
    if tiered.config.cache_readonly:
        raise CacheReadOnlyError(f"{path} cannot be restored: the setting cache_readonly is on", path=str(path))
    folder = tiered.path.parent
    try:
        with archive.reading(path) as reader:
            manifest = reader.manifest
            files = _targets(tiered, manifest, path)
            make_folder(folder)
            stored = sum(_size(file.database) for file in files if _exists(file))
            # The copy, the log of the transaction, and what the files grow by.
            needed = 2 * manifest.size + max(0, manifest.size - stored) + _SLACK
            archive.require_room(folder, needed, "the restore")
            with (
                archive.work_folder(folder) as work,
                progress("Checking and restoring the backup", 2 * manifest.size, "bytes") as advance,
            ):
                reader.read_members(work, advance)
                copies = [_prepare(work / member.name) for member in manifest.members]
                for file, copy in zip(files, copies, strict=True):
                    _replace(file.database, copy, tiered.config.cache_lock_timeout.total_seconds(), advance)
    except OSError as error:
        raise CacheError(
            f"{path} could not be restored: the work folder in {folder} cannot be written ({error}). Free some space "
            "there and restore again",
            path=str(folder),
        ) from error
    finally:
        tiered.memory.clear()


def _targets(tiered: Tiered, manifest: Manifest, path: Path) -> list[File]:
    if failing := tiered.failover_reasons():
        raise CacheError(f"{path} cannot be restored while the cache cannot be used: {failing[0]}", path=str(path))
    shards = tiered.shards()
    if len(shards) != len(manifest.members):
        raise CacheError(
            f"{path} is of a cache of {len(manifest.members)} files, this one has {len(shards)}; nothing was changed. "
            f"Set cache_shards to {len(manifest.members)} and restore again; it can be set back afterwards",
            path=str(path),
            cache_shards=len(manifest.members),
        )
    return [shard.primary for shard in shards]


def _exists(file: File) -> bool:
    try:
        return file.database.exists()
    except CacheError as error:
        if error.details.get("cause") != "damaged":
            raise
        return False


def _prepare(path: Path) -> Path:
    """Verify an unpacked database and bring it to this version's layout."""
    _check(path)
    with _damage_of(path), closing(_open(path)) as connection:
        connection.execute("PRAGMA journal_mode=delete")
        _refuse_foreign_objects(connection, path.name)  # before a statement could set off a trigger
        _bring_up_to_date(connection)
        _refuse_other_tables(connection, path.name)
        connection.execute("DELETE FROM leases")  # whoever held one is not at work any more
    return path


def _refuse_foreign_objects(connection: sqlite3.Connection, name: str) -> None:
    """Refuse a database with triggers, views or tables that no cache has: they would act in the live one."""
    with _model() as model:
        strange = _objects(connection) - _objects(model)
    if strange:
        listed = ", ".join(f"{kind} {each}" for kind, each in sorted(strange))
        raise CorruptEntryError(f"the database {name} holds what no cache holds: {listed[:500]}")


def _refuse_other_tables(connection: sqlite3.Connection, name: str) -> None:
    with _model() as model:
        for kind, table in _objects(model):
            if kind == "table" and _columns(connection, table) != _columns(model, table):
                raise CorruptEntryError(f"the table {table} of the database {name} is not that of a cache")


@contextmanager
def _model() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        _bring_up_to_date(connection)
        yield connection


def _objects(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    return {
        (kind, name)
        for kind, name in connection.execute("SELECT type, name FROM sqlite_master")
        if not (kind == "table" and name.startswith("sqlite_stat"))  # what ANALYZE found
    }


def _columns(connection: sqlite3.Connection, table: str) -> set[tuple[object, ...]]:
    # Name, type, not null, part of the primary key, generated.
    return {(row[1], row[2], row[3], row[5], row[6]) for row in connection.execute(f"PRAGMA table_xinfo({table})")}


def _replace(database: Database, copy: Path, timeout: float, advance: Advance) -> None:
    try:
        database.open()
    except CacheError as error:
        if error.details.get("cause") != "damaged":
            raise
        database.heal()
        database.open()
    try:
        _put(database, copy, timeout, advance)
    except CacheError as error:
        if error.details.get("cause") != "damaged":
            raise
        database.heal()
        database.open()
        _put(database, copy, timeout, advance)
    database.open()
    # The log has the size of the backup; where others read on, they will shrink it.
    with suppress(CacheError), database.raw(1.0) as live:
        live.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _put(database: Database, copy: Path, timeout: float, advance: Advance) -> None:
    """Replace the content of a live file, in one transaction."""
    with database.raw(timeout) as live:
        _take_little_memory(live)
        page_size = live.execute("PRAGMA page_size").fetchone()[0]
        copy = _with_page_size(copy, page_size)
        with closing(_open(copy)) as source:
            source.backup(live, pages=_STEP_BYTES // page_size, progress=_reporting(page_size, advance, timeout))


def _with_page_size(path: Path, page_size: int) -> Path:
    """Return a database of this page size: pages cannot be copied into a live file of another one."""
    with closing(_open(path)) as connection:
        found = connection.execute("PRAGMA page_size").fetchone()[0]
        if found == page_size:
            return path
        archive.require_room(path.parent, path.stat().st_size, "the change of the page size")
        connection.execute(f"PRAGMA page_size={page_size}")
        changed = path.with_name(f"{path.name}.{page_size}")
        with _room_for(changed):
            connection.execute("VACUUM INTO ?", (str(changed),))
    path.unlink()
    return changed


# ---- connections


def _open(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open a copy that nobody else knows of."""
    if create:
        create_file(path)  # SQLite's own would be open to others
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
    try:
        with opening():
            _take_little_memory(connection)
            # It is thrown away after a crash.
            for pragma in ("synchronous=OFF", "trusted_schema=OFF", "foreign_keys=ON", "temp_store=FILE"):
                connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _take_little_memory(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    connection.execute("PRAGMA mmap_size=0")


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    create_tables(connection)
    connection.execute("COMMIT")


def _reporting(page_size: int, advance: Advance, timeout: float) -> Callable[[int, int, int], None]:
    """Return what a backup calls after each step: it would itself wait for a lock for ever."""
    done = 0
    waiting_since: float | None = None

    def report(status: int, remaining: int, total: int) -> None:
        nonlocal done, waiting_since
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            waiting_since = waiting_since or time.monotonic()
            if time.monotonic() - waiting_since >= timeout:
                raise CacheLockedError(
                    f"another process held the cache for more than {timeout:g} s: look for a long transaction or a "
                    "hanging process, or raise cache_lock_timeout",
                    cause="locked",
                )
            return
        waiting_since = None
        copied = (total - remaining) * page_size
        advance(copied - done)
        done = copied

    return report
