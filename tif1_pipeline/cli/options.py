"""Options that several commands have, and what they mean."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tif1_pipeline.exceptions import ConfigError

if TYPE_CHECKING:
    from tif1_pipeline.cache import Cache


_PATH = "tif1_pipeline.cache"
"""Under which a command's context keeps the cache file."""


class Duration(click.ParamType):
    """A duration as the settings read it: ``7d``, ``12h``, ``15m``, or a number of seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read it by the rules of the settings."""
        from tif1_pipeline.config import Config

        try:
            return Config(cache_cleanup_min_age=value).cache_cleanup_min_age
        except ConfigError:
            self.fail(f"{value!r} is no duration: write 7d, 12h, 15m or 90s", param, ctx)


def days_of(value: timedelta | None) -> float | None:
    """Return a duration in days."""
    return None if value is None else value / timedelta(days=1)


def _open(context: click.Context, _: click.Parameter, value: Path | None) -> "Cache | None":
    if context.resilient_parsing:  # a shell completes the line
        return None
    from tif1_pipeline import api

    if value is not None and value.is_dir():
        value = value / api.get_config().cache_filename
    context.meta[_PATH] = value
    return api.get_cache(value)


def given_cache() -> Path | None:
    """Return the file that ``--cache`` names for the running command; None for that of the settings."""
    return click.get_current_context().meta.get(_PATH)


cache_option = click.option(
    "--cache",
    metavar="FILE|DIR",
    type=click.Path(path_type=Path),
    callback=_open,
    help="Cache file, or the folder that holds it.  [default: the one of the settings]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, to stdout.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


def confirm(question: str, yes: bool) -> None:
    """Ask before what cannot be undone.

    Raises:
        click.UsageError: Nobody is there to answer, and ``--yes`` was not given.
        click.Abort: The answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("this cannot be undone and nobody can be asked here: confirm it with --yes")
    click.confirm(question, abort=True, err=True)


def missing(cache: "Cache") -> str:
    """Return a sentence on a cache that holds nothing."""
    file = cache.get_cache_file()
    if file.exists():
        return f"the cache {file} is empty"
    return f"there is no cache at {file} yet; the first read makes it, or: tif1-pipeline warm"


def is_stored(cache: "Cache") -> bool:
    """Tell whether there is a file at all; say so if there is none."""
    if cache.get_size_mb():
        return True
    click.echo(missing(cache))
    return False


@contextmanager
def settings(**values: Any) -> Iterator[None]:
    """Change settings for one call; those that are None stay."""
    from tif1_pipeline import api

    config = api.get_config()
    wanted = {name: value for name, value in values.items() if value is not None}
    before = {name: getattr(config, name) for name in wanted}
    config.update(wanted)
    try:
        yield
    finally:
        config.update(before)
