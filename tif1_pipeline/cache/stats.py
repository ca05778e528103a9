"""Statistics: sums over the entries, and the counters of all processes."""

from typing import Any

import sqlalchemy as sa

from tif1_pipeline.cache.database import Database
from tif1_pipeline.cache.memory import Memory
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.usage import Usage
from tif1_pipeline.config import MIB


def stats(database: Database, usage: Usage, memory: Memory) -> dict[str, Any]:
    """Return what ``get_stats`` promises."""
    number, size, compressed = 0, 0, 0
    if database.exists():
        query = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(ENTRIES.c.size_bytes), 0),
            sa.func.coalesce(sa.func.sum(ENTRIES.c.compressed_size), 0),
        ).select_from(ENTRIES)
        with database.querying() as connection:
            number, size, compressed = connection.execute(query).one()
    totals = usage.totals()
    hits = sum(value for name, value in totals.items() if name.startswith("hits:"))
    misses = sum(value for name, value in totals.items() if name.startswith("misses:"))
    seconds = sum(value for name, value in totals.items() if name.startswith("seconds:"))
    in_memory = memory.stats()
    return {
        "total_entries": number,
        "total_size_mb": size / MIB,
        "compressed_size_mb": compressed / MIB,
        "compression_ratio": size / compressed if compressed else 0.0,
        "space_saved_mb": (size - compressed) / MIB,
        "space_saved_pct": 100 * (size - compressed) / size if size else 0.0,
        "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
        "miss_rate": misses / (hits + misses) if hits + misses else 0.0,
        "total_hits": int(hits),
        "total_misses": int(misses),
        "avg_access_ms": 1000 * seconds / hits if hits else 0.0,
        "memory_entries": in_memory["items"],
        "memory_size_mb": in_memory["size_mb"],
        "memory_hit_rate": in_memory["hit_rate"],
    }
