"""The public face of the cache: one line per call."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tif1_pipeline.cache.base import Backend, EntryInfo, Fresh, Hit, Source, Written
from tif1_pipeline.cache.names import Resolve, stored_key, unresolved
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.cache.views import View
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey

if TYPE_CHECKING:
    from tif1_pipeline.cache.manage import Management


class Cache:
    """Tables and JSON values in memory and in one SQLite file, shared by threads and processes.

    Settings are read at use: a change takes effect with the next call, another ``cache_dir`` with another file too.

    Args:
        config: Settings.
        path: A fixed file instead of ``config.cache_path``.
        resolve: Turns any spelling of a session into its key; by default names are taken as they are given.
    """

    def __init__(self, config: Config, *, path: Path | None = None, resolve: Resolve | None = None) -> None:
        self._tiered = Tiered(config, path)
        self._resolve = resolve or unresolved

    @cached_property
    def _manage(self) -> "Management":
        from tif1_pipeline.cache.manage import Management

        return Management(self._tiered)

    # ---- values

    def read(
        self,
        key: EntryKey | str,
        as_: Backend = "arrow",
        *,
        columns: Sequence[str] | None = None,
        parts: Sequence[str] | None = None,
        schema_version: int | None = None,
    ) -> Hit | None:
        """Look an entry up.

        Args:
            key: Which one.
            as_: As what to return it.
            columns: Read these columns alone, in this order.
            parts: Read these parts alone, in this order.
            schema_version: An entry of another one is a miss.

        Returns:
            Value, tier and metadata; None for a miss.

        Raises:
            CacheVersionError: The file is no cache, or of another layout.
            InvalidDataError: The table lacks a column, or the entry is of another kind than asked for.
            DataNotFoundError: The entry lacks a part.
        """
        return self._tiered.read(stored_key(key, self._resolve), View.of(as_, columns, parts), schema_version)

    def write(
        self,
        key: EntryKey,
        value: Any,
        *,
        source: Source = Source(),  # noqa: B008 - immutable
        part_by: str | None = None,
        schema_version: int = 0,
    ) -> Written:
        """Store a pandas or polars frame, an Arrow table or a JSON value, replacing the entry whole.

        Args:
            key: Under which key; entries that hold a part of it alone are removed.
            value: What to store.
            source: Where it came from.
            part_by: Column whose values become parts that can be read alone.
            schema_version: Of the dataset.

        Returns:
            What became of it: a disk tier that fails is no error.

        Raises:
            CacheVersionError: The file is no cache, or of another layout.
            InvalidDataError: The value would come back changed.
        """
        return self._tiered.write(key, value, source, part_by, schema_version)

    def read_through(
        self,
        key: EntryKey,
        fetch: Callable[[EntryInfo | None], Fresh],
        as_: Backend = "arrow",
        *,
        columns: Sequence[str] | None = None,
        parts: Sequence[str] | None = None,
        part_by: str | None = None,
        schema_version: int = 0,
        max_age: timedelta | None = None,
    ) -> Hit:
        """Look an entry up; if it is missing or too old, fetch it once for all threads and processes that want it.

        Args:
            key: Which one.
            fetch: Gets the metadata of what is stored, for a conditional request, or None; returns the new value.
            as_: As what to return it.
            columns: Return these columns alone.
            parts: Return these parts alone.
            part_by: Column by which to split a fetched table.
            schema_version: Of the dataset; an entry of another one is a miss.
            max_age: An older entry is fetched again; served all the same if the network fails.

        Raises:
            CacheVersionError: The file is no cache, or of another layout.
            Tif1Error: Whatever ``fetch`` raises.
        """
        return self._tiered.read_through(key, fetch, View.of(as_, columns, parts), part_by, schema_version, max_age)

    def info(self, key: EntryKey | str) -> EntryInfo | None:
        """Return an entry's metadata, as it is on disk."""
        return self._tiered.info(stored_key(key, self._resolve))

    def remove(self, key: EntryKey | str) -> int:
        """Remove an entry; returns the number removed."""
        return self._manage.remove(stored_key(key, self._resolve))

    def clear(self) -> int:
        """Remove all entries; returns their number."""
        return self._manage.clear()

    # ---- memory

    def get_memory_stats(self) -> dict[str, Any]:
        """Return items, size_mb, hit_rate, evictions, hits and misses of this process's memory tier."""
        return self._tiered.memory.stats()

    def clear_memory(self) -> int:
        """Drop what this process keeps in memory; returns the number of entries dropped."""
        return self._tiered.memory.clear()

    def evict_memory(self, key: EntryKey | str) -> int:
        """Drop one entry from memory; returns the number dropped."""
        return int(self._tiered.memory.evict(str(stored_key(key, self._resolve))))

    # ---- inspection

    def exists(self, year: int, event: str, session_type: str, data_type: str | None = None) -> bool:
        """Tell whether anything of a session, or its table of one type, is stored."""
        return self._manage.exists(self._resolve(year, event, session_type), data_type)

    def get_metadata(self, year: int, event: str, session_type: str, data_type: str) -> dict[str, Any] | None:
        """Return the metadata of one table of a session."""
        return self._manage.metadata(self._resolve(year, event, session_type).entry(data_type))

    def list_sessions(self, sort_by: str = "accessed_at", limit: int | None = None) -> list[dict[str, Any]]:
        """Return the stored sessions with sizes, times, accesses and types; largest or latest first."""
        return self._manage.sessions(sort_by, limit)

    def get_stats(self) -> dict[str, Any]:
        """Return sums over the entries, and hit rates and times over all processes."""
        return self._manage.stats()

    def get_degraded(self) -> dict[str, int]:
        """Return how often the disk tier was skipped in this process, by cause."""
        return dict(self._tiered.degraded)

    def get_cache_dir(self) -> Path:
        """Return the folder of the cache file."""
        return self._tiered.database.path.parent

    def get_cache_file(self) -> Path:
        """Return the cache file."""
        return self._tiered.database.path

    # ---- the file

    def open(self) -> None:
        """Create or open the file.

        Raises:
            CacheError: It cannot be used; CacheVersionError if it is no cache, or of another layout.
        """
        self._tiered.database.open()

    def flush(self) -> bool:
        """Write access counts down now; False if the file is locked, then they are written later."""
        return self._tiered.usage.flush()

    def close(self) -> None:
        """Write access counts down, drop memory, and close the file; the next call opens it again."""
        self._tiered.close()
