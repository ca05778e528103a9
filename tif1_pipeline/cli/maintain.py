"""`clean`, `expire`, `vacuum`, `optimize`: what keeps the cache small and quick."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from tif1_pipeline.cli.inspect import ENTRY_TABLE
from tif1_pipeline.cli.options import cache_option, dry_run_option, is_stored, json_option, missing, settings
from tif1_pipeline.cli.output import count, duration, print_json, print_table
from tif1_pipeline.config import MIB

if TYPE_CHECKING:
    from tif1_pipeline.cache import Cache
    from tif1_pipeline.cache.stock import Cleaned


@click.command()
@click.option(
    "--strategy",
    type=click.Choice(["lru", "size", "age", "smart"]),
    help="What goes first: least recently used, largest, oldest, or worth least.  [default: cache_cleanup_strategy]",
)
@click.option(
    "--to-mb",
    type=click.IntRange(0),
    metavar="MIB",
    help="Clean until so much is stored.  [default: cache_cleanup_target_mb, above cache_cleanup_threshold_mb]",
)
@click.option("--smart", is_flag=True, help="What is incomplete, then what is old and seldom read, then by --to-mb.")
@click.option(
    "--max-age-days", type=click.FloatRange(0), metavar="D", help="Old is older.  [default: cache_cleanup_min_age]"
)
@click.option(
    "--min-access",
    type=click.IntRange(0),
    metavar="N",
    help="Seldom read is less often.  [default: cache_cleanup_min_access]",
)
@dry_run_option
@cache_option
@json_option
def clean(
    cache: "Cache",
    strategy: str | None,
    to_mb: int | None,
    smart: bool,
    max_age_days: float | None,
    min_access: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove what is worth least, until little enough is stored.

    Without --smart nothing happens up to the threshold; above it, entries that are old and seldom read go down to the
    target, others only down to cache_max_size_mb. With --smart what is old and seldom read goes in any case, and for
    the target whatever it takes. Pinned entries stay.

    --dry-run lists what would go, in that order: exactly that, unless something is stored, read or removed meanwhile.

    \b
    Examples:
      tif1-pipeline clean --dry-run
      tif1-pipeline clean --to-mb 2000 --strategy size
      tif1-pipeline clean --smart --max-age-days 30 --min-access 2
    """  # noqa: D301
    if smart and strategy not in (None, "smart"):
        raise click.UsageError("--smart is a strategy of its own: leave --strategy out")
    with settings(
        cache_cleanup_strategy=strategy,
        cache_cleanup_target_mb=to_mb,
        cache_cleanup_threshold_mb=None if to_mb is None else max(1, to_mb),
        cache_cleanup_min_age=None if max_age_days is None else _days(max_age_days),
        cache_cleanup_min_access=min_access,
    ):
        if smart:
            # A size that was given counts as it is, also above the threshold.
            cleaned = cache.smart_cleanup(max_size_mb=to_mb, dry_run=dry_run)
        else:
            cleaned = cache.run_auto_cleanup(dry_run=dry_run)
        if dry_run:
            _foretell(cache, cleaned, smart, as_json)
        else:
            report(cache, cleaned, as_json)


def _days(days: float) -> timedelta:
    try:
        return timedelta(days=days)
    except (OverflowError, ValueError):
        raise click.BadParameter("that is no number of days that a calendar has", param_hint="--max-age-days") from None


def _foretell(cache: "Cache", cleaned: "Cleaned", smart: bool, as_json: bool) -> None:
    rows = {row["key"]: row for row in cache.get_entries()} if cleaned else {}
    entries = [rows[item.key] for item in cleaned.removed if item.key in rows]
    stored = cache.get_size_info()["compressed_mb"]
    if as_json:
        print_json({"dry_run": True, "stored_mb": stored, "to_remove_mb": cleaned.bytes / MIB, "entries": entries})
        return
    if not stored:
        click.echo(missing(cache))
        return
    click.echo(f"{stored:,.1f} MiB are stored")
    if not cleaned:
        click.echo(f"nothing would go: {_reason(stored, smart)}")
        return
    print_table(entries, ENTRY_TABLE)
    click.echo(
        f"{count(cleaned)}, {cleaned.bytes / MIB:,.1f} MiB, would be removed, "
        f"{stored - cleaned.bytes / MIB:,.1f} MiB would be left"
    )


def _reason(stored: float, smart: bool) -> str:
    from tif1_pipeline import api

    config = api.get_config()
    starts = min(config.cache_cleanup_threshold_mb, config.cache_max_size_mb)
    if not smart and stored <= starts:
        return f"a cleanup starts above {starts:,} MiB"
    if smart:
        return "little enough is stored, and what is old and seldom read is pinned, if there is any"
    return (
        f"everything is pinned, younger than {duration(config.cache_cleanup_min_age)}, or was read "
        f"{config.cache_cleanup_min_access} times or more"
    )


@click.command()
@dry_run_option
@cache_option
@json_option
def expire(cache: "Cache", dry_run: bool, as_json: bool) -> None:
    """Remove the entries that are older than the TTL of their type.

    The TTLs are the settings cache_ttl and cache_ttl_laps, cache_ttl_telemetry …; without one an entry of that type
    never expires. What cannot be fetched again stays.

    \b
    Examples:
      tif1-pipeline expire --dry-run
      TIF1_CACHE_TTL=30d tif1-pipeline expire
    """  # noqa: D301
    if dry_run:
        foretell(cache.get_expired_entries(), as_json, "nothing has expired")
    else:
        report(cache, cache.clear_expired(), as_json)


@click.command()
@cache_option
def vacuum(cache: "Cache") -> None:
    """Give free pages of the cache files back to the file system.

    It takes free space for a copy for a while. Others may read meanwhile; writers wait.

    \b
    Example:
      tif1-pipeline vacuum
    """  # noqa: D301
    if is_stored(cache):
        click.echo(f"{cache.vacuum():,.1f} MiB freed")


@click.command()
@click.option("--reindex", is_flag=True, help="Build the indexes anew, too.")
@click.option("--checkpoint", is_flag=True, help="Write the log back into the database and empty it, too.")
@cache_option
def optimize(cache: "Cache", reindex: bool, checkpoint: bool) -> None:
    """Refresh what SQLite knows of the tables for its plans.

    \b
    Examples:
      tif1-pipeline optimize
      tif1-pipeline optimize --reindex --checkpoint
    """  # noqa: D301
    if not is_stored(cache):
        return
    if reindex:
        cache.rebuild_indexes()
        click.echo("indexes built anew")
    cache.optimize()
    click.echo("statistics refreshed")
    if checkpoint:
        cache.checkpoint()
        click.echo("log written back")


# ---- also for `clear`


def not_pinned(cache: "Cache", rows: list[dict[str, Any]], limit: int | None = None) -> list[dict[str, Any]]:
    """Return the entries that a cleanup may take, the first ``limit`` of them."""
    from tif1_pipeline.keys import EntryKey

    found: list[dict[str, Any]] = []
    for row in rows:
        if len(found) == limit:
            break
        info = cache.info(EntryKey(row["key"], row["data_type"]))
        if info is not None and not info.pinned:
            found.append(row)
    return found


def foretell(rows: list[dict[str, Any]], as_json: bool, nothing: str = "nothing would be removed") -> None:
    """Print what would be removed."""
    if as_json:
        print_json({"dry_run": True, "entries": rows})
    elif rows:
        size = sum(row["compressed_mb"] for row in rows)
        print_table(rows, ENTRY_TABLE)
        click.echo(f"{count(len(rows))}, {size:,.1f} MiB, would be removed", err=True)
    else:
        click.echo(nothing)


def report(cache: "Cache", removed: int, as_json: bool) -> None:
    """Print what was removed, and what is left."""
    left = cache.get_size_info()
    if as_json:
        print_json({"removed": removed, "entries_left": left["total_entries"], "stored_mb": left["compressed_mb"]})
    elif not removed and not left["total_entries"]:
        click.echo(missing(cache))
    else:
        click.echo(f"{count(removed)} removed, {left['total_entries']:,} left, {left['compressed_mb']:,.1f} MiB stored")
