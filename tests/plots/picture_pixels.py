"""Pictures, drawn and decoded, to be looked at pixel by pixel."""

import functools
import io

import numpy as np
from PIL import Image, ImageColor
from tables_to_draw import DRAWINGS

from tif1_pipeline.plots.colors import MUTED
from tif1_pipeline.plots.panel import WIDTH

LARGEST = 20_000
NO_DATA_HEIGHT = 90
NAMES = sorted(DRAWINGS)
HEADER = 34  # the title and the legend, pixels


def draw(name: str) -> bytes:
    function, frames = DRAWINGS[name]
    return function(*frames)


drawn = functools.cache(draw)


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    image.load()
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(int)


def where(shown: np.ndarray, color: str, tolerance: int = 14) -> np.ndarray:
    """Return which pixels have a colour, but for what the palette may change."""
    return (np.abs(shown - np.array(ImageColor.getrgb(color))) <= tolerance).all(axis=2)


def luminance(color: np.ndarray) -> np.ndarray:
    share = color / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the contrast of colours as WCAG defines it, 1 to 21."""
    first, second = luminance(one), luminance(other)
    return (np.maximum(first, second) + 0.05) / (np.minimum(first, second) + 0.05)


def says_no_data(png: bytes) -> bool:
    shown = pixels(png)
    return shown.shape[:2] == (NO_DATA_HEIGHT, WIDTH) and where(shown[HEADER:], MUTED, 40).any()
