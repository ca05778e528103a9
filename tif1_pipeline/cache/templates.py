"""What the pandas frame of a table is like: told from its types, or kept for each table header that was met.

Arrow works that out anew for every frame it makes, from what pandas has noted in the schema: nearly half the time of
reading a race's laps. It depends on the header alone, but for integers and flags that have nulls in one table and none
in another.
"""

import json
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

FRAME_NOTES = b"tif1_pipeline"
"""Key of our notes in a schema's metadata: columns of object dtype or of Python texts, frequencies of time indexes."""

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
        """Return the one of a frame, of which nothing is shared: it is its reader's."""
        import pandas as pd

        dtypes = (
            pd.CategoricalDtype(dtype.categories.copy(), dtype.ordered)
            if isinstance(dtype, pd.CategoricalDtype)
            else dtype
            for dtype in frame.dtypes
        )
        return cls(frame.columns.copy(), tuple(dtypes), frame.index[:0].copy(), deepcopy(frame.attrs))


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


def told(table: pa.Table) -> Template | None:
    """Return what the frame of a table is like, by its types and what pandas has noted; None if it takes Arrow to tell.

    The first frame that Arrow makes in a process takes it some milliseconds longer than the next.
    """
    import pandas as pd

    text = pd.api.types.pandas_dtype(str)
    # Where the user has told pandas that texts are objects, Arrow knows what to make of it.
    if not isinstance(text, pd.StringDtype) or not table.num_columns:
        return None
    try:
        notes = table.schema.pandas_metadata
        noted = dict.fromkeys(table.column_names) if notes is None else _noted_types(table, notes)
    except (AttributeError, KeyError, TypeError, ValueError):  # of a stranger's file
        return None
    if noted is None:
        return None
    dtypes = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        dtype = _dtype_of(column, text)
        if dtype is None or not _is_as_noted(dtype, noted[name]):
            return None
        dtypes.append({"object": np.dtype(object), "bool": np.dtype(bool)}.get(noted[name] or "", dtype))
    labels = _index(_texts(table.column_names), text)
    return Template(labels, tuple(dtypes), pd.RangeIndex(0), (notes or {}).get("attributes", {}))


def _noted_types(table: pa.Table, notes: dict[str, Any]) -> dict[str, str] | None:
    """Return the types that pandas has noted of the columns; None for a frame with an index or labels of its own."""
    ours = json.loads((table.schema.metadata or {}).get(FRAME_NOTES, b"{}"))
    labels = [(index["name"], index["numpy_type"]) for index in notes.get("column_indexes", ())]
    if (
        labels != [(None, "str")]
        or ours.keys() - {"object"}
        or any(not isinstance(index, dict) or not _is_range(index) for index in notes["index_columns"])
        or not isinstance(notes.get("attributes", {}), dict)
    ):
        return None
    noted = {
        note["field_name"]: "category" if note["pandas_type"] == "categorical" else str(note["numpy_type"])
        for note in notes["columns"]
        if note["name"] == note["field_name"]
    }
    objects = {name for name, type_ in noted.items() if type_ == "object"}
    return noted if set(table.column_names) <= noted.keys() and objects <= set(ours.get("object", ())) else None


def _is_range(index: dict[str, Any]) -> bool:
    limits = [index[name] for name in ("start", "stop", "step")]
    return index["kind"] == "range" and all(type(limit) is int for limit in limits) and limits[2] != 0


def _is_as_noted(dtype: Any, noted: str | None) -> bool:
    """Tell whether the frame of a column that pandas has noted to be of a type has the one that Arrow's type tells."""
    import pandas as pd

    if noted is None:
        return True
    if isinstance(dtype, pd.BooleanDtype):
        return noted in ("boolean", "bool", "object")
    return str(dtype) == noted


def _dtype_of(column: pa.ChunkedArray, text: Any) -> Any:
    """Return the dtype that Arrow makes of a column; None for what it has more than one for, or none of these."""
    import pandas as pd

    type_ = column.type
    if pa.types.is_boolean(type_):
        return pd.BooleanDtype()
    if is_number(type_):
        return number_type(type_)
    if pa.types.is_duration(type_) or (pa.types.is_timestamp(type_) and type_.tz is None):
        return np.dtype(f"{'m' if pa.types.is_duration(type_) else 'M'}8[{type_.unit}]")
    if is_text(type_):
        return text
    if pa.types.is_null(type_):
        return np.dtype(object)
    if pa.types.is_dictionary(type_) and pa.types.is_signed_integer(type_.index_type):
        values = column.chunk(0).dictionary if column.num_chunks else None
        if pa.types.is_null(type_.value_type):
            return pd.CategoricalDtype(pd.Index([], dtype=object), type_.ordered)
        if values is None:
            values = pa.array([], type_.value_type)
        if is_text(type_.value_type) and not values.null_count and len(values.unique()) == len(values):
            return pd.CategoricalDtype(_index(values, text), type_.ordered)
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


def is_text(type_: pa.DataType) -> bool:
    """Tell whether values of a type are texts."""
    return pa.types.is_string(type_) or pa.types.is_large_string(type_)
