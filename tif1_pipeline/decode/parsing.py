"""From bytes to named columns of JSON values, for all file kinds.

Errors are :class:`InvalidDataError` throughout, and say which file kind and which columns are wrong.
"""

import json
import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson
import pyarrow as pa

from tif1_pipeline.exceptions import InvalidDataError

# Far beyond any real file. Megabytes of short names, or one long text repeated for each row, would fill the memory.
_MOST_COLUMNS = 1_000
_LONGEST_CONSTANT = 10_000

_ROW_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")

_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxstring, _short.maxother, _short.maxlong = 2, 20, 60, 60, 60


def short(value: object) -> str:
    """Return the value as it stands in messages: its repr, bounded in length and depth."""
    return _short.repr(value)


def listed(names: Collection[object]) -> str:
    """Return names as they stand in messages: the first twenty of them."""
    return short(list(names))[1:-1]


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Turn what parsers and Arrow raise on hopeless input into :class:`InvalidDataError`.

    Args:
        file: Kind of the file, for the message.

    Raises:
        InvalidDataError: Nesting too deep to walk, text that is not Unicode, or a time beyond 64 bits.
    """
    try:
        yield
    except RecursionError:
        raise InvalidDataError(f"{file}: nested too deeply", file=file) from None
    except pa.ArrowInvalid as error:
        raise InvalidDataError(f"{file}: {error}", file=file) from None
    except UnicodeEncodeError as error:
        # Lone surrogates: JSON can spell them, UTF-8 and so Arrow cannot hold them.
        raise InvalidDataError(f"{file}: text that is not Unicode: {short(error.object)}", file=file) from None


def parse_object(body: bytes, file: str) -> dict[str, Any]:
    """Parse a body that must be one JSON object; bare ``NaN`` and ``±Infinity`` are allowed.

    Of a key that occurs twice the last value counts, as in nearly every JSON parser.

    Args:
        body: The file.
        file: Its kind, for messages.

    Raises:
        InvalidDataError: The body is no JSON, or something else than an object with at least one key.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        # Several times slower, but it reads NaN and integers of any size.
        parsed = _parse_tolerantly(body, file)
    if not isinstance(parsed, dict):
        raise InvalidDataError(f"{file}: a JSON object was expected, not {short(parsed)}", file=file)
    if not parsed:
        raise InvalidDataError(f"{file}: the JSON object is empty", file=file)
    return parsed


def _parse_tolerantly(body: bytes, file: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:  # also bytes that are no UTF-8, and integers of more digits than Python reads
        raise InvalidDataError(
            f"{file}: {len(body)} bytes that are no JSON ({error}); they start with {body[:60]!r}", file=file
        ) from None


def as_columns(parsed: Mapping[str, Any], file: str) -> tuple[dict[str, list[Any]], int]:
    """Return the columns of a column-oriented object, and the number of rows.

    A column is a list, or an object with row numbers as keys (``{"0": …, "1": …}``, in the order of the numbers).
    Anything else is one value for all rows, which the columns number: a file of nothing but such is no table.

    Raises:
        InvalidDataError: No value is a column, the columns are not of the same rows, or there are absurdly many.
    """
    check_names(parsed, file)
    columns: dict[str, list[Any]] = {}
    constants: dict[str, Any] = {}
    numbering: dict[str, list[int]] = {}
    for name, value in parsed.items():
        if isinstance(value, list):
            columns[name] = value
        elif isinstance(value, dict) and value and all(map(_ROW_NUMBER.fullmatch, value)):
            numbering[name] = sorted(map(int, value))
            columns[name] = [value[str(row)] for row in numbering[name]]
        else:
            constants[name] = constant(name, value, file)
    if not columns:
        raise InvalidDataError(
            f"{file}: columns were expected, but each value is a single one: {listed(constants)}",
            file=file,
            columns=list(constants),
        )
    rows = check_lengths({name: len(values) for name, values in columns.items()}, file)
    if len({tuple(numbers) for numbers in numbering.values()}) > 1:
        raise InvalidDataError(
            f"{file}: columns whose row numbers differ, among {listed(numbering)}", file=file, columns=list(numbering)
        )
    # In the file's order, which unknown columns keep.
    return {name: columns[name] if name in columns else [constants[name]] * rows for name in parsed}, rows


def constant(name: str, value: Any, file: str) -> Any:
    """Return the one value that stands for all rows of a column, an object as its JSON.

    Raises:
        InvalidDataError: It is a text so long that repeating it would fill the memory.
    """
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and len(value) > _LONGEST_CONSTANT:
        raise InvalidDataError(
            f"{file}: column {short(name)} is one text of {len(value)} characters", file=file, columns=[name]
        )
    return value


def check_names(names: Collection[str], file: str) -> None:
    """Refuse more columns than any file has, and names that no table can have.

    Raises:
        InvalidDataError: There are more.
        UnicodeEncodeError: A name has half of a surrogate pair, see :func:`reading`.
    """
    if len(names) > _MOST_COLUMNS:
        raise InvalidDataError(f"{file}: {len(names)} columns, among them {listed(names)}", file=file)
    for name in names:
        name.encode()


def check_lengths(lengths: Mapping[str, int], file: str) -> int:
    """Return the length that all columns have, of which there must be one.

    Raises:
        InvalidDataError: They differ; the message names each column with its length.
    """
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{short(name)} {length}" for name, length in list(lengths.items())[:60])
        raise InvalidDataError(f"{file}: columns of different length: {each}", file=file, columns=list(lengths))
    return next(iter(lengths.values()))


def check_required(required: Collection[str], names: Collection[str], file: str) -> None:
    """Refuse a file that lacks columns without which its rows mean nothing.

    Raises:
        InvalidDataError: One of the required columns is not among the names.
    """
    lacking = [name for name in required if name not in names]
    if lacking:
        raise InvalidDataError(
            f"{file}: required columns are missing: {listed(lacking)}; there are {listed(names)}",
            file=file,
            columns=lacking,
        )
