"""The cache file as a database: which connections there are, when they are made, and what their failures mean.

Reads use the raw driver on a connection per thread and never import SQLAlchemy, which would cost a new process more
than the read itself. Writes and queries go through SQLAlchemy, on connections that the same function makes.
"""

import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tif1_pipeline.cache import connection as sqlite
from tif1_pipeline.cache.connection import Settings
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, CacheLockedError, CacheVersionError

if TYPE_CHECKING:
    import sqlalchemy as sa

_inherited: list[Any] = []
"""Connections of a parent process: SQLite forbids even closing them in a child, so they must not be collected."""


class Handle:
    """One thread's read connection."""

    def __init__(self, settings: Settings, identity: tuple[int, int]) -> None:
        self.settings = settings
        self.identity = identity
        self.connection = sqlite.connect(settings)
        self.data_version = -1
        self.lock = threading.Lock()
        self.closed = False

    def close(self) -> None:
        """Close the connection."""
        with self.lock:  # another thread may be in the middle of a read
            self.closed = True
            self.connection.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.connection.close()


class Database:
    """One SQLite file.

    Every method raises :class:`CacheError` (its details name the ``cause``) when the file cannot be used, and
    :class:`CacheVersionError` when it is not a cache of this layout.

    Args:
        config: Settings, read at each use.
        path: The file; ``config.cache_path`` by default, followed when it changes.
        on_set_aside: Told when a damaged file had to be set aside.
    """

    def __init__(self, config: Config, path: Path | None, on_set_aside: Callable[[Path, Path], None]) -> None:
        self._config = config
        self._path = path
        self._on_set_aside = on_set_aside
        self._known: tuple[tuple[Any, ...], Settings] | None = None
        self._changes = count(1)
        self._epoch = 0
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._local = threading.local()
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._engine: tuple[Any, sa.Engine] | None = None
        self._ready: tuple[Any, ...] | None = None

    def forget_inherited(self) -> None:
        """Start without the connections that a fork handed down."""
        _inherited.append((self._local, list(self._handles), self._engine))
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
        with self._translated("read"):
            while (handle := self._handle()) is not None:
                with handle.lock:
                    if not handle.closed:  # another thread may have closed the cache just now
                        yield handle
                        return
            yield None

    def _handle(self) -> Handle | None:
        settings = self._settings()
        identity = sqlite.file_identity(settings.path)
        handle: Handle | None = getattr(self._local, "handle", None)
        # The identity is compared because a file that was deleted or replaced stays open, and writes to it are lost.
        if handle and not handle.closed and handle.identity == identity and handle.settings == settings:
            return handle
        if handle:
            handle.close()
            self._local.handle = None
        if identity is None or not self._is_usable(settings, identity):
            return None
        handle = self._local.handle = Handle(settings, identity)
        with self._lock:
            self._handles.add(handle)
        return handle

    def _is_usable(self, settings: Settings, identity: tuple[int, int]) -> bool:
        """Check, once for each file, that it is a cache of this layout; False for a file without tables yet."""
        with self._lock:
            if self._ready == (settings.path, identity):
                return True
            if not sqlite.first_look(settings.path, identity):
                if settings.path.name != self._config.cache_filename:
                    raise CacheVersionError(
                        f"{settings.path} is no SQLite database; nothing was changed. Move it away or name another",
                        path=str(settings.path),
                    )
                self._set_aside(settings.path, identity)
                return False
            with _closing(sqlite.connect(settings)) as connection:
                if not sqlite.has_tables(connection, settings.path):
                    return False
                # While others have the file open its mode cannot change: they go on in the former one, and so do we.
                sqlite.set_journal_mode(connection, wal=self._config.cache_wal_mode, timeout=0.5)
            self._ready = (settings.path, identity)
            return True

    # ---- writing

    @contextmanager
    def writing(self, timeout: float | None = None) -> Iterator["sa.Connection"]:
        """A transaction that holds the write lock from its start; creates the file when there is none."""
        with self._translated("write"), self._connected("BEGIN IMMEDIATE", timeout) as connection, connection.begin():
            yield connection

    @contextmanager
    def querying(self) -> Iterator["sa.Connection"]:
        """A read transaction for queries over many entries; the file must exist."""
        with self._translated("query"), self._connected("BEGIN", None) as connection, connection.begin():
            yield connection

    @contextmanager
    def raw(self, timeout: float) -> Iterator[sqlite3.Connection]:
        """A connection of its own that waits no longer than ``timeout`` seconds for a lock; the file must exist."""
        with self._translated("write"), _closing(sqlite.connect(self._settings(), timeout=timeout)) as connection:
            yield connection

    def exists(self) -> bool:
        """Tell whether there is a file with tables in it."""
        with self.reading() as handle:
            return handle is not None

    def open(self) -> None:
        """Make sure that the file exists and is ours."""
        with self._translated("open"):
            self._ensure_file()

    def close(self) -> None:
        """Close the connections of all threads; the next use opens them again."""
        with self._lock:
            handles, self._handles = list(self._handles), weakref.WeakSet()
            engine, self._engine = self._engine, None
            self._ready = None
        for handle in handles:
            handle.close()
        if engine:
            engine[1].dispose()

    def _settings(self) -> Settings:
        config = self._config
        given = (
            config.cache_dir,
            config.cache_filename,
            config.cache_page_size,
            config.cache_cache_size,
            config.cache_wal_autocheckpoint,
            config.cache_mmap_size,
            config.cache_lock_timeout,
        )
        # On every hit: joining a path costs more than comparing what it is made of.
        if self._known is None or self._known[0] != given:
            self._known = (given, Settings.of(config, self._path or config.cache_path))
        return self._known[1]

    @contextmanager
    def _connected(self, begin: str, timeout: float | None) -> Iterator["sa.Connection"]:
        seconds = self._settings().lock_timeout if timeout is None else timeout
        engine = self._ensure_file()
        with engine.connect().execution_options(begin=begin, busy_timeout=round(seconds * 1000)) as connection:
            yield connection

    def _ensure_file(self) -> "sa.Engine":
        """Return the engine of the file, which is created with its tables when it does not exist."""
        settings = self._settings()
        with self._lock:
            identity = sqlite.file_identity(settings.path)
            ready = identity is not None and self._is_usable(settings, identity)
            if not ready:
                sqlite.create_file(settings.path)
                identity = sqlite.file_identity(settings.path)
                if identity is not None:
                    sqlite.first_look(settings.path, identity)  # now: never once there are connections
            engine = self._engine_of(settings, identity)
            if not ready:
                from tif1_pipeline.cache.schema import create_tables

                busy_timeout = round(settings.lock_timeout * 1000)
                with engine.connect().execution_options(busy_timeout=busy_timeout) as connection, connection.begin():
                    create_tables(connection)
                # The journal mode comes last: in WAL mode the marks in the header could sit in the log alone, and
                # the next process would take the file for somebody else's.
                with _closing(sqlite.connect(settings)) as connection:
                    sqlite.set_journal_mode(connection, wal=self._config.cache_wal_mode, timeout=settings.lock_timeout)
            return engine

    def _engine_of(self, settings: Settings, identity: tuple[int, int] | None) -> "sa.Engine":
        wanted = (settings, identity, self._config.cache_max_connections)
        if self._engine and self._engine[0] == wanted:
            return self._engine[1]
        import sqlalchemy as sa
        from sqlalchemy.event import listens_for

        if self._engine:
            self._engine[1].dispose()
        engine = sa.create_engine(
            "sqlite://",
            creator=lambda: sqlite.connect(settings),
            poolclass=sa.QueuePool,
            pool_size=self._config.cache_max_connections,
            max_overflow=0,
            pool_timeout=settings.lock_timeout,
        )

        @listens_for(engine, "begin")
        def begin(connection: "sa.Connection") -> None:
            options = connection.get_execution_options()
            connection.exec_driver_sql(f"PRAGMA busy_timeout={options['busy_timeout']}")
            # Taking the write lock at once: a transaction that starts as a reader can fail when it turns into a writer.
            connection.exec_driver_sql(options.get("begin", "BEGIN IMMEDIATE"))

        self._engine = (wanted, engine)
        return engine

    # ---- trouble

    def heal(self) -> None:
        """Set a malformed file aside, so that the next write starts a new one."""
        path = self.path
        identity = sqlite.file_identity(path)
        if identity is not None:
            with self._lock:
                self._set_aside(path, identity)

    def _set_aside(self, path: Path, identity: tuple[int, int]) -> None:
        if sqlite.file_identity(path) == identity:  # else another process has done so already
            self._ready = None
            self._on_set_aside(path, sqlite.set_aside(path))

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._error(doing, error) from error
        except Exception as error:  # SQLAlchemy's wrapper, told by what it wraps so that reads need not import it
            original = getattr(error, "orig", None)
            if isinstance(original, sqlite3.Error):
                raise self._error(doing, original) from error
            if type(error).__module__ == "sqlalchemy.exc" and type(error).__name__ == "TimeoutError":
                raise self._error(doing, error, "pool exhausted") from error
            raise

    def _error(self, doing: str, error: Exception, cause: str | None = None) -> CacheError:
        path = self.path
        if sqlite.is_locked(error):
            seconds = self._settings().lock_timeout
            return CacheLockedError(
                f"could not {doing} {path}: another process held the lock for more than {seconds:g} s. Look for a long "
                "transaction or a hanging process, or raise cache_lock_timeout",
                path=str(path),
                cause="locked",
            )
        if cause is None:
            name = getattr(error, "sqlite_errorname", None) or type(error).__name__
            cause = "damaged" if sqlite.is_damaged(error) else "disk full" if name == "SQLITE_FULL" else name
        return CacheError(f"could not {doing} {path}: {error}", path=str(path), cause=cause)


@contextmanager
def _closing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    finally:
        connection.close()
