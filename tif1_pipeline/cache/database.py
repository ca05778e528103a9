"""The cache file as a database: which connections there are, when they are made, and when it is healed.

Reads use the raw driver on a connection per thread and never import SQLAlchemy, which would cost a new process more
than the read itself. Writes and queries go through SQLAlchemy, on connections that the same function makes.
"""

import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tif1_pipeline.cache import connection as sqlite
from tif1_pipeline.cache.connection import LAYOUT_VERSION, Handle, Identity, Settings
from tif1_pipeline.cache.failures import Where, changing_error, locked_error, readonly_error, translated
from tif1_pipeline.cache.forking import gate
from tif1_pipeline.cache.journal import LogKeeper
from tif1_pipeline.cache.turns import Turn
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, CacheVersionError

if TYPE_CHECKING:
    import sqlalchemy as sa

_log = logging.getLogger(__name__)

_inherited: list[Any] = []
"""Connections of a parent process: SQLite forbids even closing them in a child, so they must not be collected."""


_TRIES = 5
_T = TypeVar("_T")


class Database:
    """One SQLite file.

    Every method raises :class:`CacheError` (its details name the ``cause``) when the file cannot be used, and
    :class:`CacheVersionError` when it is not a cache of this layout.

    Args:
        config: Settings, read at each use.
        locate: Says where the file is; asked again when a setting changes.
        on_set_aside: Told when a damaged file had to be set aside.
        changes: Numbers the changes that are seen; shared by all files of a cache, so that no two numbers are equal.
        ours: Whether the file's name is ours, so that something else under it is a damaged cache.
    """

    def __init__(
        self,
        config: Config,
        locate: Callable[[], Path],
        on_set_aside: Callable[[Path, Path], None],
        changes: Iterator[int],
        *,
        ours: bool,
    ) -> None:
        self.config = config
        self._locate = locate
        self._on_set_aside = on_set_aside
        self._known: tuple[tuple[Any, ...], Settings] | None = None
        self._changes = changes
        self._ours = ours
        self._epoch = 0
        self._rebuilt: Identity | None = None
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        # Threads queue here for SQLite's write lock: one of a process at a time waits for other processes.
        self._turn = Turn()
        self._local = threading.local()
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._engine: tuple[Any, sa.Engine] | None = None
        self._ready: tuple[Settings, Identity] | None = None
        self._log = LogKeeper()
        self._was_refused = False

    def forget_inherited(self) -> None:
        """Start without the connections that a fork handed down."""
        _inherited.append((self._local, list(self._handles), self._engine, self._log.running))
        self._reset()

    @property
    def path(self) -> Path:
        """The file in use."""
        return self._settings().path

    # ---- reading

    def changes(self) -> int:
        """Return a number that moves whenever any connection of any process has committed; 0 while there is no file."""
        with self.reading() as handle:
            if handle is None:
                return 0
            version = handle.connection.execute("PRAGMA data_version").fetchone()[0]
            if version != handle.data_version:
                handle.data_version = version
                self._epoch = next(self._changes)
            return self._epoch

    @contextmanager
    def reading(self) -> Iterator[Handle | None]:
        """This thread's connection, for itself; None while there is no file with tables in it."""
        gate.enter()
        try:
            with self._translated("read"):
                while (handle := self._handle()) is not None:
                    with handle.lock:
                        if not handle.closed:  # another thread may have closed the cache just now
                            yield handle
                            handle.note_log()
                            return
                yield None
        finally:
            gate.leave()

    def _handle(self) -> Handle | None:
        for _ in range(_TRIES):
            try:
                return self._current_handle()
            except sqlite3.OperationalError:
                # Set aside, deleted or replaced by another thread or process, after it was looked at?
                if _identity(self._settings()) == self._local.used:
                    raise
        return self._current_handle()

    def _current_handle(self) -> Handle | None:
        settings = self._settings()
        self._local.used = None
        identity = _identity(settings)
        handle: Handle | None = getattr(self._local, "handle", None)
        # The identity is compared because a file that was deleted or replaced stays open, and writes to it are lost.
        self._local.used = identity
        if handle and not handle.closed and handle.identity == identity and handle.settings == settings:
            return handle
        try:
            usable = identity is not None and self._is_usable(settings, identity)
        finally:
            if handle:
                handle.close()
                self._local.handle = None
        if identity is None or not usable:
            return None
        handle = self._local.handle = Handle(settings, identity)
        with self._lock:
            self._handles.add(handle)
        return handle

    def _is_usable(self, settings: Settings, identity: Identity) -> bool:
        """Check, once for each file, that it is a cache, of this layout or made so; False for one without tables."""
        with self._lock:
            if self._ready == (settings, identity):
                return True
            if self._ready is None or self._ready[0].wal_mode != settings.wal_mode:
                self.close()  # the mode of a file changes only while no other connection has it open
            elif self._ready[1] != identity == _identity(settings):  # it may be another one since it was looked at
                # Another file has taken its place, and beside it lies the log of the former one: SQLite would play it
                # back into this one.
                logs = {handle.log for handle in self._handles if not handle.closed and handle.identity != identity}
                self.close()
                sqlite.drop_log(settings.path, logs)
            if not sqlite.first_look(settings.path, identity, ours=self._ours):
                if not self._ours:
                    raise CacheVersionError(
                        f"{settings.path} is no SQLite database; nothing was changed. Move it away or name another",
                        path=str(settings.path),
                    )
                if settings.readonly:
                    raise CacheError(
                        f"{settings.path} is damaged: it is no SQLite database",
                        path=str(settings.path),
                        cause="damaged",
                    )
                self._set_aside(settings.path, identity)
                return False
            with _closing(sqlite.connect(settings, identity)) as connection:
                layout = sqlite.layout_of(connection, settings.path)
                if not layout:
                    return False
                if layout < LAYOUT_VERSION and settings.readonly:
                    raise CacheVersionError(
                        f"{settings.path} has the former cache layout {layout} and cannot be migrated read-only: open "
                        "it once without cache_readonly",
                        path=str(settings.path),
                        layout=layout,
                    )
                if not settings.readonly:
                    # While others have the file open its mode stays; they go on in the former one, and so do we.
                    sqlite.set_journal_mode(connection, wal=settings.wal_mode, timeout=0.5)
            if layout < LAYOUT_VERSION:
                self._create_tables(self._engine_of(settings, identity), settings)
            self._ready = (settings, identity)
            return True

    def stable(self, read: Callable[[], _T]) -> _T:
        """Read, and again if the file was opened as one that nobody writes to, and somebody did meanwhile."""
        if not self.config.cache_readonly:
            return read()
        for _ in range(_TRIES):
            try:
                value = read()
            except CacheError:
                if self._is_still(self._local.used):
                    raise
            else:
                if self._is_still(self._local.used):
                    return value
        raise changing_error(self.path)

    def _is_still(self, identity: Identity | None) -> bool:
        if identity is None or identity.frozen is None:
            return True
        try:
            return _identity(self._settings()) == identity
        except OSError:  # it cannot be reached any more: what was read, was read before
            return True

    # ---- writing

    @contextmanager
    def writing(
        self, timeout: float | None = None, *, size: int = 0, synced: bool = False
    ) -> Iterator["sa.Connection"]:
        """A transaction that holds the write lock from its start; creates the file when there is none.

        Args:
            timeout: Seconds to wait for the lock; the setting by default.
            size: Bytes that are about to be written. After many the log is carried over into the file by a thread of
                its own, which takes as long as the write itself.
            synced: What is committed survives a power cut from then on, and all that was committed before it.
        """
        if self.config.cache_readonly:
            raise readonly_error(self.path)
        seconds = self.lock_timeout if timeout is None else timeout
        started = time.monotonic()
        with gate.using(), self._in_turn(seconds):
            self._log.shorten(self._settings())
            left = max(0.0, seconds - (time.monotonic() - started))
            try:
                with (
                    self._translated("write", seconds),
                    self._reopened_if_needed(),
                    self._connected("BEGIN IMMEDIATE", left, started) as connection,
                    self._log.carried_over_later(self._settings(), connection, size),
                    self._synced(connection, synced=synced),
                    connection.begin(),
                ):
                    yield connection
            except CacheError as error:
                self._was_refused = str(error.details.get("cause", "")).startswith("SQLITE_READONLY")
                raise

    @contextmanager
    def _in_turn(self, seconds: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=seconds):
            raise locked_error("write", self.path, seconds)
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _synced(self, connection: "sa.Connection", *, synced: bool = True) -> Iterator[None]:
        if not synced:
            yield
            return
        driver: Any = connection.connection.driver_connection  # past SQLAlchemy, which would begin a transaction
        driver.execute("PRAGMA synchronous=FULL")
        try:
            yield
        finally:
            driver.execute(f"PRAGMA synchronous={self._settings().synchronous}")

    @contextmanager
    def _reopened_if_needed(self) -> Iterator[None]:
        """Write on new connections where those that there are would write in vain."""
        if self._was_refused:
            # One that was opened while the file could not be written never writes.
            self._was_refused = False
            self.close()
        settings = self._settings()
        with self._lock:
            log, identity = sqlite.log_of(settings.path), _identity(settings)
            # Where the file is another one, too, that is seen to when it is opened.
            mine = [handle for handle in self._handles if not handle.closed and handle.identity == identity]
            cut_off = [handle for handle in mine if handle.log not in (None, log)]
            if cut_off:
                _log.warning(
                    "the log beside %s was deleted or replaced while it was in use: the file is opened anew. Nothing "
                    "but SQLite may touch the files that end in -wal and -shm",
                    settings.path,
                )
                with cut_off[0].lock, suppress(sqlite3.Error):  # it can still carry the former log over
                    cut_off[0].connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                sqlite.drop_index(settings.path, cut_off[0].log)
                with sqlite.keeping_log_of_others(settings.path, {handle.log for handle in cut_off}):
                    self.close()
        yield

    @contextmanager
    def querying(self) -> Iterator["sa.Connection"]:
        """A read transaction for queries over many entries; the file must exist."""
        with (
            gate.using(),
            self._translated("query"),
            self._connected("BEGIN", None) as connection,
            connection.begin(),
        ):
            identity = self._local.used
            yield connection
        if not self._is_still(identity):
            raise changing_error(self.path)

    @contextmanager
    def raw(self, timeout: float) -> Iterator[sqlite3.Connection]:
        """A connection of its own that waits no longer than ``timeout`` seconds for a lock; the file must exist."""
        settings = self._settings()
        identity = _identity(settings)
        self._local.used = identity
        with (
            gate.using(),
            self._translated("write", timeout),
            _closing(sqlite.connect(settings, identity, timeout=timeout)) as connection,
        ):
            yield connection

    @property
    def lock_timeout(self) -> float:
        """Seconds to wait for another process's lock."""
        return self._settings().lock_timeout

    def exists(self) -> bool:
        """Tell whether there is a file with tables in it."""
        with self.reading() as handle:
            return handle is not None

    def open(self) -> None:
        """Make sure that the file exists and is ours."""
        with gate.using(), self._translated("open"):
            self._ensure_file()

    def close(self) -> None:
        """Close the connections of all threads; the next use opens them again."""
        self._log.wait()
        self.release()

    def release(self) -> None:
        """Close the connections, of which none is in use."""
        with self._lock:
            handles, self._handles = list(self._handles), weakref.WeakSet()
            engine, self._engine = self._engine, None
            self._ready = None
        for handle in handles:
            handle.close()
        if engine:
            engine[1].dispose()

    def _settings(self) -> Settings:
        config = self.config
        given = (
            config.cache_dir,
            config.cache_filename,
            config.cache_fallback_dir,
            config.cache_page_size,
            config.cache_cache_size,
            config.cache_wal_autocheckpoint,
            config.cache_mmap_size,
            config.cache_lock_timeout,
            config.cache_wal_mode,
            config.cache_readonly,
        )
        # On every hit: joining a path costs more than comparing what it is made of.
        if self._known is None or self._known[0] != given:
            self._known = (given, Settings.of(config, self._locate()))
        return self._known[1]

    @contextmanager
    def _connected(self, begin: str, timeout: float | None, since: float | None = None) -> Iterator["sa.Connection"]:
        seconds = self._settings().lock_timeout if timeout is None else timeout
        engine = self._ensure_file()
        with engine.connect().execution_options(begin=begin, lock_seconds=seconds, since=since) as connection:
            yield connection

    def _ensure_file(self) -> "sa.Engine":
        """Return the engine of the file, which is created with its tables when it does not exist."""
        settings = self._settings()
        with self._lock:
            identity = _identity(settings)
            ready = identity is not None and self._is_usable(settings, identity)
            if not ready and settings.readonly:
                raise CacheError(
                    f"there is no cache at {settings.path}, and none is made while cache_readonly is on",
                    path=str(settings.path),
                    cause="missing",
                )
            if not ready:
                sqlite.create_file(settings.path)
                identity = sqlite.file_identity(settings.path)
                if identity is not None:
                    sqlite.first_look(settings.path, identity, ours=self._ours)  # now: never once there are connections
            engine = self._engine_of(settings, identity)
            self._local.used = identity
            if not ready:
                self._create_tables(engine, settings)
                self._set_journal_mode(engine, settings)
                if identity is not None:
                    self._ready = (settings, identity)  # else the first read would close all and look once more
            return engine

    def _create_tables(self, engine: "sa.Engine", settings: Settings) -> None:
        from tif1_pipeline.cache.layout import create_tables

        with (
            engine.connect().execution_options(lock_seconds=settings.lock_timeout) as connection,
            self._synced(connection),  # a new file is not in WAL mode yet
            connection.begin(),
        ):
            driver: Any = connection.connection.driver_connection
            create_tables(driver)

    def _set_journal_mode(self, engine: "sa.Engine", settings: Settings) -> None:
        # Comes last: in WAL mode the marks in the header could sit in the log alone, and the next process would take
        # the file for somebody else's. On a connection that stays, because closing the last one carries the log over.
        with engine.connect() as connection, self._synced(connection):
            driver: Any = connection.connection.driver_connection
            sqlite.set_journal_mode(driver, wal=settings.wal_mode, timeout=settings.lock_timeout)

    def _engine_of(self, settings: Settings, identity: Identity | None) -> "sa.Engine":
        wanted = (settings, identity, self.config.cache_max_connections)
        if self._engine is None or self._engine[0] != wanted:
            from tif1_pipeline.cache.engine import make_engine  # not at the top: reads never import SQLAlchemy

            if self._engine:
                self._engine[1].dispose()
            self._engine = (wanted, make_engine(*wanted))
        return self._engine[1]

    # ---- trouble

    def heal(self, identity: Identity | None = None, *, indexes: bool = False) -> None:
        """Set a malformed file aside, so that the next write starts a new one.

        Args:
            identity: Of the file that was found malformed: another thread or process may have put a new one there
                since. By default the one that is there.
            indexes: Make its indexes anew first, and set it aside only if that fails, or was done already.
        """
        identity = identity or sqlite.file_identity(self.path)
        if self.config.cache_readonly or identity is None:
            return
        with self._lock:
            if not (indexes and self._rebuilt != identity and self._rebuild_indexes(identity)):
                self._set_aside(self.path, identity)

    def _rebuild_indexes(self, identity: Identity) -> bool:
        self._rebuilt = identity
        try:
            with self.raw(self.lock_timeout) as connection:
                connection.execute("REINDEX")
        except CacheError as error:
            _log.debug("the indexes of %s could not be made anew: %s", self.path, error)
            return False
        _log.warning("indexes of %s were damaged; they were made anew from the tables", self.path)
        return True

    def _translated(self, doing: str, seconds: float | None = None) -> AbstractContextManager[None]:
        return translated(doing, self._where, seconds)

    def _where(self) -> Where:
        used = getattr(self._local, "used", None)
        return Where(self.path, used, self.config.cache_readonly, self.lock_timeout)

    def _set_aside(self, path: Path, identity: Identity) -> None:
        if sqlite.file_identity(path) == identity:  # else another process has done so already
            self._ready = None
            self._on_set_aside(path, sqlite.set_aside(path))


def _identity(settings: Settings) -> Identity | None:
    return (sqlite.readonly_identity if settings.readonly else sqlite.file_identity)(settings.path)


@contextmanager
def _closing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    finally:
        connection.close()
