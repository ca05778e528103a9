"""What commands print: tables that fit a terminal, tab-separated lines for pipes, JSON."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click

Kind = Literal["text", "key", "count", "size", "percent", "decimal", "moment", "list"]

_NUMBERS = ("count", "size", "percent", "decimal")
_STEPS = ((365 * 86400, "year"), (86400, "day"), (3600, "hour"), (60, "minute"))


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        title: Its heading.
        name: Key of its value in each row.
        kind: How values are shown. A ``key`` is never cut short; a ``size`` is in MiB.
        width: Left out on terminals that are narrower than this.
    """

    title: str
    name: str
    kind: Kind = "text"
    width: int = 0


def print_json(value: Any) -> None:
    """Print a value as JSON; times as ISO texts."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], title: str | None = None) -> None:
    """Print rows as a table on a terminal, as tab-separated lines elsewhere.

    Args:
        rows: Values by the columns' names.
        columns: In order.
        title: Printed above, where there are several tables.
    """
    if title:
        click.echo(f"\n{title}")
    if sys.stdout.isatty():
        _print_rich(rows, columns)
        return
    lines = ["\t".join(column.title for column in columns)]
    lines += ["\t".join(_for_pipes(row[column.name], column.kind) for column in columns) for row in rows]
    click.echo("\n".join(lines))


def _print_rich(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    from rich.console import Console  # not at the top: pipes and JSON do without
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    shown = [column for column in columns if console.width >= column.width]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in shown:
        table.add_column(
            column.title,
            justify="right" if column.kind in _NUMBERS else "left",
            no_wrap=column.kind not in ("key", "text", "list"),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(for_people(row[column.name], column.kind)) for column in shown))
    console.print(table)


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Print names and values, one pair a line."""
    if not sys.stdout.isatty():
        for name, value in pairs.items():
            click.echo(f"{name}\t{value}")
        return
    width = max(map(len, pairs))
    for name, value in pairs.items():
        click.echo(f"{name:<{width}}  {value}")


def for_people(value: Any, kind: Kind) -> str:
    """Return a value as it stands in a table on a terminal."""
    if value is None:
        return "-"
    if kind == "moment":
        return ago(value)
    if kind == "list":
        return ", ".join(value)
    if kind == "count":
        return f"{value:,}"
    if kind in ("size", "decimal"):
        return f"{value:,.1f}"
    if kind == "percent":
        return f"{100 * value:.0f} %"
    return printable(str(value))


def _for_pipes(value: Any, kind: Kind) -> str:
    if value is None:
        return ""
    if kind == "moment":
        return value.isoformat(timespec="seconds")
    if kind == "list":
        return ",".join(value)
    if kind in ("size", "decimal"):
        return f"{value:.1f}"
    if kind == "percent":
        return f"{100 * value:.1f}"
    return printable(str(value))


def printable(text: str) -> str:
    """Return a text without what a terminal would obey or a line could not hold: keys may come from anywhere."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: f"\\x{ord(found[0]):02x}", text)


def ago(moment: datetime) -> str:
    """Return how long ago a time was, in words."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    for size, unit in _STEPS:
        if seconds >= size:
            number = int(seconds // size)
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def duration(value: timedelta) -> str:
    """Return a duration as the settings read it: ``7d``, ``6h``, ``90s``."""
    seconds = value.total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:g}s"


def count(number: int, what: str = "entry", several: str = "entries") -> str:
    """Return a number with its noun."""
    return f"{number:,} {what if number == 1 else several}"
