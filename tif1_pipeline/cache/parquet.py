"""Stored parts as Parquet, by the part of pyarrow that does the work.

``import pyarrow.parquet`` brings file systems, data sets and encryption along, which costs every new process 12 ms:
more than reading a race's laps. Its reader is a thin layer over the class that is used here. Should a version of
pyarrow not have that class, or have it changed, the public one is used.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa


def read(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode a part on this thread.

    Args:
        data: The stored bytes.
        columns: Only these, as far as they are there.

    Raises:
        pa.ArrowException: It is no Parquet.
        OSError: It is cut short.
    """
    try:
        from pyarrow._parquet import ParquetReader
    except ImportError:
        return _read_publicly(data, columns)
    reader: Any = ParquetReader()
    try:
        reader.open(pa.BufferReader(data), pre_buffer=False)
        indices = None if columns is None else _leaves(reader.column_paths, columns)
        return reader.read_all(column_indices=indices, use_threads=False)
    except (AttributeError, TypeError):
        return _read_publicly(data, columns)
    finally:
        reader.close()


def _leaves(paths: Sequence[Sequence[str]], columns: Sequence[str]) -> list[int]:
    """Return the numbers of the physical columns: a nested one has several."""
    wanted = set(columns)
    return [number for number, path in enumerate(paths) if path[0] in wanted]


def _read_publicly(data: bytes, columns: Sequence[str] | None) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
