"""Upkeep of the database files: indexes, statistics, the log, free pages."""

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tif1_pipeline.cache.connection import set_journal_mode
from tif1_pipeline.cache.failures import is_locked
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.config import MIB
from tif1_pipeline.exceptions import CacheError, CacheLockedError, CacheReadOnlyError

_log = logging.getLogger(__name__)

_TRUNCATE_SECONDS = 0.5
"""A checkpoint that waits for readers keeps writers out meanwhile: so long at a time."""
_PAUSE_SECONDS = 0.05
_PATIENCE_SECONDS = 5.0
"""For an empty log, where others never pause: what is in it is in the file by then."""


def rebuild_indexes(tiered: Tiered) -> None:
    """Build the indexes of all files anew, in one transaction each."""
    for file in _existing(tiered):
        with file.database.writing() as connection:
            connection.exec_driver_sql("REINDEX")


def optimize(tiered: Tiered) -> None:
    """Refresh the statistics by which SQLite plans its queries."""
    for file in _existing(tiered):
        with file.database.writing() as connection:
            # Not PRAGMA optimize: it looks at what its own connection has queried, and this one has queried nothing.
            connection.exec_driver_sql("ANALYZE")


def checkpoint(tiered: Tiered) -> None:
    """Write the log of each file back into it, and empty the log unless others read without a pause.

    Files without a log stay as they are.

    Raises:
        CacheLockedError: Somebody has been reading an older state for ``cache_lock_timeout``, so that not all of the
            log could be written back.
    """
    _refuse_read_only(tiered, "checkpoint")
    seconds = tiered.config.cache_lock_timeout.total_seconds()
    for file in _existing(tiered):
        with file.database.raw(min(_TRUNCATE_SECONDS, seconds)) as connection:
            deadline = time.monotonic() + seconds
            wanted, _ = _write_back(connection)
            if _truncate_log(connection, min(seconds, _PATIENCE_SECONDS)):
                continue
            while not _is_written_back(connection, wanted):
                if time.monotonic() > deadline:
                    path = file.database.path
                    raise CacheLockedError(
                        f"could not write all of the log of {path} back: somebody has been reading for more than "
                        f"{seconds:g} s. Look for a long transaction or a hanging process, or raise cache_lock_timeout",
                        path=str(path),
                        cause="locked",
                    )
                time.sleep(_PAUSE_SECONDS)


def vacuum(tiered: Tiered, free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free) -> float:
    """Give the free pages of all files back to the file system; returns the MiB freed on disk.

    A copy without them is made in SQLite's folder for temporary files, and written back through the log. Others may
    read meanwhile, but not write. A file without free pages is left alone, but for its log.

    A page size that the settings have changed is applied by this. SQLite can do so only outside WAL mode, which it
    leaves only for whoever has the file alone: the connections of this cache are closed, and when another one is open
    the page size stays as it is, which is logged.

    Args:
        tiered: The cache.
        free_bytes: Says what is free on the file system of a folder.

    Raises:
        CacheError: The disk cannot hold the copy; nothing was done to that file but to write its log back.
        CacheLockedError: Another process wrote for more than ``cache_lock_timeout``.
    """
    _refuse_read_only(tiered, "vacuum")
    return sum(_vacuum(tiered, file, free_bytes) for file in _existing(tiered)) / MIB


def _existing(tiered: Tiered) -> Iterator[File]:
    return (file for file in tiered.files() if file.database.exists())


def _refuse_read_only(tiered: Tiered, doing: str) -> None:
    if tiered.config.cache_readonly:
        raise CacheReadOnlyError(
            f"could not {doing} {tiered.path}: the cache is opened read-only; turn cache_readonly off",
            path=str(tiered.path),
        )


def _vacuum(tiered: Tiered, file: File, free_bytes: Callable[[Path], int]) -> int:
    path = file.database.path
    config = tiered.config
    timeout = config.cache_lock_timeout.total_seconds()
    before = _disk_bytes(path)
    with file.database.raw(timeout) as connection:
        pages, free, page_size = (_pragma(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        is_resized = page_size != config.cache_page_size
        if free or is_resized:
            # A full disk may be full of the log. Writers wait while this waits for readers, so not for long.
            connection.execute(f"PRAGMA busy_timeout={round(_TRUNCATE_SECONDS * 1000)}")
            with suppress(sqlite3.OperationalError):  # what is lacking then is told by the next step
                _truncate_log(connection, min(timeout, _TRUNCATE_SECONDS))
    if free or is_resized:
        _require_space(path, (pages - free) * page_size, free_bytes)
    if is_resized:
        file.database.close()  # SQLite leaves WAL mode only when nobody else has the file open
    with file.database.raw(timeout) as connection:
        if is_resized and not _leave_wal_mode(connection):
            _log.warning(
                "%s keeps its page size of %d bytes: it is in use elsewhere. Vacuum when it is not", path, page_size
            )
            is_resized = False
        try:
            if free or is_resized:
                connection.execute("VACUUM")
        finally:
            if is_resized:
                set_journal_mode(connection, wal=config.cache_wal_mode, timeout=timeout)
        connection.execute(f"PRAGMA busy_timeout={round(_TRUNCATE_SECONDS * 1000)}")
        if not _truncate_log(connection, timeout):
            _log.warning("%s gets smaller only when its log is emptied: others read it without a pause", path)
    return max(0, before - _disk_bytes(path))


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _leave_wal_mode(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("PRAGMA synchronous=FULL")  # as outside WAL mode: see Settings
        return connection.execute("PRAGMA journal_mode=delete").fetchone()[0] == "delete"
    except sqlite3.OperationalError as error:
        if not is_locked(error):
            raise
        return False


def _write_back(connection: sqlite3.Connection) -> tuple[int, int]:
    """Write back what nobody prevents; returns the log's pages and those written back, -1 while another one does it."""
    try:
        _, pages, written = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError as error:
        if not is_locked(error):
            raise
        return -1, -1
    return pages, written


def _is_written_back(connection: sqlite3.Connection, wanted: int) -> bool:
    """Tell whether the log's first ``wanted`` pages are in the file; if it is shorter by now it has begun anew."""
    pages, written = _write_back(connection)
    return pages >= 0 and (written >= (pages if wanted < 0 else wanted) or pages < wanted)


def _truncate_log(connection: sqlite3.Connection, seconds: float) -> bool:
    """Write the log back and empty it; False if others prevented it for so long."""
    _write_back(connection)  # the work; nobody waits for it
    deadline = time.monotonic() + seconds
    while True:
        try:
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if not is_locked(error):
                raise
            busy = 1
        if not busy or time.monotonic() > deadline:
            return not busy
        time.sleep(_PAUSE_SECONDS)


def _disk_bytes(path: Path) -> int:
    size = 0
    for suffix in ("", "-wal", "-journal"):
        with suppress(FileNotFoundError):
            size += path.with_name(path.name + suffix).stat().st_size
    return size


def _require_space(path: Path, copied: int, free_bytes: Callable[[Path], int]) -> None:
    """Refuse when there is no room for the copy and for the log through which it is written back."""
    needed = copied + copied // 50  # a frame of the log has a header, a page of the copy may be less full
    folder, temporary = path.parent, _temporary_folder()
    same = folder.stat().st_dev == temporary.stat().st_dev
    for place, bytes_there in ((folder, 2 * needed),) if same else ((folder, needed), (temporary, needed)):
        free = free_bytes(place)
        if free < bytes_there:
            raise CacheError(
                f"could not vacuum {path}: it takes {bytes_there / MIB:,.1f} MiB of free space in {place} for a while, "
                f"and {free / MIB:,.1f} MiB are free. Free some space"
                + ("" if place == folder and not same else ", or name another folder by SQLITE_TMPDIR"),
                path=str(path),
                needed_bytes=bytes_there,
                free_bytes=free,
                cause="disk full",
            )


def _temporary_folder() -> Path:
    """Return the folder in which SQLite makes its temporary files, found as it finds it."""
    names = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108
    for name in names:
        if name and Path(name).is_dir() and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    return Path()
