"""What a materialization says about what was stored: sizes, schema and a first look, as Dagster metadata."""

import contextlib
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
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

CONTENT_VERSION = "content_version"
"""Metadata of a materialization: the version of what that one partition holds, see :func:`data_version_of`."""

_repr = reprlib.Repr()
_repr.maxdict = _repr.maxlist = 8
_repr.maxstring = _repr.maxother = 200


def data_version_of(info: EntryInfo) -> str:
    """Return the data version of an entry: the same whenever the same content was stored, encrypted or not.

    It is taken over the stored bytes before encryption. Another ``cache_compression_level`` or version of pyarrow
    writes other bytes, so it may differ for equal content, but never is the same for content that differs.
    """
    return info.checksum


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
        CONTENT_VERSION: data_version_of(info),
    }
    if info.source.etag:
        metadata["etag"] = info.source.etag
    if info.source.url:
        metadata["source_url"] = dg.MetadataValue.url(info.source.url)
    return metadata


def describe_value(
    value: Any, declared: dg.TableSchema | None = None, dataset: Dataset | None = None
) -> dict[str, Any]:
    """Return a first look at a value: of a table the schema and the first rows.

    A schema that the asset declares is not repeated: it would be the largest part of every event.

    Args:
        value: What was stored.
        declared: The schema on the asset's definition.
        dataset: The Formula 1 table it is, if it is one: its types have Arrow's names here, pandas' in the definition.
    """
    columns = _columns(value)
    if columns is None:
        return {"preview": dg.MetadataValue.md(f"`{_repr.repr(value).replace('`', ' ')}`")}
    metadata: dict[str, Any] = {"column_count": len(columns)}
    known = {column.name: column.type for column in declared.columns} if declared else {}
    if list(known) != [column.name for column in columns] or not (
        dataset or all(known[column.name] == column.type for column in columns)
    ):
        metadata["dagster/column_schema"] = dg.TableSchema(columns)
    keys = sorted(dataset.required, key=lambda name: name != "Driver") if dataset else []
    # A date beyond Python's calendar can be stored but not printed: no reason to fail what is stored.
    with contextlib.suppress(ValueError, OverflowError):
        metadata["preview"] = dg.MetadataValue.md(_preview(value, keys))
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


def _preview(table: Any, keys: Sequence[str] = ()) -> str:
    """Return the first rows as a Markdown table, columns of keys first."""
    if isinstance(table, pd.DataFrame):
        head, names = table.iloc[:_PREVIEW_ROWS], table.columns.tolist()
    else:
        head, names = table.slice(0, _PREVIEW_ROWS), [column.name for column in _columns(table) or ()]
    # By number: names of a frame's columns need not be unique.
    first = [names.index(key) for key in keys if key in names]
    shown = [*first, *(number for number in range(len(names)) if number not in first)][:_PREVIEW_COLUMNS]
    cells = [(names[number], _values(head, number)) for number in shown]
    more = len(names) - len(cells)
    names = [cell(name) for name, _ in cells] + ([f"… {more} more"] if more else [])
    rows = zip(*(column for _, column in cells), strict=True)
    lines = [names, ["---"] * len(names)] + [[cell(value) for value in row] + ([""] if more else []) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _values(head: Any, number: int) -> list[Any]:
    if isinstance(head, pd.DataFrame):
        return head.iloc[:, number].tolist()
    return head.column(number).to_pylist() if isinstance(head, pa.Table) else head.to_series(number).to_list()


def cell(value: Any, width: int = _CELL_WIDTH) -> str:
    """Return a value as one cell of a Markdown table, cut where it is longer than that many characters."""
    if value is None or value is pd.NaT or value is pd.NA:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    text = " ".join(_repr.repr(value).split()) if isinstance(value, dict | list | set) else " ".join(str(value).split())
    text = text if len(text) <= width else text[: width - 1] + "…"
    # Text from the network lands in a page of the web UI: neither cells, links nor HTML may break out of it.
    return re.sub(r"([\\|`\[])", r"\\\1", text).replace("<", "&lt;")
