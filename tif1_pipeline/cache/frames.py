"""pandas and polars frames to Arrow tables and back, exactly: what would come back changed is refused.

Arrow's own conversion says in the schema's metadata what a pandas frame was, but changes some things without a word.
Some are put right here (cells of object columns, the frequency of a time index); the rest is found by converting a row
back and comparing it, and refused.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tif1_pipeline.cache import jsonvalue, physical, templates
from tif1_pipeline.cache.base import Backend
from tif1_pipeline.cache.exact import all_same, same
from tif1_pipeline.cache.templates import FRAME_NOTES, Template
from tif1_pipeline.exceptions import InvalidDataError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_SMALL = 50_000
"""Cells of a table for which Arrow's own conversion is no faster, and takes 3 ms more for the first in a process."""

_CONVERSION_ERRORS = (pa.ArrowException, ValueError, TypeError, OverflowError, NotImplementedError)


def backend_of(value: Any) -> Backend:
    """Tell what kind of value this is; everything that is no table is taken for JSON."""
    # Looked up among the loaded modules: a value of a library that nobody has imported cannot exist.
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if isinstance(value, pa.Table):
        return "arrow"
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return "pandas"
    if polars is not None and isinstance(value, polars.DataFrame):
        return "polars"
    return "json"


def to_table(value: Any, backend: Backend) -> pa.Table:
    """Return a frame as an Arrow table.

    Raises:
        InvalidDataError: It would come back changed; names the column and what to do.
    """
    if backend == "pandas":
        return _from_pandas(value)
    if backend == "polars":
        return _from_polars(value)
    return value


def from_table(table: pa.Table, as_: Backend) -> Any:
    """Return a table as what was asked for."""
    if as_ == "pandas":
        return to_pandas(table)
    if as_ == "polars":
        return to_polars(table)
    return table


def to_pandas(table: pa.Table) -> "pd.DataFrame":
    """Return a table as a pandas frame; one without pandas' own metadata gets types that do not depend on its data."""
    table = _with_signed_indices(table)
    frame = None
    if table.num_rows * table.num_columns < _SMALL:
        from tif1_pipeline.cache.assembly import assembled

        frame = assembled(table)
    return by_arrow(table) if frame is None else frame


def by_arrow(table: pa.Table) -> "pd.DataFrame":
    """Return a table as a pandas frame, as Arrow makes it."""
    import pandas as pd

    if b"pandas" not in (table.schema.metadata or {}):
        # bool with nulls would become object, without nulls numpy's bool.
        return _with_categories_of_texts(table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get), table)
    frame = _with_categories_of_texts(table.to_pandas(), table)
    notes = json.loads((table.schema.metadata or {}).get(FRAME_NOTES, b"{}"))
    if notes:
        _apply_notes(frame, table, notes)
    return frame


def to_polars(table: pa.Table) -> "pl.DataFrame":
    """Return a table as a polars frame."""
    import polars as pl

    for position, field in enumerate(table.schema):
        if isinstance(field.type, pa.BaseExtensionType):  # pandas' periods and intervals mean nothing to polars
            chunks = [chunk.storage for chunk in table.column(position).chunks]
            storage = pa.chunked_array(chunks, field.type.storage_type)
            table = table.set_column(position, field.name, storage)
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)  # noqa: S101 - a table is never a series
    return frame


def _with_signed_indices(table: pa.Table) -> pa.Table:
    """Return the table with dictionary indices that pandas can take: polars writes unsigned ones."""
    for position, field in enumerate(table.schema):
        type_ = field.type
        if pa.types.is_dictionary(type_) and pa.types.is_unsigned_integer(type_.index_type):
            signed = pa.dictionary(pa.int64(), type_.value_type, type_.ordered)
            table = table.set_column(position, field.with_type(signed), table.column(position).cast(signed))
    return table


# ---- pandas


def _from_pandas(frame: "pd.DataFrame") -> pa.Table:
    _check_labels(frame)
    jsonvalue.check(frame.attrs, "the frame's attrs")
    try:
        table = pa.Table.from_pandas(frame)
        if len(frame.columns) and _is_default(frame.index):
            table = _without_index(table)
        table = _with_notes(frame, table)
        _compare_types(frame, table)
    except _CONVERSION_ERRORS as error:
        raise _refusal_of_column(frame, error) from error
    return table


def _is_default(index: "pd.Index") -> bool:
    import pandas as pd

    return isinstance(index, pd.RangeIndex) and index.equals(pd.RangeIndex(len(index))) and index.name is None


def _without_index(table: pa.Table) -> pa.Table:
    """Return the table without the note of its default index, with which each number of rows makes another header."""
    notes = {**(table.schema.pandas_metadata or {}), "index_columns": []}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"pandas": json.dumps(notes).encode()})


def _check_labels(frame: "pd.DataFrame") -> None:
    import pandas as pd

    if type(frame) is not pd.DataFrame:
        raise InvalidDataError(
            f"a {type(frame).__name__} would come back as a plain DataFrame: store pd.DataFrame(frame) instead"
        )
    if not frame.columns.is_unique:
        name = frame.columns[frame.columns.duplicated()][0]
        raise InvalidDataError(f"two columns are called {name!r}: rename one before storing the frame", column=name)
    for level in _levels(frame.columns):
        if "mixed" in level.inferred_type:
            raise InvalidDataError(
                f"the column labels {list(frame.columns)[:5]!r} are of several types: rename the columns with texts"
            )
    for name in (*frame.index.names, *frame.columns.names):
        if name is not None and type(name) is not str:
            raise InvalidDataError(
                f"an index is called {name!r}, which would come back as text: rename it with rename_axis"
            )


def _with_notes(frame: "pd.DataFrame", table: pa.Table) -> pa.Table:
    """Check the cells of object columns, and write down what Arrow's own metadata forgets."""
    import pandas as pd

    notes: dict[str, Any] = {}
    names = table.column_names[: len(frame.columns)]
    for position, (name, dtype) in enumerate(zip(names, frame.dtypes, strict=True)):
        if dtype == object:  # noqa: E721 - numpy's dtype
            _check_cells(frame, position, table.column(name))
            notes.setdefault("object", []).append(name)
        elif isinstance(dtype, pd.StringDtype) and dtype.storage == "python":
            notes.setdefault("python_text", []).append(name)
    for axis, index in (("index", frame.index), ("columns", frame.columns)):
        if isinstance(index, pd.DatetimeIndex | pd.TimedeltaIndex) and index.freq is not None:
            notes[axis] = {"freq": index.freqstr, "length": len(index)}
    if not notes:
        return table
    return table.replace_schema_metadata({**(table.schema.metadata or {}), FRAME_NOTES: json.dumps(notes).encode()})


def _with_categories_of_texts(frame: "pd.DataFrame", table: pa.Table) -> "pd.DataFrame":
    """Give categories of texts their type where there is none of them: Arrow makes objects of no texts."""
    import pandas as pd

    for position, field in _columns_of(table):
        if not pa.types.is_dictionary(field.type) or not templates.is_text(field.type.value_type):
            continue
        dtype = frame.dtypes.iloc[position]
        if isinstance(dtype, pd.CategoricalDtype) and not len(dtype.categories):
            typed = pd.CategoricalDtype(pd.Index([], dtype=str), dtype.ordered)
            codes = np.full(len(frame), -1, np.int8)
            frame.isetitem(position, pd.Categorical.from_codes(codes, dtype=typed))  # pyright: ignore[reportArgumentType] - not in the stubs
    return frame


def _columns_of(table: pa.Table) -> "Iterator[tuple[int, pa.Field]]":
    """Return the fields of a frame's columns with their places, without those of its index."""
    index = (table.schema.pandas_metadata or {}).get("index_columns", ())
    return enumerate(field for field in table.schema if field.name not in index)


def _apply_notes(frame: "pd.DataFrame", table: pa.Table, notes: dict[str, Any]) -> None:
    import pandas as pd

    for position, field in _columns_of(table):
        name = field.name
        if name in notes.get("object", ()):
            # Arrow would make str columns of texts and numpy arrays of lists.
            cells = pd.Series(table.column(name).to_pylist(), dtype=object, index=frame.index)
            frame.isetitem(position, cells)  # pyright: ignore[reportArgumentType] - not in the stubs
        elif name in notes.get("python_text", ()):
            texts = frame.iloc[:, position]
            dtype = pd.StringDtype("python", na_value=texts.dtype.na_value)  # type: ignore[union-attr]
            frame.isetitem(position, texts.astype(dtype))  # pyright: ignore[reportArgumentType] - as above
    for axis, labels in (("index", frame.index), ("columns", frame.columns)):
        if axis in notes and len(labels) == notes[axis]["length"]:  # else parts or columns of the frame were asked for
            with suppress(ValueError):
                labels.freq = notes[axis]["freq"]  # type: ignore[attr-defined] - it was a time index when stored


def _check_cells(frame: "pd.DataFrame", position: int, column: pa.ChunkedArray) -> None:
    stored, given = column.to_pylist(), list(frame.iloc[:, position])
    if all_same(given, stored):
        return
    row = next(row for row, (before, after) in enumerate(zip(given, stored, strict=True)) if not same(before, after))
    label = frame.columns[position]
    raise InvalidDataError(
        f"column {label!r} holds {given[row]!r} ({type(given[row]).__name__}) in row {row}, which would come back as "
        f"{stored[row]!r}: convert the column to one type that pandas has a dtype for",
        column=label,
    )


def _compare_types(frame: "pd.DataFrame", table: pa.Table) -> None:
    """Refuse a frame whose labels or types Arrow would change; one row shows them all."""
    import pandas as pd

    header = physical.write_header(table)
    back = templates.find(header) or templates.keep(Template.of(to_pandas(table.slice(0, 1))), header)
    before, after = list(_levels(frame.columns)), list(_levels(back.columns))
    if len(before) != len(after) or not all(map(_same_labels, before, after)):
        raise InvalidDataError(
            f"the column labels {list(frame.columns)[:5]!r} would come back as {list(back.columns)[:5]!r}: "
            "rename the columns with texts"
        )
    for label, old, new in zip(frame.columns, frame.dtypes, back.dtypes, strict=True):
        if not _same_dtype(old, new):
            raise InvalidDataError(
                f"column {label!r} of dtype {old} would come back as {new}, or with other categories: "
                "convert it with astype first",
                column=label,
            )
    if isinstance(frame.index, pd.RangeIndex):
        return  # kept as its start, stop and step, which say nothing about a single row
    for old, new in zip(_levels(frame.index[:1]), _levels(back.index), strict=True):
        if old.name != new.name or not _same_dtype(old.dtype, new.dtype):
            raise InvalidDataError(
                f"the index {old.name!r} of dtype {old.dtype} would come back as {new.name!r} of {new.dtype}: "
                "convert it first, or store frame.reset_index()"
            )


def _refusal_of_column(frame: "pd.DataFrame", error: Exception) -> InvalidDataError:
    for position, label in enumerate(frame.columns):
        try:
            to_pandas(pa.Table.from_pandas(frame.iloc[:, [position]], preserve_index=False))
        except _CONVERSION_ERRORS as reason:
            return InvalidDataError(
                f"column {label!r} of dtype {frame.dtypes.iloc[position]} cannot be stored: {_text_of(reason)}. "
                "Convert it to one type that Arrow knows, for instance with astype",
                column=label,
            )
    return InvalidDataError(
        f"the index of the frame cannot be stored: {_text_of(error)}. Store frame.reset_index() instead"
    )


def _text_of(error: BaseException) -> str:
    # Arrow adds a second argument that names the column, which makes str(error) a tuple's text.
    return str(error.args[0] if isinstance(error, pa.ArrowException) and error.args else error).rstrip(".")


def _levels(index: "pd.Index") -> Iterator["pd.Index"]:
    return (index.get_level_values(number) for number in range(index.nlevels))


def _same_labels(before: "pd.Index", after: "pd.Index") -> bool:
    return _same_dtype(before.dtype, after.dtype) and same(list(before), list(after)) and before.name == after.name


def _same_dtype(before: Any, after: Any) -> bool:
    import pandas as pd

    if isinstance(before, pd.CategoricalDtype) and isinstance(after, pd.CategoricalDtype):
        # Equality of dtypes ignores the order of the categories.
        old, new = before.categories, after.categories
        same_freq = getattr(old, "freq", None) == getattr(new, "freq", None)
        return before.ordered == after.ordered and _same_labels(old, new) and same_freq
    return before == after


# ---- polars


def _from_polars(frame: "pl.DataFrame") -> pa.Table:
    import polars as pl

    for name, dtype in frame.schema.items():
        try:
            back: Any = to_polars(_polars_to_arrow(frame.select(name).head(0))).dtypes[0]
        except (*_CONVERSION_ERRORS, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            back = _text_of(error)
        if back != dtype:
            raise InvalidDataError(
                f"column {name!r} of type {dtype} would not come back unchanged ({back}): convert it with cast first",
                column=name,
            )
    return _polars_to_arrow(frame)


def _polars_to_arrow(frame: "pl.DataFrame") -> pa.Table:
    import polars as pl

    # The oldest level has no string views, which Parquet cannot store.
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
