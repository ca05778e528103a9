"""Numbers out of tables, whatever is missing in them."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def numbers(frame: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return a column as floats, with NaN for whatever is missing or infinite.

    Raises:
        KeyError: The frame has rows, but not this column.
    """
    if column not in frame and frame.empty:
        return np.empty(0)
    values = frame[column].to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where(np.isfinite(values), values, np.nan)


def rows_with(frame: pd.DataFrame, *columns: str, text: str | None = None) -> pd.DataFrame:
    """Return the rows that have a finite number in each of the columns.

    Args:
        frame: The table.
        *columns: Names of numeric columns.
        text: A further column that must not be null.

    Raises:
        KeyError: The frame has rows, but not one of these columns.
    """
    if frame.empty:
        return frame
    keep = np.ones(len(frame), dtype=bool) if text is None else frame[text].notna().to_numpy()
    for column in columns:
        keep = keep & ~np.isnan(numbers(frame, column))
    return frame[keep]


def fence(values: NDArray[np.float64], *, reach: float = 2.0) -> tuple[float, float]:
    """Return the range of the values that are no outliers.

    Args:
        values: At least one, none of them NaN.
        reach: How far beyond the quartiles a value is no outlier, in distances of the quartiles.
    """
    first, third = np.percentile(values, [25, 75])
    spread = max(third - first, 1e-3 * abs(third))
    usual = values[(values >= first - reach * spread) & (values <= third + reach * spread)]
    return float(usual.min()), float(usual.max())


def clock(seconds: float, digits: int = 0) -> str:
    """Return seconds as ``m:ss``, with decimals if wanted."""
    minutes, rest = divmod(round(seconds, digits), 60)
    return f"{int(minutes)}:{rest:0{digits + 3 if digits else 2}.{digits}f}"


def clock_tick(seconds: float) -> str:
    """Return seconds as ``m:ss`` with as many decimals as they have, up to two."""
    return clock(seconds, 2).rstrip("0").rstrip(".")
