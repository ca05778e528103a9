"""All pictures: small, readable, the same every time, and without effect on others."""

import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from picture_pixels import LARGEST, NAMES, contrast, draw, drawn, says_no_data
from PIL import Image, ImageColor
from tables_to_draw import DRAWINGS

from tif1_pipeline import plots
from tif1_pipeline.plots.colors import ACCENT, COMPOUNDS, CYCLE, GRID, MUTED, PANEL, SCALE, SECOND, TEXT
from tif1_pipeline.plots.panel import WIDTH


def test_all_functions_are_drawn_here():
    assert set(DRAWINGS) == set(plots.__all__) == set(dir(plots))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_small_png_of_a_fixed_width(name):
    png = drawn(name)
    assert len(png) < LARGEST
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert image.width == WIDTH
    assert 150 < image.height < 800
    assert not says_no_data(png)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_tables_give_the_same_bytes(name):
    function, frames = DRAWINGS[name]
    assert drawn(name) == draw(name) == function(*[frame.copy() for frame in frames])


@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_readable_on_any_page(name, page):
    image = Image.open(io.BytesIO(drawn(name))).convert("RGBA")
    on_page = Image.alpha_composite(Image.new("RGBA", image.size, page), image).convert("RGB")
    shown = np.asarray(on_page).astype(int)
    colors, counts = np.unique(shown.reshape(-1, 3), axis=0, return_counts=True)
    background = colors[counts.argmax()]
    # The title, and whatever else is drawn: each colour of some area stands out, but for the lines of the grid.
    assert contrast(shown[8:28, 10:200], background).max() > 10
    large = colors[counts > 150]
    large = large[~(np.abs(large - ImageColor.getrgb(GRID)) <= 16).all(axis=1)]
    contrasts = contrast(large, background)
    assert (contrasts > 3).any()
    # In between are only the edges of letters, mixed of both.
    assert contrast(np.array(ImageColor.getrgb(MUTED)), background) > 4.5


def test_every_colour_of_meaning_stands_out():
    meaningful = [compound.color for compound in COMPOUNDS.values()] + [*CYCLE, ACCENT, SECOND, TEXT, MUTED]
    meaningful += [mpl.colors.to_hex(SCALE(step)) for step in (0.0, 0.5, 1.0)]
    for color in meaningful:
        assert contrast(np.array(ImageColor.getrgb(color)), np.array(ImageColor.getrgb(PANEL))) > 3.5, color


@pytest.mark.parametrize("name", NAMES)
def test_tables_without_rows_say_so(name):
    function, frames = DRAWINGS[name]
    assert says_no_data(function(*[frame.iloc[:0] for frame in frames]))
    assert says_no_data(function(*[pd.DataFrame() for _ in frames]))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cached_sessions"])
def test_tables_of_nulls_say_so(name):
    function, frames = DRAWINGS[name]
    nulls = [pd.DataFrame(None, frame.index, frame.columns, dtype=object) for frame in frames]
    if name == "event_overview":
        nulls = [nulls[0].astype({"FastestLap": "timedelta64[ns]"})]
    assert says_no_data(function(*nulls))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in {"cached_sessions", "event_overview"}])
def test_a_missing_column_is_named(name):
    function, frames = DRAWINGS[name]
    column = "Team" if name == "season_pace" else "Driver" if name != "lap_times" else "LapTimeSeconds"
    with pytest.raises(KeyError, match=column):
        function(*[frame.drop(columns=column) for frame in frames])


# ---- beside others


def test_eight_threads_draw_what_one_draws():
    expected = {name: drawn(name) for name in NAMES}
    with ThreadPoolExecutor(8) as threads:
        work = [(name, threads.submit(draw, name)) for _ in range(2) for name in NAMES]
    assert all(future.result() == expected[name] for name, future in work)


@pytest.fixture
def loud_settings() -> Iterator[None]:
    """Settings of somebody who works with matplotlib in the same process."""
    loud = {
        "font.size": 30,
        "font.family": "serif",
        "axes.facecolor": "white",
        "axes.grid": True,
        "axes.grid.which": "both",
        "figure.facecolor": "white",
        "figure.dpi": 37,
        "grid.color": "red",
        "grid.alpha": 0.2,
        "grid.linestyle": ":",
        "lines.linewidth": 9,
        "lines.marker": "o",
        "lines.markersize": 20,
        "savefig.dpi": 300,
        "text.color": "red",
        "xtick.color": "red",
        "xtick.labelsize": 30,
        "xtick.major.size": 20,
        "xtick.minor.visible": True,
        "ytick.direction": "in",
        "axes.formatter.use_locale": True,
        "savefig.transparent": True,
        "image.cmap": "gray",
    }
    with mpl.rc_context(loud):
        yield


def test_settings_of_others_change_nothing(loud_settings):
    before = dict(mpl.rcParams)
    loud = {name: draw(name) for name in NAMES}
    assert dict(mpl.rcParams) == before
    with mpl.rc_context(mpl.rcParamsDefault):
        assert loud == {name: draw(name) for name in NAMES}


def test_nothing_is_imported_before_it_is_drawn():
    program = """
import sys
import tif1_pipeline
from tif1_pipeline import plots
assert "matplotlib" not in sys.modules and "PIL" not in sys.modules and "pandas" not in sys.modules
import pandas as pd
assert plots.lap_times(pd.DataFrame())
assert "matplotlib.pyplot" not in sys.modules
try:
    plots.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    ran = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr
