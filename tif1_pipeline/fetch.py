"""Tables from the CDN: which files make up a table, fetched and decoded. Knows nothing of the cache.

The asset, the session and warming all come through :func:`fetch_table`, so they cannot disagree.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from tif1_pipeline import decode
from tif1_pipeline.calendar import Event
from tif1_pipeline.cdn.base import CdnFile, CdnStats, Fetched, Validators
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.datasets import DATASETS, LAPS, SESSION_INFO
from tif1_pipeline.exceptions import DataNotFoundError, EventNotFoundError, InvalidDataError, NetworkError, Tif1Error
from tif1_pipeline.keys import FIRST_SEASON, SessionKey

LookUp = Callable[[str], pa.Table]
"""Gives another table of the same session by data type: telemetry needs to know drivers and laps."""

OnPart = Callable[[str, pa.Table], None]
"""Is given a part of a table while the rest is being fetched: its name, and the rows that the table will have, too, in
the same memory, unless what comes later changes them. Called in the order of the table, in the client's thread."""

_MOST_LAPS = 1000
"""A day of testing has about 180; a lap table that says more would have us ask for so many files."""

_SINGLE_FILE: dict[str, Callable[[bytes], pa.Table]] = {
    "drivers": decode.decode_drivers,
    "weather": decode.decode_weather,
    "messages": decode.decode_messages,
    "corners": decode.decode_corners,
}


@dataclass(frozen=True, slots=True)
class FetchedTable:
    """A table as the CDN has it now.

    Attributes:
        table: The table; None when ``not_modified``.
        url: Where it came from; the folder, for a table made of many files.
        validators: ETag and Last-Modified, for a table made of one file.
        not_modified: The stored table is current.
        files_missing: Files that were looked for and are not published.
        raw_bytes: Bytes of JSON that it was decoded from.
    """

    table: pa.Table | None
    url: str | None = None
    validators: Validators = field(default_factory=Validators)
    not_modified: bool = False
    files_missing: int = 0
    raw_bytes: int = 0


def fetch_table(
    client: CdnClient,
    key: SessionKey,
    dataset: str,
    look_up: LookUp,
    *,
    event: Event | None = None,
    validators: Validators | None = None,
    stats: CdnStats | None = None,
    telemetry_dtype: Literal["float32", "float64"] = "float32",
    on_done: Callable[[CdnFile], None] | None = None,
    on_part: OnPart | None = None,
) -> FetchedTable:
    """Fetch and decode one table of a session.

    Args:
        client: The CDN client.
        key: The session.
        dataset: Name of the dataset, as in ``datasets.DATASETS``.
        look_up: Gives the session's other tables.
        event: The session's event; needed for ``session_info`` only.
        validators: What is held already; the answer may then be ``not_modified``.
        stats: Counts requests and bytes.
        telemetry_dtype: Type of the telemetry channels.
        on_done: Called after each telemetry file.
        on_part: Called for each part of a table that is made of parts, as soon as it is known.

    Raises:
        DataNotFoundError: The CDN does not have it (yet).
        NetworkError: The CDN could not be reached.
        InvalidDataError: No mirror has a sound copy.
    """
    if dataset == "session_info":
        if event is None:
            raise ValueError("session_info is made from the event")
        return FetchedTable(session_info(event, key))
    if dataset == "laps":
        return _fetch_laps(client, key, look_up, validators, stats)
    if dataset == "telemetry":
        return fetch_telemetry(
            client, key, look_up, stats=stats, dtype=telemetry_dtype, on_done=on_done, on_part=on_part
        )
    fetched = client.fetch(_file(key, _file_name(dataset)), _SINGLE_FILE[dataset], validators=validators, stats=stats)
    return _single(fetched)


def fetch_schedule(
    client: CdnClient, year: int, *, validators: Validators | None = None, stats: CdnStats | None = None
) -> FetchedTable:
    """Fetch a season's schedule.

    Raises:
        EventNotFoundError: The season is before the first one, or no schedule of it is published.
        NetworkError: The CDN could not be reached.
        InvalidDataError: No mirror has a sound copy.
    """
    if year < FIRST_SEASON:
        raise EventNotFoundError(f"there is no timing data of {year}: seasons start with {FIRST_SEASON}", year=year)
    try:
        return _single(client.fetch(CdnFile(year), decode.decode_schedule, validators=validators, stats=stats))
    except DataNotFoundError as error:
        raise EventNotFoundError(f"no calendar of the season {year} is published: {error}", year=year) from error


def session_info(event: Event, key: SessionKey) -> pa.Table:
    """Return the one-row table that says what a session is, where and when."""
    session = event.session(key.session_type)
    row = {
        "Year": key.year,
        "RoundNumber": event.round,
        "EventName": event.name,
        "OfficialEventName": event.official_name,
        "Country": event.country,
        "Location": event.location,
        "Circuit": event.location,
        "SessionType": session.name,
        "StartDate": session.date_utc,
        "EventFormat": event.event_format,
    }
    return pa.Table.from_pylist([row], schema=SESSION_INFO.schema)


# ---- laps


def _fetch_laps(
    client: CdnClient, key: SessionKey, look_up: LookUp, validators: Validators | None, stats: CdnStats | None
) -> FetchedTable:
    try:
        fetched = client.fetch(
            _file(key, _file_name(LAPS.name)), decode.decode_session_laps, validators=validators, stats=stats
        )
    except DataNotFoundError as error:
        try:
            drivers = look_up("drivers")
        except DataNotFoundError:
            raise error from None  # neither is published: the laps are what was asked for
        return _laps_by_driver(client, key, drivers, stats, error)
    return _single(fetched)


def _laps_by_driver(
    client: CdnClient, key: SessionKey, drivers: pa.Table, stats: CdnStats | None, error: DataNotFoundError
) -> FetchedTable:
    """Old sessions have a file a driver only; a driver who set no lap has none."""
    rows = {row["Driver"]: row for row in drivers.to_pylist() if row["Driver"]}
    files = {_file(key, code, "laptimes.json"): row for code, row in rows.items()}

    def decode_laps(file: CdnFile, body: bytes) -> pa.Table:
        row = files[file]
        return decode.decode_driver_laps(body, row["Driver"], row["Team"], row["DriverNumber"])

    results = client.fetch_many(files, decode_laps, stats=stats)
    found = _found(results, f"laps of the {key}", len(files))
    if not found:
        raise error
    table = decode.concat_laps([item.value for item in found if item.value is not None])
    return FetchedTable(
        table,
        url=_folder(found[0].url, 2),
        files_missing=len(files) - len(found),
        raw_bytes=sum(item.size_bytes for item in found),
    )


# ---- telemetry


def fetch_telemetry(
    client: CdnClient,
    key: SessionKey,
    look_up: LookUp,
    *,
    driver: str | None = None,
    lap: int | None = None,
    stats: CdnStats | None = None,
    dtype: Literal["float32", "float64"] = "float32",
    on_done: Callable[[CdnFile], None] | None = None,
    on_part: OnPart | None = None,
) -> FetchedTable:
    """Fetch the telemetry of a session, of one driver, or of one lap.

    The CDN lists no folders. Laps that the lap table lacks may have telemetry (in qualifying a third of all), and laps
    of the table may have none, so every number from 1 to one past a driver's last lap is asked for, and on from there
    while there is something.

    Raises:
        DataNotFoundError: No file of it is published.
        NetworkError: A file could not be fetched; what is incomplete is not returned.
        InvalidDataError: No mirror has a sound copy of a file.
    """
    builder = decode.TelemetryBuilder(dtype, _data_key(key))
    # Each driver's last lap number that is asked for.
    ahead: dict[str, int] = {}
    if driver is not None and lap is not None:
        asked = {_telemetry_file(key, driver, lap): (driver, lap)}
    else:
        last = _last_laps(look_up)
        ahead = {code: last.get(code, 0) + 1 for code in (last if driver is None else [driver])}
        asked = {
            _telemetry_file(key, code, number): (code, number)
            for code, until in ahead.items()
            for number in range(1, until + 1)
        }
    whose = "all drivers" if driver is None else driver if lap is None else f"{driver} in lap {lap}"
    what = f"telemetry of {whose}, {key}"
    to_come = Counter(code for code, _ in asked.values())
    in_turn = deque(to_come)

    def add(file: CdnFile, body: bytes) -> int:
        return builder.add(*asked[file], body)

    def follow(file: CdnFile) -> Iterator[CdnFile]:
        # Only drivers of whom there is more than the lap table knows are followed further.
        code, number = asked[file]
        if ahead.get(code) != number:
            return
        if number >= _MOST_LAPS:
            raise InvalidDataError(
                f"{what}: the server has a file for every lap number asked for", session=key.partition
            )
        ahead[code] = number + 1
        to_come[code] += 1
        more = _telemetry_file(key, code, number + 1)
        asked[more] = code, number + 1
        yield more

    def done(file: CdnFile) -> None:
        to_come[asked[file][0]] -= 1
        # Files are asked for driver by driver, so that is about how they come.
        while on_part is not None and in_turn and not to_come[in_turn[0]]:
            code = in_turn.popleft()
            if (rows := builder.finish(code)) is not None:
                on_part(code, rows)
        if on_done is not None:
            on_done(file)

    results = client.fetch_many(list(asked), add, stats=stats, on_done=done, follow=follow)
    # A lap past the last known one is most likely not there: one mirror that says so is enough.
    guesses = [ahead.get(code) == number for code, number in asked.values()]
    found = _found(
        (result for result, guess in zip(results, guesses, strict=True) if not (guess and _is_lacking(result))),
        what,
        len(asked),
    )
    if not found:
        raise DataNotFoundError(
            f"no {what} is published; it appears about half an hour after a session, and some laps have none",
            session=key.partition,
            driver=driver,
            lap=lap,
        )
    # In the order asked for: files come in any order, and the same content must make the same table.
    return FetchedTable(
        builder.table([code for code, _ in asked.values()]),
        url=_folder(found[0].url, 2),
        files_missing=len(asked) - len(found),
        raw_bytes=sum(item.size_bytes for item in found),
    )


def _last_laps(look_up: LookUp) -> dict[str, int]:
    """Return each driver's last lap of the lap table; 0 for drivers without laps."""
    last: dict[str, int] = defaultdict(int)
    for code in look_up("drivers")["Driver"].drop_null().to_pylist():
        last[code] = 0
    laps = look_up("laps")
    for code, number in zip(laps["Driver"].to_pylist(), laps["LapNumber"].to_pylist(), strict=True):
        if code is None or number is None:  # a row that names no lap has no file of its own
            continue
        if not 0 <= number <= _MOST_LAPS:
            raise InvalidDataError(f"the lap table says that {code} drove lap {number}", driver=code, lap=number)
        last[code] = max(last[code], int(number))
    return dict(last)


# ---- helpers


def _is_lacking(result: Fetched[Any] | Tif1Error) -> bool:
    return isinstance(result, NetworkError | InvalidDataError) and bool(result.details.get("missing_somewhere"))


def _file(key: SessionKey, *names: str) -> CdnFile:
    return CdnFile(key.year, (key.event, key.session_type, *names))


def _file_name(dataset: str) -> str:
    name = DATASETS[dataset].file
    if name is None:
        raise ValueError(f"{dataset} is no single file")
    return name


def _data_key(key: SessionKey) -> str | None:
    # Events that we number to keep them apart carry their unnumbered name in the files.
    return None if key.event[-1].isdigit() else f"{key.year}-{key.event}-{key.session_type}"


def _telemetry_file(key: SessionKey, driver: str, lap: int) -> CdnFile:
    return _file(key, driver, f"{lap}_tel.json")


def _folder(url: str, levels: int) -> str:
    return url.rsplit("/", levels)[0] + "/"


def _single(fetched: Fetched[pa.Table]) -> FetchedTable:
    return FetchedTable(
        fetched.value, fetched.url, fetched.validators, fetched.not_modified, raw_bytes=fetched.size_bytes
    )


def _found(results: Iterable[Fetched[Any] | Tif1Error], what: str, asked: int) -> list[Fetched[Any]]:
    """Return what was found; what is not published is left out, anything worse is raised.

    A table with holes would be stored as if it were whole, so one file that could not be had fails the table.
    """
    found = []
    failed: list[Tif1Error] = []
    for result in results:
        if isinstance(result, Fetched):
            found.append(result)
        elif not isinstance(result, DataNotFoundError):
            failed.append(result)
    if failed:
        first = failed[0]
        kind = InvalidDataError if all(isinstance(error, InvalidDataError) for error in failed) else type(first)
        raise kind(f"{len(failed)} of {asked} files of the {what} failed; the first: {first.message}", **first.details)
    return found
