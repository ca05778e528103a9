"""What a materialization says about what was stored: sizes, schema and a first look, as Dagster metadata."""

import contextlib
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pyarrow as pa

from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.config import MIB
from tif1_pipeline.datasets import Dataset

# Every materialization keeps its preview in the event log for ever: enough to recognise a table, no more.
_PREVIEW_ROWS = 5
_PREVIEW_COLUMNS = 8
_CELL_WIDTH = 24
_TYPE_WIDTH = 80

_repr = reprlib.Repr()
_repr.maxdict = _repr.maxlist = 8
_repr.maxstring = _repr.maxother = 200


def describe_entry(info: EntryInfo, *, partitioned: bool) -> dict[str, Any]:
    """Return what is known of an entry without its value.

    Args:
        info: The entry.
        partitioned: Whether it is one partition of an asset; Dagster has two names for the row count.
    """
    metadata: dict[str, Any] = {
        "dagster/partition_row_count" if partitioned else "dagster/row_count": info.rows,
        # Rounded, because the UI shows every digit.
        "size_mb": round(info.size_bytes / MIB, 4),
        "stored_mb": round(info.compressed_size / MIB, 4),
        "ratio": round(info.size_bytes / max(1, info.compressed_size), 2),
        "tier": "disk",
        "cache_key": info.key,
    }
    if info.source.etag:
        metadata["etag"] = info.source.etag
    if info.source.url:
        metadata["source_url"] = dg.MetadataValue.url(info.source.url)
    return metadata


def describe_value(value: Any, dataset: Dataset | None = None) -> dict[str, Any]:
    """Return a first look at a value: of a table the schema and the first rows.

    The schema of a dataset's table stands on its asset already; repeated, it would be the largest part of every event.
    It is given where the table has columns beyond it.
    """
    columns = _columns(value)
    if columns is None:
        return {"preview": dg.MetadataValue.md(f"`{_repr.repr(value).replace('`', ' ')}`")}
    metadata: dict[str, Any] = {"column_count": len(columns)}
    if dataset is None or [column.name for column in columns] != dataset.schema.names:
        metadata["dagster/column_schema"] = dg.TableSchema(columns)
    # A date beyond Python's calendar can be stored but not printed: no reason to fail what is stored.
    with contextlib.suppress(ValueError, OverflowError):
        metadata["preview"] = dg.MetadataValue.md(_preview(value))
    return metadata


def plain(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return caller-supplied metadata as Dagster wants it, numpy's numbers as Python's.

    Raises:
        DagsterInvalidMetadata: A value is nothing Dagster can show.
    """
    if not metadata:
        return metadata
    numbers = {name: value.item() if isinstance(value, np.generic) else value for name, value in metadata.items()}
    return dg.AssetMaterialization("checked", metadata=numbers).metadata


def _columns(value: Any) -> list[dg.TableColumn] | None:
    """Return the columns of a table; None for a value that is no table."""
    if isinstance(value, pa.Table):
        return [_from_field(field) for field in value.schema]
    if isinstance(value, pd.DataFrame):
        names, dtypes = value.columns.tolist(), value.dtypes.tolist()
        return [dg.TableColumn(str(name), dtype.name) for name, dtype in zip(names, dtypes, strict=True)]
    if hasattr(value, "schema"):  # a polars frame, without importing polars
        return [dg.TableColumn(name, str(dtype)[:_TYPE_WIDTH]) for name, dtype in value.schema.items()]
    return None


def _from_field(field: pa.Field) -> dg.TableColumn:
    notes = {
        key.decode(errors="replace"): text.decode(errors="replace") for key, text in (field.metadata or {}).items()
    }
    description, unit = notes.get("description"), notes.get("unit")
    return dg.TableColumn(
        field.name,
        str(field.type)[:_TYPE_WIDTH],
        # The UI shows descriptions but no tags; programs would rather not parse a description.
        description=f"{description or ''} ({unit})".strip() if unit else description,
        constraints=None if field.nullable else dg.TableColumnConstraints(nullable=False),
        tags={"unit": unit} if unit else None,
    )


def _preview(table: Any) -> str:
    """Return the first rows as a Markdown table."""
    if isinstance(table, pa.Table):
        head = table.select(range(min(_PREVIEW_COLUMNS, table.num_columns))).slice(0, _PREVIEW_ROWS)
        cells = [(head.field(number).name, column.to_pylist()) for number, column in enumerate(head.columns)]
        more = table.num_columns - len(cells)
    elif isinstance(table, pd.DataFrame):
        head = table.iloc[:_PREVIEW_ROWS, :_PREVIEW_COLUMNS]
        cells = [(name, column.tolist()) for name, column in head.items()]
        more = table.shape[1] - len(cells)
    else:
        cells = [(column.name, column.to_list()) for column in table[:_PREVIEW_ROWS, :_PREVIEW_COLUMNS].iter_columns()]
        more = table.width - len(cells)
    names = [_cell(name) for name, _ in cells] + ([f"… {more} more"] if more else [])
    rows = zip(*(column for _, column in cells), strict=True)
    lines = [names, ["---"] * len(names)] + [[_cell(value) for value in row] + ([""] if more else []) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or value is pd.NaT or value is pd.NA:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    text = " ".join(_repr.repr(value).split()) if isinstance(value, dict | list | set) else " ".join(str(value).split())
    text = text if len(text) <= _CELL_WIDTH else text[: _CELL_WIDTH - 1] + "…"
    # Text from the network lands in a page of the web UI: neither cells, links nor HTML may break out of it.
    return re.sub(r"([\\|`\[])", r"\\\1", text).replace("<", "&lt;")
