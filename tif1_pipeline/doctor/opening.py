"""How a database is opened so that nothing of it changes and nothing appears beside it."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from tif1_pipeline.cache.failures import opening
from tif1_pipeline.doctor.base import beside, size_of

T = TypeVar("T")

_TRIES = 3


def open_readonly(path: Path) -> sqlite3.Connection:
    """Open a database for reading; closing the connection leaves every file as it was.

    A file in use is read with its log, by way of the log's index, which is not written to. Without an index, SQLite
    would make one: the file is then read as it was written back last, without the log.
    """
    mode = "ro&immutable=1"
    if size_of(beside(path, "-journal")):
        mode = "ro"
    elif has_index(path):
        mode = "ro&readonly_shm=1"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=2.0, isolation_level=None, check_same_thread=False
    )
    try:
        with opening():
            for pragma in ("trusted_schema=OFF", "cache_size=-8192", "query_only=ON"):
                connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def has_index(path: Path) -> bool:
    """Tell whether there is a log that can be read without making its index.

    An empty log is not opened: there is nothing in it, and SQLite would give it the mode of the file.
    """
    return bool(size_of(beside(path, "-wal"))) and size_of(beside(path, "-shm")) is not None


def has_unread_log(path: Path) -> bool:
    """Tell whether there is a log that cannot be read without making its index."""
    return bool(size_of(beside(path, "-wal"))) and not has_index(path)


def state_of(path: Path) -> tuple[Any, ...]:
    """Return what changes when somebody writes to the file or begins to: then what was read without locks is void."""
    found: list[Any] = [has_index(path)]
    if not has_index(path):
        for suffix in ("", "-wal", "-journal"):
            with suppress(OSError):
                status = os.stat(beside(path, suffix))  # noqa: PTH116 - as everywhere here
                found += [suffix, status.st_ino, status.st_mtime_ns, status.st_size]
    return tuple(found)


def steadily(path: Path, look: Callable[[sqlite3.Connection], T]) -> T:
    """Return what a function finds in a database, while nobody wrote to it unnoticed."""
    for _ in range(_TRIES - 1):
        before = state_of(path)
        try:
            found = _look(path, look)
        except sqlite3.DatabaseError:
            if state_of(path) == before:
                raise
        else:
            if state_of(path) == before:
                return found
    return _look(path, look)


def _look(path: Path, look: Callable[[sqlite3.Connection], T]) -> T:
    with closing(open_readonly(path)) as connection:
        return look(connection)
