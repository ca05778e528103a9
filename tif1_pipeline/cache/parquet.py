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
        return _read(_open(data), columns, group)
    except (AttributeError, ImportError, TypeError):
        return _read_publicly(data, columns, group)


class Opened:
    """A part whose end was read, which says what is in it.

    Args:
        data: The stored bytes.

    Attributes:
        schema: Of its physical columns.
        groups: The number of rows of each row group.

    Raises:
        pa.ArrowException: It is no Parquet.
        OSError: It is cut short.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._reader: Any = None
        try:
            self._reader = _open(data)
            self.schema, footer = self._reader.schema_arrow, self._reader.metadata
        except (AttributeError, ImportError, TypeError):
            import pyarrow.parquet as pq

            self._reader = None
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                self.schema, footer = file.schema_arrow, file.metadata
        self.groups: list[int] = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]

    def read(self, group: int, columns: Sequence[str] | None) -> pa.Table:
        """Decode a row group, once, on this thread; others may decode others meanwhile.

        Raises:
            pa.ArrowException: It does not decode.
        """
        # A reader is for one thread. What it has read need not be read again: 0.15 of 2.5 ms for a driver's laps.
        reader, self._reader = self._reader, None
        if reader is None or len(self.groups) != 1:
            return read(self._data, columns, group)
        try:
            return _read(reader, columns)
        except (AttributeError, TypeError):
            return _read_publicly(self._data, columns)


def _read(reader: Any, columns: Sequence[str] | None, group: int | None = None) -> pa.Table:
    try:
        indices = None if columns is None else _leaves(reader.column_paths, columns)
        if group is None:
            return reader.read_all(column_indices=indices, use_threads=False)
        return reader.read_row_group(group, column_indices=indices, use_threads=False)
    finally:
        reader.close()


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
