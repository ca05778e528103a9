"""Pictures of what the cars' sensors said."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tif1_pipeline.plots.colors import CYCLE, MUTED, SCALE, TEXT
from tif1_pipeline.plots.marks import draw_bars, draw_legend, draw_scale, draw_ticks
from tif1_pipeline.plots.panel import (
    name_axis,
    name_rows,
    new_axes,
    new_figure,
    picture,
    write,
    write_values,
)
from tif1_pipeline.plots.text import label_room, labels
from tif1_pipeline.plots.values import clock, numbers, rows_with

_TRACES = 3
_MOST_TRIES = 60
_MOST_ROWS = 40


class _Lap(NamedTuple):
    driver: str
    lap: int
    seconds: float
    samples: pd.DataFrame


@picture("Speed of the fastest laps")
def speed_trace(telemetry: pd.DataFrame, laps: pd.DataFrame) -> Figure | None:
    """Draw speed over distance, of the fastest laps of the three quickest drivers.

    Args:
        telemetry: A ``telemetry`` table, as much of it as there is: Driver, LapNumber, Distance (m), Speed (km/h).
        laps: The ``laps`` of the session: Driver, LapNumber, LapTimeSeconds (s), and Deleted if it is to count.

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    fastest = _fastest(telemetry, laps, ["Distance", "Speed"], drivers=_TRACES)
    if not fastest:
        return None
    figure = new_figure(300)
    axes = new_axes(figure)
    furthest, slowest, quickest = 0.0, np.inf, 0.0
    entries = []
    for lap, color in zip(fastest, CYCLE, strict=False):
        distance, speed = numbers(lap.samples, "Distance"), numbers(lap.samples, "Speed")
        axes.plot(distance, speed, color=color, linewidth=1.3, linestyle="-", marker="none")
        furthest = max(furthest, distance.max())
        slowest, quickest = min(slowest, speed.min()), max(quickest, speed.max())
        entries.append((f"{labels([lap.driver])[0]} {clock(lap.seconds, 3)}", color, "-"))
    axes.set_xlim(0, max(furthest, 1))
    axes.set_ylim(max(0, slowest - 15), quickest + 15)
    draw_ticks(figure, axes, "x")
    draw_ticks(figure, axes, "y", most=6)
    write(figure, 14, 8, "km/h", color=MUTED)
    name_axis(figure, "m from the start of the lap")
    draw_legend(figure, entries)
    return figure


@picture("Speed on the track")
def track_map(telemetry: pd.DataFrame, laps: pd.DataFrame) -> Figure | None:
    """Draw the track as the quickest lap took it, coloured by speed; north is up.

    Args:
        telemetry: A ``telemetry`` table, as much of it as there is: Driver, LapNumber, X, Y (1/10 m), Speed (km/h).
        laps: The ``laps`` of the session: Driver, LapNumber, LapTimeSeconds (s), and Deleted if it is to count.

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    fastest = _fastest(telemetry, laps, ["X", "Y", "Speed"], drivers=1)
    if not fastest:
        return None
    lap = fastest[0]
    speed = numbers(lap.samples, "Speed")
    points = np.stack([numbers(lap.samples, "X"), numbers(lap.samples, "Y")], axis=1)
    segments = np.stack([points[:-1], points[1:]], axis=1)
    # Where samples are missing there is a gap, not a straight line across the infield.
    steps = np.hypot(*(points[1:] - points[:-1]).T)
    near = steps <= max(10 * float(np.median(steps)), 1.0)
    scale = Normalize(speed.min(), max(speed.max(), speed.min() + 1))
    figure = new_figure(400)
    axes = new_axes(figure, left=14, right=96, top=40, bottom=26)
    lines = LineCollection(list(segments[near]), cmap=SCALE, norm=scale, linewidths=4, capstyle="round")
    lines.set_array(((speed[:-1] + speed[1:]) / 2)[near])
    axes.add_collection(lines, autolim=False)
    axes.plot(*points[0], color=TEXT, linestyle="none", marker="o", markersize=7, markeredgewidth=0, zorder=3)
    # Limits of the shape of the axes: one metre is as long in both directions.
    low, high = points.min(axis=0), points.max(axis=0)
    box = np.array([axes.bbox.width, axes.bbox.height])
    half = 0.53 * box * max(((high - low) / box).max(), 1e-3)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    draw_scale(figure, scale, "km/h", bottom=90, top=300)
    write(figure, 14, 8, f"{labels([lap.driver])[0]}, lap {lap.lap}, {clock(lap.seconds, 3)}", color=MUTED)
    draw_legend(figure, [("start", TEXT, "o")])
    return figure


@picture("Driving")
def telemetry_shares(driver_telemetry_summary: pd.DataFrame) -> Figure | None:
    """Draw the shares of full throttle and of braking of each driver's lap, with the top speed as text.

    Args:
        driver_telemetry_summary: Driver, FullThrottleShare and BrakeShare (0 to 1), TopSpeed (km/h).

    Returns:
        The PNG.

    Raises:
        KeyError: There are rows, but not one of these columns.
    """
    known = rows_with(driver_telemetry_summary, "FullThrottleShare", "BrakeShare", text="Driver")
    if known.empty:
        return None
    shown = known.head(_MOST_ROWS)
    names = labels(shown["Driver"])
    throttle, brake = 100 * numbers(shown, "FullThrottleShare"), 100 * numbers(shown, "BrakeShare")
    figure = new_figure(84 + 15 * max(len(names), 3))
    axes = new_axes(figure, left=label_room(names), right=82)
    name_rows(figure, axes, names)
    axes.set_xlim(0, 100)
    draw_ticks(figure, axes, "x", most=5)
    rows = np.arange(len(names), dtype=np.float64)
    draw_bars(axes, rows, np.zeros(len(rows)), throttle, CYCLE[4])
    draw_bars(axes, rows, 100 - brake, np.full(len(rows), 100.0), CYCLE[5])
    speeds = ["" if np.isnan(speed) else f"{speed:.0f} km/h" for speed in numbers(shown, "TopSpeed")]
    write_values(figure, axes, [100.0] * len(rows), speeds)
    if len(known) > len(shown):
        write(figure, 14, 8, f"and {len(known) - len(shown)} more", color=MUTED)
    name_axis(figure, "% of the time; top speed")
    draw_legend(figure, [("full throttle", CYCLE[4], "s"), ("brake, from the right", CYCLE[5], "s")])
    return figure


def _fastest(telemetry: pd.DataFrame, laps: pd.DataFrame, channels: list[str], *, drivers: int) -> list[_Lap]:
    """Return the fastest laps, one a driver, of which there is telemetry."""
    timed = rows_with(laps, "LapNumber", "LapTimeSeconds", text="Driver")
    if timed.empty or telemetry.empty:
        return []
    if "Deleted" in timed:
        timed = timed[~timed["Deleted"].fillna(False).to_numpy(dtype=bool)]
    timed = timed.sort_values("LapTimeSeconds", kind="stable")
    lap_numbers: NDArray[np.float64] = numbers(telemetry, "LapNumber")
    found: dict[str, _Lap] = {}
    tries = 0
    for driver, lap, seconds in zip(timed["Driver"], timed["LapNumber"], timed["LapTimeSeconds"], strict=True):
        if len(found) == drivers or tries == _MOST_TRIES:
            break
        if driver in found:
            continue
        tries += 1
        # The number first: few rows remain whose names have to be compared.
        candidates = telemetry[lap_numbers == lap]
        samples = rows_with(candidates[(candidates["Driver"] == driver).to_numpy(dtype=bool)], *channels)
        if len(samples) > 1:
            found[driver] = _Lap(str(driver), int(lap), float(seconds), samples)
    return list(found.values())
