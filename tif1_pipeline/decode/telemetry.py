"""Telemetry: ``{DRV}/{lap}_tel.json``, one file a lap, hundreds to thousands of them a session.

Two paths lead to the same values. The fast one has simdjson write each list of numbers into a buffer that numpy reads,
without a Python object a number. It takes strict JSON only: a list with missing values falls back alone, a file with
bare ``NaN`` or anything else unusual as a whole.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from tif1_pipeline.datasets import CHANNEL, DURATION, FLAG, FLOAT, TELEMETRY, TEXT
from tif1_pipeline.decode import columns, parsing
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import fold

if TYPE_CHECKING:
    import simdjson

Dtype = Literal["float32", "float64"]

# The key that says whose file it is, and the channels that are no floats.
_KEY, _TIME, _AHEAD = "dataKey", "time", "driver_ahead"
_CHANNELS = {source: column for source, column in TELEMETRY.by_source.items() if source not in (_TIME, _AHEAD)}
_INTEGERS = [source for source, column in _CHANNELS.items() if pa.types.is_integer(column.type)]
_NARROWEST = min((_CHANNELS[source].type for source in _INTEGERS), key=lambda type_: type_.bit_width).to_pandas_dtype()
# The rows of a lap's block. Whole numbers and flags travel as floats too, with NaN for null: they are small.
_ROWS = [*_INTEGERS, *(source for source in _CHANNELS if source not in _INTEGERS)]
_FAR_SECONDS = 9e9
"""Of less than so many seconds 64 bits hold the nanoseconds."""


def telemetry_schema(dtype: Dtype = "float32") -> pa.Schema:
    """Return the schema of telemetry tables with channels of this type."""
    schema = TELEMETRY.schema
    if dtype == "float64":
        for index, field in enumerate(schema):
            if field.type == CHANNEL:
                schema = schema.set(index, field.with_type(pa.float64()))
    return schema


@dataclass(frozen=True, slots=True)
class _Lap:
    """One decoded file of n samples.

    Attributes:
        seconds: Time, float64, shape (n,), NaN where missing.
        block: Channels in the order of ``_ROWS``, shape (channels, n), NaN where missing.
        ahead: Driver ahead, text as published; None if the file does not say.
        extra: Unknown channels by their name in the file.
    """

    seconds: np.ndarray
    block: np.ndarray
    ahead: pa.Array | None
    extra: dict[str, pa.Array]


@dataclass(slots=True)
class _Drive:
    """The laps of one driver, joined.

    Attributes:
        columns: Those that need nothing of other drivers, by name.
        ahead: Driver ahead.
        extra: Number of samples and unknown channels of each lap.
        rows: As they were last returned, after the codes of the driver and of the drivers ahead in them.
    """

    columns: dict[str, pa.Array]
    ahead: pa.DictionaryArray
    extra: list[tuple[int, dict[str, pa.Array]]]
    rows: tuple[int, list[int], pa.Table] | None = None


class TelemetryBuilder:
    """Collects the laps of one session, in any order and from any number of threads, into one table.

    Args:
        dtype: Type of the channels. Times, whole numbers and flags are exact with both.
        expected: How the files' ``dataKey`` begins, where that is known: ``"2025-Dutch Grand Prix-Race"``.
    """

    def __init__(self, dtype: Dtype = "float32", expected: str | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._schema = telemetry_schema(dtype)
        self._expected = expected
        # Setting an item is atomic, so threads need no lock.
        self._laps: dict[tuple[str, int], _Lap] = {}
        self._finished: dict[str, _Drive] = {}
        self._ahead: dict[str, int] = {}
        # A simdjson parser keeps its memory for the next file, and serves one thread.
        self._local = threading.local()

    def add(self, driver: str, lap: int, body: bytes) -> int:
        """Decode one file. A lap that was added before is replaced.

        Args:
            driver: Three-letter code of the driver whose file it is.
            lap: Number of the lap whose file it is.
            body: The file.

        Returns:
            Its number of samples.

        Raises:
            InvalidDataError: The body is not such a file, or it is another lap's. The builder is as before.
            ValueError: The driver is finished.
        """
        if driver in self._finished:
            raise ValueError(f"lap {lap} of {driver} comes after the driver was finished")
        file = f"{driver}/{lap}_tel.json"
        with parsing.reading(file):
            tel = self._parse(body, file)
            self._check_key(tel.pop(_KEY, None), driver, lap, file)
            decoded = _decode(tel, self._dtype, file)
        self._laps[driver, lap] = decoded
        return len(decoded.seconds)

    def _parse(self, body: bytes, file: str) -> dict[str, Any]:
        if not hasattr(self._local, "parser"):
            import simdjson  # nothing but telemetry needs it

            self._local.parser = simdjson.Parser()
        tel = _parse_fast(self._local.parser, body)
        if tel is None:
            tel = parsing.parse_object(body, file).get("tel")
            if not isinstance(tel, dict):
                raise InvalidDataError(f"{file}: there is no object 'tel' in it", file=file, columns=["tel"])
        parsing.check_names(tel, file)
        return tel

    def _check_key(self, key: Any, driver: str, lap: int, file: str) -> None:
        if key is None:
            return
        expected = self._expected
        head, _, number = str(key).rpartition("-")
        session, _, code = head.rpartition("-")
        # Names come with and without accents, composed and decomposed: folded they are one.
        same_session = expected is None or session == expected or fold(session) == fold(expected)
        if not (same_session and code == driver and number.removesuffix(".0") == str(lap)):
            raise InvalidDataError(
                f"{file}: column '{_KEY}' is {parsing.short(key)}, not '{expected or '…'}-{driver}-{lap}': "
                "another lap's file",
                file=file,
                columns=[_KEY],
            )

    def finish(self, driver: str) -> pa.Table | None:
        """Return the rows of a driver of whom no more laps come; None if there are none.

        Called in the order of the table, which then has these very rows, in the same memory, as long as no file has
        unknown channels.
        """
        laps = {lap: decoded for (code, lap), decoded in self._laps.copy().items() if code == driver}
        if not laps:
            return None
        drive = self._finished[driver] = _join(laps, self._schema)
        for lap in laps:
            del self._laps[driver, lap]
        return self._rows(drive, list(self._finished), self._ahead)

    def table(self, drivers: Sequence[str] = ()) -> pa.Table:
        """Return all laps as one table.

        Args:
            drivers: Their order; those not named follow, the finished ones first, as they were finished, then the
                others in the order in which they first came.

        Returns:
            One row a sample, by driver, lap and the file's order, a chunk a driver; the schema of
            :func:`telemetry_schema` and the files' unknown channels, which are null in laps that lack them.
        """
        laps: dict[str, dict[int, _Lap]] = {}
        for (driver, lap), decoded in self._laps.copy().items():
            laps.setdefault(driver, {})[lap] = decoded
        found = self._finished | {driver: _join(of_driver, self._schema) for driver, of_driver in laps.items()}
        order = [driver for driver in dict.fromkeys((*drivers, *found)) if driver in found]
        ahead: dict[str, int] = {}
        parts = [self._rows(found[driver], order[: place + 1], ahead) for place, driver in enumerate(order)]
        parts = [_with_words(part, order, list(ahead)) for part in parts] or [self._schema.empty_table()]
        extra = _unknown_channels([lap for driver in order for lap in found[driver].extra])
        schema = columns.extend(self._schema, {name: array.type for name, array in extra.items()})
        return pa.Table.from_arrays([*pa.concat_tables(parts).columns, *extra.values()], schema=schema)

    def _rows(self, drive: _Drive, drivers: Sequence[str], ahead: dict[str, int]) -> pa.Table:
        """Return the rows of the last of some drivers; drivers ahead that are new get the next codes."""
        code = len(drivers) - 1
        codes = [ahead.setdefault(word, len(ahead)) for word in drive.ahead.dictionary.to_pylist()]
        if drive.rows is None or drive.rows[:2] != (code, codes):
            indices = drive.ahead.indices
            arrays = drive.columns | {
                "Driver": _categorical(pa.array(np.full(len(indices), code, np.int32)), drivers),
                TELEMETRY.by_source[_AHEAD].name: _categorical(pa.array(codes, pa.int32()).take(indices), list(ahead)),
            }
            rows = pa.Table.from_arrays([arrays[name] for name in self._schema.names], schema=self._schema)
            drive.rows = code, codes, rows
        return drive.rows[2]


def _join(unordered: Mapping[int, _Lap], schema: pa.Schema) -> _Drive:
    """Join the laps of a driver, given by their numbers."""
    numbers = sorted(unordered)
    laps = [unordered[number] for number in numbers]
    samples = [len(lap.seconds) for lap in laps]
    seconds = np.concatenate([lap.seconds for lap in laps])
    untimed = np.isnan(seconds)
    time = columns.nanoseconds(seconds, columns.Place("telemetry", TELEMETRY.by_source[_TIME]))
    joined = {
        "LapNumber": pa.array(np.repeat(np.array(numbers, np.int32), samples)),
        TELEMETRY.by_source[_TIME].name: pa.array(time, mask=untimed if untimed.any() else None).view(DURATION),
    }
    for row, source in enumerate(_ROWS):
        name = _CHANNELS[source].name
        values = np.concatenate([lap.block[row] for lap in laps])
        joined[name] = _channel(values, schema.field(name).type)
    ahead = [pa.nulls(len(lap.seconds), TEXT) if lap.ahead is None else lap.ahead for lap in laps]
    extra = [(len(lap.seconds), lap.extra) for lap in laps]
    return _Drive(joined, columns.categories(pa.concat_arrays(ahead)), extra)


def _categorical(codes: pa.Array, words: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(codes, pa.array(words, TEXT))


def _with_words(rows: pa.Table, drivers: Sequence[str], ahead: Sequence[str]) -> pa.Table:
    """Return rows with the dictionaries of the whole table, of which theirs are the beginning."""
    for name, words in (("Driver", drivers), (TELEMETRY.by_source[_AHEAD].name, ahead)):
        position = rows.schema.get_field_index(name)
        whole = _categorical(rows.column(position).chunk(0).indices, words)
        rows = rows.set_column(position, rows.field(position), whole)
    return rows


def _channel(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    missing = np.isnan(values)
    mask = missing if missing.any() else None
    if pa.types.is_floating(kind):
        return pa.array(values, mask=mask)
    if mask is not None:
        values = np.where(mask, 0, values)
    return pa.array(values != 0 if pa.types.is_boolean(kind) else values.astype(kind.to_pandas_dtype()), mask=mask)


def _unknown_channels(laps: Sequence[tuple[int, dict[str, pa.Array]]]) -> dict[str, pa.Array]:
    found: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for _, extra in laps for name in extra):
        kind = columns.unify(extra[name].type for _, extra in laps if name in extra)
        found[name] = pa.concat_arrays(
            columns.recast(extra[name], kind) if name in extra else pa.nulls(samples, kind) for samples, extra in laps
        )
    return found


def _parse_fast(parser: "simdjson.Parser", body: bytes) -> dict[str, Any] | None:
    """Return the content of ``tel``: lists of numbers as float64 arrays, everything else as Python values.

    Returns None for what needs the tolerant parser. Never raises while simdjson's proxies are alive: a traceback would
    keep them, and their parser refuses the next file until they are gone.
    """
    try:
        document: Any = parser.parse(body)
        tel = document["tel"]
        names = list(tel.keys())
        # Of two equal keys simdjson finds the first, other parsers the last.
        if len(set(names)) < len(names) or list(document.keys()).count("tel") > 1:
            return None
    except (ValueError, RuntimeError, LookupError, TypeError, AttributeError):
        return None
    found: dict[str, Any] = {}
    lists = 0
    for name in names:
        try:
            value = tel[name]
        except LookupError:  # a name with a zero in it is listed, and not found
            return None
        if hasattr(value, "as_buffer"):
            lists += 1
            try:
                found[name] = np.frombuffer(value.as_buffer(of_type="d"))
            except (TypeError, ValueError):
                found[name] = value.as_list()
        else:
            found[name] = value.as_dict() if hasattr(value, "as_dict") else value
    # as_buffer flattens lists in lists; where there are as many brackets as lists, there are none.
    return found if _has_brackets(body, lists) else None


def _has_brackets(body: bytes, count: int) -> bool:
    """Return whether there are just so many ``[``. Hopping from one to the next is ten times faster than ``count``."""
    at = -1
    for _ in range(count):
        at = body.find(b"[", at + 1)
    return body.find(b"[", at + 1) < 0


def _decode(tel: Mapping[str, Any], dtype: np.dtype, file: str) -> _Lap:
    lengths = {name: len(value) for name, value in tel.items() if isinstance(value, list | np.ndarray)}
    parsing.check_required([_TIME], lengths, file)
    rows = parsing.check_lengths(lengths, file)
    seconds = _floats(tel[_TIME], rows, columns.Place(file, TELEMETRY.by_source[_TIME]))
    # Most is left to where a driver's laps are joined: for arrays as short as a lap's, each call of numpy costs more
    # than its work. What makes a file unsound is found here, for then another mirror is asked.
    if rows and not (seconds.max() < _FAR_SECONDS and seconds.min() > -_FAR_SECONDS):  # or NaN
        columns.nanoseconds(seconds, columns.Place(file, TELEMETRY.by_source[_TIME]))
    return _Lap(
        seconds,
        _block(tel, rows, dtype, file),
        _texts(tel[_AHEAD], rows, columns.Place(file, TELEMETRY.by_source[_AHEAD])) if _AHEAD in tel else None,
        {name: _unknown(tel[name]) for name in lengths if name not in TELEMETRY.by_source},
    )


def _block(tel: Mapping[str, Any], rows: int, dtype: np.dtype, file: str) -> np.ndarray:
    """Return the channels as the rows of one array, NaN where values are missing."""
    channels: list[Any] = [tel.get(source) for source in _ROWS]
    for row, (source, value) in enumerate(zip(_ROWS, channels, strict=True)):
        if not isinstance(value, np.ndarray):  # as the fast path leaves hardly any
            place = columns.Place(file, _CHANNELS[source])
            channels[row] = _floats(value, rows, place) if source in tel else np.full(rows, np.nan)
    block = np.frombuffer(b"".join(channels)).reshape(len(_ROWS), rows)  # as np.stack, in a quarter of the time
    whole = block[: len(_INTEGERS)]
    with np.errstate(over="raise", invalid="ignore"):
        if not (whole.astype(_NARROWEST) == whole).all():
            for source, values in zip(_INTEGERS, whole, strict=True):
                columns.check_integers(values, columns.Place(file, _CHANNELS[source]))
        try:
            return block.astype(dtype)
        except FloatingPointError:
            largest = np.abs(np.nan_to_num(block))
            row, place = np.unravel_index(np.argmax(largest), block.shape)
            where = columns.Place(file, _CHANNELS[_ROWS[row]])
            raise where.refuse(float(block[row, place]), f"number of {dtype}'s range") from None


def _floats(value: Any, rows: int, where: columns.Place) -> np.ndarray:
    """Return a channel as float64, NaN where values are missing; one value stands for all rows."""
    if isinstance(value, np.ndarray):
        return value
    values = value if isinstance(value, list) else [value] * rows
    if columns.is_blank(values):
        return np.full(rows, np.nan)
    return columns.numbers(columns.worded(values) if where.column.type == FLAG else values, where)


def _texts(value: Any, rows: int, where: columns.Place) -> pa.Array:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = value if isinstance(value, list) else [parsing.constant(_AHEAD, value, where.file)] * rows
    return columns.untidy_texts(values, where)


def _unknown(values: list[Any] | np.ndarray) -> pa.Array:
    if isinstance(values, np.ndarray):
        return pa.array(values)
    array = columns.infer(values)
    # The fast path does not tell integers from floats, so neither does this one.
    return array.cast(FLOAT, safe=False) if pa.types.is_integer(array.type) else array
