"""What is drawn on a panel besides text: the grid, bars, the legend, the meaning of colours."""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import IdentityTransform
from numpy.typing import NDArray

from tif1_pipeline.plots.colors import GRID, MUTED, PANEL, SCALE, TEXT
from tif1_pipeline.plots.panel import WIDTH, pixel_of, write
from tif1_pipeline.plots.text import DPI, font_of, text_width


def draw_ticks(
    figure: Figure,
    axes: Axes,
    axis: Literal["x", "y"],
    *,
    most: int = 8,
    steps: Sequence[float] = (1, 2, 5, 10),
    whole: bool = False,
    text: Callable[[float], str] = "{:g}".format,
) -> None:
    """Draw the lines of a grid and their values, lines and texts at once: a tick of matplotlib's is six artists.

    Args:
        figure: The panel.
        axes: Axes with their limits set.
        axis: Across which axis.
        most: How many lines there are at most.
        steps: What their distances are multiples of.
        whole: Whether at whole numbers only.
        text: Writes a value.
    """
    low, high = axes.get_xlim() if axis == "x" else axes.get_ylim()
    locator = MaxNLocator(most, steps=list(steps), integer=whole)
    box, lines = axes.bbox, []
    for value in locator.tick_values(low, high):
        if not low <= value <= high:
            continue
        value = 0.0 if abs(value) < 1e-9 * (high - low) else float(value)
        x, y = pixel_of(axes, value, value)
        if axis == "x":
            lines.append([(round(x) + 0.5, box.y0), (round(x) + 0.5, box.y1)])
            write(figure, x, box.y0 - 15, text(value), color=MUTED, align="center")
        else:
            lines.append([(box.x0, round(y) + 0.5), (box.x1, round(y) + 0.5)])
            write(figure, box.x0 - 6, y, text(value), color=MUTED, align="right", middle=True)
    grid = LineCollection(lines, colors=GRID, linewidths=0.72, linestyles="-", zorder=0)
    grid.set_transform(IdentityTransform())
    figure.add_artist(grid)


def draw_letters(
    figure: Figure, axes: Axes, xs: NDArray[np.float64], rows: NDArray[np.float64], letters: Sequence[str]
) -> None:
    """Draw dark letters into bars as one shape: texts would take longer than all the rest.

    Args:
        figure: The panel.
        axes: Axes with named rows, their limits set.
        xs: The middles, in units of the horizontal axis.
        rows: The middles, rows.
        letters: What.
    """
    if not letters:
        return
    places = axes.transData.transform(np.stack([xs, rows], axis=1))
    shapes = [
        Path(_shape(letter).vertices + place, _shape(letter).codes)
        for letter, place in zip(letters, places, strict=True)
    ]
    all_letters = Path.make_compound_path(*shapes)
    figure.add_artist(PathPatch(all_letters, facecolor=PANEL, linewidth=0, transform=IdentityTransform(), snap=False))


@functools.cache
def _shape(letter: str) -> Path:
    """Return the outline of a letter around its middle, in pixels."""
    shape = TextPath((0, 0), letter, size=7 * DPI / 72, prop=font_of(7))
    return Path(shape.vertices - shape.get_extents().get_points().mean(axis=0), shape.codes)


def draw_legend(figure: Figure, entries: Iterable[tuple[str, str, str]]) -> None:
    """Draw a legend at the top right.

    Args:
        figure: The panel.
        entries: Text, colour and marker of each; the marker "-" is a line.
    """
    right, y = WIDTH - 16.0, figure.bbox.height - 15.0
    for text, color, marker in reversed(list(entries)):
        write(figure, right, y - 4, text, color=TEXT, align="right")
        right -= text_width(text) + 8
        is_line = marker == "-"
        figure.add_artist(
            Line2D(
                [right - 12, right] if is_line else [right - 4],
                [y, y] if is_line else [y],
                transform=IdentityTransform(),
                color=color,
                linestyle="-" if is_line else "none",
                linewidth=2,
                marker="none" if is_line else marker,
                markersize=5.5,
                markeredgewidth=0,
            )
        )
        right -= 26 if is_line else 20


def draw_bars(
    axes: Axes,
    rows: NDArray[np.float64],
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    colors: str | Sequence[str] | NDArray[np.float64],
    *,
    thickness: float = 0.72,
) -> None:
    """Draw horizontal bars as one collection: an artist a bar is several times slower.

    Args:
        axes: Axes with named rows.
        rows: Row of each bar.
        starts: Left ends, in units of the horizontal axis.
        ends: Right ends.
        colors: One colour, or one a bar, as names or as rows of red, green, blue and opacity.
        thickness: Rows.
    """
    low, high = rows - thickness / 2, rows + thickness / 2
    corners = np.stack([starts, low, ends, low, ends, high, starts, high], axis=1).reshape(-1, 4, 2)
    bars = PolyCollection(list(corners), facecolors=colors, edgecolors=PANEL, linewidths=0.8)
    axes.add_collection(bars, autolim=False)


def draw_scale(figure: Figure, scale: Normalize, unit: str, *, bottom: float, top: float) -> None:
    """Draw what the colours of values mean, at the right of the panel: a colour bar without the cost of further axes.

    Args:
        figure: The panel.
        scale: Of the values.
        unit: Written above.
        bottom: Pixels.
        top: Ditto.
    """
    left, right = WIDTH - 70, WIDTH - 58
    edges = np.linspace(bottom, top, SCALE.N + 1)
    strips = [[(left, low), (right, low), (right, high), (left, high)] for low, high in itertools.pairwise(edges)]
    faces = SCALE(np.arange(SCALE.N))
    figure.add_artist(PolyCollection(strips, facecolors=faces, edgecolors="none", transform=IdentityTransform()))
    low, high = float(scale.vmin or 0), float(scale.vmax or 1)
    for value in MaxNLocator(5).tick_values(low, high):
        if low <= value <= high:
            y = bottom + (top - bottom) * (value - low) / (high - low)
            write(figure, right + 6, y, f"{value:g}", color=MUTED, middle=True)
    write(figure, left, top + 8, unit, color=MUTED)
