"""Every error that tif1_pipeline raises on purpose.

    Tif1Error
    ├── ConfigError              a setting is unknown or has a bad value
    ├── DataNotFoundError        the CDN was reached and does not have it
    │   ├── EventNotFoundError   no such event, or several could be meant
    │   ├── SessionNotFoundError the event has no such session
    │   └── DriverNotFoundError  the session has no such driver
    ├── NetworkError             the CDN could not be reached, or kept failing
    ├── InvalidDataError         what came is incomplete, unreadable or of the wrong shape
    └── CacheError               the cache could not do what was asked
        ├── CorruptEntryError    an entry does not decode or fails its checksum
        ├── CacheReadOnlyError   a write to a cache opened read-only
        ├── CacheVersionError    a database of an unknown or newer layout
        └── CacheLockedError     another process held the lock beyond the timeout

A message says what failed, on what, and what to do about it. The same facts are in ``details``, for code that wants
them.
"""

from typing import Any


class Tif1Error(Exception):
    """Base of all errors of this package.

    Args:
        message: What failed, on what, and what to do.
        **details: The facts of the message for programs (``url=``, ``year=``, ``key=`` …).
    """

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions rebuild from args alone by default and would lose the details on their way between processes.
        return _rebuild, (type(self), self.message, self.details)


def _rebuild(cls: type[Tif1Error], message: str, details: dict[str, Any]) -> Tif1Error:
    return cls(message, **details)


class ConfigError(Tif1Error):
    """A setting is unknown or has a bad value."""


class DataNotFoundError(Tif1Error):
    """The CDN was reached and does not have what was asked for."""


class EventNotFoundError(DataNotFoundError):
    """No event of the season goes by this name, or several could be meant."""


class SessionNotFoundError(DataNotFoundError):
    """The event has no such session."""


class DriverNotFoundError(DataNotFoundError):
    """The session has no such driver."""


class NetworkError(Tif1Error):
    """The CDN could not be reached, or kept failing."""


class InvalidDataError(Tif1Error):
    """What the CDN sent is incomplete, unreadable or of the wrong shape."""


class CacheError(Tif1Error):
    """The cache could not do what was asked."""


class CorruptEntryError(CacheError):
    """A stored entry does not decode or fails its checksum."""


class CacheReadOnlyError(CacheError):
    """A write was asked of a cache that is opened read-only."""


class CacheVersionError(CacheError):
    """The database file has an unknown or newer layout, or belongs to another program."""


class CacheLockedError(CacheError):
    """Another process held the database lock beyond ``cache_lock_timeout``."""
