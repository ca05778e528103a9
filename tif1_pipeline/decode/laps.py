"""Lap times: ``session_laptimes.json`` of all drivers, or ``{DRV}/laptimes.json`` of one."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from tif1_pipeline.datasets import LAPS
from tif1_pipeline.decode import columns, parsing
from tif1_pipeline.exceptions import InvalidDataError

_SESSION_FILE = "session_laptimes.json"
_DRIVER_FILE = "laptimes.json"


def decode_session_laps(body: bytes) -> pa.Table:
    """Decode ``session_laptimes.json``: every driver's laps, end to end.

    Returns:
        One row a lap in the file's order; ``LAPS.schema`` and the file's unknown columns.

    Raises:
        InvalidDataError: The body is not such a file.
    """
    with parsing.reading(_SESSION_FILE):
        return _build(parsing.parse_object(body, _SESSION_FILE), _SESSION_FILE)


def decode_driver_laps(body: bytes, driver: str, team: str | None = None, number: str | None = None) -> pa.Table:
    """Decode ``{DRV}/laptimes.json``: the laps of one driver.

    Args:
        body: The file.
        driver: Whose file it is: the older files do not say.
        team: For rows without a team.
        number: Car number, for rows without one.

    Returns:
        One row a lap, in the file's order; ``LAPS.schema`` and the file's unknown columns.

    Raises:
        InvalidDataError: The body is not such a file, or holds another driver's laps.
    """
    with parsing.reading(_DRIVER_FILE):
        parsed: dict[str, Any] = {"drv": driver, "team": team, "dNum": number} | parsing.parse_object(
            body, _DRIVER_FILE
        )
        table = _build(parsed, _DRIVER_FILE)
        for name, value in (("Driver", driver), ("Team", team), ("DriverNumber", number)):
            if value is not None and table[name].null_count:
                table = _fill(table, name, value)
        others = [code for code in table["Driver"].unique().to_pylist() if code != driver]
        if others:
            raise InvalidDataError(
                f"{_DRIVER_FILE}: column 'drv' has laps of {parsing.listed(others)} in the file of {driver}",
                file=_DRIVER_FILE,
                columns=["drv"],
                driver=driver,
            )
        return table


def _fill(table: pa.Table, name: str, value: str) -> pa.Table:
    field = table.schema.field(name)
    filled = table[name].cast(pa.string()).fill_null(value)
    if pa.types.is_dictionary(field.type):
        filled = filled.dictionary_encode()
    return table.set_column(table.schema.get_field_index(name), field, filled)


def _build(parsed: dict[str, Any], file: str) -> pa.Table:
    table = columns.build(LAPS, parsed, file)
    index = table.schema.get_field_index("LapTimeSeconds")
    # Whole nanoseconds through 10⁹ give the very float that was published.
    times = table["LapTime"].combine_chunks()
    seconds = pa.array(times.view(pa.int64()).fill_null(0).to_numpy() / 1e9, mask=times.is_null().to_numpy(False))
    return table.set_column(index, table.schema.field(index), seconds)


def concat_laps(tables: Sequence[pa.Table]) -> pa.Table:
    """Put the laps of several drivers into one table.

    Args:
        tables: Laps as decoded. Their unknown columns may differ: a driver who lacks one has nulls there, and where the
            types differ the column becomes float (integer and float) or text.

    Returns:
        Rows in the given order, without tables none; each column in one chunk, a categorical one with one dictionary.
    """
    extra: dict[str, list[pa.DataType]] = {}
    for table in tables:
        for field in list(table.schema)[len(LAPS.columns) :]:
            extra.setdefault(field.name, []).append(field.type)
    schema = columns.extend(LAPS.schema, {name: columns.unify(types) for name, types in extra.items()})
    aligned = [_align(table, schema) for table in tables]
    return pa.concat_tables([schema.empty_table(), *aligned]).unify_dictionaries().combine_chunks()


def _align(table: pa.Table, schema: pa.Schema) -> pa.Table:
    arrays = [
        columns.recast(table[field.name], field.type)
        if field.name in table.schema.names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)
