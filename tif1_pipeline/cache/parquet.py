"""Stored parts as Parquet, by the part of pyarrow that does the work.

``import pyarrow.parquet`` brings file systems, data sets and encryption along, which costs every new process 12 ms:
more than reading a race's laps. Its reader is a thin layer over the class that is used here. Should a version of
pyarrow not have that class, or have it changed, the public one is used.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa


def read(data: bytes, columns: Sequence[str] | None = None, group: int | None = None) -> pa.Table:
    """Decode a part on this thread.

    Args:
        data: The stored bytes.
        columns: Only these, as far as they are there.
        group: Only the rows of this row group.

    Raises:
        pa.ArrowException: It is no Parquet.
        OSError: It is cut short.
    """
    try:
        reader = _open(data)
        try:
            indices = None if columns is None else _leaves(reader.column_paths, columns)
            if group is None:
                return reader.read_all(column_indices=indices, use_threads=False)
            return reader.read_row_group(group, column_indices=indices, use_threads=False)
        finally:
            reader.close()
    except (AttributeError, ImportError, TypeError):
        return _read_publicly(data, columns, group)


def layout(data: bytes) -> tuple[pa.Schema, list[int]]:
    """Return a part's schema, and the number of rows of each row group.

    Raises:
        pa.ArrowException: It is no Parquet.
        OSError: It is cut short.
    """
    try:
        reader = _open(data)
        try:
            schema, footer = reader.schema_arrow, reader.metadata
        finally:
            reader.close()
    except (AttributeError, ImportError, TypeError):
        import pyarrow.parquet as pq

        with pq.ParquetFile(pa.BufferReader(data)) as file:
            schema, footer = file.schema_arrow, file.metadata
    return schema, [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def _open(data: bytes) -> Any:
    from pyarrow._parquet import ParquetReader

    reader: Any = ParquetReader()
    reader.open(pa.BufferReader(data), pre_buffer=False)
    return reader


def _leaves(paths: Sequence[Sequence[str]], columns: Sequence[str]) -> list[int]:
    """Return the numbers of the physical columns: a nested one has several."""
    wanted = set(columns)
    return [number for number, path in enumerate(paths) if path[0] in wanted]


def _read_publicly(data: bytes, columns: Sequence[str] | None, group: int | None = None) -> pa.Table:
    import pyarrow.parquet as pq

    names = None if columns is None else list(columns)
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        if group is None:
            return file.read(columns=names, use_threads=False)
        return file.read_row_group(group, columns=names, use_threads=False)
