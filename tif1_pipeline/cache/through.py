"""Read-through: what is stored and young enough is returned, anything else is fetched once for all who want it."""

import logging
import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tif1_pipeline.cache import frames, jsonvalue, views
from tif1_pipeline.cache.ages import is_young
from tif1_pipeline.cache.base import EntryInfo, Fresh, Hit, Source
from tif1_pipeline.cache.flight import Flights
from tif1_pipeline.cache.store import new_info
from tif1_pipeline.cache.tiered import Tiered, is_compatible
from tif1_pipeline.cache.views import Content, View
from tif1_pipeline.exceptions import (
    CacheError,
    CacheVersionError,
    DataNotFoundError,
    InvalidDataError,
    NetworkError,
    Tif1Error,
)
from tif1_pipeline.keys import EntryKey

_log = logging.getLogger(__name__)

_UNREFRESHED = (NetworkError, InvalidDataError)
"""What a fetch may fail with while what is stored is served on."""


class ReadThrough:
    """Reads through one cache.

    Args:
        tiered: The cache's tiers.
    """

    def __init__(self, tiered: Tiered) -> None:
        self._tiered = tiered
        self._flights = Flights()
        self._asked: dict[str, float] = {}
        tiered.on_fork(self._flights.forget_inherited)

    def read(
        self,
        key: EntryKey,
        fetch: Callable[[EntryInfo | None], Fresh],
        view: View,
        part_by: str | None,
        schema_version: int,
        max_age: timedelta | None,
    ) -> Hit:
        """Return the stored value if it is young enough, else fetch it once for all who wait for it."""
        if not self._tiered.config.cache_enabled:
            fresh = fetch(None)
            backend = frames.backend_of(fresh.value)
            content, encoded = self._tiered.encode(fresh.value, backend, part_by, is_ours=True, early=fresh.early)
            info = new_info(key, encoded, backend, Source(), schema_version)
            return Hit(self._view_of(info, content, view), "cdn", None)
        started = time.perf_counter()
        try:
            hit = self._tiered.find(key.text, view, schema_version)
        except DataNotFoundError:
            stored = self._tiered.info(key.text)
            if stored is None or is_young(stored, max_age):
                raise
            hit = None  # the part may be there by now
        ttl = max_age
        if hit:
            max_age = self._with_freshness(hit.info, ttl)
            if is_young(hit.info, max_age):
                self._tiered.count(key, hit, started)
                return hit
        # Twice: what is stored may be removed, or turn out unreadable, just after it was found current.
        for trust_stored in (True, False):
            try:
                info, content = self._flights.run(
                    key.text,
                    lambda trust=trust_stored: self._bring(key, fetch, part_by, schema_version, max_age, trust),
                )
            except (*_UNREFRESHED, DataNotFoundError) as error:
                if hit is None:  # else the disk does not have it, but memory has
                    raise
                # Gone from the CDN: what has expired is not served for it, what was only to be checked is.
                if isinstance(error, DataNotFoundError) and not is_young(hit.info, ttl):
                    raise
                _warn_stale(key, max_age, error)
                return hit
            if content is not None:
                self._tiered.count(key, None, started)
                return Hit(self._view_of(info, content, view), "cdn", info)
            hit = self._tiered.find(key.text, view, schema_version)
            if hit:
                self._tiered.count(key, hit, started)
                return hit
        raise CacheError(f"{key} was said to be stored but cannot be read: see the log, or run verify", key=key.text)

    def _with_freshness(self, info: EntryInfo | None, max_age: timedelta | None) -> timedelta | None:
        """Return how old the entry may be if ``cache_check_freshness`` asks for more than the TTL."""
        config = self._tiered.config
        if not config.cache_check_freshness or info is None or not (info.source.etag or info.source.last_modified):
            return max_age
        interval = config.cache_freshness_interval
        if is_young(info, interval) or not is_young(info, max_age):
            return max_age
        # Remembered here too: when the CDN cannot be reached, or the cache is read-only, the entry's age stays.
        now = time.monotonic()
        if now - self._asked.get(info.key, -math.inf) < interval.total_seconds():
            return max_age
        self._asked[info.key] = now
        return interval

    def _bring(
        self,
        key: EntryKey,
        fetch: Callable[[EntryInfo | None], Fresh],
        part_by: str | None,
        schema_version: int,
        max_age: timedelta | None,
        trust_stored: bool,
    ) -> tuple[Any, Content | None]:
        """Make the entry current; returns the content if it was fetched anew, None if what is stored is to be read."""

        def usable() -> EntryInfo | None:
            info = self._tiered.info(key.text) if trust_stored else None
            return info if info and is_compatible(info, schema_version) else None

        def is_done() -> bool:
            info = usable()
            return info is not None and is_young(info, max_age)

        release = self._lease(key.text, is_done)
        try:
            info = usable()
            if info and is_young(info, max_age):
                return info, None
            try:
                fresh = fetch(info)
            except _UNREFRESHED as error:
                if info is None:
                    raise
                _warn_stale(key, max_age, error)
                return info, None
            if fresh.not_modified:
                return self._touch(key, info, fresh.source), None
            stored = self._tiered.store(
                key, fresh.value, fresh.source, part_by, schema_version, is_ours=True, early=fresh.early
            )
            return stored[1:]
        finally:
            release()

    def _touch(self, key: EntryKey, info: EntryInfo | None, source: Source) -> EntryInfo | None:
        if info is None:
            raise CacheError(
                f"the fetch of {key} answered 'not modified', but nothing is stored to compare with", key=key.text
            )
        if self._tiered.config.cache_readonly:
            return info
        try:
            return self._tiered.shard_of(key.text).touch(key.text, info.generation, source)
        except CacheVersionError:
            raise
        except CacheError as error:
            self._tiered.degrade("touch", error)
            return info

    def _lease(self, key: str, is_done: Callable[[], bool]) -> Callable[[], None]:
        if self._tiered.config.cache_readonly:
            return lambda: None
        try:
            return self._tiered.shard_of(key).lease(key, is_done)
        except CacheVersionError:
            raise
        except CacheError as error:  # two processes fetch the same: a waste, not a fault
            self._tiered.degrade("lease", error)
            return lambda: None

    def _view_of(self, info: EntryInfo, content: Content, view: View) -> Any:
        view.check(info)
        value = views.convert(content.select(view), view)
        return jsonvalue.load(value) if view.as_ == "json" else value


def _warn_stale(key: EntryKey, max_age: timedelta | None, error: Tif1Error) -> None:
    why = "is out of date" if max_age is None else f"is older than {max_age}"
    _log.warning("%s %s and could not be refreshed, serving it as it is: %s", key, why, error)
