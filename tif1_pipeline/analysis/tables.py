"""Tables that analyses return: columns declared once, with units, and the same dtypes however few rows there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from tif1_pipeline.datasets import DURATION, FLAG, FLOAT, TEXT, Column

INTEGER = pa.int64()


@dataclass(frozen=True, slots=True)
class Result:
    """What an analysis reads and returns.

    Attributes:
        needs: Columns that it reads, by table.
        columns: Columns that it returns, in order.
    """

    needs: Mapping[str, tuple[str, ...]]
    columns: tuple[Column, ...]

    @property
    def dtypes(self) -> dict[str, str]:
        """The pandas dtypes by column."""
        return {column.name: _dtype(column) for column in self.columns}

    def frame(self, rows: pd.DataFrame | Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Return rows as a table with exactly these columns and dtypes."""
        frame = pd.DataFrame(rows, columns=[column.name for column in self.columns])
        return frame.astype(self.dtypes).reset_index(drop=True)


def column(
    name: str, type_: pa.DataType, description: str, unit: str | None = None, *, required: bool = False
) -> Column:
    """Declare a column; one that is required is never null."""
    return Column(name, type_, None, unit, description, required)


def _dtype(declared: Column) -> str:
    if declared.type == INTEGER:
        return "int64" if declared.required else "Int64"
    return {FLOAT: "float64", TEXT: "str", FLAG: "boolean", DURATION: "timedelta64[ns]"}[declared.type]


DRIVER = column("Driver", TEXT, "Three-letter code of the driver", required=True)
TEAM = column("Team", TEXT, "Team")
