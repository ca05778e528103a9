"""Sizes of what is stored, and of the files that hold it."""

import os
from contextlib import suppress
from typing import Any

import sqlalchemy as sa

from tif1_pipeline.cache import entries
from tif1_pipeline.cache.schema import ENTRIES
from tif1_pipeline.cache.tiered import Tiered
from tif1_pipeline.config import MIB


def info(tiered: Tiered) -> dict[str, Any]:
    """Return what ``get_size_info`` promises."""
    number, size, compressed = totals(tiered)
    return {
        "total_entries": number,
        "uncompressed_mb": size / MIB,
        "compressed_mb": compressed / MIB,
        "disk_mb": on_disk(tiered),
        **savings(size, compressed),
    }


def totals(tiered: Tiered) -> tuple[int, int, int]:
    """Return the number of entries, their bytes in memory, and their stored bytes."""
    query = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(ENTRIES.c.size_bytes), 0),
        sa.func.coalesce(sa.func.sum(ENTRIES.c.compressed_size), 0),
    ).select_from(ENTRIES)
    rows = entries.query(tiered, query)
    return sum(row[0] for row in rows), sum(row[1] for row in rows), sum(row[2] for row in rows)


def savings(size: int, compressed: int) -> dict[str, float]:
    """Return what compression saves, in the terms of all calls that speak of it."""
    return {
        "compression_ratio": size / compressed if compressed else 0.0,
        "space_saved_mb": (size - compressed) / MIB,
        "space_saved_pct": 100 * (size - compressed) / size if size else 0.0,
    }


def on_disk(tiered: Tiered) -> float:
    """Return the MiB of the files, with free pages, log and shared index."""
    size = 0
    for file in tiered.files():
        path = file.database.path
        for suffix in ("", "-wal", "-shm", "-journal"):
            with suppress(FileNotFoundError, NotADirectoryError):
                size += os.stat(f"{path}{suffix}").st_size  # noqa: PTH116 - never opened: see connection.first_look
    return size / MIB


def by_type(tiered: Tiered) -> dict[str, float]:
    """Return the stored MiB by data type."""
    return _by(tiered, ENTRIES.c.data_type)


def by_year(tiered: Tiered) -> dict[int, float]:
    """Return the stored MiB by season; entries of no season are left out."""
    return _by(tiered, ENTRIES.c.year)


def _by(tiered: Tiered, column: sa.Column[Any]) -> dict[Any, float]:
    query = sa.select(column, sa.func.sum(ENTRIES.c.compressed_size)).where(column.is_not(None)).group_by(column)
    sizes: dict[Any, int] = {}
    for name, size in entries.query(tiered, query):
        sizes[name] = sizes.get(name, 0) + size
    return {name: size / MIB for name, size in sorted(sizes.items())}
