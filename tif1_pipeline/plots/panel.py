"""What all pictures share: a dark panel of a fixed width, its text, axes and colours, and the way to a small PNG."""

import functools
import io
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, ParamSpec

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import IdentityTransform
from PIL import Image

from tif1_pipeline.plots.colors import MUTED, PANEL, TEXT
from tif1_pipeline.plots.text import DPI, SIZE, font_of, printable

WIDTH = 640
"""Pixels; what the panel for metadata in the Dagster UI shows without scaling."""

_COLORS = 64
_PARAMS = ParamSpec("_PARAMS")

# The caches of fonts and glyphs inside matplotlib are not made for threads, and the GIL would let only one draw anyway.
_lock = threading.RLock()


def _renew_lock() -> None:
    """In a forked child: the lock may have been held by a thread that does not exist there."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def picture(title: str) -> Callable[[Callable[_PARAMS, Figure | None]], Callable[_PARAMS, bytes]]:
    """Make a function that draws a figure one that returns its PNG.

    Args:
        title: At the top left of the picture. A function that returns None gives a picture that says "no data".
    """

    def decorate(draw: Callable[_PARAMS, Figure | None]) -> Callable[_PARAMS, bytes]:
        @functools.wraps(draw)
        def drawn(*args: _PARAMS.args, **kwargs: _PARAMS.kwargs) -> bytes:
            with _lock:
                figure = draw(*args, **kwargs)
                if figure is None:
                    figure = new_figure(90)
                    write(figure, WIDTH / 2, 36, "no data", color=MUTED, align="center", size=10)
                write(figure, 14, figure.bbox.height - 20, title, size=10, bold=True)
                return _to_png(figure)

        return drawn

    return decorate


def new_figure(height: float) -> Figure:
    """Return an empty panel.

    Args:
        height: Pixels.
    """
    return Figure(figsize=(WIDTH / DPI, round(height) / DPI), dpi=DPI, facecolor=PANEL, edgecolor=PANEL)


def new_axes(figure: Figure, *, left: float = 52, right: float = 16, top: float = 44, bottom: float = 40) -> Axes:
    """Return axes in the panel, bare whatever the process's matplotlib settings are.

    Args:
        figure: The panel.
        left: Margins, pixels.
        right: Ditto.
        top: Ditto.
        bottom: Ditto.
    """
    height = figure.bbox.height
    axes = figure.add_axes(
        (left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - bottom - top) / height)
    )
    axes.set_axis_off()
    return axes


def name_axis(figure: Figure, text: str) -> None:
    """Write what the horizontal axis shows, at the bottom right."""
    write(figure, WIDTH - 16, 8, text, color=MUTED, align="right")


def name_rows(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """Make the vertical axis one of named rows, the first at the top.

    Args:
        figure: The panel.
        axes: The axes.
        names: Texts, as ``labels`` gives them.
    """
    axes.set_ylim(len(names) - 0.5, -0.5)
    for row, name in enumerate(names):
        write(figure, 14, pixel_of(axes, 0, row)[1], name, middle=True)


def write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    color: str = TEXT,
    align: Literal["left", "center", "right"] = "left",
    size: float = SIZE,
    bold: bool = False,
    middle: bool = False,
) -> None:
    """Write a line of text at a place in the panel.

    Args:
        figure: The panel.
        x: Pixels from the left.
        y: Pixels from the bottom.
        text: Any text; characters without a glyph become "?".
        color: Colour.
        align: "left", "center" or "right" of ``x``.
        size: Points.
        bold: Whether in bold.
        middle: Whether ``y`` is the middle of its letters rather than what they stand on.
    """
    figure.text(
        x,
        y,
        printable(text),
        transform=IdentityTransform(),
        color=color,
        fontproperties=font_of(size, bold=bold),
        horizontalalignment=align,
        verticalalignment="center_baseline" if middle else "baseline",
        parse_math=False,
    )


def write_values(
    figure: Figure, axes: Axes, xs: Iterable[float], texts: Iterable[str], *, color: str = TEXT, gap: float = 6
) -> None:
    """Write a value into each row, right of a place on the horizontal axis.

    Args:
        figure: The panel.
        axes: Axes with named rows, their limits set.
        xs: Where, in units of the horizontal axis.
        texts: What, row by row.
        color: Colour.
        gap: Distance from the place, pixels.
    """
    for row, (x, text) in enumerate(zip(xs, texts, strict=True)):
        left, middle = pixel_of(axes, x, row)
        write(figure, left + gap, middle, text, color=color, middle=True)


def write_in_bars(figure: Figure, axes: Axes, xs: Iterable[float], rows: Iterable[float], texts: Iterable[str]) -> None:
    """Write dark text into bars or cells.

    Args:
        figure: The panel.
        axes: Axes with named rows, their limits set.
        xs: The middles, in units of the horizontal axis.
        rows: Rows.
        texts: What.
    """
    for x, row, text in zip(xs, rows, texts, strict=True):
        write(figure, *pixel_of(axes, x, row), text, color=PANEL, align="center", size=7, middle=True)


def pixel_of(axes: Axes, x: float, row: float) -> tuple[float, float]:
    """Return the place in the panel of a place in axes whose limits are set, in pixels."""
    place = axes.transData.transform((x, row))
    return float(place[0]), float(place[1])


def _to_png(figure: Figure) -> bytes:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    # A palette halves the file; of Pillow's methods this is by far the quickest.
    palette = image.convert("RGB").quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    file = io.BytesIO()
    palette.save(file, "PNG")
    return file.getvalue()
