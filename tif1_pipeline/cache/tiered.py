"""Memory over disk over a fetch: where an entry is looked for, and what happens when a tier fails."""

import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tif1_pipeline import __version__
from tif1_pipeline.cache import audit, codec, frames, jsonvalue, metrics, spare, views
from tif1_pipeline.cache.base import Backend, EntryInfo, Hit, Observer, Source, Written
from tif1_pipeline.cache.decoding import Decoding
from tif1_pipeline.cache.files import File
from tif1_pipeline.cache.forking import gate
from tif1_pipeline.cache.memory import Entry, Memory
from tif1_pipeline.cache.shard import Shard
from tif1_pipeline.cache.shards import Shards
from tif1_pipeline.cache.store import new_info
from tif1_pipeline.cache.views import Content, View
from tif1_pipeline.config import Config
from tif1_pipeline.exceptions import (
    CacheError,
    CacheReadOnlyError,
    CacheVersionError,
    CorruptEntryError,
    InvalidDataError,
)
from tif1_pipeline.keys import EntryKey

if TYPE_CHECKING:
    from tif1_pipeline.cache.early import EarlyParts

_log = logging.getLogger(__name__)
_trace = logging.getLogger("tif1_pipeline.cache.trace")

_UNREADABLE = (LookupError, TypeError, ValueError, AttributeError)
"""What pandas and Arrow raise for a sound table whose schema says what they do not understand."""

_instances: "weakref.WeakSet[Tiered]" = weakref.WeakSet()


class Tiered:
    """The tiers of one cache file.

    Args:
        config: Settings, read at each use.
        path: The file; ``config.cache_path`` by default.
    """

    def __init__(self, config: Config, path: Path | None = None) -> None:
        self.config = config
        self._shards = Shards(config, path, self._note_set_aside)
        self.memory = Memory(config)
        self.degraded: Counter[str] = Counter()
        self.observers: tuple[Observer, ...] = ()
        self._on_fork: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        _instances.add(self)

    def forget_inherited(self) -> None:
        """Start anew after a fork: locks may be held by threads, and connections be in use, that are not ours."""
        self._lock = threading.Lock()
        self._shards.forget_inherited()
        self.memory.forget_inherited()
        for forget in self._on_fork:
            forget()

    def release(self) -> None:
        """Close all connections, of which none is in use; the next use opens them again."""
        self._shards.release()

    def on_fork(self, forget: Callable[[], None]) -> None:
        """Have something called in a forked child."""
        self._on_fork.append(forget)

    @property
    def path(self) -> Path:
        """The file, the first one where there are several."""
        return self._shards.path

    def files(self) -> tuple[File, ...]:
        """Return the files that hold entries now; look again for each task, they change with the settings."""
        return self._shards.files()

    def shards(self) -> list[Shard]:
        """Return the shares over which the entries are spread."""
        return self._shards.all()

    def shard_of(self, key: str) -> Shard:
        """Return the share that an entry belongs to."""
        return self._shards.of(key)

    def file_of(self, key: str) -> File:
        """Return the file that an entry is written to now."""
        return self._shards.of(key).current

    def observe(self, observer: Observer) -> None:
        """Have a function called after each counted look-up."""
        with self._lock:
            self.observers = (*self.observers, observer)

    def unobserve(self, observer: Observer) -> None:
        """Call it no more."""
        with self._lock:
            self.observers = tuple(other for other in self.observers if other is not observer)

    # ---- reading

    def read(self, key: EntryKey | str, view: View, schema_version: int | None) -> Hit | None:
        """Look in memory, then on disk."""
        if not self.config.cache_enabled:
            return None
        started = time.perf_counter()
        hit = self.find(str(key), view, schema_version)
        self.count(key, hit, started)
        return hit

    def count(self, key: EntryKey | str, hit: Hit | None, started: float) -> None:
        """Count a look-up, and tell whoever wants to know of it."""
        text = str(key)
        info = hit.info if hit else None
        data_type = info.data_type if info else getattr(key, "data_type", "")
        seconds = time.perf_counter() - started
        self._shards.of(text).current.usage.record(text, data_type, hit is not None, seconds)
        tier = hit.tier if hit else None
        for observer in self.observers:
            observer(text, data_type, tier, seconds)
        if self.config.cache_audit_log is not None:
            audit.record(self.config, "read", text, tier=tier or "none")
        if self.config.cache_debug:
            _debug("read %s: %s, %.3f ms", text, tier or "not stored", 1000 * seconds)
        if self.config.cache_enable_metrics:
            metrics.start(self)

    def find(self, key: str, view: View, schema_version: int | None) -> Hit | None:
        """Look in memory, then on disk, without counting."""
        if not self.config.memory_cache_enabled:
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
            shard = self._shards.of(key)
            epoch = shard.changes()
            if not epoch or entry.epoch != epoch:  # 0: there is no file, or not any more
                current = shard.info(key)
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

        decoding: Decoding | None = None
        texts: list[codec.Blob] = []

        def use(found: EntryInfo, header: codec.Blob | None) -> Callable[[codec.Blob], None]:
            nonlocal decoding, texts
            if decoding is not None:  # of a file that was replaced meanwhile
                decoding.close()
            decoding, texts = None, []
            if header is None:
                return texts.append
            decoding = Decoding(found, header, view, check=self.config.cache_verify_checksum)
            return decoding.add

        try:
            shard = self._shards.of(key)
            epoch = shard.changes()
            if shard.load(key, select, use) is None or (decoding is None and not texts):
                return None
            selected: Any = self._decode_json(texts[0], info) if decoding is None else decoding.value()
            if view.parts == ():
                selected = selected.slice(0, 0)
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
        except _UNREADABLE as error:
            raise _unreadable(key, view, error) from error
        finally:
            if decoding is not None:
                decoding.close()
        assert info is not None  # noqa: S101 - load has called select
        try:
            size = decoding.nbytes if decoding is not None else None
            value = self._serve(info, info.generation, epoch, selected, view, size)
        except _UNREADABLE as error:
            raise _unreadable(key, view, error) from error
        if decoding is not None and view.as_ == "pandas" and view.parts != ():
            decoding.learn(value)
        return Hit(value, "disk", info)

    def _decode_json(self, blob: codec.Blob, info: EntryInfo | None) -> bytes:
        if self.config.cache_verify_checksum:
            codec.verify(blob)
        assert info is not None  # noqa: S101 - load has called select
        return codec.decode_json(blob, info.size_bytes)

    def _serve(
        self, info: EntryInfo, on_disk: str | None, epoch: int, selected: Any, view: View, size: int | None = None
    ) -> Any:
        """Convert what was selected, keep it in memory, and hand it out."""
        value = views.convert(selected, view)
        if size is None:
            size = views.size_of(selected)
        kept = None
        if self.config.memory_cache_enabled:
            kept = views.to_keep(selected, value, view)
            self.memory.put(info, on_disk, epoch, view, kept, size)
        if kept is not value and view.as_ != "json":
            return value  # nobody else has it
        return views.hand_out(value, view.as_, size)

    # ---- writing

    def write(self, key: EntryKey, value: Any, source: Source, part_by: str | None, schema_version: int) -> Written:
        """Store a value on disk and in memory."""
        if not self.config.cache_enabled:
            return Written(False, "the setting cache_enabled is off", None, 0.0)
        return self.store(key, value, source, part_by, schema_version)[0]

    def store(
        self,
        key: EntryKey,
        value: Any,
        source: Source,
        part_by: str | None,
        schema_version: int,
        *,
        is_ours: bool = False,
        early: "EarlyParts | None" = None,
    ) -> tuple[Written, EntryInfo, Content]:
        """Store a value as :meth:`write`; returns its metadata and content too, also where the disk refused it."""
        started = time.perf_counter()
        backend = frames.backend_of(value)
        content, encoded = self.encode(value, backend, part_by, is_ours=is_ours, early=early)
        info = new_info(key, encoded, backend, source, schema_version)
        epoch, on_disk, reason = 0, None, None
        try:
            if self.config.cache_readonly:
                raise CacheReadOnlyError("the setting cache_readonly is on", cause="read-only")
            epoch, info = self._save(info, encoded)
            on_disk = info.generation
        except CacheVersionError:
            raise
        except CacheError as error:
            if not self.config.cache_readonly:  # asked for, no trouble
                self.degrade("write", error)
            reason = error.message
            former = self.info(key.text)
            on_disk = former.generation if former else None
        if self.config.memory_cache_enabled:
            self.memory.evict_parts(key.text)
            self.memory.put(info, on_disk, epoch, None, content, encoded.size_bytes)
        seconds = time.perf_counter() - started
        self._note_write(info, reason, seconds)
        return Written(reason is None, reason, None if reason else info, seconds), info, content

    def _note_write(self, info: EntryInfo, reason: str | None, seconds: float) -> None:
        config = self.config
        if config.cache_audit_log is not None:
            audit.record(config, "write", info.key, stored=reason is None, bytes=info.compressed_size)
        if config.cache_debug:
            how = f"{info.compressed_size:,} bytes" if reason is None else f"not stored: {reason}"
            _debug("write %s: %s, %.3f ms", info.key, how, 1000 * seconds)
        if config.cache_auto_cleanup and reason is None:
            from tif1_pipeline.cache import cleanup

            cleanup.after_write(self, info.compressed_size)

    def encode(
        self,
        value: Any,
        backend: Backend,
        part_by: str | None,
        *,
        is_ours: bool,
        early: "EarlyParts | None" = None,
    ) -> tuple[Content, codec.Encoded]:
        """Return a value in memory of its own, which that of a value that is ours is already, and as stored bytes."""
        level = self.config.cache_compression_level
        if backend == "json":
            text = jsonvalue.dump(value)
            encoded = codec.encode_json(text, level)
            return Content(None, text, encoded.lies), encoded
        table = frames.to_table(value, backend)
        table = table.unify_dictionaries() if is_ours else codec.own(table)
        encoded = codec.encode_table(table, level, part_by, early)
        return Content(table, b"", encoded.lies), encoded

    def _save(self, info: EntryInfo, encoded: codec.Encoded) -> tuple[int, EntryInfo]:
        shard = self._shards.of(info.key)
        try:
            return shard.changes(), shard.save(info, encoded)
        except CacheError as error:
            if error.details.get("cause") != "damaged":
                raise
            shard.heal(error)
            return shard.changes(), shard.save(info, encoded)

    def info(self, key: EntryKey | str) -> EntryInfo | None:
        """Return an entry's metadata; None where the disk tier fails."""
        key = str(key)
        try:
            return self._shards.of(key).info(key)
        except CacheVersionError:
            raise
        except CacheError as error:
            self.degrade("read", error)
            return None

    # ---- everything else

    def outdate(self, key: str) -> int:
        """Mark an entry and those that hold a part of it alone as out of date; returns the number marked."""
        return self._shards.of(key).outdate(key)

    def remove(self, key: str) -> int:
        """Remove an entry and those that hold a part of it alone, from both tiers; returns the number removed."""
        self.memory.evict(key)
        self.memory.evict_parts(key)
        return self._shards.of(key).remove(key)

    def flush(self) -> bool:
        """Write access counts down; False if a file is locked or cannot be used."""
        try:
            return not [file for file in self.files() if not file.usage.flush()]
        except CacheError:
            return False

    def open(self) -> None:
        """Create or open the files."""
        for shard in self._shards.all():
            shard.open()

    def failover_reasons(self) -> list[str]:
        """Return why files of ``cache_dir`` are not in use, for each for which another stands in."""
        return [shard.failure for shard in self._shards.all() if shard.failure is not None]

    def close(self) -> None:
        """Write down what is pending and close the file."""
        self.memory.clear()
        spare.forget()
        metrics.stop(self)
        self._shards.close()
        with self._lock:  # what is opened again is judged, and spoken about, anew
            self.degraded.clear()

    # ---- trouble

    def degrade(self, doing: str, error: CacheError) -> None:
        """Count a failure of the disk tier, and log the first one of each cause."""
        cause = f"{doing}: {error.details.get('cause', type(error).__name__)}"
        with self._lock:
            self.degraded[cause] += 1
            first = self.degraded[cause] == 1
        if first:
            _log.warning("the disk cache is skipped (further failures of this kind are counted only): %s", error)

    def note_corrupt(self, count: int = 1) -> None:
        """Count corrupt entries that were found."""
        with self._lock:
            self.degraded["read: corrupt entry"] += count

    def _remove_corrupt(self, key: str, info: EntryInfo | None, error: CacheError) -> None:
        self.note_corrupt()
        if self.config.cache_readonly:
            _log.warning("the cache entry %s is corrupt; the cache is read-only, so it stays: %s", key, error)
            return
        _log.warning("the cache entry %s is corrupt and is removed, to be fetched again: %s", key, error)
        try:
            self._shards.of(key).remove(key, info.generation if info else None)
            audit.record(self.config, "remove", key, reason="corrupt")
        except CacheError as failure:
            if failure.details.get("cause") == "damaged":
                self._shards.of(key).heal(failure)
            else:
                self.degrade("remove", failure)

    def _note_set_aside(self, path: Path, kept: Path) -> None:
        with self._lock:
            self.degraded["damaged file set aside"] += 1
        _log.error("the cache file %s is damaged; it is kept as %s and a new one is started", path, kept)
        audit.record(self.config, "set aside", path=str(path), kept=str(kept))


def _unreadable(key: str, view: View, error: Exception) -> InvalidDataError:
    # Not corrupt, so that it stays: another version of pandas may have stored it.
    return InvalidDataError(
        f"{key} cannot be read as {view.as_!r} ({type(error).__name__}: {error}): read it as 'arrow', or remove it",
        key=key,
    )


def _debug(message: str, *arguments: object) -> None:
    """Log what was asked for by ``cache_debug``, also where nobody has set logging up."""
    _trace.setLevel(logging.DEBUG)
    if not _trace.hasHandlers():
        _trace.addHandler(logging.StreamHandler())
    _trace.debug(message, *arguments)


def is_compatible(info: EntryInfo, schema_version: int | None) -> bool:
    """Tell whether this version of the package may read the entry."""
    return (
        info.format_version == codec.FORMAT_VERSION
        and info.library_version.split(".")[0] == __version__.split(".")[0]
        and (schema_version is None or info.schema_version == schema_version)
    )


def _before_fork() -> None:
    if gate.shut():
        for tiered in list(_instances):
            tiered.release()


def _after_fork() -> None:
    gate.renew()
    for tiered in list(_instances):
        tiered.forget_inherited()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_before_fork, after_in_parent=gate.open, after_in_child=_after_fork)
