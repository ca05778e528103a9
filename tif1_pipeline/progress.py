"""Progress bars for work that takes long: on stderr, and only where that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Advance = Callable[[float], None]
"""Tells a bar that so much more is done, in the bar's unit."""


@contextmanager
def progress(what: str, total: float | None = None, unit: Literal["", "bytes"] = "") -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        what: Said before the bar; may name the unit of a count.
        total: When the bar is full; None where it is not known.
        unit: ``"bytes"`` shows sizes and speed instead of counts.

    Yields:
        What advances the bar; does nothing where there is no terminal. May be called from any thread.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress as bars  # not at the top: most callers show no bar
    from rich.console import Console

    columns: list[bars.ProgressColumn] = [bars.SpinnerColumn(), bars.TextColumn("{task.description}")]
    if total is not None:
        columns.append(bars.BarColumn())
    if unit == "bytes":
        columns += [bars.DownloadColumn(binary_units=True), bars.TransferSpeedColumn()]
    elif total is None:
        columns.append(bars.TextColumn("{task.completed:.0f}"))
    else:
        columns.append(bars.MofNCompleteColumn())
    with bars.Progress(*columns, bars.TimeElapsedColumn(), console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda step: shown.advance(task, step)
