"""One fetch for many who want the same: threads of a process share it, processes take turns by a lease in the file."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tif1_pipeline.cache.database import Database
from tif1_pipeline.exceptions import CacheError, CacheVersionError

_log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
"""A lease that was not renewed for so long belongs to a process that died."""
_LOOK_UP = "SELECT expires_at, owner FROM leases WHERE key = ?"
# As text, as those of a replacement (store.py): a lease is taken for all that is fetched, and others wait to write.
_TAKE = (
    "INSERT INTO leases (key, owner, expires_at) VALUES (:key, :owner, :until) "
    "ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at "
    "WHERE (leases.expires_at > :now AND leases.expires_at <= :far) IS NOT TRUE RETURNING key"
)
_RENEW = "UPDATE leases SET expires_at = :until WHERE key = :key AND owner = :owner"
_GIVE_BACK = "DELETE FROM leases WHERE key = :key AND owner = :owner"
_POLL_SECONDS = 0.05
_RENEW_SECONDS = 2.0
"""To wait for the write lock when a lease is renewed; what fails is tried again."""


class Flights:
    """Fetches under way in this process, by key."""

    def __init__(self) -> None:
        self.forget_inherited()

    def forget_inherited(self) -> None:
        """Start without flights: in a forked child the threads that lead them do not exist."""
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Any]] = {}

    def run(self, key: str, work: Callable[[], Any]) -> Any:
        """Run the work, or wait for another thread that runs it already; its error is raised to everybody."""
        while True:
            with self._lock:
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = Future()
                    break
            try:
                return flight.result()
            except _InterruptedError:
                continue  # Ctrl-C was meant for the thread that led, not for those that wait
        try:
            mine.set_result(work())
        except Exception as error:
            mine.set_exception(error)
            raise
        except BaseException:
            mine.set_exception(_InterruptedError())
            raise
        finally:
            with self._lock:
                del self._flights[key]
        return mine.result()


class _InterruptedError(Exception):
    """The thread that led a flight was interrupted."""


END_LEASE = "DELETE FROM leases WHERE key = :key"
"""Within the transaction that stores an entry of the key: to wait for another to give the lease back is saved."""


class Leases:
    """Leases on keys, kept in the cache file.

    Args:
        database: Where the leases are.
        seconds: How long one lasts without being renewed.
    """

    def __init__(self, database: Database, seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._seconds = seconds

    def acquire(self, key: str, is_done: Callable[[], bool]) -> Callable[[], None]:
        """Take the lease on a key, waiting for the process that has it.

        Args:
            key: Stored key.
            is_done: Asked while waiting: whether the other process has brought what is wanted; ends the waiting.

        Returns:
            What gives the lease back, which storing an entry of the key does, too.

        Raises:
            CacheError: The file cannot be used.
        """
        owner = uuid.uuid4().hex
        while self._is_taken(key) or not self._take(key, owner):
            time.sleep(_POLL_SECONDS)
            if is_done():
                return lambda: None
        stop = threading.Event()
        renewal = threading.Thread(target=self._renew, args=(key, owner, stop), daemon=True, name="tif1-lease")
        renewal.start()

        def release() -> None:
            stop.set()
            renewal.join()
            self._release(key, owner)

        return release

    @property
    def _patience(self) -> float:
        # Under load a writer waits for seconds; for longer than a lease lasts it need not.
        return min(self._database.lock_timeout, self._seconds)

    def _is_taken(self, key: str) -> bool:
        # Asked first, because waiting must not keep others from writing.
        held = self._held(key)
        return held is not None and self._is_running(held[0])

    def _held(self, key: str) -> tuple[float, str] | None:
        """Return when the lease on a key ends and whose it is."""
        with self._database.reading() as handle:
            return handle and handle.connection.execute(_LOOK_UP, (key,)).fetchone()

    def _is_running(self, expires_at: float) -> bool:
        # A lease cannot run for longer than its length: an expiry far ahead is a clock that was wrong.
        now = time.time()
        return now < expires_at <= self._far(now)

    def _far(self, now: float) -> float:
        return now + 2 * self._seconds

    def _take(self, key: str, owner: str) -> bool:
        with self._database.writing(self._patience) as connection:
            now = time.time()
            wanted = {"key": key, "owner": owner, "now": now, "until": now + self._seconds, "far": self._far(now)}
            return connection.exec_driver_sql(_TAKE, wanted).first() is not None

    def _renew(self, key: str, owner: str, stop: threading.Event) -> None:
        while not stop.wait(self._seconds / 3):
            try:
                with self._database.writing(_RENEW_SECONDS) as connection:
                    renewed = {"key": key, "owner": owner, "until": time.time() + self._seconds}
                    connection.exec_driver_sql(_RENEW, renewed)
            except CacheError as error:
                _log.debug("lease on %s not renewed: %s", key, error)

    def _release(self, key: str, owner: str) -> None:
        try:
            held = self._held(key)
            if held is None or held[1] != owner:  # what was fetched is stored, which has ended it
                return
            # As long as for taking it. After less, under load, it would be left to run out, and others wait for that.
            with self._database.writing(self._patience) as connection:
                connection.exec_driver_sql(_GIVE_BACK, {"key": key, "owner": owner})
        except CacheVersionError:
            raise
        except CacheError as error:
            _log.debug("lease on %s not released, it expires by itself: %s", key, error)
