"""Pictures of events and seasons."""

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize, to_rgba
from matplotlib.figure import Figure

from tif1_pipeline.plots.colors import ACCENT, GRID, MUTED, PANEL, RANGE, SCALE, SECOND
from tif1_pipeline.plots.marks import draw_bars, draw_legend, draw_scale, draw_ticks
from tif1_pipeline.plots.panel import (
    WIDTH,
    name_axis,
    name_rows,
    new_axes,
    new_figure,
    picture,
    pixel_of,
    write,
    write_in_bars,
    write_values,
)
from tif1_pipeline.plots.text import label_room, labels
from tif1_pipeline.plots.values import clock, clock_tick, numbers, rows_with

_MOST_ROWS = 32
_MOST_VALUES = 60


@picture("Sessions of the event")
def event_overview(event_summary: pd.DataFrame) -> Figure | None:
    """Draw the fastest and the median lap of each session.

    Args:
        event_summary: An ``event_summary`` table: SessionType, FastestDriver, FastestLap, MedianLapSeconds (s), Laps.

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    if event_summary.empty:
        return None
    known = event_summary[event_summary["FastestLap"].notna()].head(_MOST_ROWS)
    if known.empty:
        return None
    fastest = known["FastestLap"].dt.total_seconds().to_numpy(dtype=np.float64)
    median = numbers(known, "MedianLapSeconds")
    median = np.where(np.isnan(median), fastest, median)
    names = labels(known["SessionType"])
    figure = new_figure(84 + 26 * max(len(names), 3))
    axes = new_axes(figure, left=label_room(names), right=180)
    name_rows(figure, axes, names)
    low, high = fastest.min(), max(fastest.max(), median.max())
    pad = max(0.05 * (high - low), 0.5)
    axes.set_xlim(low - pad, high + pad)
    draw_ticks(figure, axes, "x", most=5, steps=(1, 1.5, 2, 3, 6, 10), text=clock_tick)
    rows = np.arange(len(names), dtype=np.float64)
    draw_bars(axes, rows, fastest, median, RANGE, thickness=0.3)
    for values, color in ((fastest, ACCENT), (median, SECOND)):
        axes.plot(values, rows, color=color, linestyle="none", marker="o", markersize=7, markeredgewidth=0)
    drivers = labels(known["FastestDriver"].fillna("?"), longest=5)
    texts = [
        f"{driver} {clock(seconds, 3)}, {laps:.0f} laps"
        for driver, seconds, laps in zip(drivers, fastest, np.nan_to_num(numbers(known, "Laps")), strict=True)
    ]
    write_values(figure, axes, [high + pad] * len(rows), texts, gap=10)
    draw_legend(figure, [("fastest lap", ACCENT, "o"), ("median", SECOND, "o")])
    return figure


@picture("Pace over the season")
def season_pace(season_summary: pd.DataFrame) -> Figure | None:
    """Draw how far each team's median pace is off the quickest, and its best session; the quickest is at the top.

    Args:
        season_summary: A ``season_summary`` table: Team, MedianGapPercent (%), BestGapPercent (%), Sessions.

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    known = rows_with(season_summary, "MedianGapPercent", text="Team")
    if known.empty:
        return None
    known = known.sort_values("MedianGapPercent", kind="stable").head(_MOST_ROWS)
    names = labels(known["Team"])
    gaps, best = numbers(known, "MedianGapPercent"), numbers(known, "BestGapPercent")
    figure = new_figure(94 + 21 * max(len(names), 3))
    axes = new_axes(figure, left=label_room(names), right=130, top=54)
    name_rows(figure, axes, names)
    axes.set_xlim(0, max(1.02 * float(gaps.max()), 0.1))
    draw_ticks(figure, axes, "x")
    rows = np.arange(len(names), dtype=np.float64)
    draw_bars(axes, rows, np.zeros(len(rows)), gaps, ACCENT)
    axes.plot(
        best, rows, color=SECOND, linestyle="none", marker="D", markersize=5, markeredgecolor=PANEL, clip_on=False
    )
    write_values(figure, axes, gaps, [f"{gap:.2f} %" for gap in gaps])
    write(figure, WIDTH - 16, figure.bbox.height - 46, "race laps", color=MUTED, align="right")
    for row, share in enumerate(numbers(known, "RaceLapShare")):
        if not np.isnan(share):
            _, middle = pixel_of(axes, 0, row)
            write(figure, WIDTH - 16, middle, f"{100 * share:.0f} %", align="right", middle=True)
    name_axis(figure, "% slower than the quickest of each session")
    draw_legend(figure, [("median", ACCENT, "s"), ("best session", SECOND, "D")])
    return figure


@picture("Stored sessions")
def cached_sessions(table: pd.DataFrame) -> Figure | None:
    """Draw which sessions of a season are stored, and how large they are.

    Args:
        table: Events by their names in the index, session types as columns, values in MiB; NaN where nothing is stored.

    Returns:
        The PNG.
    """
    if table.empty:
        return None
    shown = table.head(_MOST_ROWS)
    sizes = np.stack([numbers(shown, column) for column in shown.columns], axis=1)
    names = labels(str(event).removesuffix(" Grand Prix") for event in shown.index)
    kinds = labels(shown.columns)
    stored = ~np.isnan(sizes)
    count, total = int(stored.sum()), float(np.nansum(sizes))
    figure = new_figure(84 + 16 * max(len(names), 5))
    axes = new_axes(figure, left=label_room(names), right=84, top=64, bottom=20)
    axes.set_xlim(-0.5, len(kinds) - 0.5)
    name_rows(figure, axes, names)
    for place, kind in enumerate(kinds):
        # On two lines: "Sprint Qualifying" is wider than a column.
        for line, word in enumerate(reversed(kind.split(" ", 1))):
            x, y = pixel_of(axes, place, -0.5)
            write(figure, x, y + 5 + 12 * line, word, color=MUTED, align="center")
    scale = Normalize(0, max(float(np.nanmax(sizes)) if count else 0.0, 0.1))
    rows, places = (index.astype(np.float64) for index in np.indices(sizes.shape))
    faces = np.where(stored[..., None], SCALE(scale(np.where(stored, sizes, 0))), to_rgba(GRID)).reshape(-1, 4)
    draw_bars(axes, rows.ravel(), places.ravel() - 0.46, places.ravel() + 0.46, faces, thickness=0.86)
    if count <= _MOST_VALUES:
        lines, columns = np.nonzero(stored)
        write_in_bars(figure, axes, columns, lines, [f"{size:.1f}" for size in sizes[stored]])
    draw_scale(figure, scale, "MiB", bottom=20, top=min(figure.bbox.height - 80, 220))
    hidden = len(table) - len(shown)
    summary = f"{count} of {sizes.size} sessions, {total:.1f} MiB" + (f"; {hidden} events more" if hidden else "")
    write(figure, WIDTH - 16, figure.bbox.height - 20, summary, color=MUTED, align="right")
    return figure
