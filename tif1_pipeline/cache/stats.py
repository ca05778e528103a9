"""Statistics: sums over the entries, and the counters of all processes."""

from collections import Counter, defaultdict
from typing import Any

import sqlalchemy as sa

from tif1_pipeline.cache import entries, sizes
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.config import MIB


def stats(tiered: Tiered) -> dict[str, Any]:
    """Return what ``get_stats`` promises."""
    number, size, compressed = sizes.totals(tiered)
    counters = _counters(tiered)
    hits, misses, seconds = (sum(counters[name].values()) for name in ("hits", "misses", "seconds"))
    in_memory = tiered.memory.stats()
    return {
        "total_entries": number,
        "total_size_mb": size / MIB,
        "compressed_size_mb": compressed / MIB,
        **sizes.savings(size, compressed),
        "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
        "miss_rate": misses / (hits + misses) if hits + misses else 0.0,
        "total_hits": int(hits),
        "total_misses": int(misses),
        "avg_access_ms": 1000 * seconds / hits if hits else 0.0,
        "memory_entries": in_memory["items"],
        "memory_size_mb": in_memory["size_mb"],
        "memory_hit_rate": in_memory["hit_rate"],
    }


def by_type(tiered: Tiered) -> dict[str, dict[str, Any]]:
    """Return what ``get_stats_by_type`` promises, for the types that are stored."""
    query = sa.select(ENTRIES.c.data_type, sa.func.count(), sa.func.sum(ENTRIES.c.size_bytes)).group_by(
        ENTRIES.c.data_type
    )
    numbers: Counter[str] = Counter()
    bytes_of: Counter[str] = Counter()
    for data_type, number, size in entries.query(tiered, query):
        numbers[data_type] += number
        bytes_of[data_type] += size
    counters = _counters(tiered)
    described = {}
    for data_type, number in sorted(numbers.items()):
        hits, misses, seconds = (counters[name].get(data_type, 0.0) for name in ("hits", "misses", "seconds"))
        described[data_type] = {
            "count": number,
            "size_mb": bytes_of[data_type] / MIB,
            "avg_size_mb": bytes_of[data_type] / number / MIB,
            "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
            "avg_access_ms": 1000 * seconds / hits if hits else 0.0,
        }
    return described


def by_year(tiered: Tiered) -> dict[int, dict[str, Any]]:
    """Return what ``get_stats_by_year`` promises; entries of no season are left out."""
    sessions: defaultdict[int, set[tuple[str, str]]] = defaultdict(set)
    bytes_of: Counter[int] = Counter()
    accesses: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for year, event, session_type, size, number in _sums(tiered):
        if year is None:
            continue
        bytes_of[year] += size
        if event is not None:
            accesses[year][event] += number
            if session_type is not None:
                sessions[year].add((event, session_type))
    return {
        year: {
            "session_count": len(sessions[year]),
            "size_mb": bytes_of[year] / MIB,
            "most_accessed_event": _most(accesses[year]),
        }
        for year in sorted(bytes_of)
    }


def accesses(tiered: Tiered) -> list[dict[str, Any]]:
    """Return what ``get_access_stats`` promises: the sessions, most used first."""
    numbers: Counter[tuple[int, str, str]] = Counter()
    for year, event, session_type, _, number in _sums(tiered):
        if None not in (year, event, session_type):
            numbers[year, event, session_type] += number
    return [
        {"year": year, "event": event, "session_type": session_type, "access_count": number}
        for (year, event, session_type), number in sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    ]


def _sums(tiered: Tiered) -> list[Any]:
    """Return year, event, session type, bytes in memory and accesses; a group can come once from each file."""
    tiered.flush()
    group = (ENTRIES.c.year, ENTRIES.c.event, ENTRIES.c.session_type)
    return entries.query(
        tiered,
        sa.select(*group, sa.func.sum(ENTRIES.c.size_bytes), sa.func.sum(ENTRIES.c.access_count)).group_by(*group),
    )


def _most(numbers: Counter[str]) -> str | None:
    """Return the name with the largest number, the first by name of several; None if all are zero."""
    name = min(numbers, key=lambda name: (-numbers[name], name), default=None)
    return name if name is not None and numbers[name] else None


def _counters(tiered: Tiered) -> dict[str, dict[str, float]]:
    """Return hits, misses and seconds (of hits), each by data type, over all processes and files."""
    counters: dict[str, Counter[str]] = {"hits": Counter(), "misses": Counter(), "seconds": Counter()}
    for file in tiered.files():
        for name, value in file.usage.totals().items():
            kind, _, data_type = name.partition(":")
            if kind in counters:
                counters[kind][data_type] += value  # type: ignore[assignment] - seconds are floats
    return {kind: dict(values) for kind, values in counters.items()}
