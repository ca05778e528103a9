"""The command line, ``tif1-pipeline``."""

import sys

import click

from tif1_pipeline import __version__
from tif1_pipeline.cli.demo import demo
from tif1_pipeline.cli.dev import dev
from tif1_pipeline.cli.serve import serve_cdn
from tif1_pipeline.exceptions import Tif1Error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tif1-pipeline")
def cli() -> None:
    """Formula 1 timing data through a cache, as Dagster assets and for notebooks."""


cli.add_command(demo)
cli.add_command(dev)
cli.add_command(serve_cdn)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 found problems, 2 usage."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Tif1Error as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
