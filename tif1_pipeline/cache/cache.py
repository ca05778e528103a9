"""The public face of the cache: every call, each of one line.

It is long because it is complete: what users can ask of a cache is here on one page, with its contract; how it is done
is in the modules beside it. Sizes in MB are MiB. Times are aware datetimes in UTC.
"""

from collections.abc import Callable, Coroutine, Sequence
from copy import copy
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tif1_pipeline.cache.audit import audited
from tif1_pipeline.cache.base import Backend, EntryInfo, Fresh, Hit, Observer, Source, Written
from tif1_pipeline.cache.names import Resolve, stored_key, unresolved
from tif1_pipeline.cache.through import ReadThrough
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.cache.views import View
from tif1_pipeline.cache.warmer import Warmer, in_thread, no_warmer
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey

if TYPE_CHECKING:
    from tif1_pipeline.cache.health import CacheHealth
    from tif1_pipeline.cache.stock import Cleaned


class Cache:
    """Tables and JSON values in memory and in one SQLite file, shared by threads and processes.

    Settings are read at use: a change takes effect with the next call, another ``cache_dir`` with another file too.

    Args:
        config: Settings.
        path: A fixed file instead of ``config.cache_path``.
        resolve: Turns any spelling of a session into its key; by default names are taken as they are given.
        warmer: Fetches what warming asks for; without one, nothing can be warmed.
    """

    def __init__(
        self,
        config: Config,
        *,
        path: Path | None = None,
        resolve: Resolve | None = None,
        warmer: Callable[[], Warmer] | None = None,
    ) -> None:
        self._tiered = Tiered(config, path)
        self._through = ReadThrough(self._tiered)
        self._resolve = resolve or unresolved
        self._warmer = warmer or no_warmer

    @property
    def _do(self):
        # Inspection and maintenance need SQLAlchemy, whose import a process that only reads must not pay.
        from tif1_pipeline.cache import manage

        return manage

    def _in_thread(self, call: Callable[..., dict[str, Any]], *arguments: Any, **options: Any) -> Any:
        warmer = self._warmer()
        bound = copy(self)
        bound._warmer = lambda: warmer
        return in_thread(warmer, partial(call, bound, *arguments, **options))

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
            What became of it; a disk tier that fails is no error.

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
        return self._through.read(key, fetch, View.of(as_, columns, parts), part_by, schema_version, max_age)

    def info(self, key: EntryKey | str) -> EntryInfo | None:
        """Return an entry's metadata, as it is on disk."""
        return self._tiered.info(stored_key(key, self._resolve))

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

    # ---- statistics

    def get_stats(self) -> dict[str, Any]:
        """Return sums over the entries, and hit rates and times over all processes.

        Returns:
            total_entries, total_size_mb, compressed_size_mb, compression_ratio, space_saved_mb, space_saved_pct,
            hit_rate, miss_rate, total_hits, total_misses, avg_access_ms, memory_entries, memory_size_mb,
            memory_hit_rate; rates from 0 to 1.
        """
        return self._do.stats.stats(self._tiered)

    def get_stats_by_type(self) -> dict[str, dict[str, Any]]:
        """Return count, size_mb, avg_size_mb, hit_rate and avg_access_ms by data type."""
        return self._do.stats.by_type(self._tiered)

    def get_stats_by_year(self) -> dict[int, dict[str, Any]]:
        """Return session_count, size_mb and most_accessed_event (None before the first access) by season."""
        return self._do.stats.by_year(self._tiered)

    def get_access_stats(self) -> list[dict[str, Any]]:
        """Return year, event, session_type and access_count of each session, most used first."""
        return self._do.stats.accesses(self._tiered)

    def get_degraded(self) -> dict[str, int]:
        """Return how often this process skipped the disk tier since it opened the cache, by cause."""
        return dict(self._tiered.degraded)

    # ---- sizes

    def get_size_info(self) -> dict[str, Any]:
        """Return the sizes of what is stored.

        Returns:
            total_entries, uncompressed_mb, compressed_mb, disk_mb (of the files, free pages and log included),
            compression_ratio, space_saved_mb, space_saved_pct.
        """
        return self._do.sizes.info(self._tiered)

    def get_size_mb(self) -> float:
        """Return the size of the cache's files on disk."""
        return self._do.sizes.on_disk(self._tiered)

    def get_size_by_type(self) -> dict[str, float]:
        """Return the stored (compressed) size by data type."""
        return self._do.sizes.by_type(self._tiered)

    def get_size_by_year(self) -> dict[int, float]:
        """Return the stored (compressed) size by season; entries of no season are left out."""
        return self._do.sizes.by_year(self._tiered)

    def get_cache_dir(self) -> Path:
        """Return the folder of the cache file."""
        return self._tiered.path.parent

    def get_cache_file(self) -> Path:
        """Return the cache file; the first one, if the cache has shards."""
        return self._tiered.path

    def check_health(self) -> "CacheHealth":
        """Return ``"healthy"``, or ``"failover"`` with reasons while a cache file cannot be used."""
        return self._do.health.health(self._tiered)

    def observe(self, observer: Observer) -> None:
        """Have a function called after each look-up: with key, data type, tier (None for a miss) and seconds."""
        self._tiered.observe(observer)

    def unobserve(self, observer: Observer) -> None:
        """End what :meth:`observe` began."""
        self._tiered.unobserve(observer)

    # ---- inspection

    def list_sessions(self, sort_by: str = "accessed_at", limit: int | None = None) -> list[dict[str, Any]]:
        """Return the stored sessions: texts sorted alphabetically, everything else largest or latest first.

        Args:
            sort_by: One of year, event, session_type, size_mb, compressed_mb, created_at, accessed_at, access_count,
                data_types, which are the keys of each session.
            limit: Return so many at most.

        Raises:
            InvalidDataError: ``sort_by`` is none of these.
        """
        return self._do.entries.list_sessions(self._tiered, sort_by, limit)

    def get_largest(self, limit: int = 10) -> list[dict[str, Any]]:
        """Return the entries with the largest stored size.

        Returns:
            As all calls that list entries, a dict for each with key, size_mb (in memory), compressed_mb (stored),
            compression_ratio, accessed_at, created_at, access_count, age_days, data_type, year, event, session_type.
        """
        return self._do.entries.largest(self._tiered, limit)

    def get_lru(self, limit: int = 10) -> list[dict[str, Any]]:
        """Return the entries that were not used for longest."""
        return self._do.entries.lru(self._tiered, limit)

    def get_by_type(self, data_type: str) -> list[dict[str, Any]]:
        """Return the entries of a data type."""
        return self._do.entries.select(self._tiered, data_type=data_type)

    def get_by_size(self, min_size_mb: float = 1.0) -> list[dict[str, Any]]:
        """Return the entries of at least a stored size, largest first."""
        return self._do.entries.by_size(self._tiered, min_size_mb)

    def get_old_entries(self, days: float) -> list[dict[str, Any]]:
        """Return the entries stored more than so many days ago, oldest first."""
        return self._do.entries.old(self._tiered, days)

    def get_entries(
        self,
        *,
        max_age_days: float | None = None,
        min_age_days: float | None = None,
        max_access_count: int | None = None,
        min_size_mb: float | None = None,
        data_type: str | None = None,
        year: int | None = None,
    ) -> list[dict[str, Any]]:
        """Return the entries that all given conditions hold for, by key."""
        return self._do.entries.select(
            self._tiered,
            max_age_days=max_age_days,
            min_age_days=min_age_days,
            max_access_count=max_access_count,
            min_size_mb=min_size_mb,
            data_type=data_type,
            year=year,
        )

    def search(self, pattern: str) -> list[dict[str, Any]]:
        """Return the entries whose key matches a glob (``*``, ``?``, ``[abc]``), in any case, by key."""
        return self._do.entries.search(self._tiered, pattern)

    def exists(self, year: int, event: str, session_type: str, data_type: str | None = None) -> bool:
        """Tell whether anything of a session, or its table of one type, is stored."""
        return self._do.entries.exists(self._tiered, self._resolve(year, event, session_type), data_type)

    def get_metadata(self, year: int, event: str, session_type: str, data_type: str) -> dict[str, Any] | None:
        """Return everything known of one table of a session; None if it is not stored."""
        return self._do.entries.metadata(self._tiered, self._resolve(year, event, session_type).entry(data_type))

    # ---- clearing: what is named is removed; by age, size and use, only what is not pinned

    @audited
    def clear(self) -> int:
        """Remove all entries; returns their number."""
        return self._do.clearing.everything(self._tiered)

    @audited
    def clear_session(self, year: int, event: str, session_type: str) -> int:
        """Remove the tables of a session; returns the number of entries removed, as the following calls do."""
        return self._do.clearing.session(self._tiered, self._resolve(year, event, session_type))

    @audited
    def clear_event(self, year: int, event: str) -> int:
        """Remove the tables of an event's sessions."""
        return self._do.clearing.event(self._tiered, self._resolve(year, event, None))

    @audited
    def clear_year(self, year: int) -> int:
        """Remove the tables of a season, its calendar too."""
        return self._do.clearing.year(self._tiered, year)

    @audited
    def clear_type(self, data_type: str) -> int:
        """Remove the entries of a data type."""
        return self._do.clearing.data_type(self._tiered, data_type)

    @audited
    def clear_old(self, days: float) -> int:
        """Remove the entries stored more than so many days ago."""
        return self._do.clearing.old(self._tiered, days)

    @audited
    def clear_largest(self, count: int) -> float:
        """Remove the entries with the largest stored size; returns the MiB freed."""
        return self._do.clearing.largest(self._tiered, count)

    @audited
    def clear_lru(self, count: int) -> int:
        """Remove the entries that were not used for longest."""
        return self._do.clearing.lru(self._tiered, count)

    @audited
    def clear_pattern(self, pattern: str) -> int:
        """Remove the entries whose key matches a glob, as in :meth:`search`."""
        return self._do.clearing.pattern(self._tiered, pattern)

    @audited
    def clear_low_access(self, min_access_count: int) -> int:
        """Remove the entries that were read less often than this."""
        return self._do.clearing.low_access(self._tiered, min_access_count)

    @audited
    def clear_expired(self) -> int:
        """Remove the entries that are older than the TTL of their type."""
        return self._do.clearing.expired(self._tiered)

    @audited
    def clear_corrupted(self) -> int:
        """Verify all entries and remove those that are corrupt or incomplete."""
        return self._do.clearing.corrupted(self._tiered)

    @audited
    def remove(self, key: EntryKey | str) -> int:
        """Remove one entry, and those that hold a part of it alone."""
        return self._do.clearing.remove(self._tiered, stored_key(key, self._resolve))

    # ---- cleanup

    @audited
    def smart_cleanup(
        self,
        *,
        max_age_days: float | None = None,
        min_access_count: int | None = None,
        max_size_mb: float | None = None,
        dry_run: bool = False,
    ) -> "Cleaned":
        """Remove what is worth least: corrupt, then old and seldom used, then large and old, then least recently used.

        Args:
            max_age_days: Remove what is older than this and used less than ``min_access_count``.
                ``cache_cleanup_min_age`` by default.
            min_access_count: ``cache_cleanup_min_access`` by default.
            max_size_mb: Go on until so much is stored; ``cache_cleanup_target_mb`` by default.
            dry_run: Remove nothing, and return what would go.

        Returns:
            The number removed, with ``removed`` (key and size of each) and ``bytes``. Pinned entries stay.
        """
        return self._do.cleanup.smart(self._tiered, max_age_days, min_access_count, max_size_mb, dry_run=dry_run)

    @audited
    def run_auto_cleanup(self, *, dry_run: bool = False) -> "Cleaned":
        """Clean as the settings say: nothing below the threshold, else down to the target by the strategy.

        Args:
            dry_run: Remove nothing, and return what would go.

        Returns:
            The number removed, with ``removed`` (key and size of each) and ``bytes``. Pinned entries stay.
        """
        return self._do.cleanup.run(self._tiered, dry_run=dry_run)

    # ---- invalidation

    @audited
    def invalidate_session(self, year: int, event: str, session_type: str) -> int:
        """Have a session's tables fetched anew at their next use; returns the number of entries dropped, as all do."""
        return self._do.clearing.session(self._tiered, self._resolve(year, event, session_type))

    @audited
    def invalidate_session_data(self, year: int, event: str, session_type: str, data_type: str) -> int:
        """Have one table of a session fetched anew at its next use."""
        return self._do.clearing.remove(self._tiered, self._resolve(year, event, session_type).entry(data_type))

    @audited
    def outdate(self, key: EntryKey | str) -> int:
        """Have an entry refreshed at its next use, and served as it is where that fails; returns the number marked."""
        return self._do.clearing.outdate(self._tiered, stored_key(key, self._resolve))

    @audited
    def invalidate_event(self, year: int, event: str) -> int:
        """Have the tables of an event's sessions fetched anew at their next use."""
        return self._do.clearing.event(self._tiered, self._resolve(year, event, None))

    @audited
    def invalidate_year(self, year: int) -> int:
        """Have the tables of a season, its calendar too, fetched anew at their next use."""
        return self._do.clearing.year(self._tiered, year)

    @audited
    def invalidate_pattern(self, pattern: str) -> int:
        """Drop the entries whose key matches a glob, as in :meth:`search`."""
        return self._do.clearing.pattern(self._tiered, pattern)

    @audited
    def invalidate_custom(self, predicate: Callable[[dict[str, Any]], bool]) -> int:
        """Drop the entries that a function of an entry, as :meth:`get_entries` lists it, is true for."""
        return self._do.clearing.custom(self._tiered, predicate)

    def get_expired_entries(self) -> list[dict[str, Any]]:
        """Return the entries that are older than the TTL of their type, oldest first."""
        return self._do.expiry.expired(self._tiered)

    def check_version_compatibility(self) -> bool:
        """Tell whether this version of the package can use every entry."""
        return self._do.versions.is_compatible(self._tiered)

    @audited
    def upgrade_version(self) -> int:
        """Remove the entries of former versions, which are never read again; returns their number."""
        return self._do.versions.upgrade(self._tiered)

    # ---- integrity

    @audited
    def verify_integrity(self) -> dict[str, Any]:
        """Check the database and every entry, with a progress bar on a terminal.

        Returns:
            total_entries, valid_entries, corrupted_entries, missing_entries (rows without blobs and blobs without
            rows), integrity_pct, corrupted_list of key and error.
        """
        return self._do.integrity.verify(self._tiered)

    def verify_entry(self, key: EntryKey | str) -> bool:
        """Tell whether an entry is there, whole and sound."""
        return self._do.integrity.verify_entry(self._tiered, stored_key(key, self._resolve))

    # ---- the files

    @audited
    def rebuild_indexes(self) -> None:
        """Build the database's indexes anew."""
        self._do.upkeep.rebuild_indexes(self._tiered)

    @audited
    def vacuum(self) -> float:
        """Give free pages back to the file system; returns the MiB freed.

        Raises:
            CacheError: The disk cannot hold the copy that this takes; nothing was done.
        """
        return self._do.upkeep.vacuum(self._tiered)

    @audited
    def optimize(self) -> None:
        """Refresh what SQLite knows of the tables for its plans."""
        self._do.upkeep.optimize(self._tiered)

    @audited
    def checkpoint(self) -> None:
        """Write the log back into the database, and empty it unless others read without a pause.

        Raises:
            CacheLockedError: Somebody has been reading an older state for ``cache_lock_timeout``.
        """
        self._do.upkeep.checkpoint(self._tiered)

    def open(self) -> None:
        """Create or open the files.

        Raises:
            CacheError: They cannot be used; CacheVersionError if they are no cache, or of another layout.
        """
        self._tiered.open()

    def flush(self) -> bool:
        """Write access counts down now; False if a file is locked, then they are written later."""
        return self._tiered.flush()

    def close(self) -> None:
        """Write access counts down, drop memory, and close the files; the next call opens them again."""
        self._tiered.close()

    @audited
    def rotate_key(self, *, decrypt: bool = False) -> int:
        """Encrypt every entry with the first of the keys in force, or decrypt them all; returns how many changed.

        Others may read and write meanwhile. When it was interrupted, running it again does the rest.

        Raises:
            CacheError: An entry needs a key that is not given.
        """
        return self._do.encryption.rotate(self._tiered, decrypt)

    # ---- backup

    @audited
    def backup(self, dir: str | Path | None = None, *, keep: int = 7) -> Path:
        """Store a consistent, compressed and verified copy of the cache, which may be in use.

        Args:
            dir: Where to; ``backups`` beside the cache file by default.
            keep: Backups in that folder to keep, the newest; older ones are removed once this one is complete.

        Returns:
            The backup, named by UTC time.

        Raises:
            CacheError: There is nothing to back up, or no room.
        """
        return self._do.backup.backup(self._tiered, dir, keep)

    @audited
    def restore(self, path: str | Path) -> None:
        """Replace what is stored by a backup: whole, or not at all.

        Raises:
            CacheError: The backup is damaged or no backup; CacheVersionError if it is of a newer version. The cache is
                as it was.
        """
        self._do.backup.restore(self._tiered, path)

    @audited
    def export(self, dir: str | Path) -> int:
        """Write every entry as a Parquet (or JSON) file, tables at ``{year}/{event}/{session}/{type}.parquet``.

        Files that a former export wrote there are removed if their entries are gone; files of others stay.

        Returns:
            The number of files written.
        """
        return self._do.export.export(self._tiered, dir)

    @audited
    def import_(self, dir: str | Path) -> int:
        """Read what :meth:`export` wrote, or files laid out like it, replacing entries of the same keys.

        An entry stored after its file's was stays as it is; files that no export has written always replace.

        Returns:
            The number of entries stored.

        Raises:
            InvalidDataError: A file cannot be read; it is named, the others are stored.
        """
        return self._do.export.import_(self._tiered, dir, self._resolve)

    # ---- warming: fetch what is missing or expired, several sessions at once

    def warm_season(
        self, year: int, *, data_types: Sequence[str] | None = None, max_workers: int = 4
    ) -> dict[str, Any]:
        """Warm the sessions of a season that have begun.

        Args:
            year: Season.
            data_types: Which tables; drivers, laps, weather and messages by default.
            max_workers: Sessions under way at once.

        Returns:
            As all warming calls, succeeded and skipped (tables fetched, and found stored and fresh), failed (a list of
            session, data_type and error), seconds, requests, bytes.
        """
        return self._warmer().season(year, data_types=data_types, max_workers=max_workers)

    def warm_event(
        self, year: int, event: Any, *, data_types: Sequence[str] | None = None, max_workers: int = 4
    ) -> dict[str, Any]:
        """Warm the sessions of an event that have begun."""
        return self._warmer().event(year, event, data_types=data_types, max_workers=max_workers)

    def warm_types(
        self, data_types: Sequence[str], year: int, event: Any = None, *, max_workers: int = 4
    ) -> dict[str, Any]:
        """Warm tables of some types, of a season or of one of its events."""
        return self._warmer().types(data_types, year, event, max_workers=max_workers)

    def warm_drivers(
        self,
        drivers: Sequence[str],
        year: int,
        event: Any,
        session_type: str | None = None,
        *,
        max_workers: int = 4,
    ) -> dict[str, Any]:
        """Warm the telemetry of some drivers alone, in one session or all sessions of an event."""
        return self._warmer().drivers(drivers, year, event, session_type, max_workers=max_workers)

    def warm_frequent(self, min_access_count: int = 5, *, max_workers: int = 4) -> dict[str, Any]:
        """Warm what is missing or expired of the sessions that were read at least so often."""
        return self._warmer().frequent(min_access_count, max_workers=max_workers)

    def warm_season_async(self, year: int, **options: Any) -> Coroutine[Any, Any, dict[str, Any]]:
        """Do as :meth:`warm_season` without blocking the event loop."""
        return self._in_thread(Cache.warm_season, year, **options)

    def warm_event_async(self, year: int, event: Any, **options: Any) -> Coroutine[Any, Any, dict[str, Any]]:
        """Do as :meth:`warm_event` without blocking the event loop."""
        return self._in_thread(Cache.warm_event, year, event, **options)

    def warm_types_async(
        self, data_types: Sequence[str], year: int, event: Any = None, **options: Any
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        """Do as :meth:`warm_types` without blocking the event loop."""
        return self._in_thread(Cache.warm_types, data_types, year, event, **options)

    def warm_drivers_async(
        self, drivers: Sequence[str], year: int, event: Any, session_type: str | None = None, **options: Any
    ) -> Coroutine[Any, Any, dict[str, Any]]:
        """Do as :meth:`warm_drivers` without blocking the event loop."""
        return self._in_thread(Cache.warm_drivers, drivers, year, event, session_type, **options)

    def warm_frequent_async(self, min_access_count: int = 5, **options: Any) -> Coroutine[Any, Any, dict[str, Any]]:
        """Do as :meth:`warm_frequent` without blocking the event loop."""
        return self._in_thread(Cache.warm_frequent, min_access_count, **options)
