"""`tif1-pipeline serve-cdn`: the simulated CDN."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tif1_pipeline.simulator import CdnServer

DEMO_SIZE = "small"


def demo_server(data: str | Path | None, year: int, seed: int, port: int = 0) -> "CdnServer":
    """Return the server of what the demo is made of: a folder of real files, or a generated season; not started."""
    from tif1_pipeline.simulator import CdnServer, Season

    return CdnServer(Season(year, seed=seed, size=DEMO_SIZE) if data is None else Path(data), port=port)


@click.command("serve-cdn")
@click.argument("directory", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--year", "years", multiple=True, type=int, help="Season to generate; may be repeated.  [default: 2025]")
@click.option("--events", type=click.IntRange(0), help="Race weekends a season.  [default: the whole calendar]")
@click.option(
    "--size",
    type=click.Choice(["full", "small", "tiny"]),
    default="full",
    show_default=True,
    help="full: like the real files; small: fewer laps; tiny: for tests.",
)
@click.option("--tidy", is_flag=True, help="Without the untidiness of the real files.")
@click.option("--seed", default=0, show_default=True, help="Decides what is generated and which requests faults hit.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8400, show_default=True, help="Port; 0 for a free one.")
@click.option(
    "--fault",
    "faults",
    multiple=True,
    help="Misbehave: error=0.05, latency=1:0.2 (seconds), rate_limit=0.1:2 (Retry-After), truncate, garbage, hang, "
    "reset, missing, forbidden, each =RATE; may be repeated.",
)
@click.option("--ready-file", type=click.Path(path_type=Path), help="Write the port here once requests are answered.")
def serve_cdn(
    directory: Path | None,
    years: tuple[int, ...],
    events: int | None,
    size: str,
    tidy: bool,
    seed: int,
    host: str,
    port: int,
    faults: tuple[str, ...],
    ready_file: Path | None,
) -> None:
    """Serve DIRECTORY, laid out as on the CDN, or generated seasons, over HTTP until Ctrl-C."""
    from tif1_pipeline.simulator import serve

    try:
        serve(
            directory,
            years=years or (2025,),
            events=events,
            size=size,
            untidy=not tidy,
            seed=seed,
            host=host,
            port=port,
            faults=faults,
            ready_file=ready_file,
        )
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
