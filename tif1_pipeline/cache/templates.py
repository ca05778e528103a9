"""What the pandas frame of a table is like: told from its types, or kept for each table header that was met.

Arrow works that out anew for every frame it makes, from what pandas has noted in the schema: nearly half the time of
reading a race's laps. It depends on the header alone, but for integers and flags that have nulls in one table and none
in another.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

_MOST = 64
_LARGEST = 1 << 18
"""Bytes of a header; one of a race's laps has 26,000."""

_kept: dict[tuple[bytes, tuple[str, ...] | None], "Template"] = {}


@dataclass(eq=False, slots=True)
class Template:
    """A frame without its rows.

    Attributes:
        columns: The labels.
        dtypes: Of the columns.
        index: Without values.
        attrs: The frame's.
        plan: How others are made, once one was.
    """

    columns: "pd.Index"
    dtypes: tuple[Any, ...]
    index: "pd.Index"
    attrs: dict[Any, Any]
    plan: Any = None

    @classmethod
    def of(cls, frame: "pd.DataFrame") -> "Template":
        """Return the one of a frame."""
        return cls(frame.columns.copy(), tuple(frame.dtypes), frame.index[:0].copy(), frame.attrs)


def find(header: bytes, columns: tuple[str, ...] | None = None) -> Template | None:
    """Return what the frames of a header are like, or of some of its columns; None if none was made yet."""
    return _kept.get((header, columns))


def keep(template: Template, header: bytes, columns: tuple[str, ...] | None = None) -> Template:
    """Keep what the frame of a header is like, which others are made by; returns it."""
    if len(header) <= _LARGEST:
        while len(_kept) >= _MOST:
            _kept.pop(next(iter(list(_kept))), None)
        _kept[header, columns] = template
    return template


def forget() -> None:
    """Keep none."""
    _kept.clear()


def plain(table: pa.Table) -> Template | None:
    """Return what the frame of a table is like of which pandas has noted nothing; None if it takes Arrow to tell.

    The first frame that Arrow makes in a process takes it some milliseconds longer than the next.
    """
    import pandas as pd

    text = pd.api.types.pandas_dtype(str)
    # Where the user has told pandas that texts are objects, Arrow knows what to make of it.
    is_known = isinstance(text, pd.StringDtype) and table.num_columns
    if b"pandas" in (table.schema.metadata or {}) or not is_known:
        return None
    dtypes = []
    for column in table.columns:
        dtype = _dtype_of(column, text)
        if dtype is None:
            return None
        dtypes.append(dtype)
    return Template(_index(_texts(table.column_names), text), tuple(dtypes), pd.RangeIndex(0), {})


def _dtype_of(column: pa.ChunkedArray, text: Any) -> Any:
    import pandas as pd

    type_ = column.type
    if pa.types.is_boolean(type_):
        return pd.BooleanDtype()
    if is_number(type_):
        return number_type(type_)
    if pa.types.is_duration(type_) or (pa.types.is_timestamp(type_) and type_.tz is None):
        return np.dtype(f"{'m' if pa.types.is_duration(type_) else 'M'}8[{type_.unit}]")
    if _is_text(type_):
        return text
    if pa.types.is_dictionary(type_) and pa.types.is_signed_integer(type_.index_type) and _is_text(type_.value_type):
        values = column.chunk(0).dictionary if column.num_chunks else pa.array([], type_.value_type)
        if values.null_count or len(values.unique()) < len(values):
            return None
        # Of no values at all Arrow makes objects.
        return pd.CategoricalDtype(_index(values, text) if len(values) else pd.Index([], dtype=object), type_.ordered)
    return None


def _index(texts: pa.Array, text: Any) -> "pd.Index":
    import pandas as pd

    return pd.Index(text.__from_arrow__(texts), copy=False)


def _texts(texts: list[str]) -> pa.Array:
    """Return an array of texts; pa.array() would import what converts to pandas, to see whether it was given that."""
    encoded = [text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def is_number(type_: pa.DataType) -> bool:
    """Tell whether values of a type are numbers that numpy has as well."""
    return pa.types.is_integer(type_) or pa.types.is_float32(type_) or pa.types.is_float64(type_)


def number_type(type_: pa.DataType) -> np.dtype:
    """Return numpy's type of such numbers; Arrow's own word for it imports what only its frames need."""
    kind = "f" if pa.types.is_floating(type_) else "i" if pa.types.is_signed_integer(type_) else "u"
    return np.dtype(f"{kind}{type_.bit_width // 8}")


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)
