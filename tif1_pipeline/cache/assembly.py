"""pandas frames put together from the parts of a stored table, on the threads that decode them.

Arrow makes a frame of a whole table only, which is one more pass over all of it, and a third of the time of reading a
race's telemetry. Here each part is written to where it belongs as soon as it is decoded. Numbers, flags, times and
categories are; columns of any other kind, and frames with an index of their own, are left to Arrow.
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import physical, spare, templates
from tif1_pipeline.cache.templates import Template

if TYPE_CHECKING:
    import pandas as pd

_IN_BLOCKS = "fiumMb"
"""Kinds of numpy's columns, of which those of one type share a block of memory, as pandas would have it."""
_WITHOUT_NULLS = "iub"
"""Those that Arrow makes into others where they have nulls."""
_ALIGNED = 64
"""Bytes of a line of the processor's cache."""


class Plan:
    """How the frames of one template are made.

    Attributes:
        dtypes: Of the columns, by name.
        kinds: What columns are made from, by name; those of no kind are left to Arrow.
        stored: As which types those of a kind are kept in Parquet, by name.
        places: Of the columns among the others, by name.
        is_possible: Whether frames of this kind can be put together.
        index: Start, stop, step and name, if it is another than the default.
    """

    def __init__(self, empty: pa.Table, template: Template) -> None:
        names, types = empty.column_names, empty.schema.types
        indexes: list[Any] = (empty.schema.pandas_metadata or {}).get("index_columns", [])
        self.index = next(iter(indexes), None)
        self.is_possible = len(template.columns) == len(names) and all(isinstance(index, dict) for index in indexes)
        self.dtypes: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self.stored: dict[str, pa.DataType] = {}
        self.places = {name: np.array([place]) for place, name in enumerate(names)}
        if not self.is_possible:
            return
        for name, type_, dtype in zip(names, types, template.dtypes, strict=True):
            self.dtypes[name] = dtype
            kind = _kind(type_, dtype)
            if kind is not None:
                self.kinds[name] = kind
                self.stored[name] = physical.physical_type(type_)
            elif isinstance(dtype, np.dtype) and dtype.kind == "O":
                self.is_possible = False  # its cells are made from the whole table, see views.to_keep


class Assembly:
    """A frame that is filled part by part.

    Args:
        empty: The table without rows, of the columns that are read.
        template: What the frame of such a table is like.
        plan: How it is made.
        rows: Of the frame.

    Attributes:
        nbytes: What the frame takes in memory, once it is made.
    """

    def __init__(self, empty: pa.Table, template: Template, plan: Plan, rows: int) -> None:
        self.nbytes = 0
        self._empty = empty
        self._template = template
        self._plan = plan
        self._rows = rows
        self._kinds = dict(plan.kinds)
        self._columns: dict[str, np.ndarray] = {}
        self._nulls: dict[str, np.ndarray] = {}
        self._blocks: list[tuple[np.ndarray, list[str]]] = []

    @classmethod
    def of(cls, empty: pa.Table, template: Template, rows: int) -> "Assembly | None":
        """Begin one; None if the frame is of a kind that Arrow is to make."""
        plan: Plan = template.plan or Plan(empty, template)
        template.plan = plan
        return cls(empty, template, plan, rows) if rows and plan.is_possible else None

    def prepare(self, stored: pa.Schema) -> None:
        """Take memory for the columns, given the types of the first part; not thread-safe."""
        groups: dict[np.dtype, list[str]] = {}
        types: dict[str, np.dtype] = {}
        for name, kind in self._plan.kinds.items():
            field = stored.field(name)
            if field.type != self._plan.stored[name] or (kind in _WITHOUT_NULLS and field.nullable):
                del self._kinds[name]
            elif kind in _IN_BLOCKS:
                groups.setdefault(self._plan.dtypes[name], []).append(name)
            elif kind in ("object", "none"):
                self._columns[name] = np.empty(self._rows, object)  # of None
            else:
                types[name] = np.dtype(bool) if kind == "flag" else templates.number_type(field.type)
        flags = [name for name in types if self._kinds[name] == "flag"]
        taken = iter(
            _take(
                *((dtype, self._rows) for dtype in types.values()),
                *((np.dtype(bool), self._rows) for _ in flags),
                *((dtype, len(names) * self._rows) for dtype, names in groups.items()),
            )
        )
        self._columns |= zip(types, taken, strict=False)
        for name in flags:
            self._nulls[name] = next(taken)
            self._nulls[name][:] = False
        for values, names in zip(taken, groups.values(), strict=True):
            block = values.reshape(len(names), self._rows)
            self._blocks.append((block, names))
            self._columns |= zip(names, block, strict=True)

    def fill(self, part: pa.Table, start: int) -> pa.Table:
        """Write a part's rows to where they belong; returns the columns that are left to Arrow."""
        for name, target in self._columns.items():
            kind, row = self._kinds[name], start
            for chunk in part.column(name).chunks:
                end = row + len(chunk)
                self._write(name, kind, chunk, target[row:end], row)
                row = end
        return part.select([name for name in self._empty.column_names if name not in self._columns])

    def _write(self, name: str, kind: str, chunk: pa.Array, target: np.ndarray, row: int) -> None:
        if not len(chunk) or kind == "none":
            return
        # Copied by memory views, which keep the interpreter's lock: numpy would let go of it for every column, and
        # threads that wait for it take longer than the copy.
        if kind == "object":
            target[:] = _bits(chunk, 1)
        elif target.dtype.kind == "b":
            target.view(np.uint8).data[:] = _bits(chunk, 1).view(np.uint8).data
        elif chunk.null_count == len(chunk):
            target[:] = _missing(kind)
            return
        else:
            size = target.itemsize
            values = memoryview(chunk.buffers()[1]).cast("B")
            target.view(np.uint8).data[:] = values[chunk.offset * size : (chunk.offset + len(chunk)) * size]
        if chunk.null_count:
            nulls = ~_bits(chunk, 0)
            if kind == "flag":
                self._nulls[name][row : row + len(chunk)] = nulls
            else:
                target[nulls] = _missing(kind)

    def frame(self, rest: list[pa.Table]) -> "pd.DataFrame":
        """Return the frame.

        Args:
            rest: What :meth:`fill` returned, in the order of the parts.
        """
        # Made for Arrow's conversion; there since pandas 3.
        from pandas.api.internals import (  # pyright: ignore[reportMissingImports] - not in the stubs
            create_dataframe_from_blocks,
        )

        places = self._plan.places
        blocks: list[tuple[Any, np.ndarray]] = [
            (block, np.concatenate([places[name] for name in names])) for block, names in self._blocks
        ]
        for name, values in self._columns.items():
            if self._kinds[name] not in _IN_BLOCKS:
                blocks.append((self._column(name, values), places[name]))
        left = [name for name in self._empty.column_names if name not in self._columns]
        if left:
            table = physical.to_logical(physical.joined(rest), self._empty.select(left))
            blocks += [(values, places[name]) for name, values in self._converted(table).items()]
        self.nbytes = sum(values.nbytes for values, _ in blocks)
        frame = create_dataframe_from_blocks(blocks, self._index(), self._template.columns.copy())
        frame.attrs = deepcopy(self._template.attrs)
        return frame

    def _column(self, name: str, values: np.ndarray) -> Any:
        import pandas as pd

        kind, dtype = self._kinds[name], self._plan.dtypes[name]
        if kind == "category":
            if values.min() < -1 or values.max() >= len(dtype.categories):  # pandas would read beyond their end
                raise ValueError(f"column {name!r} has a code of no category")
            # Of its own categories: what a reader does to their name must not reach other frames.
            own = pd.CategoricalDtype(dtype.categories.copy(), dtype.ordered)
            return pd.Categorical.from_codes(values, dtype=own, validate=False)
        if kind == "flag":
            return pd.arrays.BooleanArray(values, self._nulls[name])
        return values.reshape(1, -1)

    def _converted(self, table: pa.Table) -> dict[str, Any]:
        """Return columns as Arrow makes them."""
        from tif1_pipeline.cache import frames

        made, others = {}, []
        for name in table.column_names:
            dtype = self._plan.dtypes[name]
            if _is_made_by_pandas(dtype):
                made[name] = dtype.__from_arrow__(table.column(name))
            else:
                others.append(name)
        if others:
            frame = frames.by_arrow(table.select(others))
            for position, name in enumerate(others):
                column = frame.iloc[:, position]
                is_plain = isinstance(column.dtype, np.dtype)
                # Not the column's to_numpy(), which cannot be written to.
                made[name] = column.array.to_numpy().reshape(1, -1) if is_plain else column.array
        return made

    def _index(self) -> "pd.RangeIndex":
        import pandas as pd

        index = self._plan.index
        if index is not None:
            kept = pd.RangeIndex(index["start"], index["stop"], index["step"], name=index["name"])
            if len(kept) == self._rows:  # else parts of the frame were asked for
                return kept
        return pd.RangeIndex(self._rows)


def _take(*wanted: tuple[np.dtype, int]) -> list[np.ndarray]:
    """Return memory for so many values of each type, taken at once: what is large gets large pages, mapped at once."""
    sizes = [number * dtype.itemsize for dtype, number in wanted]
    starts = np.cumsum([0, *(-(-size // _ALIGNED) * _ALIGNED for size in sizes)]).tolist()
    memory = spare.take(starts.pop())
    return [
        memory[start : start + size].view(dtype) for start, size, (dtype, _) in zip(starts, sizes, wanted, strict=True)
    ]


def assembled(table: pa.Table) -> "pd.DataFrame | None":
    """Return the frame of a table; None if Arrow is to make it."""
    table = table.unify_dictionaries()
    template = templates.told(table)
    assembly = None if template is None else Assembly.of(table, template, table.num_rows)
    if assembly is None:
        return None
    part = physical.to_physical(table)
    assembly.prepare(part.schema)
    return assembly.frame([assembly.fill(part, 0)])


def _is_made_by_pandas(dtype: Any) -> bool:
    """Tell whether Arrow leaves a column of this type to pandas."""
    import pandas as pd

    return hasattr(dtype, "__from_arrow__") and not isinstance(dtype, pd.DatetimeTZDtype)


def _kind(type_: pa.DataType, dtype: Any) -> str | None:
    """Tell what a column of the frame is made from; None if Arrow is to make it."""
    import pandas as pd

    if isinstance(dtype, np.dtype):
        if dtype.kind in "mM":
            is_time = pa.types.is_duration(type_) or (pa.types.is_timestamp(type_) and type_.tz is None)
            return dtype.kind if is_time and np.datetime_data(dtype)[0] == type_.unit else None
        if pa.types.is_boolean(type_):
            return {"b": "b", "O": "object"}.get(dtype.kind)
        if pa.types.is_null(type_):
            return "none" if dtype.kind == "O" else None
        return dtype.kind if templates.is_number(type_) and dtype == templates.number_type(type_) else None
    if isinstance(dtype, pd.BooleanDtype) and pa.types.is_boolean(type_):
        return "flag"
    if isinstance(dtype, pd.CategoricalDtype) and pa.types.is_dictionary(type_):
        return "category" if pa.types.is_signed_integer(type_.index_type) else None
    return None


def _missing(kind: str) -> Any:
    """Return what stands for a null."""
    if kind in "mM":
        return np.timedelta64("NaT") if kind == "m" else np.datetime64("NaT")
    return {"f": np.nan, "category": -1, "object": None}[kind]


def values_of(chunk: pa.Array, dtype: np.dtype) -> np.ndarray:
    """Return the values of a chunk, whatever they are where it has nulls."""
    if dtype.kind in "bO":
        return _bits(chunk, 1)
    return np.frombuffer(chunk.buffers()[1], dtype, len(chunk), chunk.offset * dtype.itemsize)


def _bits(chunk: pa.Array, number: int) -> np.ndarray:
    """Return the bits of one of a chunk's buffers."""
    packed = np.frombuffer(chunk.buffers()[number], np.uint8)
    first, bit = divmod(chunk.offset, 8)
    return np.unpackbits(packed[first:], bitorder="little", count=bit + len(chunk))[bit:].view(bool)
