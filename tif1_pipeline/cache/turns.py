"""Who writes next: whoever has waited longest, among the threads of a process and, nearly so, among processes.

SQLite's own wait for a lock is a loop that asks less and less often, the last time every 100 ms: under load those that
come are served before those that wait, and some wait for many seconds.
"""

import random
import sqlite3
import threading
import time
from collections import deque
from contextlib import nullcontext

from tif1_pipeline.cache.failures import is_locked
from tif1_pipeline.cache.turnstile import Turnstile

_YOUNG_SECONDS, _OLD_SECONDS = 0.002, 0.001
"""Between two looks at the lock by those that have just come, and by who is next or has waited for :data:`_OLD_AGE`."""
_OLD_AGE = 0.5
_OVERDUE_SECONDS = 3.0
"""After which a writer asks for the lock beside whoever is next: its process had bad luck in the turnstile."""
_TURNSTILE_SECONDS = 2.0
"""After which a writer no longer waits to be next, and asks for the lock beside the others."""


class Turn:
    """A lock that the threads of a process get in the order in which they ask for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    def acquire(self, timeout: float) -> bool:
        """Take it; False if it did not become free within ``timeout`` seconds."""
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return True
            called = threading.Lock()
            called.acquire()
            self._waiting.append(called)
        try:
            is_called = called.acquire(timeout=timeout)
        except BaseException:  # Ctrl-C
            if not self._leave(called):
                self.release()
            raise
        return is_called or not self._leave(called)

    def _leave(self, called: threading.Lock) -> bool:
        """Wait no longer; False if it was handed over just now."""
        with self._lock:
            if called in self._waiting:
                self._waiting.remove(called)
                return True
            return False

    def release(self) -> None:
        """Hand it to the next, if there is one."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False


def begin(
    connection: sqlite3.Connection,
    statement: str,
    seconds: float,
    turnstile: Turnstile | None = None,
    since: float | None = None,
) -> None:
    """Begin a transaction.

    Args:
        connection: Waits as long for any other lock, too.
        statement: ``BEGIN`` or ``BEGIN IMMEDIATE``.
        seconds: To wait for the lock.
        turnstile: Says who is next.
        since: When the caller began to wait for its turn, by the monotonic clock; now by default.

    Raises:
        sqlite3.OperationalError: Others held the lock for longer.
    """
    connection.execute("PRAGMA busy_timeout=0")
    started, patience = time.monotonic(), min(seconds, _TURNSTILE_SECONDS)
    is_overdue = since is not None and started - since > _OVERDUE_SECONDS
    try:
        with turnstile.passing(patience) if turnstile and not is_overdue else nullcontext(is_overdue) as is_next:
            while True:
                try:
                    connection.execute(statement)
                except sqlite3.OperationalError as error:
                    waited = time.monotonic() - started
                    if waited >= seconds or not is_locked(error):
                        raise
                else:
                    return
                pause = _OLD_SECONDS if is_next or waited >= _OLD_AGE else _YOUNG_SECONDS
                time.sleep(min(pause * random.uniform(0.5, 1.5), seconds - waited))  # at once they would meet again
    finally:
        connection.execute(f"PRAGMA busy_timeout={round(seconds * 1000)}")
