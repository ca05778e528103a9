"""The log of a cache file (SQLite's write-ahead log): carried over into the file, and kept short.

SQLite does both by itself, but by whoever commits, who waits for it; and a log begins anew only in a moment in which
nobody reads from it, which with many readers may never come.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tif1_pipeline.cache import connection as sqlite
from tif1_pipeline.cache.connection import Settings
from tif1_pipeline.cache.forking import gate

if TYPE_CHECKING:
    import sqlalchemy as sa

_log = logging.getLogger(__name__)

_LARGE = 4 << 20
"""Bytes written from which the log is carried over by a thread of its own."""
_SHORTEN_EVERY_SECONDS = 1.0
_EMPTY_SECONDS = 0.5
_OTHERS_SECONDS, _OTHERS_PAUSE = 1.0, 0.005


class LogKeeper:
    """Keeps the log of one file."""

    def __init__(self) -> None:
        self.running: tuple[threading.Thread, list[sqlite3.Connection]] | None = None
        """The thread that carries the log over or did so last, and its connection."""
        self._shorten_at = 0.0

    def wait(self) -> None:
        """Wait for the thread, if there is one."""
        if self.running is not None:
            self.running[0].join()

    def shorten(self, settings: Settings) -> None:
        """Empty a log that is too long."""
        if not settings.wal_mode or sqlite.size_of(_path(settings)) <= sqlite.JOURNAL_LIMIT:
            return
        self.wait()  # two cannot carry a log over at once
        if time.monotonic() >= self._shorten_at:
            # Others may have a long transaction under way: nobody is to wait for that with each write.
            self._shorten_at = time.monotonic() + _SHORTEN_EVERY_SECONDS
            _empty(settings)

    @contextmanager
    def carried_over_later(self, settings: Settings, connection: "sa.Connection", size: int) -> Iterator[None]:
        """Have a thread carry the log over after the block, which commits ``size`` bytes, if they are many."""
        is_running = self.running is not None and self.running[0].is_alive()
        # While a thread is at it, those that write much wait for it, and all do where the log is long: it must not grow
        # for ever. Those that write little leave it to the thread, also where that is about to begin.
        is_left = is_running != (size >= _LARGE)
        if not settings.wal_mode or not is_left or sqlite.size_of(_path(settings)) > sqlite.JOURNAL_LIMIT:
            yield
            return
        # Past SQLAlchemy, which would begin a transaction for it.
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA wal_autocheckpoint=0")
        try:
            yield
        finally:
            driver.execute(f"PRAGMA wal_autocheckpoint={settings.autocheckpoint}")
        if settings.autocheckpoint and not is_running:
            self._begin(settings)

    def _begin(self, settings: Settings) -> None:
        opened: list[sqlite3.Connection] = []  # held where a forked child finds it
        thread = threading.Thread(target=_carry_over, args=(settings, opened), name="tif1-checkpoint", daemon=True)
        gate.admit()
        try:
            thread.start()
        except RuntimeError:  # no more threads can be started, or the interpreter is ending: it is done later
            gate.dismiss()
        else:
            self.running = thread, opened


def _path(settings: Settings) -> Path:
    return settings.path.with_name(f"{settings.path.name}-wal")


def _carry_over(settings: Settings, opened: list[sqlite3.Connection]) -> None:
    """Write what is in the log to the file, as far as nobody reads or writes it; what is left is done later.

    Runs in a thread that the gate has admitted.

    Args:
        settings: Of the file.
        opened: Gets the connection that is used, which a forked child must not let go of.
    """
    gate.arrive()
    try:
        opened.append(sqlite.connect(settings))
        opened[0].execute("PRAGMA wal_checkpoint(PASSIVE)")
    except (sqlite3.Error, OSError) as error:
        _log.debug("the log of %s was not carried over: %s", settings.path, error)
    finally:
        for connection in opened:
            connection.close()
        gate.leave()


def _empty(settings: Settings) -> None:
    """Write the log to the file and empty it, if those that read from it are through soon; else it is done later.

    Who else carries the log over is waited for: SQLite refuses a second one at once, and the log would grow meanwhile.
    """
    deadline = time.monotonic() + _OTHERS_SECONDS
    try:
        with closing(sqlite.connect(settings, timeout=_EMPTY_SECONDS)) as connection:
            while sqlite.size_of(_path(settings)) > sqlite.JOURNAL_LIMIT:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # the work; nobody waits for it
                busy, pages, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                is_refused = busy and pages < 0
                if not is_refused or time.monotonic() > deadline:
                    break
                time.sleep(_OTHERS_PAUSE)
    except (sqlite3.Error, OSError) as error:
        _log.debug("the log of %s was not emptied: %s", settings.path, error)
