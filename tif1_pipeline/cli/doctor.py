"""`tif1-pipeline doctor`: what is wrong, and what to do about it."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click

from tif1_pipeline.config import Config
from tif1_pipeline.doctor.base import Check
from tif1_pipeline.exceptions import ConfigError

_MARKS = {"problem": ("✗", "x"), "warning": ("!", "!"), "ok": ("✓", "+")}
_COLORS = {"problem": "red", "warning": "yellow", "ok": "green"}


@click.command()
@click.option("--full", is_flag=True, help="Read and decode every entry, instead of looking for a second or two.")
@click.option("--no-cdn", is_flag=True, help="Do not ask the mirrors.")
@click.option(
    "--cache",
    "place",
    type=click.Path(path_type=Path),
    metavar="FILE|DIR",
    help="Cache to look at.  [default: that of the settings]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON, and nothing else, to stdout.")
@click.pass_context
def doctor(context: click.Context, full: bool, no_cdn: bool, place: Path | None, as_json: bool) -> None:
    """Find out what is wrong with the cache, the settings or the way to the CDN, and say what to do.

    Looked at are: the settings; the cache folder, its permissions, its disk and file system; who has the cache open
    or locked; logs that a crash left behind; versions, corruption and encryption of what is stored; damaged files and
    unfinished backups lying around; the clock; memory; each mirror, whether it answers and how fast.

    Nothing is changed. It can be run while others use the cache.

    \b
    Examples:
      tif1-pipeline doctor
      tif1-pipeline doctor --full --no-cdn            every entry, offline
      tif1-pipeline doctor --cache /mnt/disk/cache    another cache

    Marks: ✗ does not work, ! works but should be looked at, ✓ as it should be.

    Exit codes: 0 no problem (there may be warnings), 1 a problem, 2 usage.
    """  # noqa: D301 - click knows the paragraph to leave as it is by this character
    from tif1_pipeline.doctor import diagnose, load_settings

    config, checks = load_settings()
    if place is not None:
        _point(config, place)
    checks += diagnose(config, cdn=not no_cdn, integrity="full" if full else "quick")
    if as_json:
        click.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _show(checks)
    context.exit(1 if any(check.status == "problem" for check in checks) else 0)


def _point(config: Config, place: Path) -> None:
    """Have the settings mean this file, or the file of the usual name in this folder."""
    is_file = place.is_file() or (not place.exists() and place.suffix != "")
    try:
        if is_file:
            config.cache_filename = place.name
        config.cache_dir = place.parent if is_file else place
    except ConfigError as error:
        raise click.UsageError(error.message) from error


def _show(checks: Iterable[Check]) -> None:
    order = list(_MARKS)
    checks = sorted(checks, key=lambda check: order.index(check.status))
    width = shutil.get_terminal_size((79, 24)).columns
    for check in checks:
        mark = click.style(_printable(*_MARKS[check.status]), fg=_COLORS[check.status], bold=check.status != "ok")
        text = textwrap.indent(_wrapped(f"{check.name}: {check.finding}", width - 2), "  ")
        click.echo(f"{mark} {_encodable(text[2:])}")
        if check.remedy:
            click.echo(
                _encodable(textwrap.indent(_wrapped(f"{_printable('→', '->')} {check.remedy}", width - 4), "    "))
            )
    numbers = {status: sum(check.status == status for check in checks) for status in _MARKS}
    click.echo(f"\n{numbers['problem']} problems, {numbers['warning']} warnings, {numbers['ok']} checks without fault")


def _wrapped(text: str, width: int) -> str:
    # Names and addresses stay whole, so that they can be copied.
    return textwrap.fill(text, max(20, width), break_on_hyphens=False, break_long_words=False)


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "ascii"


def _printable(text: str, plain: str) -> str:
    try:
        text.encode(_encoding())
    except UnicodeEncodeError:
        return plain
    return text


def _encodable(text: str) -> str:
    return text.encode(_encoding(), "replace").decode(_encoding())
