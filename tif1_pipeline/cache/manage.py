"""Inspection and maintenance of a cache: everything that needs SQLAlchemy, which a read does not load."""

from typing import Any

from tif1_pipeline.cache import entries, stats
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.keys import EntryKey, SessionKey


class Management:
    """What can be asked of and done to the entries of one cache.

    Args:
        tiered: The cache.
    """

    def __init__(self, tiered: Tiered) -> None:
        self._tiered = tiered

    def exists(self, session: SessionKey, data_type: str | None) -> bool:
        """Tell whether something of a session is stored."""
        return entries.exists(self._tiered.database, session, data_type)

    def metadata(self, key: EntryKey) -> dict[str, Any] | None:
        """Return an entry's metadata as the inspection calls show it."""
        info = self._tiered.info(key)
        return entries.describe(info) if info else None

    def sessions(self, sort_by: str, limit: int | None) -> list[dict[str, Any]]:
        """Return the stored sessions."""
        self._tiered.usage.flush()
        return entries.list_sessions(self._tiered.database, sort_by, limit)

    def stats(self) -> dict[str, Any]:
        """Return the statistics of both tiers."""
        return stats.stats(self._tiered.database, self._tiered.usage, self._tiered.memory)

    def remove(self, key: EntryKey | str) -> int:
        """Remove an entry from both tiers."""
        self._tiered.memory.evict(str(key))
        self._tiered.memory.evict_parts(str(key))
        return self._tiered.store.remove(str(key))

    def clear(self) -> int:
        """Remove everything from both tiers."""
        self._tiered.memory.clear()
        return self._tiered.store.clear()
