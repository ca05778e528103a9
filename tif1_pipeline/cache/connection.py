"""The one place that opens SQLite connections, with every pragma."""

import errno
import logging
import os
import sqlite3
import stat
import struct
import threading
import time
import uuid
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tif1_pipeline.cache.failures import is_locked, opening
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheVersionError

_log = logging.getLogger(__name__)

APPLICATION_ID = 0x54494631
"""``"TIF1"`` in the file header: how a cache is told from any other SQLite database."""
LAYOUT_VERSION = 2
"""Raised with every change of the tables; kept in the file header as ``user_version``. Every former layout, from 1, is
migrated when the file is opened."""

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
JOURNAL_LIMIT = 64 << 20
_MAGIC = b"SQLite format 3\0"
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM}
"""Of folders that may be written but not listed, and on file systems that know no such thing."""


class Settings(NamedTuple):
    """What a connection depends on; a connection opened under other values is closed and opened anew."""

    path: Path
    page_size: int
    cache_size: int
    autocheckpoint: int
    mmap_size: int
    lock_timeout: float
    wal_mode: bool
    readonly: bool

    @property
    def synchronous(self) -> str:
        """When SQLite syncs.

        In WAL mode NORMAL loses the last commits in a power cut and never the file; FULL syncs each commit. Without a
        log a power cut under NORMAL can leave a torn journal that passes its checksums, which look at each 200th byte
        alone, and rolling it back then damages the file.
        """
        return "NORMAL" if self.wal_mode else "FULL"

    @classmethod
    def of(cls, config: Config, path: Path) -> "Settings":
        """Take them from the configuration as it is now."""
        return cls(
            path,
            config.cache_page_size,
            config.cache_cache_size,
            config.cache_wal_autocheckpoint,
            config.cache_mmap_size,
            config.cache_lock_timeout.total_seconds(),
            config.cache_wal_mode,
            config.cache_readonly,
        )


class Identity(NamedTuple):
    """What tells a file from another of the same name.

    Attributes:
        device: Of the file system.
        inode: Of the file.
        frozen: Time and size of a file that nobody writes to, when it is opened read-only. Such a file is read as if
            it could not change, which needs no log and no lock; any change makes it another file to us.
    """

    device: int
    inode: int
    frozen: tuple[int, int] | None = None


def connect(
    settings: Settings, identity: Identity | None = None, *, timeout: float | None = None
) -> sqlite3.Connection:
    """Open an existing cache file.

    Args:
        settings: Path and pragmas.
        identity: Of the file, where it is opened read-only.
        timeout: Seconds to wait for a lock, where ``lock_timeout`` is too long.

    Raises:
        sqlite3.OperationalError: There is no such file, or it cannot be opened.
        sqlite3.DatabaseError: Its schema is damaged.
        PermissionError: This user may not write it, and would make a log that those who may cannot write.
    """
    # With a log that is there already it is read all the same.
    if not settings.readonly and log_of(settings.path) is None and _is_closed_to_us(settings.path):
        raise PermissionError(errno.EACCES, "This user may not write it: to read it, turn cache_readonly on")
    # rw: a cache that was deleted is not created by a read. A database in WAL mode can be read on a read-only file
    # system only as immutable; mode=ro would write a log and its index beside it.
    mode = "rw"
    if settings.readonly:
        mode = "ro&immutable=1" if identity and identity.frozen else "ro"
    connection = sqlite3.connect(
        f"{settings.path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=settings.lock_timeout if timeout is None else timeout,
        isolation_level=None,  # transactions are begun by us: the module's own would begin them deferred
        check_same_thread=False,  # close() closes the connections of all threads
    )
    try:
        with opening():
            for pragma in (
                f"page_size={settings.page_size}",  # counts for a new file; in an old one from the next vacuum on
                f"cache_size={settings.cache_size}",
                f"mmap_size={settings.mmap_size}",
                f"wal_autocheckpoint={settings.autocheckpoint}",
                f"synchronous={settings.synchronous}",
                "foreign_keys=ON",  # off by default; removing an entry removes its parts
                f"journal_size_limit={JOURNAL_LIMIT}",  # else the log of one large write stays on disk for ever
                "secure_delete=OFF",  # some builds zero every freed page: half the time of replacing a race's telemetry
                "trusted_schema=OFF",  # functions named in a foreign file's schema are not run
            ):
                connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


Log = tuple[int, int]
"""The inodes of a file's log and of the log's index."""


class Handle:
    """One thread's read connection.

    Attributes:
        log: The log that it has open, which nobody removes as long as it is: SQLite does not.
    """

    def __init__(self, settings: Settings, identity: Identity) -> None:
        self.settings = settings
        self.identity = identity
        self.connection = connect(settings, identity)
        self.log: Log | None = None
        self._is_log_known = settings.readonly
        self.data_version = -1
        self.lock = threading.Lock()
        self.closed = False

    def note_log(self) -> None:
        """Note which log is open, once, after the first read, which opens it."""
        if not self._is_log_known:
            self._is_log_known = True
            log = log_of(self.settings.path)
            if file_identity(self.settings.path) == self.identity:  # still: so the log was that of this file
                self.log = log

    def close(self) -> None:
        """Close the connection."""
        with self.lock:  # another thread may be in the middle of a read
            self.closed = True
            self.connection.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.connection.close()


_looked_at: set[tuple[int, int]] = set()
_looking = threading.Lock()


def _renew_lock() -> None:
    """In a forked child: the lock may have been held by a thread that does not exist there."""
    global _looking
    _looking = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)


def first_look(path: Path, identity: Identity, *, ours: bool) -> bool:
    """Judge a file by its first bytes, without SQLite, which would recover or checkpoint a database that is not ours.

    Once in a process and never again: closing a file drops all locks that the process has on it (POSIX), those of
    SQLite's open connections too, and another process would write at the same time.

    Returns:
        False if it is no SQLite database, nor empty.

    Raises:
        CacheVersionError: It belongs to another program, or to another version of this one.
    """
    with _looking:
        if identity[:2] in _looked_at:
            return True
        with path.open("rb") as file:
            head = file.read(100)
        if len(head) == 100 and head.startswith(_MAGIC):
            user_version, application_id = struct.unpack(">I4xI", head[60:72])
            check_marks(path, application_id, user_version)
        elif head and not (ours and size_of(path.with_name(f"{path.name}-journal"))):
            return False  # with a journal it may be half made, by a power cut: SQLite undoes that
        _looked_at.add(identity[:2])
        return True


def check_marks(path: Path, application_id: int, layout: int) -> None:
    """Refuse a database that is not a cache, or of a layout that is newer than this version knows.

    Raises:
        CacheVersionError: It belongs to another program, or to another version of this one.
    """
    if application_id != APPLICATION_ID:
        raise CacheVersionError(
            f"{path} is a database of another program (application id {application_id:#x}); nothing in it was "
            "changed. Set cache_dir or cache_filename to another place, or move that file away",
            path=str(path),
        )
    if not 1 <= layout <= LAYOUT_VERSION:
        advice = "update tif1_pipeline" if layout > LAYOUT_VERSION else "move the file away"
        raise CacheVersionError(
            f"{path} has cache layout {layout}, this tif1_pipeline knows 1 to {LAYOUT_VERSION}; nothing in it was "
            f"changed. Either {advice}, or set cache_dir or cache_filename to another place",
            path=str(path),
            layout=layout,
        )


def layout_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return a cache file's layout; 0 for an empty file.

    Raises:
        CacheVersionError: It belongs to another program, or to another version of this one.
    """
    connection.execute("BEGIN")  # one state of the file: another process may be making the tables just now
    try:
        marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        if not any(marks) and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return 0  # just made, or the creation was killed and opening the file has rolled it back
        check_marks(path, *marks)
        # A cache has none; those of a stranger's file would act on what is stored.
        foreign = connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('trigger', 'view')"
        ).fetchone()
    finally:
        if connection.in_transaction:  # some errors have ended it, and are not to be hidden by another one
            connection.execute("ROLLBACK")
    if foreign:
        raise CacheVersionError(
            f"{path} holds the {foreign[0]} {foreign[1][:80]}, which no cache does; nothing in it was changed. Move it "
            "away, or set cache_dir or cache_filename to another place",
            path=str(path),
        )
    return marks[1]


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, closed to others whatever the umask."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for folder in reversed(missing):
        with suppress(FileExistsError):  # another process was quicker
            folder.mkdir(DIRECTORY_MODE)
            # The bit that hands the group down comes from the folder above, and stays.
            folder.chmod(DIRECTORY_MODE | folder.stat().st_mode & stat.S_ISGID)
        sync_folder(folder.parent)


def create_file(path: Path) -> None:
    """Make the empty file and its folder, closed to others whatever the umask; SQLite gives -wal and -shm its mode."""
    make_folder(path.parent)
    with _looking, suppress(FileExistsError):  # closing it must not drop the locks of a connection made meanwhile
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE)
        try:
            os.fchmod(descriptor, FILE_MODE)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Write a folder's names to disk: a file that was synced is found after a power cut only if its name was, too."""
    if os.name != "posix":  # Windows opens no folders
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def set_aside(path: Path) -> Path:
    """Rename a damaged cache file and its log, so that a new one can start; returns the new name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    kept = path.with_name(f"{path.name}.damaged-{stamp}")
    path.rename(kept)
    for suffix in ("-wal", "-journal"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    with suppress(FileNotFoundError):
        path.with_name(path.name + "-shm").unlink()
    return kept


def file_identity(path: Path) -> Identity | None:
    """Return what tells this file from another of the same name; None if there is none."""
    status = _stat(path)
    return status and Identity(status.st_dev, status.st_ino)


def readonly_identity(path: Path) -> Identity | None:
    """Return the identity of a file that is opened read-only; None if there is none."""
    status = _stat(path)
    if status is None:
        return None
    log = _stat(Path(f"{path}-wal"))
    # A log that holds something, or whose index is there, belongs to a process that writes or did until it died; so
    # does a journal.
    if log is not None and (log.st_size or _stat(Path(f"{path}-shm")) is not None):
        return Identity(status.st_dev, status.st_ino)
    if _stat(Path(f"{path}-journal")) is not None:
        return Identity(status.st_dev, status.st_ino)
    return Identity(status.st_dev, status.st_ino, (status.st_mtime_ns, status.st_size))


def log_of(path: Path) -> Log | None:
    """Return what tells the log beside a file from another one; None if it, or its index, is not there."""
    log, index = (_stat(Path(f"{path}{suffix}")) for suffix in ("-wal", "-shm"))
    return (log.st_ino, index.st_ino) if log and index else None


def drop_log(path: Path, logs: Set[Log | None]) -> None:
    """Remove a log, with its index, whose file is not there any more; not one that another process has made since."""
    if (log := log_of(path)) is not None and log in logs:
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def drop_index(path: Path, log: Log | None) -> None:
    """Remove the index of a log that is gone: with a new log, it would mislead those that still have the former one."""
    index = _stat(Path(f"{path}-shm"))
    if log and index and index.st_ino == log[1]:
        Path(f"{path}-shm").unlink(missing_ok=True)


@contextmanager
def keeping_log_of_others(path: Path, logs: Set[Log | None]) -> Iterator[None]:
    """Keep the log beside a file while connections to a former one are closed: the last one removes what has its name.

    Args:
        path: The file.
        logs: Those that are closed.
    """
    log, spare = _stat(Path(f"{path}-wal")), Path(f"{path}-wal.{uuid.uuid4().hex}")
    with suppress(OSError):
        if log and logs and log.st_ino not in {each[0] for each in logs if each}:
            spare.hardlink_to(f"{path}-wal")
    try:
        yield
    finally:
        with suppress(OSError):  # it is still there, or there was none
            Path(f"{path}-wal").hardlink_to(spare)
        spare.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 if there is none."""
    status = _stat(path)
    return status.st_size if status else 0


def _is_closed_to_us(path: Path) -> bool:
    return os.path.exists(path) and not os.access(path, os.W_OK)  # noqa: PTH110 - for each connection


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - on every read; Path.stat costs twice as much
    except (FileNotFoundError, NotADirectoryError):
        return None


def set_journal_mode(connection: sqlite3.Connection, *, wal: bool, timeout: float) -> None:
    """Switch the file's journal mode; SQLite's busy timeout does not cover this, so wait here.

    The connection may sync more afterwards than it did.
    """
    mode = "wal" if wal else "delete"
    deadline = time.monotonic() + timeout
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] == mode:
                return
            connection.execute("PRAGMA synchronous=FULL")  # the change itself goes by a journal
            if connection.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode:
                return
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
        if time.monotonic() > deadline:
            return  # other connections keep the former mode in use; both are correct
        time.sleep(0.01)
