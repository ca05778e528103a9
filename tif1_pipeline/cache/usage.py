"""Access times, counts, hits and misses: kept in memory, written in batches by time, by number and at exit.

Losing a batch loses counters and nothing else, so a flush never waits long for a lock and never fails its caller. What
could not be written stays pending and is tried again. In read-only mode the counters stay in memory, where they take no
more room than there are data types, and access times are not kept at all.
"""

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress

from tif1_pipeline.cache.database import Database
from tif1_pipeline.exceptions import CacheError, CacheReadOnlyError

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 30.0
FLUSH_NUMBER = 2_000
_LOCK_SECONDS = 0.25
_LAST_LOCK_SECONDS = 2.0
"""At a close and at exit, when there is no next time."""

# Raw SQL: through SQLAlchemy a process that only reads would import it at exit for these two statements.
_TOUCH = "UPDATE entries SET access_count = access_count + ?, accessed_at = max(accessed_at, ?) WHERE key = ?"
ADD_COUNTER = (
    "INSERT INTO cache_metadata (key, value) VALUES (?, ?) "
    "ON CONFLICT (key) DO UPDATE SET value = CAST(cache_metadata.value AS REAL) + CAST(excluded.value AS REAL)"
)
_TOTALS = "SELECT key, CAST(value AS REAL) FROM cache_metadata WHERE key LIKE '%:%'"
_DROP_TOTALS = "DELETE FROM cache_metadata WHERE key LIKE '%:%'"

_usages: "weakref.WeakSet[Usage]" = weakref.WeakSet()


class Usage:
    """What was read, not yet written down.

    The counters are named ``hits:<data type>``, ``misses:<data type>`` and ``seconds:<data type>`` (of hits).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.forget_inherited()
        _usages.add(self)

    def forget_inherited(self) -> None:
        """Drop what is pending: in a forked child it is the parent's to write."""
        self._lock = threading.Lock()
        # Held while counts are on their way to the file, so that no reader of the totals misses them.
        self._flushing = threading.Lock()
        self._accesses: dict[str, tuple[int, float]] = {}
        self._counters: defaultdict[str, float] = defaultdict(float)
        self._pending = 0
        self._flusher: threading.Timer | None = None

    def record(self, key: str, data_type: str, hit: bool, seconds: float) -> None:
        """Count one read."""
        readonly = self._database.config.cache_readonly
        with self._lock:
            if hit:
                if not readonly:
                    self._accesses[key] = (self._accesses.get(key, (0, 0.0))[0] + 1, time.time())
                self._counters[f"hits:{data_type}"] += 1
                self._counters[f"seconds:{data_type}"] += seconds
            else:
                self._counters[f"misses:{data_type}"] += 1
            if readonly:
                return
            self._pending += 1
            if self._flusher is None:
                self._flush_in(0.0 if self._pending >= FLUSH_NUMBER else FLUSH_SECONDS)
            elif self._pending == FLUSH_NUMBER:
                self._flusher.cancel()
                self._flush_in(0.0)

    def _flush_in(self, seconds: float) -> None:
        # In a thread of its own: a reader must not wait for a writer.
        self._flusher = threading.Timer(seconds, self.flush)
        self._flusher.daemon, self._flusher.name = True, "tif1-usage"
        try:
            self._flusher.start()
        except RuntimeError:  # the interpreter is shutting down: at its end the rest is written
            self._flusher = None
        _flush_at_exit_of_child()

    def flush(self, lock_seconds: float = _LOCK_SECONDS) -> bool:
        """Write down what is pending; False if the file was locked or unusable, then it stays pending."""
        with self._flushing:
            with self._lock:
                accesses, self._accesses = self._accesses, {}
                counters, self._counters = self._counters, defaultdict(float)
                self._pending = 0
                if self._flusher is not None:
                    self._flusher.cancel()
                    self._flusher = None
            if not accesses and not counters:
                return True
            try:
                if self._database.exists():
                    self._write(accesses, counters, lock_seconds)
                    return True
                accesses = {}  # of what is not there any more; misses count from before the first write on
                failed = False
            except CacheReadOnlyError:
                accesses, failed = {}, False
            except CacheError as error:
                _log.debug("access counts stay pending: %s", error)
                failed = True
            with self._lock:
                for key, (number, at) in accesses.items():
                    later = self._accesses.get(key, (0, at))
                    self._accesses[key] = (number + later[0], max(at, later[1]))
                for name, value in counters.items():
                    self._counters[name] += value
                if failed and self._flusher is None:
                    self._flush_in(FLUSH_SECONDS)
            return not failed

    def _write(
        self, accesses: Mapping[str, tuple[int, float]], counters: Mapping[str, float], lock_seconds: float
    ) -> None:
        with self._database.raw(lock_seconds) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_TOUCH, [(number, at, key) for key, (number, at) in accesses.items()])
            connection.executemany(ADD_COUNTER, [(name, repr(value)) for name, value in counters.items()])
            connection.execute("COMMIT")

    def totals(self) -> dict[str, float]:
        """Return the counters over all processes, with what is pending here."""
        totals: defaultdict[str, float] = defaultdict(float)
        with self._flushing:
            if self._database.exists():
                with self._database.querying() as connection:
                    for name, value in connection.exec_driver_sql(_TOTALS):
                        totals[name] += value
            with self._lock:
                for name, value in self._counters.items():
                    totals[name] += value
        return totals

    def close(self) -> None:
        """Write down what is pending and stop."""
        self.flush(_LAST_LOCK_SECONDS)
        with self._lock:
            if self._flusher is not None:
                self._flusher.cancel()
                self._flusher = None


def take_counters(database: Database) -> dict[str, float]:
    """Remove the counters from a file and return them."""
    with database.writing() as connection:
        counters: dict[str, float] = dict(map(tuple, connection.exec_driver_sql(_TOTALS)))
        connection.exec_driver_sql(_DROP_TOTALS)
    return counters


def add_counters(database: Database, counters: Mapping[str, float]) -> None:
    """Add to the counters of a file."""
    if counters:
        with database.writing() as connection:
            connection.exec_driver_sql(ADD_COUNTER, [(name, repr(value)) for name, value in counters.items()])


@atexit.register
def _flush_all() -> None:
    for usage in list(_usages):
        with suppress(Exception):  # a fault of one cache must not cost the others their counts
            usage.close()


_registered_in = 0


def _flush_at_exit_of_child() -> None:
    """Have the counts written at the end of a process of ``multiprocessing``, which skips ``atexit``."""
    global _registered_in
    multiprocessing = sys.modules.get("multiprocessing")
    util = sys.modules.get("multiprocessing.util")
    if _registered_in != os.getpid() and multiprocessing and util and multiprocessing.parent_process() is not None:
        _registered_in = os.getpid()
        util.Finalize(None, _flush_all, exitpriority=0)
