"""Access times, counts, hits and misses: kept in memory, written in batches by time, by number and at exit.

Losing a batch loses counters and nothing else, so a flush never waits long for a lock and never fails its caller.
"""

import atexit
import logging
import threading
import time
import weakref
from collections import defaultdict

from tif1_pipeline.cache.database import Database
from tif1_pipeline.exceptions import CacheError

_log = logging.getLogger(__name__)

FLUSH_SECONDS = 30.0
FLUSH_NUMBER = 2_000
_LOCK_SECONDS = 0.25

# Raw SQL: through SQLAlchemy a process that only reads would import it at exit for these two statements.
_TOUCH = "UPDATE entries SET access_count = access_count + ?, accessed_at = max(accessed_at, ?) WHERE key = ?"
_COUNT = (
    "INSERT INTO cache_metadata (key, value) VALUES (?, ?) "
    "ON CONFLICT (key) DO UPDATE SET value = CAST(cache_metadata.value AS REAL) + CAST(excluded.value AS REAL)"
)
_TOTALS = "SELECT key, CAST(value AS REAL) FROM cache_metadata WHERE key LIKE '%:%'"

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
        self._accesses: dict[str, tuple[int, float]] = {}
        self._counters: defaultdict[str, float] = defaultdict(float)
        self._pending = 0
        self._flusher: threading.Timer | None = None

    def record(self, key: str, data_type: str, hit: bool, seconds: float) -> None:
        """Count one read."""
        with self._lock:
            if hit:
                self._accesses[key] = (self._accesses.get(key, (0, 0.0))[0] + 1, time.time())
                self._counters[f"hits:{data_type}"] += 1
                self._counters[f"seconds:{data_type}"] += seconds
            else:
                self._counters[f"misses:{data_type}"] += 1
            self._pending += 1
            if self._flusher is not None and self._pending != FLUSH_NUMBER:
                return
            if self._flusher is not None:
                self._flusher.cancel()
            # In a thread of its own: a reader must not wait for a writer.
            delay = 0.0 if self._pending >= FLUSH_NUMBER else FLUSH_SECONDS
            self._flusher = threading.Timer(delay, self.flush)
            self._flusher.daemon, self._flusher.name = True, "tif1-usage"
            self._flusher.start()

    def flush(self) -> bool:
        """Write down what is pending; False if the file was locked or unusable, then it stays pending."""
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
                with self._database.raw(_LOCK_SECONDS) as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(_TOUCH, [(number, at, key) for key, (number, at) in accesses.items()])
                    connection.executemany(_COUNT, [(name, repr(value)) for name, value in counters.items()])
                    connection.execute("COMMIT")
        except CacheError as error:
            _log.debug("access counts stay pending: %s", error)
            with self._lock:
                for key, (number, at) in accesses.items():
                    later = self._accesses.get(key, (0, at))
                    self._accesses[key] = (number + later[0], max(at, later[1]))
                for name, value in counters.items():
                    self._counters[name] += value
            return False
        return True

    def totals(self) -> dict[str, float]:
        """Return the counters over all processes, with what is pending here."""
        totals: defaultdict[str, float] = defaultdict(float)
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
        self.flush()
        with self._lock:
            if self._flusher is not None:
                self._flusher.cancel()
                self._flusher = None


@atexit.register
def _flush_all() -> None:
    for usage in list(_usages):
        usage.close()
