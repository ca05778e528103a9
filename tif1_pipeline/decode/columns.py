"""From lists of untidy JSON values to Arrow columns, for all file kinds.

What counts as missing, everywhere: JSON ``null``, the bare tokens ``NaN`` and ``±Infinity`` (no sensor reads infinity,
and JSON cannot say it), and the strings ``"None"``, ``"nan"``, ``"NaN"``, ``"NaT"``. In columns of numbers, times and
flags ``""`` is missing too; in text it is the empty text.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tif1_pipeline.datasets import FLOAT, TEXT, Column, Dataset
from tif1_pipeline.decode.parsing import as_columns, check_required, short
from tif1_pipeline.exceptions import InvalidDataError

MISSING = frozenset({None, "None", "nan", "NaN", "NaT"})
BLANK = MISSING | {""}

# Integers up to here have a float of their own; beyond, neighbours share one.
_EXACT_INTEGER = 2**53
_FLAG_WORDS = {"True": 1, "true": 1, "False": 0, "false": 0}


def build(dataset: Dataset, parsed: Mapping[str, Any], file: str) -> pa.Table:
    """Return the table of a column-oriented object.

    Args:
        dataset: The kind of table.
        parsed: Columns by their names in the file, as :func:`as_columns` takes them.
        file: Kind of the file, for messages.

    Returns:
        The dataset's columns, null where the file lacks them or where they are derived, then the file's unknown ones.

    Raises:
        InvalidDataError: A required column is not in the file, or a value is not of its column's type.
    """
    check_required([source for source, column in dataset.by_source.items() if column.required], parsed, file)
    columns, rows = as_columns(parsed, file)
    arrays = []
    for column in dataset.columns:
        values = columns.get(column.source) if column.source else None
        arrays.append(pa.nulls(rows, column.type) if values is None else convert(values, column, file))
    extra = {name: infer(values) for name, values in columns.items() if name not in dataset.by_source}
    schema = extend(dataset.schema, {name: array.type for name, array in extra.items()})
    return pa.Table.from_arrays([*arrays, *extra.values()], schema=schema)


def extend(schema: pa.Schema, extra: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema with unknown columns at its end.

    A column of the file that is called like one of the table's gets ``_extra`` appended.
    """
    for name, data_type in extra.items():
        unused = name
        while unused in schema.names:
            unused += "_extra"
        schema = schema.append(pa.field(unused, data_type))
    return schema


def convert(values: Sequence[Any], column: Column, file: str) -> pa.Array:
    """Return a list of JSON values as an Arrow array of the column's type.

    Raises:
        InvalidDataError: A value cannot be read as the type.
    """
    where = Place(file, column)
    kind = column.type
    if is_blank(values):
        return pa.nulls(len(values), kind)
    if pa.types.is_duration(kind):
        return durations(numbers(values, where), where)
    if pa.types.is_timestamp(kind):
        return moments(values, where)
    if pa.types.is_floating(kind):
        return pa.array(numbers(values, where), kind, from_pandas=True)
    if pa.types.is_integer(kind):
        return integers(numbers(values, where), where)
    if pa.types.is_boolean(kind):
        return flags(values, where)
    if pa.types.is_dictionary(kind):
        return categories(untidy_texts(values, where))
    return texts(values, where)


def is_blank(values: Sequence[Any]) -> bool:
    """Return whether all values are "None": many columns are, and so they cost no conversion."""
    # Counting takes as long as converting, so only where both ends promise it.
    return len(values) > 0 and values[0] == values[-1] == "None" and values.count("None") == len(values)


class Place(NamedTuple):
    """Where a value stands: in which column of which kind of file."""

    file: str
    column: Column

    def refuse(self, value: object, wanted: str) -> InvalidDataError:
        """Return the error for a value that is not what the column holds."""
        return InvalidDataError(
            f"{self.file}: column {self.column.source!r} ({self.column.name}) holds {short(value)}, "
            f"which is no {wanted}",
            file=self.file,
            columns=[self.column.source],
            value=short(value),
        )


def numbers(values: Sequence[Any], where: Place) -> np.ndarray:
    """Return JSON values as float64, NaN where they are missing. Numbers may be given as text; true is 1, false 0.

    Raises:
        InvalidDataError: A value is no number.
    """
    array = _as_floats(values)
    if array is None:
        with suppress(TypeError):  # lists and objects have no hash
            array = _as_floats([None if value in BLANK else value for value in values])
    if array is None:
        raise where.refuse(next(value for value in values if _is_no_number(value)), "number")
    array[np.isinf(array)] = np.nan
    return array


def _is_no_number(value: Any) -> bool:
    return not (isinstance(value, str) and value in BLANK) and _as_floats([value]) is None


def _as_floats(values: Sequence[Any]) -> np.ndarray | None:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.ndim == 1 else None  # numpy makes a matrix of lists of one length


def nanoseconds(seconds: np.ndarray, where: Place) -> np.ndarray:
    """Return float seconds as int64 nanoseconds, 0 where NaN.

    Rounded to the nearest nanosecond, which gives every published decimal back: seconds times 10⁹ is off by less than
    half a nanosecond up to 26 days.

    Raises:
        InvalidDataError: More than the 292 years that 64 bits hold.
    """
    missing = np.isnan(seconds)
    if missing.any():
        seconds = np.where(missing, 0.0, seconds)
    with np.errstate(over="ignore"):
        scaled = np.rint(seconds * 1e9)
    too_large = np.abs(scaled) >= 2.0**63
    if too_large.any():
        raise where.refuse(float(seconds[too_large][0]), "time that 64 bits of nanoseconds hold")
    return scaled.astype(np.int64)


def durations(seconds: np.ndarray, where: Place) -> pa.Array:
    """Return float seconds as ``duration[ns]``, null where NaN.

    Raises:
        InvalidDataError: As :func:`nanoseconds`.
    """
    return pa.array(nanoseconds(seconds, where), mask=np.isnan(seconds)).view(pa.duration("ns"))


def integers(array: np.ndarray, where: Place) -> pa.Array:
    """Return float values as integers of the column's type, null where NaN.

    Raises:
        InvalidDataError: As :func:`check_integers`.
    """
    check_integers(array, where)
    missing = np.isnan(array)
    kind = where.column.type
    return pa.array(np.where(missing, 0, array).astype(kind.to_pandas_dtype()), kind, mask=missing)


def check_integers(array: np.ndarray, where: Place) -> None:
    """Check that float values, NaN aside, are whole numbers of the range of the column's type.

    Raises:
        InvalidDataError: One is not.
    """
    with np.errstate(invalid="ignore"):
        wrong = array.astype(where.column.type.to_pandas_dtype()) != array
    if wrong.any():
        wrong &= ~np.isnan(array)
    if wrong.any():
        raise where.refuse(float(array[wrong][0]), "whole number of the column's range")


def flags(values: Sequence[Any], where: Place) -> pa.Array:
    """Return JSON values as booleans. Numbers, also as text, are true unless 0 (brakes are published as 0/1 and 0/100).

    Raises:
        InvalidDataError: A value is neither boolean nor number.
    """
    try:
        return pa.array(values, pa.bool_())
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    array = numbers(worded(values), where)
    return pa.array(array != 0, mask=np.isnan(array))


def worded(values: Iterable[Any]) -> list[Any]:
    """Return JSON values with the words for true and false as 1 and 0."""
    return [_FLAG_WORDS.get(value, value) if isinstance(value, str) else value for value in values]


def texts(values: Sequence[Any], where: Place) -> pa.Array:
    """Return JSON values as text: 1 and 1.0 as ``"1"``, true as ``"True"``.

    Raises:
        InvalidDataError: A value is a list or an object.
    """
    try:
        return pa.array([None if value in MISSING else value for value in values], TEXT)
    except TypeError:  # not all of them text, or without a hash
        written = [_text(value, where) for value in values]
        return pa.array([None if text in MISSING else text for text in written], TEXT)


def untidy_texts(values: Sequence[Any], where: Place) -> pa.Array:
    """Return JSON values as :func:`texts` does, but with "None" and its like as they are.

    Raises:
        InvalidDataError: A value is a list or an object.
    """
    try:
        return pa.array(values, TEXT)
    except TypeError:  # not all of them text
        return pa.array([_text(value, where) for value in values], TEXT)


def categories(untidy: pa.Array) -> pa.DictionaryArray:
    """Return what :func:`untidy_texts` gave as a categorical, its words in order of first appearance.

    Looking for missing ones among the few words is faster than among all values.
    """
    encoded = untidy.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    if MISSING.isdisjoint(words):
        return encoded
    kept = [word for word in words if word not in MISSING]
    codes = pa.array([None if word in MISSING else kept.index(word) for word in words], pa.int32())
    return pa.DictionaryArray.from_arrays(codes.take(encoded.indices), pa.array(kept, TEXT))


def _text(value: Any, where: Place) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    raise where.refuse(value, "text")


def moments(values: Sequence[Any], where: Place) -> pa.Array:
    """Return ISO 8601 texts, up to nine decimals, as ``timestamp[ns]``. A closing ``Z`` is allowed and dropped.

    Raises:
        InvalidDataError: A value is no such text, or outside of the years 1678 to 2261.
    """
    array = _as_moments(values)
    if array is None:
        cleaned = [_moment_text(value) for value in values]
        array = _as_moments(cleaned)
    if array is None:
        wrong = next(value for value in values if _as_moments([_moment_text(value)]) is None)
        raise where.refuse(wrong, "ISO time stamp of the years 1678 to 2261")
    return array


def _moment_text(value: Any) -> Any:
    if isinstance(value, str):
        return None if value in BLANK else value.removesuffix("Z")
    return None if _is_missing(value) else value


def _as_moments(values: Sequence[Any]) -> pa.Array | None:
    try:
        return pa.array(values, TEXT).cast(pa.timestamp("ns"))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def infer(values: Sequence[Any]) -> pa.Array:
    """Return the values of an unknown column, untouched but for missing ones, which are null.

    Integers are int64, floats (also among integers) float64, booleans boolean, texts text. A mixture becomes text, and
    so do lists, objects and integers that the number types would round: texts as they are, the rest as JSON.
    """
    cleaned = [None if _is_missing(value) else value for value in values]
    kinds = {type(value) for value in cleaned} - {type(None)}
    if not kinds:
        return pa.nulls(len(cleaned))
    if kinds == {bool}:
        return pa.array(cleaned, pa.bool_())
    if kinds == {str}:
        return pa.array(cleaned, TEXT)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in cleaned if value is not None):
        return pa.array(cleaned, pa.int64())
    if kinds == {float} or (
        kinds == {int, float} and all(abs(value) <= _EXACT_INTEGER for value in cleaned if isinstance(value, int))
    ):
        return pa.array(cleaned, FLOAT)
    return pa.array([_as_json(value) for value in cleaned], TEXT)


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or value == "None"


def _as_json(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def unify(types: Iterable[pa.DataType]) -> pa.DataType:
    """Return the type that one unknown column takes when several files give it different ones."""
    found = {kind for kind in types if not pa.types.is_null(kind)}
    if len(found) <= 1:
        return next(iter(found), pa.null())
    return FLOAT if found == {pa.int64(), FLOAT} else TEXT


def recast(array: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Return an unknown column as the type that :func:`unify` found for it.

    Integers that a float would round become the nearest one: the other files of the column say that it holds floats.
    """
    return array if array.type == kind else array.cast(kind, safe=False)
