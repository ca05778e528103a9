"""Small tables of laps and telemetry, with the types of the real ones."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from tif1_pipeline.cache.frames import from_table
from tif1_pipeline.datasets import LAPS, TELEMETRY

Row = dict[str, Any]
Rows = Sequence[Row]


@pytest.fixture(scope="session")
def lap() -> Callable[..., Row]:
    """A lap on slicks under green, 100 s long by the clock."""

    def lap(driver: str, number: int, seconds: float | None, **values: Any) -> Row:
        known = {
            "Driver": driver,
            "Team": f"Team {driver[0]}",
            "LapNumber": float(number),
            "LapTime": None if seconds is None else pd.Timedelta(round(seconds * 1e9), "ns"),
            "LapTimeSeconds": seconds,
            "Time": pd.Timedelta(seconds=100 * number),
            "Compound": "MEDIUM",
            "Stint": 1.0,
            "TyreLife": float(number),
            "TrackStatus": "1",
            "Position": 1.0,
            "Deleted": False,
        }
        return known | values

    return lap


@pytest.fixture(scope="session")
def laps_table() -> Callable[[Rows], pd.DataFrame]:
    """A ``laps`` table of these rows, as the cache gives it."""
    return lambda rows: from_table(pa.Table.from_pylist(list(rows), schema=LAPS.schema), "pandas")


@pytest.fixture(scope="session")
def telemetry_table() -> Callable[..., pd.DataFrame]:
    """A ``telemetry`` table, as the cache gives it, of ``(driver, lap, seconds, speed, throttle, brake, gear)``."""
    names = ("Driver", "LapNumber", "Time", "Speed", "Throttle", "Brake", "nGear")

    def table(*samples: tuple[Any, ...]) -> pd.DataFrame:
        rows = [dict(zip(names, sample, strict=True)) for sample in samples]
        for row in rows:
            row["Time"] = pd.Timedelta(round(row["Time"] * 1e9), "ns")
        return from_table(pa.Table.from_pylist(rows, schema=TELEMETRY.schema), "pandas")

    return table
