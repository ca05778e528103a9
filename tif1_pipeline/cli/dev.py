"""`tif1-pipeline dev`: the Dagster UI with everything in it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from tif1_pipeline.cli.home import DEMO_HOME, Demo, provide_instance, use_cdn
from tif1_pipeline.cli.serve import demo_server
from tif1_pipeline.exceptions import DataNotFoundError, Tif1Error


@click.command()
@click.option("--demo", is_flag=True, help=f"Open what `demo` made in {DEMO_HOME}, with its CDN served again.")
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="DAGSTER_HOME",
    default=Path(".dagster_home"),
    show_default=True,
    show_envvar=True,
    help="Folder of the Dagster instance: its dagster.yaml and storage.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the UI. It has no log-in.")
@click.option("--port", default=3000, show_default=True, help="Port of the UI.")
def dev(demo: bool, home: Path, host: str, port: int) -> None:
    """Start the Dagster UI and its daemons; what they store survives a restart.

    The season calendars are fetched first, because events and sessions are partitions made from them.
    """
    with _simulated_cdn() if demo else nullcontext():
        dagster_home = provide_instance(DEMO_HOME / "dagster" if demo else home)
        _fetch_calendars()
        # The parent keeps nothing open: the cache belongs to the processes that Dagster starts.
        from tif1_pipeline import api

        api.close()
        command = [
            sys.executable,
            "-m",
            "dagster",
            "dev",
            "-m",
            "tif1_pipeline.definitions",
            "-h",
            host,
            "-p",
            str(port),
        ]
        click.echo(f"Dagster UI: http://{host}:{port} (Ctrl-C stops it)")
        # Where the sensors ask for a reload when the calendar has new events; 0.0.0.0 is no address to connect to.
        address = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104
        sys.exit(_run(command, dagster_home, webserver_url=f"http://{address}:{port}"))


@contextmanager
def _simulated_cdn() -> Iterator[None]:
    made = Demo.read(DEMO_HOME)
    if made is None:
        raise click.ClickException(f"no demo was made in {DEMO_HOME} yet; run `tif1-pipeline demo` first")
    with demo_server(made.data, made.year, made.seed) as server:
        use_cdn(DEMO_HOME, server.cdn_urls, server.schedule_urls)
        yield


def _fetch_calendars() -> None:
    from tif1_pipeline import api
    from tif1_pipeline.defs.seasons import known_seasons

    reader = api.get_reader()

    def fetch(year: int) -> str | None:
        try:
            reader.schedule(year)
        except DataNotFoundError:
            return None  # a season that is not published
        except Tif1Error as error:
            return str(error)
        return None

    with ThreadPoolExecutor(4) as pool:
        problems = [problem for problem in pool.map(fetch, known_seasons()) if problem]
    if problems:
        click.echo(
            f"{len(problems)} season calendars could not be fetched; the calendar_sensor tries again, and their events "
            f"and sessions show as partitions then. The first reason: {problems[0]}",
            err=True,
        )


def _run(command: list[str], dagster_home: Path, webserver_url: str) -> int:
    """Run until it ends or we are told to stop; end its whole family with it."""
    environment = {"TIF1_WEBSERVER_URL": webserver_url} | os.environ
    environment |= {"DAGSTER_HOME": str(dagster_home), "DAGSTER_DISABLE_TELEMETRY": "1"}

    def stop(*_: object) -> None:
        process.send_signal(signal.SIGINT)  # the signal on which Dagster ends its code servers and daemons

    # A shell that starts us in the background has SIGINT ignored, and Dagster would inherit that and never stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    # The family has a session of its own, which a closing terminal does not reach.
    signal.signal(signal.SIGHUP, stop)
    return process.wait()
