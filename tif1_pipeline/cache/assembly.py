"""pandas frames put together from the parts of a stored table, on the threads that decode them.

Arrow makes a frame of a whole table only, which is one more pass over all of it, and a third of the time of reading a
race's telemetry. Here each part is written to where it belongs as soon as it is decoded. Numbers, flags, times and
categories are; columns of any other kind, and frames with an index of their own, are left to Arrow.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import physical

if TYPE_CHECKING:
    import pandas as pd

_MISSING = {"f": np.nan, "m": np.iinfo(np.int64).min, "M": np.iinfo(np.int64).min, "category": -1}
"""What stands for a null, by kind of column."""


class Assembly:
    """A frame that is filled part by part.

    Args:
        empty: The table without rows, of the columns that are read.
        template: The frame that Arrow makes of it.
        rows: Of the frame.
    """

    def __init__(self, empty: pa.Table, template: "pd.DataFrame", rows: int) -> None:
        self._empty = empty
        self._template = template
        self._rows = rows
        self._kinds: dict[str, str] = {}
        self._categories: dict[str, int] = {}
        for field, dtype in zip(empty.schema, template.dtypes, strict=True):
            kind = _kind(field.type, dtype)
            if kind is not None:
                self._kinds[field.name] = kind
            if kind == "category":
                self._categories[field.name] = len(dtype.categories)
        self._columns: dict[str, np.ndarray] = {}
        self._nulls: dict[str, np.ndarray] = {}

    @classmethod
    def of(cls, empty: pa.Table, template: "pd.DataFrame", rows: int) -> "Assembly | None":
        """Begin one; None if the frame is of a kind that Arrow is to make."""
        metadata = empty.schema.pandas_metadata or {}
        if (
            not rows
            or len(template.columns) != empty.num_columns  # an index among the columns
            or any(not isinstance(index, dict) for index in metadata.get("index_columns", ()))
            or any(isinstance(dtype, np.dtype) and dtype.kind == "O" for dtype in template.dtypes)
        ):
            return None
        return cls(empty, template, rows)

    def prepare(self, stored: pa.Schema) -> None:
        """Take memory for the columns, given the types of the first part; not thread-safe."""
        groups: dict[np.dtype, list[str]] = {}
        for name in list(self._kinds):
            field = stored.field(name)
            if self._kinds[name] not in _MISSING and self._kinds[name] != "flag" and field.nullable:
                del self._kinds[name]  # Arrow makes floats of integers with nulls
                continue
            dtype = np.dtype(bool) if pa.types.is_boolean(field.type) else np.dtype(field.type.to_pandas_dtype())
            groups.setdefault(dtype, []).append(name)
            if self._kinds[name] == "flag":
                self._nulls[name] = np.zeros(self._rows, bool)
        for dtype, names in groups.items():
            # One block a type, as pandas would: a large one is made of large pages, which are mapped at once.
            block = np.empty((len(names), self._rows), dtype)
            self._columns |= zip(names, block, strict=True)

    def fill(self, part: pa.Table, start: int) -> pa.Table:
        """Write a part's rows to where they belong; returns the columns that are left to Arrow."""
        for name, target in self._columns.items():
            kind, row = self._kinds[name], start
            for chunk in part.column(name).chunks:
                end = row + len(chunk)
                target[row:end] = _values(chunk, target.dtype)
                if chunk.null_count:
                    nulls = ~_bits(chunk, 0)
                    if kind == "flag":
                        self._nulls[name][row:end] = nulls
                    else:
                        target[row:end][nulls] = _MISSING[kind]
                if kind == "category" and end > row:
                    codes = target[row:end]
                    if codes.min() < -1 or codes.max() >= self._categories[name]:  # pandas would read beyond their end
                        raise ValueError(f"column {name!r} has a code of no category")
                row = end
        return part.select([name for name in self._empty.column_names if name not in self._columns])

    def frame(self, rest: list[pa.Table]) -> "pd.DataFrame":
        """Return the frame.

        Args:
            rest: What :meth:`fill` returned, in the order of the parts.
        """
        import pandas as pd

        from tif1_pipeline.cache import frames

        names = [name for name in self._empty.column_names if name not in self._columns]
        left: Any = None
        if names:
            left = frames.to_pandas(physical.to_logical(pa.concat_tables(rest), self._empty.select(names)))
        columns = [
            self._column(name, dtype) if name in self._columns else left.iloc[:, names.index(name)].array
            for name, dtype in zip(self._empty.column_names, self._template.dtypes, strict=True)
        ]
        frame = pd.DataFrame(dict(enumerate(columns)), index=self._index(), copy=False)
        frame.columns = self._template.columns
        frame.attrs = self._template.attrs
        return frame

    def _column(self, name: str, dtype: Any) -> Any:
        import pandas as pd

        values, kind = self._columns[name], self._kinds[name]
        if kind == "category":
            return pd.Categorical.from_codes(values, dtype=dtype, validate=False)
        if kind == "flag":
            return pd.arrays.BooleanArray(values, self._nulls[name])
        return values.view(dtype)

    def _index(self) -> "pd.RangeIndex":
        import pandas as pd

        ranges = (self._empty.schema.pandas_metadata or {}).get("index_columns", ())
        for index in ranges:  # one, if any
            kept = pd.RangeIndex(index["start"], index["stop"], index["step"], name=index["name"])
            if len(kept) == self._rows:  # else parts of the frame were asked for
                return kept
        return pd.RangeIndex(self._rows)


def _kind(type_: pa.DataType, dtype: Any) -> str | None:
    """Tell what a column of the frame is made from; None if Arrow is to make it."""
    import pandas as pd

    if isinstance(dtype, np.dtype):
        if dtype.kind in "mM":
            is_time = pa.types.is_duration(type_) or (pa.types.is_timestamp(type_) and type_.tz is None)
            return dtype.kind if is_time and np.datetime_data(dtype)[0] == type_.unit else None
        is_number = pa.types.is_integer(type_) or pa.types.is_float32(type_) or pa.types.is_float64(type_)
        return dtype.kind if is_number and dtype == type_.to_pandas_dtype() else None
    if isinstance(dtype, pd.BooleanDtype) and pa.types.is_boolean(type_):
        return "flag"
    if isinstance(dtype, pd.CategoricalDtype) and pa.types.is_dictionary(type_):
        return "category" if pa.types.is_signed_integer(type_.index_type) else None
    return None


def _values(chunk: pa.Array, dtype: np.dtype) -> np.ndarray:
    """Return the values of a chunk, whatever they are where it has nulls."""
    if dtype.kind == "b":
        return _bits(chunk, 1)
    return np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)


def _bits(chunk: pa.Array, number: int) -> np.ndarray:
    """Return the bits of one of a chunk's buffers."""
    packed = np.frombuffer(chunk.buffers()[number], np.uint8)
    first, bit = divmod(chunk.offset, 8)
    return np.unpackbits(packed[first:], bitorder="little", count=bit + len(chunk))[bit:].view(bool)
