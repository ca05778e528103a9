"""`ls`, `search`, `stats`, `verify`: what the cache holds. None of them creates a file."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from tif1_pipeline.cli.options import Duration, cache_option, days_of, json_option, missing
from tif1_pipeline.cli.output import Column, count, for_people, print_json, print_pairs, print_table, printable

if TYPE_CHECKING:
    from tif1_pipeline.cache import Cache

ENTRY_TABLE = (
    Column("Key", "key", "key"),
    Column("Stored MiB", "compressed_mb", "size"),
    Column("Memory MiB", "size_mb", "size", 100),
    Column("Reads", "access_count", "count", 90),
    Column("Last used", "accessed_at", "moment"),
    Column("Stored", "created_at", "moment", 110),
    Column("Type", "data_type", "text", 130),
)
_SESSION_TABLE = (
    Column("Year", "year"),
    Column("Event", "event"),
    Column("Session", "session_type"),
    Column("Stored MiB", "compressed_mb", "size"),
    Column("Memory MiB", "size_mb", "size", 90),
    Column("Reads", "access_count", "count"),
    Column("Last used", "accessed_at", "moment"),
    Column("Tables", "tables", "count"),
    Column("Types", "data_types", "list", 130),
)
_SORTS = {
    "accesses": "access_count",
    "created": "created_at",
    "event": "event",
    "key": "key",
    "session": "session_type",
    "size": "size_mb",
    "stored": "compressed_mb",
    "type": "data_type",
    "used": "accessed_at",
    "year": "year",
}
_OF_ENTRIES = ("key", "type")
_TEXTS = ("key", "event", "session", "type")
_LARGEST = 10


@click.command()
@click.option("--entries", is_flag=True, help="List entries instead of sessions.")
@click.option("--largest", is_flag=True, help=f"The largest entries, {_LARGEST} without --limit.")
@click.option("--expired", is_flag=True, help="The entries that are older than the TTL of their type.")
@click.option("--year", type=int, help="Of this season.")
@click.option("--type", "data_type", metavar="T", help="Entries of this type; sessions that have one.")
@click.option("--older-than", type=Duration(), metavar="AGE", help="Stored longer ago than 7d, 12h …")
@click.option("--min-size-mb", type=click.FloatRange(0), metavar="MIB", help="At least so large, as stored.")
@click.option("--max-accesses", type=click.IntRange(0), metavar="N", help="Read at most so often.")
@click.option(
    "--sort",
    type=click.Choice(list(_SORTS)),
    help="Texts in alphabetical order, everything else largest or latest first.  [default: used; key for entries]",
)
@click.option("--limit", type=click.IntRange(0), metavar="N", help="At most so many.")
@cache_option
@json_option
def ls(
    cache: "Cache",
    entries: bool,
    largest: bool,
    expired: bool,
    year: int | None,
    data_type: str | None,
    older_than: timedelta | None,
    min_size_mb: float | None,
    max_accesses: int | None,
    sort: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the stored sessions, or the entries.

    Conditions hold together. On sessions they are about all of its tables: their stored size, their reads, the first
    time one was stored. Into a pipe the table goes tab-separated, with every column.

    \b
    Examples:
      tif1-pipeline ls --year 2025 --sort stored
      tif1-pipeline ls --entries --type telemetry --max-accesses 0
      tif1-pipeline ls --largest --limit 5
      tif1-pipeline ls --expired --json | jq -r '.[].key'
      tif1-pipeline ls --entries --older-than 30d | cut -f1
    """  # noqa: D301 - click knows the paragraph to leave as it is by this character
    of_entries = entries or largest or expired
    if not of_entries and sort in _OF_ENTRIES:
        raise click.UsageError(f"sessions have no {sort} to sort by: add --entries")
    if of_entries:
        rows = cache.get_entries(
            min_age_days=days_of(older_than),
            max_access_count=max_accesses,
            min_size_mb=min_size_mb,
            data_type=data_type,
            year=year,
        )
        if expired:
            keys = {row["key"] for row in cache.get_expired_entries()}
            rows = [row for row in rows if row["key"] in keys]
        if largest:
            sort = sort or "stored"
            limit = _LARGEST if limit is None else limit
        rows = _sorted(rows, sort or "key")[:limit]
    else:
        found = cache.list_sessions(_SORTS[sort or "used"])
        rows = [row for row in found if _holds(row, year, data_type, older_than, min_size_mb, max_accesses)][:limit]
    if as_json:
        print_json(rows)
    elif rows:
        described = rows if of_entries else [row | {"tables": len(row["data_types"])} for row in rows]
        print_table(described, ENTRY_TABLE if of_entries else _SESSION_TABLE)
    else:
        _say_nothing_found(cache, of_entries)


def _holds(
    session: Mapping[str, Any],
    year: int | None,
    data_type: str | None,
    older_than: timedelta | None,
    min_size_mb: float | None,
    max_accesses: int | None,
) -> bool:
    return (
        (year is None or session["year"] == year)
        and (data_type is None or data_type in session["data_types"])
        and (older_than is None or datetime.now(UTC) - session["created_at"] >= older_than)
        and (min_size_mb is None or session["compressed_mb"] >= min_size_mb)
        and (max_accesses is None or session["access_count"] <= max_accesses)
    )


def _sorted(rows: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    name = _SORTS[sort]
    known = [row for row in rows if row[name] is not None]
    known.sort(key=lambda row: row[name], reverse=sort not in _TEXTS)
    return known + [row for row in rows if row[name] is None]


def _say_nothing_found(cache: "Cache", of_entries: bool) -> None:
    total = cache.get_size_info()["total_entries"]
    if not total:
        click.echo(missing(cache))
    elif of_entries:
        click.echo(f"none of {count(total)} is so")
    else:
        click.echo(
            f"no session is so; there {'is' if total == 1 else 'are'} {count(total)}: tif1-pipeline ls --entries"
        )


@click.command()
@click.argument("pattern", metavar="GLOB")
@click.option("--limit", type=click.IntRange(0), metavar="N", help="At most so many.")
@cache_option
@json_option
def search(cache: "Cache", pattern: str, limit: int | None, as_json: bool) -> None:
    """List the entries whose key matches a glob.

    * stands for anything, ? for one character, [abc] for one of these; upper and lower case are the same. Quote it,
    or the shell takes it for files.

    \b
    Examples:
      tif1-pipeline search '2025_monaco_*'
      tif1-pipeline search '*_qualifying_telemetry_*' --json
    """  # noqa: D301
    rows = cache.search(pattern)[:limit]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows, ENTRY_TABLE)
    else:
        total = cache.get_size_info()["total_entries"]
        click.echo(f"no key of {count(total)} matches {printable(pattern)}" if total else missing(cache))


@click.command()
@cache_option
@json_option
def stats(cache: "Cache", as_json: bool) -> None:
    """Show sizes, hit rates and accesses, by type and by season.

    Hit rates and times are those of all processes that used this cache. "In memory" is what the tables take when they
    are loaded, "stored" what they take compressed, "on disk" the files with free pages and log.

    \b
    Examples:
      tif1-pipeline stats
      tif1-pipeline stats --cache /data/f1 --json | jq .totals.hit_rate
    """  # noqa: D301
    totals = cache.get_stats()
    found = {
        "cache": cache.get_cache_file(),
        "totals": totals,
        "sizes": cache.get_size_info(),
        "by_type": cache.get_stats_by_type(),
        "by_year": cache.get_stats_by_year(),
        "stored_mb_by_type": cache.get_size_by_type(),
        "stored_mb_by_year": cache.get_size_by_year(),
        "accesses": cache.get_access_stats(),
        "degraded": cache.get_degraded(),
    }
    if as_json:
        print_json(found)
    elif totals["total_entries"]:
        _show_stats(found)
    else:
        click.echo(missing(cache))


def _show_stats(found: dict[str, Any]) -> None:
    totals, sizes = found["totals"], found["sizes"]
    print_pairs(
        {
            "Cache": str(found["cache"]),
            "Entries": f"{totals['total_entries']:,}",
            "In memory": f"{sizes['uncompressed_mb']:,.1f} MiB",
            "Stored": f"{sizes['compressed_mb']:,.1f} MiB, {sizes['space_saved_pct']:.0f} % saved",
            "On disk": f"{sizes['disk_mb']:,.1f} MiB",
            "Hits": f"{totals['total_hits']:,} of {totals['total_hits'] + totals['total_misses']:,} look-ups, "
            f"{for_people(totals['hit_rate'], 'percent')}",
            "Mean time": f"{totals['avg_access_ms']:,.1f} ms a hit",
        }
        | {f"Disk skipped: {cause}": f"{number:,} times" for cause, number in found["degraded"].items()}
    )
    stored = found["stored_mb_by_type"]
    print_table(
        [{"type": name, "stored": stored.get(name), **row} for name, row in found["by_type"].items()],
        (
            Column("Type", "type"),
            Column("Entries", "count", "count"),
            Column("Stored MiB", "stored", "size"),
            Column("Memory MiB", "size_mb", "size"),
            Column("Hit rate", "hit_rate", "percent"),
            Column("ms a hit", "avg_access_ms", "decimal"),
        ),
        "By type",
    )
    stored = found["stored_mb_by_year"]
    if found["by_year"]:
        print_table(
            [{"year": year, "stored": stored.get(year), **row} for year, row in found["by_year"].items()],
            (
                Column("Season", "year"),
                Column("Sessions", "session_count", "count"),
                Column("Stored MiB", "stored", "size"),
                Column("Memory MiB", "size_mb", "size"),
                Column("Most read event", "most_accessed_event"),
            ),
            "By season",
        )
    used = [row for row in found["accesses"] if row["access_count"]][:_LARGEST]
    if used:
        print_table(
            used,
            (
                Column("Season", "year"),
                Column("Event", "event"),
                Column("Session", "session_type"),
                Column("Reads", "access_count", "count"),
            ),
            "Most read sessions",
        )


@click.command()
@click.argument("key", required=False)
@click.option("--remove", is_flag=True, help="Remove what is corrupt or incomplete, to be fetched again.")
@cache_option
@json_option
@click.pass_context
def verify(context: click.Context, cache: "Cache", key: str | None, remove: bool, as_json: bool) -> None:
    """Check the database and every entry, or one entry.

    Every stored byte is read: checksums, parts, and whether it decodes to what was stored.

    \b
    Examples:
      tif1-pipeline verify
      tif1-pipeline verify --remove
      tif1-pipeline verify 2025_monaco_race_laps_pandas

    Exit codes: 0 all is sound, 1 something is not, also when --remove removed it, 2 usage.
    """  # noqa: D301
    found = cache.verify_integrity() if key is None else _verify_entry(cache, key)
    bad = found["corrupted_list"]
    removed = 0
    if remove and bad:
        removed = cache.clear_corrupted() if key is None else cache.remove(key)
    if as_json:
        print_json(found | {"removed": removed})
    else:
        _show_verified(cache, found, removed, remove)
    context.exit(1 if bad else 0)


def _verify_entry(cache: "Cache", key: str) -> dict[str, Any]:
    if cache.info(key) is None:
        raise click.ClickException(
            f"there is no entry {printable(key)}; look for its key by: tif1-pipeline search GLOB"
        )
    sound = cache.verify_entry(key)
    return {
        "total_entries": 1,
        "valid_entries": int(sound),
        "corrupted_list": [] if sound else [{"key": key, "error": "it is corrupt or incomplete"}],
    }


def _show_verified(cache: "Cache", found: dict[str, Any], removed: int, remove: bool) -> None:
    bad = found["corrupted_list"]
    if not found["total_entries"] and not bad:
        click.echo(missing(cache))
        return
    sound = "is sound" if found["valid_entries"] == 1 else "are sound"
    click.echo(f"{found['valid_entries']:,} of {count(found['total_entries'])} {sound}")
    for item in bad:
        click.echo(f"{printable(item['key'] or 'database')}: {printable(item['error'])}")
    if remove and bad:
        click.echo(f"{count(removed)} removed")
    elif bad:
        click.echo("remove what is corrupt, to be fetched again, by: tif1-pipeline verify --remove")
