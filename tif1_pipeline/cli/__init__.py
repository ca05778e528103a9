"""The command line, ``tif1-pipeline``."""

import sys

import click

from tif1_pipeline import __version__
from tif1_pipeline.cli.lazy import LazyGroup, Verb
from tif1_pipeline.exceptions import ConfigError, Tif1Error

_HERE = "tif1_pipeline.cli"
SECTIONS = {
    "Start": {
        "demo": Verb(f"{_HERE}.demo:demo", "Run a race weekend through everything, on simulated data."),
        "dev": Verb(f"{_HERE}.dev:dev", "Start the Dagster UI and its daemons."),
        "serve-cdn": Verb(f"{_HERE}.serve:serve_cdn", "Serve simulated seasons, or a folder of real files."),
        "config": Verb(f"{_HERE}.settings:config", "Show the settings: value, default, source and meaning."),
        "doctor": Verb(f"{_HERE}.doctor:doctor", "Check cache, settings and CDN, and say what to do."),
    },
    "Look into the cache": {
        "ls": Verb(f"{_HERE}.inspect:ls", "List the stored sessions, or the entries."),
        "search": Verb(f"{_HERE}.inspect:search", "List the entries whose key matches a glob."),
        "stats": Verb(f"{_HERE}.inspect:stats", "Show sizes, hit rates and accesses, by type and season."),
        "verify": Verb(f"{_HERE}.inspect:verify", "Check the database and every entry, or one entry."),
    },
    "Fill and empty it": {
        "warm": Verb(f"{_HERE}.warm:warm", "Fetch ahead what is missing or expired."),
        "clean": Verb(f"{_HERE}.maintain:clean", "Remove what is worth least, until little is stored."),
        "expire": Verb(f"{_HERE}.maintain:expire", "Remove the entries that are older than their TTL."),
        "clear": Verb(f"{_HERE}.clear:clear", "Remove the entries that are named."),
    },
    "Keep it in shape": {
        "vacuum": Verb(f"{_HERE}.maintain:vacuum", "Give free pages back to the file system."),
        "optimize": Verb(f"{_HERE}.maintain:optimize", "Refresh SQLite's statistics, indexes and log."),
        "backup": Verb(f"{_HERE}.transfer:backup", "Store a verified copy of the cache, which may be in use."),
        "restore": Verb(f"{_HERE}.transfer:restore", "Replace what is stored by a backup."),
        "export": Verb(f"{_HERE}.transfer:export", "Write every entry as a Parquet or JSON file."),
        "import": Verb(f"{_HERE}.transfer:import_", "Store the files that export wrote."),
        "rotate-key": Verb(f"{_HERE}.transfer:rotate_key", "Encrypt every entry with the current key, or decrypt all."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="tif1-pipeline")
def cli() -> None:
    """Formula 1 timing data through a cache, as Dagster assets and for notebooks.

    On a terminal, tables fit its width. Into a pipe or a file they go tab-separated and whole: a line of titles, then
    a line a row, times in UTC. With --json, JSON alone is on stdout.

    Exit codes: 0 done, 1 found problems or failed, 2 usage (settings too), 130 interrupted.
    """


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        # Without standalone mode click returns the code of ctx.exit(), and leaves errors to us.
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except Tif1Error as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
