"""The colours of the pictures: seen on the panel, told apart by the colour-blind, known from tyres."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

# One opaque dark panel for the light and the dark UI: hard tyres are white and medium ones yellow, which no outline
# makes easy to see on white.
PANEL = "#1c2027"
TEXT = "#e8eaee"
MUTED = "#a3abb8"
GRID = "#353b47"
RANGE = "#667183"
ACCENT = "#56b4e9"
SECOND = "#e69f00"

CYCLE = ("#56b4e9", "#e69f00", "#f0e442", "#cc79a7", "#00b389", "#e8703a")
"""Colours that people with any kind of colour blindness can tell apart (Okabe and Ito, the dark ones lighter)."""

SCALE = LinearSegmentedColormap.from_list("scale", ["#4f86d0", "#2a9d97", "#5ec962", "#fde725"], N=24)
"""Low to high: viridis with a lighter low end, which the panel would swallow. Few steps make a small file."""


class Compound(NamedTuple):
    """How a tyre compound is shown.

    Attributes:
        color: The colour on its side wall, light enough for the panel.
        marker: Shape in scatter plots, because red and green look alike to many.
        letter: Short name.
    """

    color: str
    marker: str
    letter: str


COMPOUNDS = {
    "SOFT": Compound("#f2463c", "o", "S"),
    "MEDIUM": Compound("#ffd12e", "s", "M"),
    "HARD": Compound("#f4f4f0", "D", "H"),
    "INTERMEDIATE": Compound("#43b02a", "^", "I"),
    "WET": Compound("#3d8fe8", "v", "W"),
    "UNKNOWN": Compound("#8b93a1", "X", "?"),
}


def compound_names(compounds: Iterable[object]) -> NDArray[np.object_]:
    """Return the names of compounds, "UNKNOWN" for null ones and for what is none of them."""
    return np.array([name if name in COMPOUNDS else "UNKNOWN" for name in compounds], dtype=object)


def compounds_in(names: Iterable[object]) -> dict[str, Compound]:
    """Return the compounds that occur among names, from soft to wet, unknown ones last."""
    present = set(names)
    return {name: compound for name, compound in COMPOUNDS.items() if name in present}
