"""One look at one session: what the CDN has, compared with what is stored."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import format_datetime
from functools import lru_cache

import pyarrow as pa

from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.base import OUTDATED, EntryInfo
from tif1_pipeline.cdn.base import CdnFile, Probed, ProbeOutcome, Validators, Version
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.completion.state import Watch
from tif1_pipeline.datasets import DATASETS, LAPS
from tif1_pipeline.exceptions import CacheError, DataNotFoundError, NetworkError
from tif1_pipeline.keys import EntryKey, SessionKey

SINGLE = ("drivers", "laps", "weather", "messages", "corners")
"""Tables that are one file each."""
TABLES = ("session_info", *SINGLE, "telemetry")
_LAPS_A_LOOK = 40
"""Laps without stored telemetry that are asked for in one look; the next look goes on from there."""
_MOST_LAPS = 1000


@dataclass(slots=True)
class Findings:
    """What a look found.

    Attributes:
        changed: Versions of files that the stored tables do not hold, by table and path.
        new_laps: Those of them that are telemetry of further laps: what is stored without them is right, not whole.
        outdated: Stored tables that hold a former version of a file.
        owed: Tables to fetch whatever the files say: ``session_info``, which has none, and those that a requested run
            has not stored, but for those of which the CDN could be asked for no file: a run would only fail.
        stored: Tables that are stored.
        missing: Tables that are not published.
        errors: What went wrong, one text a file.
        unknown: Files whose version cannot be compared.
        telemetry: Whether any telemetry is stored or published.
    """

    changed: dict[str, dict[str, Version]] = field(default_factory=dict)
    new_laps: set[str] = field(default_factory=set)
    outdated: set[str] = field(default_factory=set)
    owed: set[str] = field(default_factory=set)
    stored: dict[str, EntryInfo] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    telemetry: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether every table is published and nothing went wrong."""
        return self.telemetry and not self.missing and not self.errors


@dataclass(frozen=True, slots=True)
class _Laps:
    """What the stored tables say of laps: each driver's last one, and those without telemetry, likely ones first."""

    last: Mapping[str, int]
    lacking: tuple[tuple[str, int], ...]
    with_telemetry: frozenset[tuple[str, int]]


def look(
    key: SessionKey, watch: Watch, stored: dict[str, EntryInfo], cache: Cache, client: CdnClient, seconds: float
) -> Findings:
    """Probe the files of one session.

    Args:
        key: The session.
        watch: What is remembered of it; versions that are found stored are added.
        stored: What is stored of it, see :func:`stored_tables`.
        cache: Where the tables are.
        client: Asks the CDN.
        seconds: How long it may take.
    """
    over_at = time.monotonic() + seconds
    found = Findings(stored=stored, telemetry="telemetry" in stored)
    found.owed = {name for name, info in stored.items() if info.created_at == OUTDATED}
    if watch.replaced is not None and watch.replaced == _generation(stored, "telemetry"):
        found.owed.add("telemetry")
    _settle(watch, stored)
    singles = {DATASETS[name].file or "": name for name in SINGLE}
    held: dict[str, Version | None] = {path: _version(stored.get(name)) for path, name in singles.items()}
    try:
        laps = _laps_of(cache, key, *(_generation(stored, name) for name in ("drivers", "laps", "telemetry")))
    except CacheError as error:
        laps = _Laps({}, (), frozenset())
        found.errors.append(error.message)
    samples = _telemetry_samples(laps, watch, stored)
    outcomes = _ask(client, key, held | samples, over_at)
    for path, name in singles.items():
        outcome = outcomes[path]
        if isinstance(outcome, DataNotFoundError):
            if name not in stored:
                found.missing.append(name)
        elif not isinstance(outcome, Probed):
            found.errors.append(outcome.message)
        elif outcome.state == "unknown":
            found.unknown.append(name)
        elif outcome.state == "changed":
            found.changed[name] = {path: outcome.version}
            if held[path] is not None:
                found.outdated.add(name)
    parts = {"telemetry": samples}
    by_driver: dict[str, Version | None] = {}
    if isinstance(outcomes[LAPS.file or ""], DataNotFoundError) and _is_by_driver(stored.get("laps")):
        by_driver = _driver_files(laps, watch, stored.get("laps"))
        outcomes |= _ask(client, key, by_driver, over_at)
        parts["laps"] = by_driver
    for name, versions in parts.items():
        for path, before in versions.items():
            _note_part(found, watch, name, path, before, outcomes[path])
    of_table = {name: {path} for path, name in singles.items()} | {
        name: {*paths} for name, paths in parts.items() if paths
    }
    found.owed -= {name for name, paths in of_table.items() if not any(_was_asked(outcomes[path]) for path in paths)}
    if "session_info" not in stored and (stored or found.changed):
        found.owed.add("session_info")
    wanted = {*samples, *by_driver}
    watch.seen = {path: version for path, version in watch.seen.items() if path in wanted or _is_lacking(path, laps)}
    return found


def _ask(
    client: CdnClient, key: SessionKey, files: Mapping[str, Version | None], over_at: float
) -> dict[str, ProbeOutcome]:
    named = {CdnFile(key.year, (key.event, key.session_type, *path.split("/"))): path for path in files}
    outcomes = client.probe_many(
        {file: files[path] for file, path in named.items()}, seconds=max(0.1, over_at - time.monotonic())
    )
    unreached = {file: files[named[file]] for file, outcome in outcomes.items() if isinstance(outcome, NetworkError)}
    if 0 < len(unreached) < len(named):
        # A mirror that was set aside lets one request through to see whether it is back; the others follow here.
        outcomes |= client.probe_many(unreached, seconds=max(0.1, over_at - time.monotonic()))
    return {path: outcomes[file] for file, path in named.items()}


def _was_asked(outcome: ProbeOutcome) -> bool:
    return isinstance(outcome, Probed | DataNotFoundError)


def _note_part(
    found: Findings, watch: Watch, name: str, path: str, before: Version | None, outcome: Probed | Exception
) -> None:
    """Take down what was said of a file that is a part of a table."""
    if isinstance(outcome, DataNotFoundError):
        return
    if not isinstance(outcome, Probed):
        found.errors.append(str(outcome))
        return
    if name == "telemetry":
        found.telemetry = True
    elif "laps" in found.missing:
        found.missing.remove("laps")
    if outcome.state != "changed":
        watch.seen.setdefault(path, outcome.version)
        return
    found.changed.setdefault(name, {})[path] = outcome.version
    if before is not None:
        found.outdated.add(name)
    elif name in found.stored:
        found.new_laps.add(path)


# ---- what is stored


def stored_tables(cache: Cache, key: SessionKey) -> dict[str, EntryInfo]:
    """Return what is stored of a session.

    Raises:
        CacheError: It cannot be told.
    """
    found = {name: info_of(cache, key.entry(name)) for name in TABLES}
    return {name: info for name, info in found.items() if info and info.schema_version == DATASETS[name].schema_version}


def info_of(cache: Cache, key: EntryKey) -> EntryInfo | None:
    """Return what is stored under a key.

    Raises:
        CacheError: It cannot be told; taken for nothing, it would be fetched again.
    """
    before = sum(cache.get_degraded().values())
    info = cache.info(key)
    if info is None and sum(cache.get_degraded().values()) != before:
        raise CacheError("the cache cannot be read at the moment; the log says why", key=key.text)
    return info


def _generation(stored: Mapping[str, EntryInfo], name: str) -> str | None:
    return stored[name].generation if name in stored else None


def _version(info: EntryInfo | None) -> Version | None:
    """Return the version of its one file that an entry holds; None if it is made of others."""
    if info is None or (info.data_type == LAPS.name and _is_by_driver(info)):
        return None
    source = info.source
    if source.etag or source.last_modified:
        return Version(Validators(source.etag, source.last_modified), source.url)
    return _as_of(info)


def _as_of(info: EntryInfo) -> Version:
    """Return the version of any file that is in an entry, as far as its age tells."""
    return Version(Validators(None, format_datetime(info.created_at.astimezone(UTC), usegmt=True)))


def _settle(watch: Watch, stored: Mapping[str, EntryInfo]) -> None:
    """Believe that a table holds the files it was requested for, if it has been stored anew since."""
    for name, ending in (("telemetry", "_tel.json"), ("laps", "laptimes.json")):
        generation = _generation(stored, name)
        if generation is None or generation == watch.stored.get(name):
            continue
        brought = {path: version for path, version in watch.pending.items() if path.endswith(ending)}
        if brought:
            watch.seen |= brought
            watch.pending = {path: version for path, version in watch.pending.items() if path not in brought}
        else:  # somebody else has stored it: what it holds is newer than what was seen
            watch.seen = {path: version for path, version in watch.seen.items() if not path.endswith(ending)}
        watch.stored[name] = generation


@lru_cache(maxsize=32)
def _laps_of(
    cache: Cache, key: SessionKey, drivers_at: str | None, laps_at: str | None, telemetry_at: str | None
) -> _Laps:
    """Read drivers and laps from the stored tables; once for each generation of these, because reads are counted."""
    drivers = _read(cache, key, "drivers", ["Driver"]) if drivers_at else None
    laps = _read(cache, key, "laps", ["Driver", "LapNumber"]) if drivers_at and laps_at else None
    telemetry = _read(cache, key, "telemetry", ["Driver", "LapNumber"]) if telemetry_at else None
    last = {code: 0 for code in (drivers["Driver"].to_pylist() if drivers is not None else ()) if code}
    listed = _pairs(laps)
    for code, number in listed:
        last[code] = max(last.get(code, 0), number)
    having = frozenset(_pairs(telemetry))
    # As fetching does: laps that the table lacks may have telemetry, also the one past the last.
    every = {(code, number) for code, most in last.items() for number in range(1, most + 2)} if listed else set()
    lacking = sorted(every - having, key=lambda lap: (lap not in listed, lap))
    return _Laps(last, tuple(lacking), having)


def _read(cache: Cache, key: SessionKey, name: str, columns: list[str]) -> pa.Table:
    hit = cache.read(key.entry(name), columns=columns, schema_version=DATASETS[name].schema_version)
    if hit is None:  # nothing to be remembered: the next look may find it readable
        raise CacheError(f"the stored {name} of the {key} cannot be read", key=key.entry(name).text)
    return hit.value


def _pairs(table: pa.Table | None) -> set[tuple[str, int]]:
    if table is None:
        return set()
    unique = table.group_by(["Driver", "LapNumber"]).aggregate([])
    pairs = zip(unique["Driver"].to_pylist(), unique["LapNumber"].to_pylist(), strict=True)
    return {(code, int(number)) for code, number in pairs if code and number is not None and 0 < number <= _MOST_LAPS}


# ---- which files stand for a table of many


def _telemetry_samples(laps: _Laps, watch: Watch, stored: Mapping[str, EntryInfo]) -> dict[str, Version | None]:
    """Return the telemetry files to ask for: each driver's last, and some of those that may still appear."""
    samples = [(code, most) for code, most in laps.last.items() if most]
    if laps.lacking:
        turn = watch.turn % len(laps.lacking)
        samples += (laps.lacking[turn:] + laps.lacking[:turn])[:_LAPS_A_LOOK]
        watch.turn = (turn + _LAPS_A_LOOK) % len(laps.lacking)
    return {
        _path(lap): watch.seen.get(_path(lap)) or (_as_of(stored["telemetry"]) if lap in laps.with_telemetry else None)
        for lap in samples
    }


def _is_by_driver(info: EntryInfo | None) -> bool:
    """Whether a lap table is, or may be, made of the drivers' own files."""
    return info is None or bool(info.source.url and info.source.url.endswith("/"))


def _driver_files(laps: _Laps, watch: Watch, info: EntryInfo | None) -> dict[str, Version | None]:
    """Return the drivers' own lap files, which stand in where a session has no file of all laps."""
    return {
        f"{code}/laptimes.json": watch.seen.get(f"{code}/laptimes.json") or (_as_of(info) if info and most else None)
        for code, most in laps.last.items()
    }


def _path(lap: tuple[str, int]) -> str:
    return f"{lap[0]}/{lap[1]}_tel.json"


def _is_lacking(path: str, laps: _Laps) -> bool:
    code, _, name = path.partition("/")
    number = name.removesuffix("_tel.json")
    return number.isdecimal() and (code, int(number)) in laps.lacking
