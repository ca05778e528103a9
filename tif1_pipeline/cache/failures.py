"""What SQLite's failures mean, and the errors of the cache that are made of them."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tif1_pipeline.exceptions import CacheError, CacheLockedError, CacheReadOnlyError, InvalidDataError

# No statement of this package violates a constraint, unless an index says other than its table.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}
_OTHER_CONTENT = (
    "no such table",
    "no such column",
    "has no column named",
    "cannot open value",
    "decode to UTF-8",
    "unsupported file format",  # there is none newer than the one that all write
)
"""How SQLite and its driver speak of a file in which a flipped bit has made another schema, value or text."""
_CORRUPT_INDEX = sqlite3.SQLITE_CORRUPT | 3 << 8  # Python 3.11 does not name it
_ENOUGH = 16 << 20
"""Bytes that hold any schema of ours many times over."""
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def is_damaged(error: BaseException) -> bool:
    """Tell whether SQLite found the file malformed, or other than it must be after all that was checked."""
    if isinstance(error, UnicodeDecodeError):  # of a message that quotes the file
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # the driver's own errors have none
    if code == sqlite3.SQLITE_ERROR:
        return isinstance(error, sqlite3.OperationalError) and any(words in str(error) for words in _OTHER_CONTENT)
    return code & 0xFF in _DAMAGED


def is_of_indexes(error: BaseException) -> bool:
    """Tell whether what SQLite found may be wrong with indexes alone, which can be made anew."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code == _CORRUPT_INDEX or code & 0xFF == sqlite3.SQLITE_CONSTRAINT


def is_locked(error: BaseException) -> bool:
    """Tell whether another connection held a lock for too long."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _LOCKED


@contextmanager
def opening() -> Iterator[None]:
    """What a new connection reads first, the schema: SQLite takes the sizes in a damaged one for a lack of memory.

    Raises:
        sqlite3.DatabaseError: The schema is damaged.
        MemoryError: There is no memory.
    """
    try:
        yield
    except MemoryError as error:
        bytearray(_ENOUGH)
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.execute("CREATE TABLE enough (memory)")
        raise _damaged_schema("there is memory, but not as much as it asks for") from error


def check_numbers(*numbers: Any) -> None:
    """Check the numbers of rows, which these give themselves. A letter changed in the schema, and there are none.

    Raises:
        sqlite3.DatabaseError: The schema is damaged.
    """
    if any(type(number) is not int for number in numbers):
        raise _damaged_schema("rows have no numbers")


def _damaged_schema(why: str) -> sqlite3.DatabaseError:
    """Return the error of a file whose schema is another one than was made, which SQLite itself cannot know."""
    error = sqlite3.DatabaseError(f"the schema is malformed: {why}")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error


class Where(NamedTuple):
    """Where something failed.

    Attributes:
        path: The file.
        identity: Of the file that was in use, which may be another one by now.
        readonly: Whether the cache is opened so.
        lock_timeout: Seconds that a lock is waited for.
    """

    path: Path
    identity: Any
    readonly: bool
    lock_timeout: float


@contextmanager
def translated(doing: str, where: Callable[[], Where], seconds: float | None = None) -> Iterator[None]:
    """Raise what SQLite, its driver and SQLAlchemy raise as errors of the cache.

    Args:
        doing: What is done: "read", "write" …
        where: Says where, once it has failed.
        seconds: How long a lock is waited for; ``lock_timeout`` by default.

    Raises:
        CacheError: Its details name the ``cause``.
        InvalidDataError: SQLite cannot keep what was given.
    """
    try:
        yield
    except (UnicodeEncodeError, OverflowError) as error:
        raise InvalidDataError(
            f"no text with halves of surrogate pairs, and no number beyond 64 bits, can be stored: {error}"
        ) from error
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
        raise _error(doing, where(), error, seconds) from error
    except Exception as error:  # SQLAlchemy's wrapper, told by what it wraps so that reads need not import it
        original = getattr(error, "orig", None)
        if isinstance(original, sqlite3.Error):
            raise _error(doing, where(), original, seconds) from error
        if type(error).__module__ == "sqlalchemy.exc" and type(error).__name__ == "TimeoutError":
            raise _error(doing, where(), error, seconds, "pool exhausted") from error
        raise


def readonly_error(path: Path) -> CacheReadOnlyError:
    """Return the error that nothing can be changed."""
    return CacheReadOnlyError(
        f"{path} is opened read-only: nothing can be written or removed while cache_readonly is on",
        path=str(path),
        cause="read-only",
    )


def locked_error(doing: str, path: Path, seconds: float) -> CacheLockedError:
    """Return the error that others held the lock for so long."""
    return CacheLockedError(
        f"could not {doing} {path}: another process or thread held the lock for more than {seconds:g} s. Look "
        "for a long transaction or a hanging process, or raise cache_lock_timeout",
        path=str(path),
        cause="locked",
    )


def changing_error(path: Path) -> CacheError:
    """Return the error that a file that is read as unchanging was changed, again and again."""
    return CacheError(
        f"{path} was written to while it was read: try again, or read it without cache_readonly",
        path=str(path),
        cause="changing",
    )


def _error(doing: str, where: Where, error: Exception, seconds: float | None, cause: str | None = None) -> CacheError:
    path = where.path
    if is_locked(error):
        return locked_error(doing, path, where.lock_timeout if seconds is None else seconds)
    if where.readonly and getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
        if getattr(error, "sqlite_errorname", None) in ("SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_RECOVERY"):
            return CacheError(
                f"{path} was left in the middle of a change by a process that died, and cannot be read before that "
                "is undone: open it once without cache_readonly",
                path=str(path),
                cause="unfinished",
            )
        return readonly_error(path)
    if cause is None:
        name = getattr(error, "sqlite_errorname", None) or type(error).__name__
        cause = "damaged" if is_damaged(error) else "disk full" if name == "SQLITE_FULL" else name
    return CacheError(
        f"could not {doing} {path}: {error}",
        path=str(path),
        cause=cause,
        identity=where.identity,
        indexes=is_of_indexes(error),
    )
