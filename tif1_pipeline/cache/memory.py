"""The memory tier: ready values of one process, least recently used first out, limited by items, types and bytes."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.config import MIB, Config


@dataclass(slots=True)
class Entry:
    """One entry's values: one for each way it was asked for (the views), all of one generation.

    Attributes:
        info: Metadata.
        on_disk: Generation that the disk tier held when this one was put here: this one, or another if the disk tier
            refused the write; the entry is dropped when the disk tier gets a newer one.
        epoch: ``Database.changes()`` when the entry was last known to be current.
        views: Value and size by view, least recently used first.
    """

    info: EntryInfo
    on_disk: str | None
    epoch: int
    views: OrderedDict[Any, tuple[Any, int]] = field(default_factory=OrderedDict)
    size: int = 0


class Memory:
    """Least-recently-used values. Thread-safe; knows nothing of what the values are."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._types: Counter[str] = Counter()
        self._size = 0
        self.hits = self.misses = self.evictions = 0

    def get(self, key: str) -> Entry | None:
        """Return an entry and make it the most recently used."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def view(self, entry: Entry, view: Any) -> tuple[Any, int] | None:
        """Return one of an entry's values with its size, and make it the most recently used."""
        with self._lock:
            held = entry.views.get(view)
            if held is not None:
                entry.views.move_to_end(view)
            return held

    def put(self, info: EntryInfo, on_disk: str | None, epoch: int, view: Any, value: Any, size: int) -> None:
        """Keep a value; values of another generation of the entry are dropped."""
        with self._lock:
            entry = self._entries.get(info.key)
            if entry is None or entry.info.generation != info.generation:
                self._drop(info.key)
                entry = self._entries[info.key] = Entry(info, on_disk, epoch)
                self._types[info.data_type] += 1
            # The older of two epochs: whoever saw less must be checked again.
            entry.epoch = min(entry.epoch, epoch)
            self._forget_view(entry, view)
            entry.views[view] = (value, size)
            entry.size += size
            self._size += size
            self._entries.move_to_end(info.key)
            self._shrink(entry)

    def confirm(self, entry: Entry, info: EntryInfo | None, epoch: int) -> None:
        """Note that an entry was found current, and its metadata where the disk tier has them."""
        with self._lock:
            entry.epoch = epoch
            if info is not None and info.generation == entry.info.generation:
                entry.info = info

    def evict(self, key: str) -> bool:
        """Drop an entry; tells whether it was there."""
        with self._lock:
            return self._drop(key)

    def evict_parts(self, key: str) -> None:
        """Drop the entries that hold a part of this one alone."""
        with self._lock:
            for name in [name for name in self._entries if name.startswith(f"{key}/")]:
                self._drop(name)

    def evict_where(self, condition: Callable[[EntryInfo], bool]) -> None:
        """Drop the entries that a condition holds for."""
        with self._lock:
            for name in [name for name, entry in self._entries.items() if condition(entry.info)]:
                self._drop(name)

    def evict_unsaved(self) -> None:
        """Drop the entries that the disk tier refused."""
        with self._lock:
            for name in [name for name, entry in self._entries.items() if entry.on_disk != entry.info.generation]:
                self._drop(name)

    def clear(self) -> int:
        """Drop everything; returns the number of entries."""
        with self._lock:
            number = len(self._entries)
            self._entries.clear()
            self._types.clear()
            self._size = 0
            return number

    def forget_inherited(self) -> None:
        """Start empty after a fork, which may have happened in the middle of a change by another thread."""
        self._lock = threading.Lock()
        self._entries.clear()
        self._types.clear()
        self._size = 0

    def count(self, hit: bool) -> None:
        """Count a look-up."""
        with self._lock:
            if hit:
                self.hits += 1
            else:
                self.misses += 1

    def stats(self) -> dict[str, Any]:
        """Return what ``get_memory_stats`` promises."""
        with self._lock:
            asked = self.hits + self.misses
            return {
                "items": len(self._entries),
                "size_mb": self._size / MIB,
                "hit_rate": self.hits / asked if asked else 0.0,
                "evictions": self.evictions,
                "hits": self.hits,
                "misses": self.misses,
            }

    # ---- with the lock held

    def _shrink(self, newest: Entry) -> None:
        limit = getattr(self._config, f"memory_cache_{newest.info.data_type}_size", None)
        while limit is not None and self._types[newest.info.data_type] > limit:
            self._evict(
                next(key for key, entry in self._entries.items() if entry.info.data_type == newest.info.data_type)
            )
        while len(self._entries) > self._config.memory_cache_size:
            self._evict(next(iter(self._entries)))
        limit = self._config.memory_cache_max_mb * MIB
        while self._size > limit and len(self._entries) > 1:
            self._evict(next(iter(self._entries)))
        # One entry alone is too large: its own least recently used views go, at last the new one itself.
        while self._size > limit and newest.views:
            self._forget_view(newest, next(iter(newest.views)))
        if not newest.views:
            self._evict(next(reversed(self._entries)))

    def _evict(self, key: str) -> None:
        self._drop(key)
        self.evictions += 1

    def _drop(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._size -= entry.size
        self._types[entry.info.data_type] -= 1
        entry.views.clear()
        return True

    def _forget_view(self, entry: Entry, view: Any) -> None:
        _, size = entry.views.pop(view, (None, 0))
        entry.size -= size
        self._size -= size
