"""Text that the font can show, and how wide it gets."""

import functools
from collections.abc import Iterable

from matplotlib.font_manager import FontProperties, findfont, get_font

DPI = 100
FAMILY = "DejaVu Sans"
"""Comes with matplotlib."""
SIZE = 8
"""Points, of most text."""


def labels(values: Iterable[object], *, longest: int = 26) -> list[str]:
    """Return names as texts for rows: printable, and cut where they are long."""
    texts = (printable(str(value)) for value in values)
    return [text if len(text) <= longest else text[: longest - 1].rstrip() + "…" for text in texts]


def label_room(names: Iterable[str]) -> float:
    """Return the left margin, in pixels, that names of rows need."""
    return 24 + max(map(text_width, names), default=0)


def printable(text: str) -> str:
    """Return a text with "?" for what the font has no glyph for, which matplotlib would warn about."""
    return "".join(character if ord(character) in _glyphs() else "?" for character in text)


@functools.lru_cache(4096)
def text_width(text: str) -> float:
    """Return the width of a text of the usual size, in pixels."""
    font = get_font(findfont(FAMILY))
    font.set_size(SIZE, DPI)
    font.set_text(text, 0.0)
    return font.get_width_height()[0] / 64


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FAMILY)).get_charmap())


@functools.cache
def font_of(size: float, *, bold: bool = False) -> FontProperties:
    """Return the font in a size, in points."""
    return FontProperties(family=FAMILY, size=size, weight="bold" if bold else "normal")
