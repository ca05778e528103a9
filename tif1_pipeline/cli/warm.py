"""`tif1-pipeline warm`: fetch ahead what is missing or expired."""

import json
import textwrap
from datetime import UTC, datetime
from typing import Any

import click

from tif1_pipeline.config import MIB
from tif1_pipeline.warming import DEFAULT_TYPES, TYPES, Warming

_WIDTH = 79


def _split(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise click.BadParameter("give at least one, several with commas between")
    return names


def _split_types(context: click.Context, parameter: click.Parameter, value: str | None) -> list[str] | None:
    names = _split(context, parameter, value)
    if unknown := [name for name in names or () if name not in TYPES]:
        raise click.BadParameter(f"there is no {', '.join(unknown)}; choose from {', '.join(TYPES)}")
    return names


@click.command()
@click.argument("year", type=int, required=False)
@click.argument("event", required=False)
@click.argument("session", required=False)
@click.option(
    "--types",
    callback=_split_types,
    metavar="T,T…",
    help=f"Tables to fetch: {', '.join(TYPES)}.  [default: {','.join(DEFAULT_TYPES)}]",
)
@click.option("--drivers", callback=_split, metavar="D,D…", help="Telemetry of these drivers alone, by code or number.")
@click.option(
    "--frequent",
    type=click.IntRange(1),
    metavar="N",
    help="What is missing or expired of the sessions that were read at least N times.",
)
@click.option("--workers", type=click.IntRange(1), default=4, show_default=True, help="Sessions under way at once.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and nothing else, to stdout.")
@click.pass_context
def warm(
    context: click.Context,
    year: int | None,
    event: str | None,
    session: str | None,
    types: list[str] | None,
    drivers: list[str] | None,
    frequent: int | None,
    workers: int,
    as_json: bool,
) -> None:
    """Fetch what is missing or expired of a season, an event or a session into the cache.

    YEAR alone means the sessions of that season that have begun, the current season by default. EVENT is a name, a
    location, a country or a round number; SESSION a name or a short form (FP1, Q, R …). What is stored and fresh is
    left alone, so an interrupted run goes on when it is started again.

    \b
    Examples:
      tif1-pipeline warm                              the current season
      tif1-pipeline warm 2025 Monaco                  one event
      tif1-pipeline warm 2025 Monaco R --types telemetry
      tif1-pipeline warm 2025 Monaco Q --drivers VER,NOR
      tif1-pipeline warm --frequent 5                 what is used most

    Exit codes: 0 all is stored, 1 something failed, 2 usage, 130 interrupted.
    """  # noqa: D301 - click knows the paragraph to leave as it is by this character
    _refuse_contradictions(year, event, types, drivers, frequent)
    try:
        report = _warm(year or datetime.now(UTC).year, event, session, types, drivers, frequent, workers)
    except KeyboardInterrupt:
        click.echo("interrupted; what was fetched is kept, run again to go on", err=True)
        context.exit(130)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _show(report)
    context.exit(1 if report["failed"] else 0)


def _refuse_contradictions(
    year: int | None,
    event: str | None,
    types: list[str] | None,
    drivers: list[str] | None,
    frequent: int | None,
) -> None:
    if frequent is not None and (year is not None or types or drivers):
        raise click.UsageError("--frequent looks for sessions and tables itself: leave YEAR, --types and --drivers out")
    if drivers and types:
        raise click.UsageError("--drivers fetches telemetry alone: leave --types out, or run twice")
    if drivers and event is None:
        raise click.UsageError("--drivers needs a YEAR and an EVENT")


def _warm(
    year: int,
    event: str | None,
    session: str | None,
    types: list[str] | None,
    drivers: list[str] | None,
    frequent: int | None,
    workers: int,
) -> dict[str, Any]:
    from tif1_pipeline import api

    warming = Warming(api.get_reader(), api.get_cache(), api.get_config())
    if frequent is not None:
        return warming.frequent(frequent, max_workers=workers)
    if event is None:
        return warming.season(year, data_types=types, max_workers=workers)
    if drivers:
        return warming.drivers(drivers, year, event, session, max_workers=workers)
    return warming.event(year, event, session, data_types=types, max_workers=workers)


def _show(report: dict[str, Any]) -> None:
    failed = report["failed"]
    if not (report["succeeded"] or report["skipped"] or failed):
        click.echo("nothing to warm: no session of it has begun, or none is used so much")
        return
    rows = {
        "fetched": f"{report['succeeded']:,}",
        "stored already": f"{report['skipped']:,}",
        "failed": f"{len(failed):,}",
        "seconds": f"{report['seconds']:,.1f}",
        "requests": f"{report['requests']:,}",
        "received, MiB": f"{report['bytes'] / MIB:,.1f}",
    }
    for name, value in rows.items():
        click.echo(f"{name:<16}{value:>10}")
    if failed:
        click.echo("\nFailed:")
    for item in failed:
        about = [f"{item['year']} {item['event']} {item['session_type']}", item["data_type"], item.get("driver")]
        click.echo(_wrapped(", ".join(part for part in about if part), "  "))
        click.echo(_wrapped(item["error"], "    "))


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
