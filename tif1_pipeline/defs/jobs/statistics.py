"""The daily report on what is stored."""

import shutil
from typing import Any

import dagster as dg
import pandas as pd
from pydantic import Field

from tif1_pipeline import plots
from tif1_pipeline.cache import Cache
from tif1_pipeline.config import MIB
from tif1_pipeline.defs.jobs.common import (
    AFTER,
    Number,
    OpConfig,
    Report,
    disabled,
    markdown_table,
    op_output,
    perform,
    skipped,
)
from tif1_pipeline.defs.pictures import pictures
from tif1_pipeline.defs.resources import TimingDataResource
from tif1_pipeline.keys import SESSION_TYPES, event_slug, slug
from tif1_pipeline.reading import Reader


class StatisticsConfig(OpConfig):
    """Options of the statistics report; it changes nothing in any case."""

    largest: int = Field(default=10, ge=1, le=50, description="So many of the largest entries are listed.")
    season: int | None = Field(
        default=None, description="Whose sessions are drawn; by default those of the latest season that is stored."
    )


@dg.op(ins=AFTER, out=op_output())
def statistics_report(
    context: dg.OpExecutionContext, config: StatisticsConfig, timing_data: TimingDataResource
) -> dict[str, Any]:
    """Report what is stored: sizes by type and season, hit rate, the largest entries, free disk."""

    def report() -> Report:
        if reason := disabled():
            return skipped(reason)
        cache = timing_data.cache
        return Report(_numbers(cache), _tables(cache, config.largest) | _picture(cache, timing_data.reader, config))

    return perform(context, config, report)


def _numbers(cache: Cache) -> dict[str, Number]:
    stats = cache.get_stats()
    by_type, by_year = cache.get_size_by_type(), cache.get_size_by_year()
    folder = cache.get_cache_dir()
    disk = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists()))
    return {
        "entries": stats["total_entries"],
        "stored_mb": round(stats["compressed_size_mb"], 3),
        "uncompressed_mb": round(stats["total_size_mb"], 3),
        "disk_mb": round(cache.get_size_mb(), 3),
        "hit_rate": round(stats["hit_rate"], 4),
        "hits": int(stats["total_hits"]),
        "misses": int(stats["total_misses"]),
        "avg_access_ms": round(stats["avg_access_ms"], 3),
        "free_disk_mb": round(disk.free / MIB, 1),
        "free_disk_share": round(disk.free / disk.total, 4),
        # In names of their own, because the UI plots single numbers.
        **{f"{name}_mb": round(size, 3) for name, size in by_type.items()},
        **{f"season_{year}_mb": round(size, 3) for year, size in by_year.items()},
    }


def _tables(cache: Cache, largest: int) -> dict[str, Any]:
    by_type = [
        (name, row["count"], row["size_mb"], row["hit_rate"], row["avg_access_ms"])
        for name, row in cache.get_stats_by_type().items()
    ]
    by_year = [
        (year, row["session_count"], row["size_mb"], row["most_accessed_event"])
        for year, row in cache.get_stats_by_year().items()
    ]
    entries = [
        (row["key"], row["compressed_mb"], row["access_count"], row["age_days"]) for row in cache.get_largest(largest)
    ]
    return {
        "by_type": markdown_table(["type", "entries", "MiB in memory", "hit rate", "ms a hit"], by_type),
        "by_season": markdown_table(["season", "sessions", "MiB in memory", "most read event"], by_year),
        "largest": markdown_table(["entry", "MiB stored", "reads", "days old"], entries),
    }


def _picture(cache: Cache, reader: Reader, config: StatisticsConfig) -> dict[str, Any]:
    sessions = cache.list_sessions(sort_by="year")
    if not sessions:
        return {}
    season = sessions[0]["year"] if config.season is None else config.season
    return dict(pictures({"cached_sessions": lambda: plots.cached_sessions(cached_season(cache, season, reader))}))


def cached_season(cache: Cache, season: int, reader: Reader) -> pd.DataFrame:
    """Return what is stored of a season's sessions.

    Args:
        cache: Where.
        season: Its year.
        reader: Knows the stored calendar, which names the events and those of which nothing is stored.

    Returns:
        A row an event, a column a session type, values in stored MiB; NaN where nothing is stored.

    Raises:
        CacheError: The cache cannot be read.
    """
    sessions = [row for row in cache.list_sessions(sort_by="year") if row["year"] == season]
    calendar = reader.stored_calendar(season)
    stored = {(row["event"], row["session_type"]): row["compressed_mb"] for row in sessions}
    events = {event_slug(event.name): event.name for event in calendar.events} if calendar else {}
    events |= {event: event for event, _ in stored if event not in events}
    planned = {session.name for event in calendar.events for session in event.sessions} if calendar else set()
    types = [name for name in SESSION_TYPES if name in planned or any(slug(name) == kind for _, kind in stored)]
    values = [[stored.get((event, slug(name)), float("nan")) for name in types] for event in events]
    return pd.DataFrame(values, index=list(events.values()), columns=types, dtype="float64")
