"""Large tables, decoded on threads while their parts are still being read from the file."""

import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import codec, frames, parquet, physical, templates, threads
from tif1_pipeline.cache.assembly import Assembly
from tif1_pipeline.cache.base import EntryInfo
from tif1_pipeline.cache.codec import Blob
from tif1_pipeline.cache.templates import Template
from tif1_pipeline.cache.threads import Task
from tif1_pipeline.cache.views import View
from tif1_pipeline.exceptions import CorruptEntryError

if TYPE_CHECKING:
    import pandas as pd

_LARGE = 4 << 20
"""Bytes in memory from which threads are worth their start."""

_KEPT = 16 << 20
"""Bytes of which the C library keeps twice as many: more than the parts under way take, stored and decoded."""


@cache
def _keep_what_is_freed() -> None:
    """Have the C library keep the memory of a part for the next one, once in a process.

    Else it gives that back to the system and takes other, part by part, and mapping it takes a quarter of the time of
    reading a race's telemetry. glibc keeps twice the size of the largest piece that was given back; this one is never
    touched. The second is of what is kept, and numpy asks for large pages for it: the first reading of a process meets
    a third of the faults. Other libraries do as they do.
    """
    np.empty(_KEPT, np.uint8)
    np.empty(_KEPT - (1 << 16), np.uint8)


class Decoding:
    """One reading of a table.

    Args:
        info: Of the entry.
        header: Of the entry.
        view: What of it is read, and as what.
        check: Compare checksums first.

    Raises:
        CorruptEntryError: The header does not decode.
        InvalidDataError: The table has no such column.
    """

    def __init__(self, info: EntryInfo, header: Blob, view: View, *, check: bool) -> None:
        self._view = view
        self._check = check
        self._rows = info.rows
        self._header = header.data
        self._empty, self._columns = codec.open_header(header, view.columns_of)
        self._blobs: list[Blob] = []
        self._parts: list[Task[pa.Table]] = []
        self._schema: pa.Schema | None = None
        self._filled = 0
        self._assembly: Assembly | None = None
        self._room = threading.Semaphore(2 * threads.NUMBER + 1)
        read = 1.0 if view.parts is None or not info.parts else len(view.parts) / len(info.parts)
        self._is_large = read * info.size_bytes >= _LARGE
        if self._is_large:
            _keep_what_is_freed()
        self._template: Template | None = None
        if view.as_ == "pandas" and view.parts != ():
            self._template = templates.find(header.data, view.columns)
            if self._template is None and (template := templates.told(self._empty)) is not None:
                self._template = templates.keep(template, header.data, view.columns)
        if self._is_large and view.as_ == "pandas" and view.parts is None:
            template = self._template or self.learn(frames.to_pandas(self._empty))
            self._assembly = Assembly.of(self._empty, template, info.rows)

    def learn(self, frame: "pd.DataFrame") -> Template:
        """Keep what the frame that was made is like."""
        return self._template or templates.keep(Template.of(frame), self._header, self._view.columns)

    def add(self, blob: Blob) -> None:
        """Take the next part.

        Raises:
            CorruptEntryError: It is not what was stored.
        """
        if not self._is_large:
            self._blobs.append(blob)
            return
        if self._check:
            codec.verify(blob)
        with codec.translated():
            opened = parquet.Opened(blob.data)
            if self._schema is None:
                self._schema = opened.schema
                if codec.ROW in opened.schema.names:  # the parts' rows are not in the table's order
                    self._assembly = None
                if self._assembly is not None:
                    self._assembly.prepare(opened.schema)
        if not physical.are_alike(opened.schema, self._schema):
            raise CorruptEntryError(f"part {blob.name!r} has other columns than the first", part=blob.name)
        for number, rows in enumerate(opened.groups):
            if self._room.acquire(blocking=False):
                part = threads.submit(self._decode, blob.name, opened, number, self._filled)
                # Not of self, which holds the part: a circle would keep the frame's memory until the collector comes.
                part.when_done(self._room.release)
            else:  # the threads have enough to do; and all that is stored is not to be in memory at once
                part = threads.Task(self._decode, blob.name, opened, number, self._filled)
                part.run()
            self._parts.append(part)
            self._filled += rows

    def _decode(self, name: str, opened: parquet.Opened, group: int, start: int) -> pa.Table:
        rows = opened.groups[group]
        with codec.translated():
            part = opened.read(group, self._columns)
        if part.num_rows != rows or (self._assembly is not None and start + rows > self._rows):
            raise CorruptEntryError(f"part {name!r} holds other rows than it says", part=name)
        if self._assembly is None:
            return part
        with codec.translated():
            return self._assembly.fill(part, start)

    def value(self) -> Any:
        """Return the table; where a pandas frame is wanted, maybe that already.

        Raises:
            CorruptEntryError: It does not decode.
        """
        is_whole = self._view.parts is None
        if self._is_large:
            for part in reversed(self._parts):  # the threads come from the other end: nobody waits while there is work
                part.run()
            parts = [part.result() for part in self._parts]
        else:
            for blob in self._blobs if self._check else ():
                codec.verify(blob)
            parts = [codec.read_part(blob, self._columns) for blob in self._blobs]
            self._filled = sum(part.num_rows for part in parts)
        if is_whole and self._filled != self._rows:
            raise CorruptEntryError(f"{self._filled} rows are stored, {self._rows} were expected")
        with codec.translated():
            if not self._is_large:
                parts = self._assembled(parts)
            if self._assembly is not None:
                return self._assembly.frame(parts)
        return codec.put_together(parts, self._empty, in_order=is_whole)

    @property
    def nbytes(self) -> int | None:
        """What the value takes in memory, if it is a frame."""
        return self._assembly.nbytes if self._assembly is not None else None

    def _assembled(self, parts: list[pa.Table]) -> list[pa.Table]:
        """Begin a frame with small parts, if it is known what it is like; returns what is left to Arrow."""
        if self._template is None or not parts or codec.ROW in parts[0].column_names:
            return parts
        self._assembly = Assembly.of(self._empty, self._template, self._filled)
        if self._assembly is None:
            return parts
        self._assembly.prepare(parts[0].schema)
        start, rest = 0, []
        for part in parts:
            if not physical.are_alike(part.schema, parts[0].schema):
                raise CorruptEntryError("a part has other columns than the first")
            rest.append(self._assembly.fill(part, start))
            start += len(part)
        return rest

    def close(self) -> None:
        """Give up what is not begun."""
        for part in self._parts:
            part.cancel()
