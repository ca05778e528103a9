"""Encoding the parts of a table while others are still being fetched."""

from collections.abc import Mapping

import pyarrow as pa

from tif1_pipeline.cache import codec, physical, threads
from tif1_pipeline.cache.codec import Codecs, PartBytes
from tif1_pipeline.cache.threads import Task


class EarlyParts:
    """Parts of a table that are encoded, on other threads, before the table is whole.

    What is stored of a part depends on the whole table: on its dictionaries, on which columns other than floats have
    nulls, and on its first part, by which the compression is chosen. That is foreseen from the parts so far, and
    compared in the end. A part of which it does not hold is encoded again, so what is stored is the same as without.

    Args:
        level: Of zstd.
    """

    def __init__(self, level: int) -> None:
        self._level = level
        self._nullable: set[str] = set()
        self._codecs: Task[Codecs] | None = None
        self._parts: dict[str, tuple[pa.Table, Task[PartBytes]]] = {}

    def add(self, name: str, rows: pa.Table) -> None:
        """Begin to encode a part; called in the order of the parts.

        Args:
            name: Of the part.
            rows: As the table will have them, in the same memory; others are of no use.
        """
        if not rows.num_rows:  # no part
            return
        plain = physical.to_physical(rows, self._nullable)
        self._nullable |= {field.name for field in plain.schema if field.nullable}
        plain = physical.with_own_nulls(plain)
        if self._codecs is None:
            self._codecs = threads.submit(codec.choose_codecs, plain, self._level)
        self._parts[name] = plain, threads.submit(self._write, plain, self._codecs)

    def _write(self, plain: pa.Table, codecs: Task[Codecs]) -> PartBytes:
        return codec.write_part(plain, self._level, codecs.result())

    def of(self, parts: Mapping[str, pa.Table], level: int) -> tuple[Codecs | None, dict[str, PartBytes]]:
        """Return the compression of columns, if that is known, and what has been made of parts of the whole table.

        Args:
            parts: Its physical parts, in their order.
            level: Of zstd.
        """
        fitting = {
            name: self._parts[name][1]
            for name, plain in parts.items()
            if name in self._parts and _is_same(self._parts[name][0], plain)
        }
        if level != self._level or self._codecs is None or next(iter(parts)) not in fitting:
            return None, {}
        return self._codecs.result(), {name: written.result() for name, written in fitting.items()}


def _is_same(one: pa.Table, other: pa.Table) -> bool:
    """Tell whether two tables are the same rows of the same memory."""
    return one.schema.equals(other.schema) and all(
        _places(one.column(number)) == _places(other.column(number)) for number in range(one.num_columns)
    )


def _places(column: pa.ChunkedArray) -> list[tuple[int, int, list[int | None]]]:
    return [
        (chunk.offset, len(chunk), [None if buffer is None else buffer.address for buffer in chunk.buffers()])
        for chunk in column.chunks
    ]
