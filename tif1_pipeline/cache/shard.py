"""One share of the entries, and the file that stands in for one that cannot be used."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from tif1_pipeline.cache.base import EntryInfo, Source
from tif1_pipeline.cache.codec import Blob, Encoded
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.store import Loaded
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import (
    CacheError,
    CacheLockedError,
    CacheReadOnlyError,
    CacheVersionError,
    CorruptEntryError,
)

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

RETRY_SECONDS = 5.0
"""Between two looks at whether a file that could not be used can be used again."""
_NOT_THE_PLACE = (CacheVersionError, CacheLockedError, CacheReadOnlyError, CorruptEntryError)
"""Errors that another folder would not help with: a foreign file is a mistake to be spoken about, a lock passes."""
_NOT_THE_PLACE_CAUSES = {
    None,
    "damaged",
    "damaged entry",
    "no key",
    "pool exhausted",
    "unfinished",
    "changing",
    "forked",
    "out of memory",
}


class Shard:
    """One share of the entries: a file, and one in ``cache_fallback_dir`` while the first cannot be used.

    While it cannot, entries are written to the stand-in and looked up there first, then in the file itself if it can
    be read. Once it can be used again, what the stand-in holds is moved back.

    Args:
        config: Settings, read at each use.
        primary: The file.
        fallback: The stand-in; used only while ``cache_fallback_dir`` is set.
        changes: Numbers the changes that are seen, as for the files.
    """

    def __init__(self, config: Config, primary: Database, fallback: Database, changes: Iterator[int]) -> None:
        self._config = config
        self._changes = changes
        self.primary = File(primary)
        self.fallback = File(fallback)
        self.failure: str | None = None
        self._retry_at = 0.0
        self._returning: threading.Thread | None = None
        self._seen: tuple[int, int] = (0, 0)
        self._epoch = 0
        self._switch = threading.RLock()

    def forget_inherited(self) -> None:
        """Start anew after a fork."""
        self._switch = threading.RLock()
        self._returning = None
        self.primary.forget_inherited()
        self.fallback.forget_inherited()

    # ---- which file

    @property
    def current(self) -> File:
        """The file that is written to now."""
        return self.fallback if self._is_failed() else self.primary

    def files(self) -> tuple[File, ...]:
        """Return the files that hold entries now; where two have one of the same key, the first counts."""
        if not self._is_failed():
            return (self.primary,)
        with suppress(CacheError):
            if self.primary.database.exists():
                return self.fallback, self.primary
        return (self.fallback,)

    def settle(self) -> None:
        """Look, before the first use, whether entries were left in the stand-in; move them back if that can be."""
        self.failure = None
        if self._config.cache_fallback_dir is None or self._config.cache_readonly:
            return
        try:
            if is_there(self.fallback.database.path) and has_entries(self.fallback):
                self._return()
        except CacheVersionError:
            return  # a foreign file: the call that follows says so
        except CacheError as error:  # also a lock: what the stand-in holds may be newer, so it counts first
            self._stand_in(error)

    def _is_failed(self) -> bool:
        if self.failure is None:
            return False
        if self._config.cache_fallback_dir is None:
            self.failure = None
            return False
        if time.monotonic() >= self._retry_at and self._returning is None and self._switch.acquire(blocking=False):
            try:
                if self._returning is None and self.failure is not None:
                    # In a thread of its own: whoever reads now must not wait until everything is moved back.
                    self._returning = threading.Thread(target=self._try_return, daemon=True, name="tif1-return")
                    self._returning.start()
            except RuntimeError:  # no thread is to be had now
                self._returning = None
            finally:
                self._switch.release()
        return self.failure is not None

    def _fail_over(self, error: CacheError) -> bool:
        """Go over to the stand-in, if there is one and the error is of a kind that it helps with."""
        if self._config.cache_fallback_dir is None or isinstance(error, _NOT_THE_PLACE):
            return False
        if error.details.get("cause") in _NOT_THE_PLACE_CAUSES:
            return False
        self._stand_in(error)
        return True

    def _stand_in(self, error: CacheError) -> None:
        if self.failure is None:
            _log.warning(
                "the cache %s cannot be used, %s stands in: %s",
                self.primary.database.path,
                self.fallback.database.path,
                error,
            )
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self.failure = error.message

    def _try_return(self) -> None:
        try:
            self._return()
        except CacheError as error:
            _log.debug("the cache still cannot be used: %s", error)
        finally:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._returning = None

    def _return(self) -> None:
        from tif1_pipeline.cache import transfer

        primary, fallback = self.primary.database, self.fallback.database
        transfer.set_note(primary, "written", repr(time.time()))  # a disk may be readable and full
        moved = transfer.move(fallback, primary)
        with self._switch:  # what was written meanwhile; nothing is written to the stand-in while this is held
            moved += transfer.move(fallback, primary)
            transfer.move_counters(fallback, primary)
            if moved:
                # Its pages still hold what was moved, perhaps unencrypted.
                transfer.shrink(fallback)
            failed, self.failure = self.failure, None
        if moved or failed:
            _log.warning("the cache %s is used again; %d entries were moved back", primary.path, moved)

    # ---- entries, as in Store

    def changes(self) -> int:
        """Return a number that moves whenever any connection of any process has committed; 0 while there is no file."""
        if not self._is_failed():
            try:
                return self.primary.database.changes()
            except CacheError as error:
                if not self._fail_over(error):
                    raise
        now = self.fallback.database.changes(), 0
        with suppress(CacheError):
            now = now[0], self.primary.database.changes()
        if now == (0, 0):
            return 0
        if now != self._seen:
            self._epoch = next(self._changes)
            self._seen = now
        return self._epoch

    def info(self, key: str) -> EntryInfo | None:
        """Return an entry's metadata."""
        return self._look_up(lambda file: file.store.info(key))

    def load(
        self,
        key: str,
        select: Callable[[EntryInfo], Sequence[str]],
        use: Callable[[EntryInfo, Blob | None], Callable[[Blob], None]] | None = None,
    ) -> Loaded | None:
        """Return an entry's metadata and stored bytes; arguments as of the store."""
        return self._look_up(lambda file: file.store.load(key, select, use))

    def _look_up(self, look: Callable[[File], _T | None]) -> _T | None:
        if not self._is_failed():
            try:
                found = look(self.primary)
            except CacheError as error:
                if not self._fail_over(error):
                    raise
            else:
                # Another process, for which this file failed, may have stored it in the stand-in.
                if found is None and self._config.cache_fallback_dir is not None:
                    with suppress(CacheError):
                        if is_there(self.fallback.database.path):
                            return look(self.fallback)
                return found
        found = look(self.fallback)
        if found is None:
            with suppress(CacheError):
                found = look(self.primary)
        return found

    def save(self, info: EntryInfo, encoded: Encoded) -> EntryInfo:
        """Replace an entry."""
        return self._write(lambda file: file.store.save(info, encoded))

    def touch(self, key: str, generation: str, source: Source) -> EntryInfo | None:
        """Note that an entry is still current; None if it was replaced meanwhile."""
        for file in self.files():
            touched = file.store.touch(key, generation, source)
            if touched is not None:
                return touched
        return None

    def outdate(self, key: str) -> int:
        """Mark an entry and those that hold a part of it alone as out of date; returns the number marked."""
        return sum(file.store.outdate(key) for file in self.files())

    def remove(self, key: str, generation: str | None = None) -> int:
        """Remove an entry and those that hold a part of it alone; returns the number removed.

        Raises:
            CacheError: The file that the stand-in replaces may hold it too, and cannot be used.
        """
        files = self.files()
        number = sum(file.store.remove(key, generation) for file in files)
        self.check_complete(files, number)
        return number

    def check_complete(self, files: Sequence[File], number: int) -> None:
        """Refuse to call a removal done that could not reach every file.

        Raises:
            CacheError: Entries of the file that the stand-in replaces would come back with it.
        """
        if self.failure is not None and self.primary not in files:
            raise CacheError(
                f"{number} entries were removed from {self.fallback.database.path}, but what "
                f"{self.primary.database.path} holds of them comes back when it can be used again: repeat the call "
                f"then. It cannot be used because: {self.failure}",
                path=str(self.primary.database.path),
                removed=number,
                cause="failover",
            )

    def lease(self, key: str, is_done: Callable[[], bool]) -> Callable[[], None]:
        """Take the lease on a key."""
        # Not with the switch held: waiting for another process must keep nobody from writing.
        try:
            return self.current.leases.acquire(key, is_done)
        except CacheError as error:
            if not self._fail_over(error):
                raise
            return self.fallback.leases.acquire(key, is_done)

    def _write(self, work: Callable[[File], _T]) -> _T:
        if not self._is_failed():
            try:
                return work(self.primary)
            except CacheError as error:
                if not self._fail_over(error):
                    raise
        with self._switch:
            return work(self.current)

    def heal(self, error: CacheError) -> None:
        """Set the file aside that an error found malformed, unless its indexes alone are."""
        identity = error.details.get("identity")
        if identity is not None:
            for file in self.files():
                file.database.heal(identity, indexes=bool(error.details.get("indexes")))

    def open(self) -> None:
        """Create or open the file."""
        self._write(lambda file: file.database.open())

    def close(self) -> None:
        """Write down what is pending and close the files."""
        self.primary.close()
        if self._config.cache_fallback_dir is not None:
            self.fallback.close()


def is_there(path: Path) -> bool:
    """Tell whether there is a file."""
    try:
        return path.exists()
    except OSError:  # the folder may not be looked into: the first use says so
        return False


def note(file: File, name: str) -> str | None:
    """Return a value of a file's ``cache_metadata``; without SQLAlchemy, for every process asks at its start."""
    with file.database.reading() as handle:
        row = handle and handle.connection.execute("SELECT value FROM cache_metadata WHERE key = ?", (name,)).fetchone()
        return row[0] if row else None


def has_entries(file: File) -> bool:
    """Tell whether a file has any entry."""
    with file.database.reading() as handle:
        return bool(handle and handle.connection.execute("SELECT 1 FROM entries LIMIT 1").fetchone())


def keys_of(file: File) -> list[str]:
    """Return the keys of a file's entries."""
    with file.database.reading() as handle:
        return [] if handle is None else [row[0] for row in handle.connection.execute("SELECT key FROM entries")]
