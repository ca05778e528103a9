"""The calendar of a season: ``schedule_{year}.json``."""

import re
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tif1_pipeline.datasets import SCHEDULE
from tif1_pipeline.decode import columns, parsing
from tif1_pipeline.exceptions import InvalidDataError
from tif1_pipeline.keys import event_slug

_FILE = "schedule.json"
_SESSIONS = tuple(f"session{number}" for number in range(1, 6))
_OFFSET = re.compile(r"([+-]?)(\d{1,2}):(\d\d)(?::(\d\d))?", re.ASCII)


def decode_schedule(body: bytes) -> pa.Table:
    """Decode ``schedule_{year}.json``.

    Events whose names meet in one cache key are numbered in the order of their dates: two "Pre-Season Testing" become
    "Pre-Season Testing 1" and "Pre-Season Testing 2".

    Returns:
        One row an event, in the order of the file's row numbers; ``SCHEDULE.schema`` and the file's unknown columns.
        ``Session{n}DateUtc`` is null where the offset of local time is unknown.

    Raises:
        InvalidDataError: The body is not such a file.
    """
    with parsing.reading(_FILE):
        named, _ = parsing.as_columns(parsing.parse_object(body, _FILE), _FILE)
        for name, values in named.items():
            if name == "gmt_offset":
                named[name] = [_seconds(offset) for offset in values]
            elif name in _SESSIONS:
                # A weekend of fewer sessions: some seasons say null, others "".
                named[name] = [None if session == "" else session for session in values]
        table = columns.build(SCHEDULE, named, _FILE)
        names = _tell_apart(table["EventName"].to_pylist(), table["EventDate"].cast(pa.int64()).to_pylist())
        table = _replace(table, "EventName", pa.array(names, pa.string()))
        for number in range(1, 6):
            local = table[f"Session{number}Date"]
            # Null where either is; checked, because the plain one wraps around at the ends of 64 bits.
            utc = pc.call_function("subtract_checked", [local, table["GmtOffset"]])
            table = _replace(table, f"Session{number}DateUtc", utc)
        return table


def _replace(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), values)


def _seconds(offset: Any) -> int | None:
    """Return ``"+03:00"`` as seconds."""
    if offset is None or (isinstance(offset, str) and offset in columns.BLANK):
        return None
    match = _OFFSET.fullmatch(offset) if isinstance(offset, str) else None
    if match is None:
        raise InvalidDataError(
            f"{_FILE}: column 'gmt_offset' holds {parsing.short(offset)}, which is no offset like +03:00",
            file=_FILE,
            columns=["gmt_offset"],
        )
    sign, hours, minutes, seconds = match.groups()
    return (-1 if sign == "-" else 1) * (int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0))


def _tell_apart(names: list[str | None], dates: list[int | None]) -> list[str | None]:
    """Number the events that share a name, by date (those without one last), leaving the rows where they are."""
    rows = defaultdict(list)
    for row, name in enumerate(names):
        if name is not None:
            rows[event_slug(name)].append(row)
    taken = set(rows)
    told_apart = list(names)
    for same in rows.values():
        if len(same) == 1:
            continue
        number = 0
        for row in sorted(same, key=lambda row: (dates[row] is None, dates[row] or 0)):
            number += 1
            while event_slug(f"{names[row]} {number}") in taken:
                number += 1
            told_apart[row] = f"{names[row]} {number}"
            taken.add(event_slug(str(told_apart[row])))
    return told_apart
