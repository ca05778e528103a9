"""Ways to see an entry: as which kind of table, which columns, which parts; and how a kept value is handed out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import codec, frames, jsonvalue
from tif1_pipeline.cache.base import Backend, EntryInfo
from tif1_pipeline.exceptions import DataNotFoundError, InvalidDataError

SMALL_FRAME = 1 << 20
"""Bytes up to which a pandas frame is handed out as a full copy: some 30 µs more than a shallow one."""


class View(NamedTuple):
    """How a reader wants to see an entry."""

    as_: Backend = "arrow"
    columns: tuple[str, ...] | None = None
    parts: tuple[str, ...] | None = None

    @classmethod
    def of(cls, as_: Backend, columns: Sequence[str] | None, parts: Sequence[str] | None) -> "View":
        """Build one from a reader's arguments.

        Raises:
            InvalidDataError: There is no such kind of value.
        """
        if as_ not in ("pandas", "polars", "arrow", "json"):
            raise InvalidDataError(f"cannot read an entry as {as_!r}: choose pandas, polars, arrow or json", as_=as_)
        for name, given in (("columns", columns), ("parts", parts)):
            if isinstance(given, str):
                raise InvalidDataError(f"{name}={given!r} is a text: give a list, [{given!r}]")
        return cls(
            as_,
            None if columns is None else tuple(dict.fromkeys(map(str, columns))),
            None if parts is None else tuple(dict.fromkeys(map(str, parts))),
        )

    def check(self, info: EntryInfo) -> None:
        """Refuse what an entry cannot be seen as.

        Raises:
            InvalidDataError: It is a JSON value and is to be read as a table, or the reverse.
            DataNotFoundError: It lacks a part.
        """
        key, stored = info.key, info.backend
        if stored == "json" and (self.as_ != "json" or self.columns is not None or self.parts is not None):
            raise InvalidDataError(f"{key} is a JSON value without columns and parts: read it with as_='json'", key=key)
        if stored != "json" and self.as_ == "json":
            raise InvalidDataError(f"{key} is a table: read it with as_='pandas', 'polars' or 'arrow'", key=key)
        for part in self.parts or ():
            if part not in info.parts:
                names = "none, it is stored whole" if info.parts == (codec.WHOLE,) else ", ".join(info.parts)
                raise DataNotFoundError(f"{key} has no part {part!r}; its parts: {names}", key=key, part=part)

    def columns_of(self, schema: pa.Schema) -> list[str] | None:
        """Return the columns to read: those asked for, and those of a pandas frame's index.

        Raises:
            InvalidDataError: There is no such column.
        """
        if self.columns is None:
            return None
        names = codec.known_columns(schema, self.columns)
        if self.as_ == "pandas" and schema.pandas_metadata:
            index = [name for name in schema.pandas_metadata["index_columns"] if isinstance(name, str)]
            names += [name for name in index if name not in names and name in schema.names]
        return names


@dataclass(frozen=True, slots=True)
class Content:
    """A value in the form that all its views are made from.

    Attributes:
        table: In memory that nobody else can write to; None for a JSON value.
        text: The JSON text.
        lies: Where each part lies in the table.
    """

    table: pa.Table | None
    text: bytes
    lies: dict[str, codec.Rows]

    def select(self, view: View) -> pa.Table | bytes:
        """Return the part of the value that a view shows, not yet as the kind of table it asks for."""
        if self.table is None:
            return self.text
        table = self.table
        if view.parts is not None:
            pieces = [codec.take(table, self.lies[part]) for part in view.parts]
            table = pa.concat_tables(pieces) if pieces else table.slice(0, 0)
        columns = view.columns_of(table.schema)
        return table if columns is None else table.select(columns)


def to_keep(selected: pa.Table | bytes, value: Any, view: View) -> Any:
    """Return what to keep in memory of a value: itself, or what it was made from where copies could not shield it."""
    # The lists and dicts in an object column are shared by every copy of the frame.
    if view.as_ == "pandas" and any(isinstance(dtype, np.dtype) and dtype.kind == "O" for dtype in value.dtypes):
        return selected
    return value


def hand_out(kept: Any, as_: Backend, size: int) -> Any:
    """Return a kept value so that nothing its reader does to it reaches the kept one."""
    if as_ == "json":
        return jsonvalue.load(kept)
    if as_ == "polars":
        return kept.clone()
    if as_ == "arrow":
        return kept
    if isinstance(kept, pa.Table):
        return frames.to_pandas(kept)
    if size <= SMALL_FRAME:
        return kept.copy()
    # Copy-on-write guards numpy columns, but .values and .array of the others give out the kept memory itself.
    frame = kept.copy(deep=False)
    for position, dtype in enumerate(kept.dtypes):
        if not isinstance(dtype, np.dtype):
            frame.isetitem(position, kept.iloc[:, position].array.copy())
    return frame


def convert(selected: Any, view: View) -> Any:
    """Return what was selected for a view as the kind of value it asks for; a JSON value stays a text."""
    return frames.from_table(selected, view.as_) if isinstance(selected, pa.Table) else selected


def size_of(selected: pa.Table | bytes) -> int:
    """Return the bytes that a text or a table takes in memory."""
    return len(selected) if isinstance(selected, bytes) else selected.nbytes
