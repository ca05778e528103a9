"""Memory over disk over a fetch: where an entry is looked for, and what happens when a tier fails."""

import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tif1_pipeline import __version__
from tif1_pipeline.cache import codec, frames, jsonvalue, views
from tif1_pipeline.cache.base import Backend, EntryInfo, Fresh, Hit, Source, Written
from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.flight import Flights, Leases
from tif1_pipeline.cache.memory import Entry, Memory
from tif1_pipeline.cache.store import Loaded, Store, new_info
from tif1_pipeline.cache.usage import Usage
from tif1_pipeline.cache.views import Content, View
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import CacheError, CacheVersionError, CorruptEntryError, DataNotFoundError, NetworkError
from tif1_pipeline.keys import EntryKey

_log = logging.getLogger(__name__)

_instances: "weakref.WeakSet[Tiered]" = weakref.WeakSet()


class Tiered:
    """The tiers of one cache file.

    Args:
        config: Settings, read at each use.
        path: The file; ``config.cache_path`` by default.
    """

    def __init__(self, config: Config, path: Path | None = None) -> None:
        self._config = config
        self.database = Database(config, path, self._note_set_aside)
        self.store = Store(self.database)
        self.memory = Memory(config)
        self.usage = Usage(self.database)
        self.degraded: Counter[str] = Counter()
        self._leases = Leases(self.database)
        self._flights = Flights()
        self._lock = threading.Lock()
        _instances.add(self)

    def forget_inherited(self) -> None:
        """Start anew after a fork: locks may be held by threads, and connections be in use, that are not ours."""
        self._lock = threading.Lock()
        for part in (self.database, self.memory, self.usage, self._flights):
            part.forget_inherited()

    # ---- reading

    def read(self, key: EntryKey | str, view: View, schema_version: int | None) -> Hit | None:
        """Look in memory, then on disk."""
        if not self._config.cache_enabled:
            return None
        started = time.perf_counter()
        hit = self._find(str(key), view, schema_version)
        self._count(key, hit, started)
        return hit

    def _count(self, key: EntryKey | str, hit: Hit | None, started: float) -> None:
        info = hit.info if hit else None
        data_type = info.data_type if info else getattr(key, "data_type", "")
        self.usage.record(str(key), data_type, hit is not None, time.perf_counter() - started)

    def _find(self, key: str, view: View, schema_version: int | None) -> Hit | None:
        if not self._config.memory_cache_enabled:
            return self._from_disk(key, view, schema_version)
        hit = self._from_memory(key, view, schema_version)
        self.memory.count(hit is not None)
        return hit or self._from_disk(key, view, schema_version)

    def _from_memory(self, key: str, view: View, schema_version: int | None) -> Hit | None:
        entry = self.memory.get(key)
        if entry is None or not self._is_current(key, entry):
            return None
        info = entry.info
        if not is_compatible(info, schema_version):
            return None
        view.check(info)
        kept = self.memory.view(entry, view)
        if kept is not None:
            return Hit(views.hand_out(kept[0], view.as_, kept[1]), "memory", info)
        written = self.memory.view(entry, None)
        if written is None:
            return None
        return Hit(self._serve(info, entry.on_disk, entry.epoch, written[0].select(view), view), "memory", info)

    def _is_current(self, key: str, entry: Entry) -> bool:
        """Tell whether nobody has replaced the entry on disk; one look-up, and only if anything was committed there."""
        try:
            epoch = self.database.changes()
            if not epoch or entry.epoch != epoch:  # 0: there is no file, or not any more
                current = self.store.info(key)
                if (current.generation if current else None) != entry.on_disk:
                    self.memory.evict(key)
                    return False
                self.memory.confirm(entry, current, epoch)
        except CacheVersionError:
            raise
        except CacheError as error:  # memory alone serves on
            self.degrade("check", error)
        return True

    def _from_disk(self, key: str, view: View, schema_version: int | None) -> Hit | None:
        info: EntryInfo | None = None

        def select(found: EntryInfo) -> Any:
            nonlocal info
            info = found
            if not is_compatible(found, schema_version):
                return ()
            view.check(found)
            if view.parts is None:
                return found.parts
            return view.parts or found.parts[:1]

        try:
            epoch = self.database.changes()
            loaded = self.store.load(key, select)
            if loaded is None or not loaded.blobs:
                return None
            selected = self._decode(loaded, view)
        except CacheVersionError:
            raise
        except CorruptEntryError as error:
            self._remove_corrupt(key, info, error)
            return None
        except CacheError as error:
            if str(error.details.get("cause", "")).startswith("damaged"):
                self._remove_corrupt(key, info, error)
            else:
                self.degrade("read", error)
            return None
        assert info is not None  # noqa: S101 - load has called select
        return Hit(self._serve(info, info.generation, epoch, selected, view), "disk", info)

    def _decode(self, loaded: Loaded, view: View) -> Any:
        check = self._config.cache_verify_checksum
        if loaded.header is None:
            if check:
                codec.verify(loaded.blobs[0])
            return codec.decode_json(loaded.blobs[0])
        in_order = view.parts is None
        table = codec.decode_table(loaded.header, loaded.blobs, view.columns_of, in_order=in_order, check=check)
        return table.slice(0, 0) if view.parts == () else table

    def _serve(self, info: EntryInfo, on_disk: str | None, epoch: int, selected: Any, view: View) -> Any:
        """Convert what was selected, keep it in memory, and hand it out."""
        value = views.convert(selected, view)
        size = len(selected) if isinstance(selected, bytes) else selected.nbytes
        if self._config.memory_cache_enabled:
            value = views.to_keep(selected, value, view)
            self.memory.put(info, on_disk, epoch, view, value, size)
        elif view.as_ != "json":
            return value
        return views.hand_out(value, view.as_, size)

    # ---- writing

    def write(self, key: EntryKey, value: Any, source: Source, part_by: str | None, schema_version: int) -> Written:
        """Store a value on disk and in memory."""
        if not self._config.cache_enabled:
            return Written(False, "the setting cache_enabled is off", None, 0.0)
        return self._write(key, value, source, part_by, schema_version)[0]

    def _write(
        self, key: EntryKey, value: Any, source: Source, part_by: str | None, schema_version: int
    ) -> tuple[Written, EntryInfo, Content]:
        started = time.perf_counter()
        backend = frames.backend_of(value)
        content, encoded = self._encode(value, backend, part_by)
        info = new_info(key, encoded, backend, source, schema_version)
        epoch, on_disk, reason = 0, None, None
        try:
            epoch = self.database.changes()
            info = self._save(info, encoded)
            on_disk = info.generation
        except CacheVersionError:
            raise
        except CacheError as error:
            self.degrade("write", error)
            reason = error.message
            former = self._stored_info(key.text)
            on_disk = former.generation if former else None
        if self._config.memory_cache_enabled:
            self.memory.evict_parts(key.text)
            self.memory.put(info, on_disk, epoch, None, content, encoded.size_bytes)
        seconds = time.perf_counter() - started
        return Written(reason is None, reason, None if reason else info, seconds), info, content

    def _encode(self, value: Any, backend: Backend, part_by: str | None) -> tuple[Content, codec.Encoded]:
        level = self._config.cache_compression_level
        if backend == "json":
            text = jsonvalue.dump(value)
            encoded = codec.encode_json(text, level)
            return Content(None, text, encoded.lies), encoded
        table = codec.own(frames.to_table(value, backend))
        encoded = codec.encode_table(table, level, part_by)
        return Content(table, b"", encoded.lies), encoded

    def _save(self, info: EntryInfo, encoded: codec.Encoded) -> EntryInfo:
        try:
            return self.store.save(info, encoded)
        except CacheError as error:
            if error.details.get("cause") != "damaged":
                raise
            self.database.heal()
            return self.store.save(info, encoded)

    # ---- read-through

    def read_through(
        self,
        key: EntryKey,
        fetch: Callable[[EntryInfo | None], Fresh],
        view: View,
        part_by: str | None,
        schema_version: int,
        max_age: timedelta | None,
    ) -> Hit:
        """Return the stored value if it is young enough, else fetch it once for all who wait for it."""
        if not self._config.cache_enabled:
            value = fetch(None).value
            backend = frames.backend_of(value)
            content, encoded = self._encode(value, backend, part_by)
            info = new_info(key, encoded, backend, Source(), schema_version)
            return Hit(self._view_of(info, content, view), "cdn", None)
        started = time.perf_counter()
        try:
            hit = self._find(key.text, view, schema_version)
        except DataNotFoundError:
            stored = self._stored_info(key.text)
            if stored is None or is_young(stored, max_age):
                raise
            hit = None  # the part may be there by now
        if hit and is_young(hit.info, max_age):
            self._count(key, hit, started)
            return hit
        # Twice: what is stored may be removed, or turn out unreadable, just after it was found current.
        for trust_stored in (True, False):
            try:
                info, content = self._flights.run(
                    key.text,
                    lambda trust=trust_stored: self._bring(key, fetch, part_by, schema_version, max_age, trust),
                )
            except NetworkError as error:
                if hit is None:  # else the disk does not have it, but memory has
                    raise
                _warn_stale(key, max_age, error)
                return hit
            if content is not None:
                self._count(key, None, started)
                return Hit(self._view_of(info, content, view), "cdn", info)
            hit = self._find(key.text, view, schema_version)
            if hit:
                self._count(key, hit, started)
                return hit
        raise CacheError(f"{key} was said to be stored but cannot be read: see the log, or run verify", key=key.text)

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
            info = self._stored_info(key.text) if trust_stored else None
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
            except NetworkError as error:
                if info is None:
                    raise
                _warn_stale(key, max_age, error)
                return info, None
            if fresh.not_modified:
                return self._touch(key, info, fresh.source), None
            return self._write(key, fresh.value, fresh.source, part_by, schema_version)[1:]
        finally:
            release()

    def _touch(self, key: EntryKey, info: EntryInfo | None, source: Source) -> EntryInfo | None:
        if info is None:
            raise CacheError(
                f"the fetch of {key} answered 'not modified', but nothing is stored to compare with", key=key.text
            )
        try:
            return self.store.touch(key.text, info.generation, source)
        except CacheVersionError:
            raise
        except CacheError as error:
            self.degrade("touch", error)
            return info

    def _lease(self, key: str, is_done: Callable[[], bool]) -> Callable[[], None]:
        try:
            return self._leases.acquire(key, is_done)
        except CacheVersionError:
            raise
        except CacheError as error:  # two processes fetch the same: a waste, not a fault
            self.degrade("lease", error)
            return lambda: None

    def _view_of(self, info: EntryInfo, content: Content, view: View) -> Any:
        view.check(info)
        value = views.convert(content.select(view), view)
        return jsonvalue.load(value) if view.as_ == "json" else value

    def _stored_info(self, key: str) -> EntryInfo | None:
        try:
            return self.store.info(key)
        except CacheVersionError:
            raise
        except CacheError as error:
            self.degrade("read", error)
            return None

    # ---- everything else

    def info(self, key: EntryKey | str) -> EntryInfo | None:
        """Return an entry's metadata; None where the disk tier fails."""
        return self._stored_info(str(key))

    def close(self) -> None:
        """Write down what is pending and close the file."""
        self.usage.close()
        self.memory.clear()
        self.database.close()

    # ---- trouble

    def degrade(self, doing: str, error: CacheError) -> None:
        """Count a failure of the disk tier, and log the first one of each cause."""
        cause = f"{doing}: {error.details.get('cause', type(error).__name__)}"
        with self._lock:
            self.degraded[cause] += 1
            first = self.degraded[cause] == 1
        if first:
            _log.warning("the disk cache is skipped (further failures of this kind are counted only): %s", error)

    def _remove_corrupt(self, key: str, info: EntryInfo | None, error: CacheError) -> None:
        with self._lock:
            self.degraded["read: corrupt entry"] += 1
        _log.warning("the cache entry %s is corrupt and is removed, to be fetched again: %s", key, error)
        try:
            self.store.remove(key, info.generation if info else None)
        except CacheError as failure:
            if failure.details.get("cause") == "damaged":
                self.database.heal()
            else:
                self.degrade("remove", failure)

    def _note_set_aside(self, path: Path, kept: Path) -> None:
        with self._lock:
            self.degraded["damaged file set aside"] += 1
        _log.error("the cache file %s is damaged; it is kept as %s and a new one is started", path, kept)


def _warn_stale(key: EntryKey, max_age: timedelta | None, error: NetworkError) -> None:
    _log.warning("%s is older than %s and could not be refreshed, serving it as it is: %s", key, max_age, error)


def is_compatible(info: EntryInfo, schema_version: int | None) -> bool:
    """Tell whether this version of the package may read the entry."""
    return (
        info.format_version == codec.FORMAT_VERSION
        and info.library_version.split(".")[0] == __version__.split(".")[0]
        and (schema_version is None or info.schema_version == schema_version)
    )


def is_young(info: EntryInfo | None, max_age: timedelta | None) -> bool:
    """Tell whether an entry has not expired; one that is in memory alone has no known age."""
    return max_age is None or (info is not None and datetime.now(UTC) - info.created_at <= max_age)


def _after_fork() -> None:
    for tiered in list(_instances):
        tiered.forget_inherited()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
