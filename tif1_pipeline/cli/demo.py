"""`tif1-pipeline demo`: a whole race weekend from the CDN through Dagster into the cache and back."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tif1_pipeline.cli.home import DEMO_HOME, Demo, provide_instance, use_cdn
from tif1_pipeline.cli.serve import DEMO_SIZE, demo_server

if TYPE_CHECKING:
    import dagster as dg

    from tif1_pipeline.calendar import Event
    from tif1_pipeline.keys import SessionKey

_SEED = 1
_YEAR = 2025


@dataclass(slots=True)
class _Row:
    """What the table says of one asset."""

    asset: str
    partitions: int
    rows: int
    raw_mb: float
    memory_mb: float
    stored_mb: float
    requests: int
    cold_s: float
    warm_ms: float
    hot_ms: float


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of real files, laid out as on the CDN, instead of a generated weekend.",
)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEMO_HOME,
    show_default=True,
    help="Folder for the demo's cache and Dagster instance; made anew.",
)
def demo(data: Path | None, home: Path) -> None:
    """Fetch a race weekend from a simulated CDN, materialize it by Dagster runs, load it back, show the figures."""
    started = time.perf_counter()
    year = _year_of(data) if data else _YEAR
    made = Demo(str(data.absolute()) if data else None, year, _SEED)
    if data and data.absolute().is_relative_to(home.absolute()):
        raise click.ClickException(f"{data} lies in {home}, which the demo makes anew; move it elsewhere")
    made.start(home)
    home = home.absolute()
    os.environ["DAGSTER_HOME"] = str(provide_instance(home / "dagster"))
    with _cdn_process(made, home):
        _say(f"Simulated CDN with {'files of ' + str(data) if data else 'a generated season'} at {_cdn_url()}")
        _show(made)
    _say(f"\nDone in {time.perf_counter() - started:.0f} s. The cache and the Dagster instance are in {home}.")
    if home == DEMO_HOME.absolute():
        _say("Open the UI on it:  make dev DEMO=1   (or: tif1-pipeline dev --demo)")


def _show(made: Demo) -> None:
    from tif1_pipeline import api

    calendar = api.get_reader().calendar(made.year)
    events = [event for event in calendar.events if _published(made, event)]
    if not events:
        raise click.ClickException(f"{made.data} has no session of an event in the calendar of {made.year}")
    event = events[0]
    keys = _published(made, event)
    _say(f"{event.year} {event.name}, {event.location}: {', '.join(key.session_type for key in keys)}\n")

    # Imported now, because partitions are made from the calendar that has just been stored.
    import dagster as dg

    from tif1_pipeline.definitions import defs
    from tif1_pipeline.defs.assets.derived import derived_assets, event_summary, season_summary
    from tif1_pipeline.defs.assets.source import schedule, session_assets

    with dg.DagsterInstance.get() as instance:
        seconds = _materialize(defs, instance, [schedule], [str(event.year)], "calendar")
        by_session = [asset for asset in derived_assets if asset not in (event_summary, season_summary)]
        sessions = [key.partition for key in keys]
        for run in _contiguous(sessions, [key.partition for key in calendar.session_keys]):
            _add(seconds, _materialize(defs, instance, [*session_assets, *by_session], run, f"{len(run)} sessions"))
        _add(seconds, _materialize(defs, instance, [event_summary], [event.partition], "the event"))
        _add(seconds, _materialize(defs, instance, [season_summary], [str(event.year)], "the season"))
        _print_table([_measure(instance, name, seconds[name]) for name in seconds])
        _print_results(defs, instance, event, keys)


# ---- runs


def _materialize(
    defs: "dg.Definitions", instance: "dg.DagsterInstance", assets: Sequence[Any], partitions: list[str], what: str
) -> dict[str, float]:
    """Materialize in one Dagster run; return the seconds of each step, Dagster's bookkeeping included."""
    import dagster as dg

    from tif1_pipeline.defs.assets.derived import derived_assets
    from tif1_pipeline.defs.assets.source import source_assets

    tags = {
        "dagster/asset_partition_range_start": partitions[0],
        "dagster/asset_partition_range_end": partitions[-1],
    }
    started = time.perf_counter()
    result = dg.materialize(
        [*source_assets, *derived_assets],
        selection=list(assets),
        instance=instance,
        resources=dict(defs.resources or {}),
        tags=tags,
        # Else Dagster logs a screen of events for each asset.
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        raise_on_error=False,
    )
    _say(f"  Dagster run {result.run_id[:8]}: {what}, {time.perf_counter() - started:.1f} s")
    if not result.success:
        raise click.ClickException(f"the run {result.run_id} failed; see the messages above")
    return {
        stats.step_key: (stats.end_time or 0) - (stats.start_time or 0)
        for stats in instance.get_run_step_stats(result.run_id)
    }


def _contiguous(wanted: list[str], order: list[str]) -> list[list[str]]:
    """Split into runs of neighbours: a Dagster run covers a range of partitions."""
    runs: list[list[str]] = []
    previous = -2
    for partition in wanted:
        index = order.index(partition)
        if index != previous + 1:
            runs.append([])
        runs[-1].append(partition)
        previous = index
    return runs


def _add(total: dict[str, float], more: dict[str, float]) -> None:
    for name, seconds in more.items():
        total[name] = total.get(name, 0.0) + seconds


# ---- figures


def _measure(instance: "dg.DagsterInstance", asset: str, seconds: float) -> _Row:
    import dagster as dg

    from tif1_pipeline import api

    cache = api.get_cache()
    records = instance.fetch_materializations(dg.AssetKey(asset), limit=100).records
    shown = [record.asset_materialization.metadata for record in records if record.asset_materialization]
    warm: list[float] = []
    hot: list[float] = []
    for metadata in shown:
        cache.clear_memory()
        for times in (warm, hot):
            started = time.perf_counter()
            cache.read(str(metadata["cache_key"].value), "pandas")
            times.append((time.perf_counter() - started) * 1000)

    def total(name: str) -> float:
        return sum(float(metadata[name].value) for metadata in shown if name in metadata)  # type: ignore[arg-type]

    return _Row(
        asset=asset,
        partitions=len(shown),
        rows=int(total("dagster/partition_row_count")),
        raw_mb=total("raw_mb"),
        memory_mb=total("size_mb"),
        stored_mb=total("stored_mb"),
        requests=int(total("requests")),
        cold_s=seconds,
        warm_ms=statistics.median(warm),
        hot_ms=statistics.median(hot),
    )


def _print_table(rows: list[_Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title="\nEach asset: the run that fetched and stored it, and loading one partition back as pandas",
        box=box.SIMPLE_HEAVY,
    )
    table.add_column("asset", no_wrap=True)
    for name in ("keys", "rows", "JSON MB", "table MB", "stored MB", "ratio", "files", "cold s", "warm ms", "hot ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.asset,
            f"{row.partitions}",
            f"{row.rows:,}",
            f"{row.raw_mb:.2f}" if row.raw_mb else "",
            f"{row.memory_mb:.2f}",
            f"{row.stored_mb:.2f}",
            # What is derived was never JSON.
            f"{(row.raw_mb or row.memory_mb) / row.stored_mb:.1f}" if row.stored_mb else "",
            f"{row.requests:,}" if row.requests else "",
            f"{row.cold_s:.2f}",
            f"{row.warm_ms:.1f}",
            f"{row.hot_ms:.2f}",
        )
    # A pipe or a file has no width; the table needs its own.
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    _say("ratio: JSON as published (the table, where there is none) to what is stored")
    _say(
        "cold: all partitions, CDN to cache, Dagster included; warm: one from the file; hot: one from memory (medians)"
    )


def _print_results(
    defs: "dg.Definitions", instance: "dg.DagsterInstance", event: "Event", keys: "list[SessionKey]"
) -> None:
    """Load what downstream assets made of the laps."""
    fastest: Any = defs.load_asset_value("fastest_laps", partition_key=keys[-1].partition, instance=instance)
    columns = ["Rank", "Driver", "Team", "LapNumber", "LapTimeSeconds", "GapSeconds", "Compound"]
    _say(f"\nfastest_laps, {keys[-1].partition}, first five of {len(fastest)}:\n")
    _say(fastest.head(5)[columns].to_string(index=False))
    summary: Any = defs.load_asset_value("event_summary", partition_key=event.partition, instance=instance)
    _say(f"\nevent_summary, {event.partition}:\n")
    columns = ["SessionType", "Drivers", "Laps", "DeletedLaps", "FastestDriver", "MedianLapSeconds", "Compounds"]
    _say(summary[columns].to_string(index=False))


# ---- the CDN


@contextmanager
def _cdn_process(made: Demo, home: Path) -> Iterator[None]:
    """Serve the files from a process of their own, as a real CDN does not share our cores' lock."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "port"
        command = [sys.executable, "-m", "tif1_pipeline.cli", "serve-cdn", "--port", "0", "--ready-file", str(ready)]
        command += (
            [made.data] if made.data else ["--year", str(made.year), "--seed", str(made.seed), "--size", DEMO_SIZE]
        )
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603
        try:
            deadline = time.monotonic() + 30
            while not (ready.exists() and ready.read_text().strip()):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise click.ClickException("the simulated CDN did not start; see the messages above")
                time.sleep(0.05)
            served = demo_server(made.data, made.year, made.seed, int(ready.read_text()))  # knows its URLs
            use_cdn(home, served.cdn_urls, served.schedule_urls)
            yield
        finally:
            process.terminate()
            process.wait(10)


def _cdn_url() -> str:
    from tif1_pipeline import api

    return api.get_config().cdn_urls[0].split("/TracingInsights")[0]


def _published(made: Demo, event: "Event") -> "list[SessionKey]":
    """Return the sessions of an event that there are files of."""
    if made.data is None:
        return [] if event.is_testing else list(event.session_keys)
    season = _season_folder(Path(made.data), made.year)
    return [key for key in event.session_keys if (season / event.name / key.session_type).is_dir()]


def _season_folder(data: Path, year: int) -> Path:
    nested = data / "TracingInsights" / f"{year}@main"
    return nested if nested.is_dir() else data / f"{year}@main"


def _year_of(data: Path) -> int:
    folders = sorted([*data.glob("TracingInsights/*@main"), *data.glob("*@main")])
    for folder in folders:
        year = folder.name.removesuffix("@main")
        if year.isdecimal():
            return int(year)
    raise click.ClickException(
        f"{data} has no season: expected {data}/TracingInsights/2025@main/… laid out as on the CDN, and the schedules "
        f"in {data}/theOehrly/f1schedule@master"
    )


def _say(text: str) -> None:
    click.echo(text)
