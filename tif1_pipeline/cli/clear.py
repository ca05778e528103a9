"""`clear`: remove what is named."""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from tif1_pipeline.cli.maintain import foretell, not_pinned, report
from tif1_pipeline.cli.options import (
    Duration,
    cache_option,
    confirm,
    dry_run_option,
    given_cache,
    json_option,
    yes_option,
)

if TYPE_CHECKING:
    from tif1_pipeline.cache import Cache

_TARGETS = (
    "--all, --year (with --event, --session), --type, --pattern, --older-than, --largest, --lru, --low-access, "
    "--corrupted"
)


class _Target(NamedTuple):
    """What to remove."""

    remove: Callable[[], Any]
    listed: Callable[[], list[dict[str, Any]]]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Everything, pinned entries too; asks first.")
@click.option("--year", type=int, help="A season, its calendar too.")
@click.option("--event", metavar="NAME", help="An event of --year.")
@click.option("--session", metavar="NAME", help="A session of --year and --event: a name or FP1, Q, R …")
@click.option("--type", "data_type", metavar="T", help="A data type; with --session, that table alone.")
@click.option("--pattern", metavar="GLOB", help="Keys that match, as in search.")
@click.option("--older-than", type=Duration(), metavar="AGE", help="Stored longer ago than 7d, 12h …")
@click.option("--largest", type=click.IntRange(1), metavar="N", help="The N largest, as stored.")
@click.option("--lru", type=click.IntRange(1), metavar="N", help="The N that were not used for longest.")
@click.option("--low-access", type=click.IntRange(1), metavar="N", help="Read less than N times.")
@click.option("--corrupted", is_flag=True, help="What is corrupt or incomplete; reads everything.")
@yes_option
@dry_run_option
@cache_option
@json_option
def clear(
    cache: "Cache",
    everything: bool,
    year: int | None,
    event: str | None,
    session: str | None,
    data_type: str | None,
    pattern: str | None,
    older_than: timedelta | None,
    largest: int | None,
    lru: int | None,
    low_access: int | None,
    corrupted: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove the entries that are named.

    One target is needed. What is chosen by age, size or use (--older-than, --largest, --lru, --low-access) spares
    pinned entries; what is named goes, pinned or not. What comes from the CDN is fetched again when it is used.

    \b
    Examples:
      tif1-pipeline clear --year 2025 --event Monaco --session R --type laps
      tif1-pipeline clear --pattern '2024_*_telemetry_*' --dry-run
      tif1-pipeline clear --older-than 90d
      tif1-pipeline clear --all --yes
    """  # noqa: D301
    if event is not None and year is None:
        raise click.UsageError("--event needs a --year")
    if session is not None and event is None:
        raise click.UsageError("--session needs a --year and an --event")
    of_session = session is not None
    given = {
        "--all": everything,
        "--year": year is not None,
        "--type": data_type is not None and not of_session,
        "--pattern": pattern is not None,
        "--older-than": older_than is not None,
        "--largest": largest is not None,
        "--lru": lru is not None,
        "--low-access": low_access is not None,
        "--corrupted": corrupted,
    }
    named = [name for name, is_given in given.items() if is_given]
    if len(named) != 1:
        problem = f"{' and '.join(named)} cannot be given together" if named else "say what to remove"
        raise click.UsageError(f"{problem}: choose one of {_TARGETS}")
    if year is not None:
        target = _in_season(cache, year, event, session, data_type)
    elif data_type is not None:
        target = _Target(lambda: cache.clear_type(data_type), lambda: cache.get_by_type(data_type))
    elif pattern is not None:
        target = _Target(lambda: cache.clear_pattern(pattern), lambda: cache.search(pattern))
    elif everything:
        target = _Target(cache.clear, cache.get_entries)
    elif corrupted:
        target = _Target(cache.clear_corrupted, lambda: _corrupt(cache))
    else:
        target = _by_use(cache, older_than, largest, lru, low_access)
    if dry_run:
        foretell(target.listed(), as_json)
        return
    if everything:
        confirm(f"Remove all {cache.get_size_info()['total_entries']:,} entries of {cache.get_cache_file()}?", yes)
    before = cache.get_size_info()["total_entries"]
    removed = target.remove()
    if largest is not None:  # that call returns the MiB it freed
        removed = max(0, before - cache.get_size_info()["total_entries"])
    report(cache, removed, as_json)


def _in_season(cache: "Cache", year: int, event: str | None, session: str | None, data_type: str | None) -> _Target:
    if event is None:
        return _Target(lambda: cache.clear_year(year), lambda: cache.get_entries(year=year))
    if session is None:
        return _Target(lambda: cache.clear_event(year, event), lambda: _of_event(cache, year, event))
    if data_type is None:
        return _Target(
            lambda: cache.clear_session(year, event, session), lambda: _of_event(cache, year, event, session)
        )
    return _Target(
        lambda: cache.invalidate_session_data(year, event, session, data_type),
        lambda: [row for row in _of_event(cache, year, event, session) if row["data_type"] == data_type],
    )


def _of_event(cache: "Cache", year: int, event: str, session: str | None = None) -> list[dict[str, Any]]:
    from tif1_pipeline import api
    from tif1_pipeline.cache.names import unresolved
    from tif1_pipeline.keys import event_slug, slug

    calendar = api.get_reader(given_cache()).stored_calendar(year)
    name = event if calendar is None else calendar.find(event).name
    key = unresolved(year, name, session)
    return [
        row
        for row in cache.get_entries(year=year)
        if row["event"] == event_slug(key.event) and (session is None or row["session_type"] == slug(key.session_type))
    ]


def _by_use(
    cache: "Cache", older_than: timedelta | None, largest: int | None, lru: int | None, low_access: int | None
) -> _Target:
    everything = cache.get_size_info()["total_entries"]
    if older_than is not None:
        days = older_than / timedelta(days=1)
        return _Target(lambda: cache.clear_old(days), lambda: not_pinned(cache, cache.get_old_entries(days)))
    if largest is not None:
        return _Target(
            lambda: cache.clear_largest(largest), lambda: not_pinned(cache, cache.get_largest(everything), largest)
        )
    if lru is not None:
        return _Target(lambda: cache.clear_lru(lru), lambda: not_pinned(cache, cache.get_lru(everything), lru))
    few = low_access or 1
    return _Target(
        lambda: cache.clear_low_access(few),
        lambda: not_pinned(cache, cache.get_entries(max_access_count=few - 1)),
    )


def _corrupt(cache: "Cache") -> list[dict[str, Any]]:
    keys = {item["key"] for item in cache.verify_integrity()["corrupted_list"]}
    return [row for row in cache.get_entries() if row["key"] in keys]
