"""The process-wide objects and the functions that users call: settings, caches, the CDN client, sessions, calendars."""

import os
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.names import unresolved
from tif1_pipeline.calendar import Event
from tif1_pipeline.config import Config, load_config
from tif1_pipeline.exceptions import ConfigError, DataNotFoundError
from tif1_pipeline.keys import SessionKey
from tif1_pipeline.reading import Reader
from tif1_pipeline.session import FrameBackend, Session

if TYPE_CHECKING:
    from tif1_pipeline.cache.health import CacheHealth
    from tif1_pipeline.cdn.client import CdnClient
    from tif1_pipeline.warming import Warming

_lock = threading.RLock()
_config: Config | None = None
_client: "CdnClient | None" = None
_caches: dict[Path | None, Cache] = {}
_readers: dict[Path | None, Reader] = {}
_bypass: Reader | None = None


def _renew_lock() -> None:
    """In a forked child: the lock may have been held by a thread that does not exist there."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def get_config() -> Config:
    """Return this process's settings; assign to its attributes to change them, effective at once.

    Raises:
        ConfigError: At the first call, when file or environment hold an unknown name or a bad value.
    """
    global _config
    with _lock:
        if _config is None:
            _config = load_config()
        return _config


def get_client() -> "CdnClient":
    """Return this process's CDN client."""
    global _client
    with _lock:
        if _client is None:
            # Not at the top: httpx takes long to import, and a warm read never needs them.
            from tif1_pipeline.cdn.client import CdnClient

            _client = CdnClient(get_config())
        return _client


def get_cache(path: str | Path | None = None) -> Cache:
    """Return this process's cache of a file: one object a file, so that all users share its memory tier.

    Args:
        path: The cache file; None is the one of the settings ``cache_dir`` and ``cache_filename``.
    """
    with _lock:
        key = _key_of(path)
        if key not in _caches:
            _caches[key] = Cache(
                get_config(), path=key, resolve=partial(_resolve_stored, key), warmer=partial(_warmer, key)
            )
        return _caches[key]


def _key_of(path: str | Path | None) -> Path | None:
    file = None if path is None else Path(path).expanduser().absolute()
    # However it is named: two objects of one file would have two memory tiers.
    return None if file == get_config().cache_path.absolute() else file


def get_reader(path: str | Path | None = None) -> Reader:
    """Return the reader of Formula 1 tables through the cache of a file (as :func:`get_cache`)."""
    with _lock:
        cache, key = get_cache(path), _key_of(path)
        if key not in _readers:
            _readers[key] = Reader(get_config(), cache, get_client)
        return _readers[key]


def _get_bypass() -> Reader:
    global _bypass
    with _lock:
        if _bypass is None:
            _bypass = Reader(get_config(), None, get_client)
        return _bypass


def _warmer(path: Path | None) -> "Warming":
    from tif1_pipeline.warming import Warming  # not at the top: few processes warm

    return Warming(get_reader(path), get_cache(path), get_config())


def check_cache_health() -> "CacheHealth":
    """Tell whether the cache can be used: ``"healthy"``, or ``"failover"`` with its ``reasons``."""
    return get_cache().check_health()


def _resolve_stored(path: Path | None, year: int, event: str, session_type: str | None) -> SessionKey:
    """Resolve by what is stored: asking whether something is cached must not go to the network."""
    calendar = get_reader(path).stored_calendar(year)
    if calendar is None:
        return unresolved(year, event, session_type)
    found = calendar.find(event)
    return SessionKey(year, found.name, "") if session_type is None else found.key(session_type)


def get_session(
    year: int,
    event: str | int | Event,
    session_type: str,
    *,
    enable_cache: bool = True,
    backend: FrameBackend = "pandas",
) -> Session:
    """Return a session; nothing of it is fetched before it is used.

    Args:
        year: Season, from 2018.
        event: Name, location, country, round number or close spelling, or an event of :func:`get_events`.
        session_type: Name or short form: ``"Race"``, ``"R"``, ``"FP1"`` …
        enable_cache: False reads from the CDN and stores nothing.
        backend: ``"pandas"`` or ``"polars"`` frames.

    Raises:
        EventNotFoundError: No event goes by this name, or several could be meant.
        SessionNotFoundError: The event has no such session.
        NetworkError: The calendar is not cached and the CDN cannot be reached.
        ConfigError: An unknown backend.
    """
    if backend not in ("pandas", "polars"):
        raise ConfigError(f"there is no backend {backend!r}; choose pandas or polars", backend=backend)
    bypass = _get_bypass()
    cached = enable_cache and get_config().cache_enabled
    # The calendar comes through the cache either way: the bypass is about the session's data.
    key = get_reader().calendar(year).find(event).key(session_type)
    return Session(key, get_reader() if cached else bypass, backend, bypass)


def get_events(year: int) -> list[Event]:
    """Return a season's events, in order. Each can be used as mapping, as text, and as the event of a session.

    Raises:
        EventNotFoundError: There is no such season.
        NetworkError: The calendar is not cached and the CDN cannot be reached.
    """
    return list(get_reader().calendar(year).events)


def get_sessions(year: int, event: str | int | Event) -> list[str]:
    """Return the names of an event's sessions, in order.

    Raises:
        EventNotFoundError: No event goes by this name, or several could be meant.
    """
    return [session.name for session in get_reader().calendar(year).find(event).sessions]


def get_next_event() -> Event | None:
    """Return the next or running race weekend of this year's season, or None when it is over."""
    now = datetime.now(UTC)
    try:
        return get_reader().calendar(now.year).next_event(now)
    except DataNotFoundError:  # the year's calendar is not published yet
        return None


def close() -> None:
    """Write what is pending and let go of files and connections; the next call opens them again."""
    global _client
    with _lock:
        for cache in _caches.values():
            cache.close()
        if _client is not None:
            _client.close()
            _client = None
