"""`clean`, `expire`, `vacuum`, `optimize`: what keeps the cache small and quick."""

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from tif1_pipeline.cli.inspect import ENTRY_TABLE
from tif1_pipeline.cli.options import cache_option, dry_run_option, is_stored, json_option, missing, settings
from tif1_pipeline.cli.output import count, duration, print_json, print_table

if TYPE_CHECKING:
    from tif1_pipeline.cache import Cache


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

    --dry-run lists the entries that are old and seldom read, and says how much would have to go.

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
        if dry_run:
            _foresee(cache, smart, as_json)
        elif smart:
            # The settings hold what was given, but for a size of zero.
            report(cache, cache.smart_cleanup(max_size_mb=to_mb), as_json)
        else:
            report(cache, cache.run_auto_cleanup(), as_json)


def _days(days: float) -> timedelta:
    try:
        return timedelta(days=days)
    except (OverflowError, ValueError):
        raise click.BadParameter("that is no number of days that a calendar has", param_hint="--max-age-days") from None


def _foresee(cache: "Cache", smart: bool, as_json: bool) -> None:
    from tif1_pipeline import api

    config = api.get_config()
    stored = cache.get_size_info()["compressed_mb"]
    starts = 0 if smart else min(config.cache_cleanup_threshold_mb, config.cache_max_size_mb)
    target = min(config.cache_cleanup_target_mb, config.cache_max_size_mb)
    age, reads = config.cache_cleanup_min_age, config.cache_cleanup_min_access
    first = not_pinned(
        cache,
        cache.get_entries(min_age_days=age / timedelta(days=1), max_access_count=reads - 1) if reads else [],
    )
    if as_json:
        print_json(
            {
                "dry_run": True,
                "stored_mb": stored,
                "threshold_mb": starts,
                "target_mb": target,
                "to_remove_mb": max(0.0, stored - target) if stored > starts else 0.0,
                "old_and_seldom_read": first,
            }
        )
        return
    if not stored:
        click.echo(missing(cache))
        return
    click.echo(f"{stored:,.1f} MiB are stored")
    if stored <= starts:
        click.echo(f"nothing would go: a cleanup starts above {starts:,} MiB")
        return
    if stored > target:
        click.echo(
            f"{stored - target:,.1f} MiB would have to go to come down to {target:,} MiB"
            + ("" if smart else f", by strategy {config.cache_cleanup_strategy}")
        )
    size = sum(row["compressed_mb"] for row in first)
    click.echo(
        f"{count(len(first))}, {size:,.1f} MiB, {'is' if len(first) == 1 else 'are'} older than {duration(age)} and "
        f"read less than {reads} times"
        + (
            ", and would go"
            if smart
            else f"; others go only while more than {config.cache_max_size_mb:,} MiB are stored"
        )
    )
    if first:
        print_table(first, ENTRY_TABLE)


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
