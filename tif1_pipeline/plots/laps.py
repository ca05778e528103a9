"""Pictures of laps, stints and pace."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tif1_pipeline.plots.colors import ACCENT, COMPOUNDS, MUTED, PANEL, RANGE, compound_names, compounds_in
from tif1_pipeline.plots.marks import draw_bars, draw_legend, draw_letters, draw_ticks
from tif1_pipeline.plots.panel import name_axis, name_rows, new_axes, new_figure, picture, write, write_values
from tif1_pipeline.plots.text import label_room, labels
from tif1_pipeline.plots.values import clock, clock_tick, fence, numbers, rows_with

_ROW = 15
_BEYOND = 1.25  # a lap that takes this multiple of the quick ones is not about pace, even on a drying track
_NORMAL = 1.07  # the slowest that a car may be to start a race
_WET = 1.4  # laps on rain tyres that take longer than this multiple of those on slicks are behind the safety car
_COMMON = 0.05  # on tyres for conditions that few laps were driven in, most are an experiment
_RAIN = ("INTERMEDIATE", "WET")
_MOST_ROWS = 40


@picture("Lap times")
def lap_times(laps: pd.DataFrame) -> Figure | None:
    """Draw lap times over lap numbers, coloured by compound.

    Args:
        laps: A ``laps`` table: LapNumber, LapTimeSeconds (s), Compound. Laps far off the pace of the tyres' conditions,
            as those through the pits and behind the safety car, are small marks at the edge, so that the others stay
            apart.

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    timed = rows_with(laps, "LapNumber", "LapTimeSeconds")
    timed = timed[numbers(timed, "LapTimeSeconds") > 0]
    if timed.empty:
        return None
    lap, seconds = numbers(timed, "LapNumber"), numbers(timed, "LapTimeSeconds")
    compounds = compound_names(timed["Compound"])
    low, high = _range(seconds, compounds)
    inside = (seconds >= low) & (seconds <= high)
    pad = max(0.04 * (high - low), 0.2)
    figure = new_figure(350)
    axes = new_axes(figure)
    axes.set_xlim(lap.min() - 0.5 - 0.01 * np.ptp(lap), lap.max() + 0.5 + 0.01 * np.ptp(lap))
    axes.set_ylim(low - pad, high + pad)
    draw_ticks(figure, axes, "x", whole=True)
    draw_ticks(figure, axes, "y", most=7, steps=(1, 1.5, 2, 3, 6, 10), text=clock_tick)
    for name, style in compounds_in(compounds).items():
        chosen = inside & (compounds == name)
        axes.plot(
            lap[chosen],
            seconds[chosen],
            color=style.color,
            linestyle="none",
            marker=style.marker,
            markersize=3.6,
            markeredgecolor=PANEL,
            markeredgewidth=0.4,
        )
    slower, quicker = seconds > high, seconds < low
    for marker, edge, beyond in (("^", high + pad, slower), ("v", low - pad, quicker)):
        where = np.unique(lap[beyond])
        axes.plot(
            where,
            np.full(len(where), edge),
            color=MUTED,
            linestyle="none",
            marker=marker,
            markersize=3.6,
            markeredgewidth=0,
            clip_on=False,
        )
    hidden = [f"{count} {word}" for count, word in ((slower.sum(), "slower"), (quicker.sum(), "quicker")) if count]
    if hidden:
        write(figure, 52, 8, f"not shown of {len(timed)} laps: {', '.join(hidden)}", color=MUTED)
    name_axis(figure, "lap")
    _draw_compounds(figure, compounds)
    return figure


@picture("Tyre strategy")
def tyre_strategy(stints: pd.DataFrame) -> Figure | None:
    """Draw each driver's stints as bars over laps, coloured by compound; who drove furthest is at the top.

    Args:
        stints: A ``stints`` table: Driver, Compound, StartLap, EndLap. Drivers with equally many laps stay in its
            order.

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    known = rows_with(stints, "StartLap", "EndLap", text="Driver")
    if known.empty:
        return None
    last = known["EndLap"].groupby(known["Driver"].astype(object), sort=False).max()
    order = last.sort_values(ascending=False, kind="stable").index[:_MOST_ROWS]
    known = known[known["Driver"].isin(order)]
    row_of = {driver: row for row, driver in enumerate(order)}
    rows = np.array([row_of[driver] for driver in known["Driver"]], dtype=np.float64)
    starts, ends = numbers(known, "StartLap") - 1, numbers(known, "EndLap")
    compounds = compound_names(known["Compound"])
    names = labels(order)
    figure, axes = _rows_figure(names, hidden=len(last) - len(names))
    axes.set_xlim(min(starts.min(), 0), ends.max())
    draw_ticks(figure, axes, "x", whole=True)
    styles = [COMPOUNDS[name] for name in compounds]
    draw_bars(axes, rows, starts, ends, [style.color for style in styles])
    # Letters besides colours, but in bars too short for one.
    wide = np.flatnonzero(ends - starts > 0.03 * ends.max())
    draw_letters(figure, axes, (starts[wide] + ends[wide]) / 2, rows[wide], [styles[bar].letter for bar in wide])
    name_axis(figure, "lap")
    _draw_compounds(figure, compounds)
    return figure


@picture("Gaps of the fastest laps")
def fastest_lap_gaps(fastest_laps: pd.DataFrame) -> Figure | None:
    """Draw how far each driver's fastest lap is off the quickest.

    Args:
        fastest_laps: A ``fastest_laps`` table, quickest first: Driver, LapTimeSeconds (s), GapSeconds (s).

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    ranked = rows_with(fastest_laps, "LapTimeSeconds", "GapSeconds", text="Driver")
    if ranked.empty:
        return None
    shown = ranked.head(_MOST_ROWS)
    gaps, names = numbers(shown, "GapSeconds"), labels(shown["Driver"])
    figure, axes = _rows_figure(names, hidden=len(ranked) - len(shown), values=True)
    seconds = numbers(shown, "LapTimeSeconds")
    _draw_gaps(figure, axes, gaps, [clock(seconds[0], 3), *(f"+{gap:.3f}" for gap in gaps[1:])])
    name_axis(figure, "s behind the quickest")
    return figure


@picture("Race pace")
def race_pace(race_pace: pd.DataFrame) -> Figure | None:
    """Draw how far each driver's median lap is off the quickest, with the spread of the laps as a line.

    Args:
        race_pace: A ``race_pace`` table, quickest first: Driver, MedianSeconds (s), GapSeconds (s), SpreadSeconds (s).
            Drivers without a gap are left out.

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    ranked = rows_with(race_pace, "GapSeconds", text="Driver")
    if ranked.empty:
        return None
    shown = ranked.head(_MOST_ROWS)
    gaps, names = numbers(shown, "GapSeconds"), labels(shown["Driver"])
    half = np.nan_to_num(numbers(shown, "SpreadSeconds")) / 2
    figure, axes = _rows_figure(names, hidden=len(ranked) - len(shown), values=True)
    start, end = min((gaps - half).min(), 0), max(fence(gaps + half, reach=4)[1], 1e-3)
    axes.set_xlim(start - 0.02 * (end - start), end + 0.02 * (end - start))
    draw_ticks(figure, axes, "x")
    rows = np.arange(len(gaps), dtype=np.float64)
    draw_bars(axes, rows, gaps - half, gaps + half, RANGE, thickness=0.3)
    axes.plot(gaps, rows, color=ACCENT, linestyle="none", marker="o", markersize=6, markeredgewidth=0)
    medians = ["" if np.isnan(seconds) else clock(seconds, 3) for seconds in numbers(shown, "MedianSeconds")]
    write_values(figure, axes, [axes.get_xlim()[1]] * len(rows), medians)
    name_axis(figure, "s a lap behind the quickest; median lap")
    draw_legend(figure, [("gap", ACCENT, "o"), ("spread", RANGE, "-")])
    return figure


def _range(seconds: NDArray[np.float64], compounds: NDArray[np.object_]) -> tuple[float, float]:
    """Return the shortest and the longest lap that is about pace, on slicks or on rain tyres."""
    wet = np.isin(compounds, _RAIN)
    kinds = [seconds[kind] for kind in (wet, ~wet) if kind.sum() >= max(1, _COMMON * len(seconds))]
    # A quarter: the slow laps of practice and of neutralised races are too many to be outliers by their number.
    quick = [np.percentile(kind, 25, method="lower") for kind in kinds]
    shown = []
    for kind, pace in zip(kinds, quick, strict=True):
        if pace <= _WET * min(quick):
            low, high = fence(kind, reach=4)
            low, high = min(low, pace / _NORMAL), max(high, pace * _NORMAL)
            shown.append(kind[(kind >= max(low, pace / _BEYOND)) & (kind <= min(high, pace * _BEYOND))])
    laps = np.concatenate(shown)
    return float(laps.min()), float(laps.max())


def _draw_compounds(figure: Figure, names: Iterable[str]) -> None:
    draw_legend(
        figure, [(name.capitalize(), compound.color, compound.marker) for name, compound in compounds_in(names).items()]
    )


def _rows_figure(names: list[str], *, hidden: int = 0, values: bool = False) -> tuple[Figure, Axes]:
    """Return a panel as high as its rows need, and its axes."""
    figure = new_figure(84 + _ROW * max(len(names), 3))
    axes = new_axes(figure, left=label_room(names), right=76 if values else 16)
    name_rows(figure, axes, names)
    if hidden > 0:
        write(figure, 14, 8, f"and {hidden} more", color=MUTED)
    return figure, axes


def _draw_gaps(figure: Figure, axes: Axes, gaps: NDArray[np.float64], texts: list[str]) -> None:
    """Draw gaps as bars with their values; those of stragglers are cut, and pale."""
    limit = max(fence(gaps, reach=4)[1], 1e-3) * 1.02
    axes.set_xlim(0, limit)
    draw_ticks(figure, axes, "x")
    rows, ends = np.arange(len(gaps), dtype=np.float64), np.minimum(gaps, limit)
    draw_bars(axes, rows, np.zeros(len(gaps)), ends, [RANGE if gap > limit else ACCENT for gap in gaps])
    write_values(figure, axes, ends, texts)
