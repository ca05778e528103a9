"""Every call of the package and setting of the cache, once, on real files: what each gave is printed.

    python tests/every_call.py [FOLDER]

FOLDER holds files laid out as on the CDN (``TracingInsights/2025@main/…``, ``theOehrly/f1schedule@master/…``); without
one, a small season is invented. They are served on loopback; nothing is asked of the internet, and everything is stored
in a temporary folder. Ends with the number of calls and settings; the exit code is 1 if a result was not as promised.
"""

import asyncio
import json
import logging
import os
import sqlite3
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import tif1_pipeline as tif1
from tif1_pipeline.cache import Fresh, Source
from tif1_pipeline.config import Config
from tif1_pipeline.keys import EntryKey, schedule_entry
from tif1_pipeline.simulator import CdnServer, Season
from tif1_pipeline.simulator.faults import Fault

YEAR, EVENT, RACE, QUALIFYING = 2025, "Australian Grand Prix", "Race", "Qualifying"

_NAMES = list(Config().to_dict())
OF_OPERATIONS = _NAMES[_NAMES.index("operations_timezone") :]
"""Settings that only Dagster's jobs, schedules and sensors read."""
OF_THE_CACHE = [name for name in _NAMES if name not in OF_OPERATIONS]

ENTRY_KEYS = {
    "key", "size_mb", "compressed_mb", "compression_ratio", "accessed_at", "created_at", "access_count", "age_days",
    "data_type", "year", "event", "session_type",
}  # fmt: skip
SESSION_KEYS = {
    "year", "event", "session_type", "size_mb", "compressed_mb", "created_at", "accessed_at", "access_count",
    "data_types",
}  # fmt: skip
STATS_KEYS = {
    "total_entries", "total_size_mb", "compressed_size_mb", "compression_ratio", "space_saved_mb", "space_saved_pct",
    "hit_rate", "miss_rate", "total_hits", "total_misses", "avg_access_ms", "memory_entries", "memory_size_mb",
    "memory_hit_rate",
}  # fmt: skip
SIZE_KEYS = {
    "total_entries", "uncompressed_mb", "compressed_mb", "disk_mb", "compression_ratio", "space_saved_mb",
    "space_saved_pct",
}  # fmt: skip
INTEGRITY_KEYS = {
    "total_entries", "valid_entries", "corrupted_entries", "missing_entries", "integrity_pct", "corrupted_list",
}  # fmt: skip
REPORT_KEYS = {"succeeded", "failed", "skipped", "seconds", "requests", "bytes"}


class WrongError(Exception):
    """A result that is not as promised."""


def check(condition: object, said: object = "") -> None:
    """Raise unless the condition holds."""
    if not condition:
        raise WrongError(str(said))


def same(found: object, expected: object) -> None:
    """Raise unless the two are equal."""
    check(found == expected, f"found {found!r}, expected {expected!r}")


def refused(kind: type[Exception], call: Callable[..., object], *arguments: object, **named: object) -> str:
    """Return the message of the error that a call must end with."""
    try:
        given = call(*arguments, **named)
    except kind as error:
        return str(error)
    raise WrongError(f"no {kind.__name__} but {given!r}")


def soon(condition: Callable[[], object], said: str, seconds: float = 15.0) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        check(time.monotonic() < until, f"{said}: not within {seconds:g} s")
        time.sleep(0.05)


class World:
    """The package, its settings, an empty cache, and a CDN on loopback."""

    def __init__(self, server: CdnServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.config = tif1.get_config()

    @property
    def cache(self) -> tif1.Cache:
        return tif1.get_cache()

    @property
    def database(self) -> Any:
        """The cache's file as the package sees it: some settings show in its connections alone."""
        return self.cache._tiered.files()[0].database

    def race(self, **options: Any) -> tif1.Session:
        return tif1.get_session(YEAR, EVENT, RACE, **options)

    def qualifying(self) -> tif1.Session:
        return tif1.get_session(YEAR, EVENT, QUALIFYING)

    def asked(self, pattern: str = "*") -> int:
        """How many requests the CDN has had for files that match a glob."""
        return self.server.requests.count(pattern)

    def put(self, name: str, kib: int = 1, *, data_type: str = "asset", seed: int = 0) -> EntryKey:
        """Store a table of so many KiB that cannot be compressed."""
        key = EntryKey(name, data_type)
        noise = np.random.default_rng([seed, *name.encode()]).integers(0, 2**63, kib * 128)
        check(self.cache.write(key, pa.table({"n": noise})).stored, "not stored")
        return key

    def sql(self, statement: str, *values: object, path: Path | None = None) -> list[tuple]:
        """Ask the cache file itself, from outside of the package."""
        with closing(sqlite3.connect(path or self.cache.get_cache_file(), isolation_level=None)) as connection:
            return connection.execute(statement, values).fetchall()

    def pragma(self, name: str) -> Any:
        with self.database.raw(5) as connection:
            return connection.execute(f"PRAGMA {name}").fetchone()[0]

    def tier(self, key: EntryKey | str) -> str | None:
        hit = self.cache.read(key)
        return hit.tier if hit else None

    def entries(self) -> set[str]:
        return {entry["key"] for entry in self.cache.get_entries()}


@contextmanager
def world(server: CdnServer, folder: Path, **settings: object) -> Iterator[World]:
    """An empty cache in a folder, and all settings at their defaults but for these and the place of CDN and cache."""
    config = tif1.get_config()
    before = {name: getattr(config, name) for name in config.to_dict()}
    base = {"cdn_urls": server.cdn_urls, "schedule_urls": server.schedule_urls, "cache_dir": folder / "cache"}
    defaults = Config()
    config.update({name: getattr(defaults, name) for name in before} | base | {"max_retries": 1, "request_timeout": 20})
    config.update(settings)
    server.requests.clear()
    try:
        yield World(server, folder)
    finally:
        tif1.close()
        config.update(before)
        server.faults.clear()


@contextmanager
def listening(name: str = "tif1_pipeline", level: int = logging.DEBUG) -> Iterator[list[str]]:
    """Collect what is logged."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger(name), Collect()
    former = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(former)


# ---- settings: for each a function that sees its effect, at runtime, and says what it saw

SETTINGS: dict[str, Callable[[World], str]] = {}


def setting(case: Callable[[World], str]) -> Callable[[World], str]:
    SETTINGS[case.__name__] = case
    return case


@setting
def memory_cache_enabled(w: World) -> str:
    key = w.put("a")
    same(w.tier(key), "memory")
    w.config.memory_cache_enabled = False
    same([w.tier(key), w.tier(key)], ["disk", "disk"])
    return "memory, then disk twice"


@setting
def memory_cache_size(w: World) -> str:
    w.config.memory_cache_size = 2
    for number in range(5):
        w.put(f"a{number}")
    stats = w.cache.get_memory_stats()
    same((stats["items"], stats["evictions"]), (2, 3))
    return "2 of 5 kept"


def _limit_of_type(w: World, data_type: str) -> str:
    setattr(w.config, f"memory_cache_{data_type}_size", 1)
    w.cache.clear_memory()
    for number in range(3):
        w.put(f"other{number}")
        w.put(f"{data_type}{number}", data_type=data_type)
    same(w.cache.get_memory_stats()["items"], 4)
    same([w.tier(f"{data_type}0"), w.tier("other0")], ["disk", "memory"])
    return f"1 of 3 {data_type} kept, 3 of 3 others"


@setting
def memory_cache_laps_size(w: World) -> str:
    return _limit_of_type(w, "laps")


@setting
def memory_cache_telemetry_size(w: World) -> str:
    return _limit_of_type(w, "telemetry")


@setting
def memory_cache_weather_size(w: World) -> str:
    return _limit_of_type(w, "weather")


@setting
def memory_cache_max_mb(w: World) -> str:
    for number in range(4):
        w.put(f"a{number}", 700)
    same(w.cache.get_memory_stats()["items"], 4)
    w.config.memory_cache_max_mb = 1
    w.put("a4", 700)
    stats = w.cache.get_memory_stats()
    check(stats["items"] == 1 and stats["size_mb"] <= 1, stats)
    return f"{stats['size_mb']:.2f} MiB kept of 3.4"


@setting
def cache_enabled(w: World) -> str:
    w.config.cache_enabled = False
    for _ in range(2):
        check(len(w.race().weather), "no weather")
    same(w.asked("weather.json"), 2)
    w.config.cache_enabled = True
    for _ in range(2):
        w.race().weather  # noqa: B018
    same(w.asked("weather.json"), 3)
    return "off: each use asks the CDN; on: the first"


@setting
def cache_dir(w: World) -> str:
    w.put("a")
    first = w.config.cache_dir
    w.config.cache_dir = w.folder / "other"
    same((w.entries(), w.tier("a"), w.cache.get_cache_dir()), (set(), None, w.folder / "other"))
    w.put("b")
    w.config.cache_dir = first
    same((w.entries(), w.tier("a"), w.tier("b")), ({"a"}, "disk", None))
    return "each folder has its own entries, in a live cache"


@setting
def cache_filename(w: World) -> str:
    w.put("a")
    w.config.cache_filename = "other.db"
    same((w.entries(), w.tier("a"), w.cache.get_cache_file().name), (set(), None, "other.db"))
    w.put("b")
    check((w.config.cache_dir / "other.db").exists())
    w.config.cache_filename = "tif1_cache.db"
    same(w.entries(), {"a"})
    return "each file has its own entries, in a live cache"


@setting
def cache_compression_level(w: World) -> str:
    laps, sizes = w.race().laps, []
    for level in (1, 22):
        w.config.cache_compression_level = level
        sizes.append(w.cache.write(EntryKey(f"level {level}", "asset"), laps).info.compressed_size)
        check(w.cache.read(f"level {level}", "pandas").value.equals(laps), "it came back changed")
    check(sizes[1] < sizes[0], sizes)
    return f"{sizes[0]:,} bytes at 1, {sizes[1]:,} at 22"


@setting
def cache_page_size(w: World) -> str:
    w.put("a")
    before = w.sql("PRAGMA page_size")[0][0]
    w.config.cache_page_size = 4096
    w.config.cache_filename = "new.db"
    w.put("a")
    same((before, w.sql("PRAGMA page_size")[0][0]), (16384, 4096))
    return "16,384 bytes, a new file 4,096"


@setting
def cache_cache_size(w: World) -> str:
    w.put("a")
    w.config.cache_cache_size = 321
    same(w.pragma("cache_size"), 321)
    with w.database.reading() as handle:  # the connection that reads use is renewed, too
        same(handle.connection.execute("PRAGMA cache_size").fetchone()[0], 321)
    return "321 pages on a live connection"


@setting
def cache_wal_mode(w: World) -> str:
    modes = []
    w.put("a")
    for mode in (True, False, True):
        w.config.cache_wal_mode = mode
        w.put("b", seed=len(modes))
        modes.append(w.sql("PRAGMA journal_mode")[0][0])
        w.cache.close()
    same(modes, ["wal", "delete", "wal"])
    return "wal, delete, wal"


@setting
def cache_wal_autocheckpoint(w: World) -> str:
    sizes = []
    for pages in (0, 1):
        w.config.cache_wal_autocheckpoint = pages
        w.put(f"a{pages}", 2000)
        sizes.append(w.cache.get_cache_file().stat().st_size)
    check(sizes[0] < 1_000_000 < 4_000_000 < sizes[1], sizes)
    return f"0: all stays in the log; 1: {sizes[1]:,} bytes written back"


@setting
def cache_mmap_size(w: World) -> str:
    w.put("a")
    for size in (0, 1 << 20):
        w.config.cache_mmap_size = size
        with w.database.reading() as handle:
            same(handle.connection.execute("PRAGMA mmap_size").fetchone()[0], size)
    return "0 and 1 MiB on a live connection"


@setting
def cache_lock_timeout(w: World) -> str:
    w.put("a")
    w.config.cache_lock_timeout = 0.2
    with closing(sqlite3.connect(w.cache.get_cache_file(), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        message = refused(tif1.CacheLockedError, w.cache.clear)
        seconds = time.monotonic() - started
        check("0.2 s" in message and 0.15 < seconds < 10, (message, seconds))
    return f"gave up after {seconds:.2f} s"


@setting
def cache_max_connections(w: World) -> str:
    w.put("a")
    w.config.update({"cache_max_connections": 1, "cache_lock_timeout": 0.2})
    w.cache.get_stats()
    with w.database.querying():
        message = refused(tif1.CacheError, w.cache.get_stats)
    check("QueuePool" in message or "pool" in message, message)
    w.config.cache_max_connections = 2
    w.cache.get_stats()
    with w.database.querying():
        same(w.cache.get_stats()["total_entries"], 1)
    return "of two users of the pool, one is refused with 1, none with 2"


@setting
def cache_verify_checksum(w: World) -> str:
    key = w.put("a")
    w.config.cache_verify_checksum = False
    w.put("b")
    w.sql("UPDATE parts SET data = (SELECT data FROM parts WHERE ordinal > 0 ORDER BY id DESC) WHERE ordinal > 0")
    w.cache.clear_memory()
    same(w.tier(key), "disk")
    w.cache.clear_memory()
    w.config.cache_verify_checksum = True
    before = w.cache.get_degraded().get("read: corrupt entry", 0)
    same((w.tier(key), w.entries()), (None, {"b"}))
    same(w.cache.get_degraded()["read: corrupt entry"], before + 1)
    return "a damaged entry is served when off, removed when on"


def _expiring(w: World, name: str, read: Callable[[], object], pattern: str, other: Callable[[], object]) -> str:
    read()
    other()
    time.sleep(0.25)
    first = w.asked()
    read()
    other()
    same(w.asked(), first)
    setattr(w.config, name, 0.2)
    of_it = w.asked(pattern)
    read()
    check(w.asked(pattern) > of_it, f"{pattern} was not asked for again")
    total = w.asked()
    if name != "cache_ttl":
        other()
        same(w.asked(), total)
    setattr(w.config, name, timedelta(days=1))
    time.sleep(0.25)
    read()
    same(w.asked(), total)
    return f"{pattern} asked for again after 0.2 s, not within a day"


@setting
def cache_ttl(w: World) -> str:
    return _expiring(w, "cache_ttl", lambda: w.race().corners, "corners.json", lambda: None)


@setting
def cache_ttl_laps(w: World) -> str:
    race = w.race()
    return _expiring(w, "cache_ttl_laps", lambda: race.laps, "session_laptimes.json", lambda: race.weather)


@setting
def cache_ttl_telemetry(w: World) -> str:
    race = w.race()
    row = race.laps.iloc[1]
    lap = row["Driver"], int(row["LapNumber"])
    pattern = f"{lap[0]}/{lap[1]}_tel.json"
    return _expiring(w, "cache_ttl_telemetry", lambda: race.get_lap_telemetry(*lap), pattern, lambda: race.laps)


@setting
def cache_ttl_weather(w: World) -> str:
    race = w.race()
    return _expiring(w, "cache_ttl_weather", lambda: race.weather, "weather.json", lambda: race.laps)


@setting
def cache_ttl_messages(w: World) -> str:
    race = w.race()
    return _expiring(w, "cache_ttl_messages", lambda: race.messages, "rcm.json", lambda: race.laps)


@setting
def cache_ttl_schedule(w: World) -> str:
    tif1.get_events(YEAR)
    entry = schedule_entry(YEAR)
    # As if it had been stored during the season: one that was stored after it does not expire.
    moment = datetime(YEAR, 7, 1, tzinfo=UTC).timestamp()
    w.sql("UPDATE entries SET created_at = ? WHERE key = ?", moment, entry.text)
    w.config.cache_ttl_schedule = None
    tif1.get_events(YEAR)
    same(w.asked("schedule_2025.json"), 1)
    w.config.cache_ttl_schedule = "6h"
    tif1.get_events(YEAR)
    same(w.asked("schedule_2025.json"), 2)
    return "a calendar stored in July asked for again with 6 h, not with None"


@setting
def cache_check_freshness(w: World) -> str:
    race = w.race()
    before = race.laps
    w.config.cache_freshness_interval = 0.1
    time.sleep(0.15)
    same(len(race.laps), len(before))
    same(w.asked("session_laptimes.json"), 1)
    w.config.cache_check_freshness = True
    check(race.laps.equals(before), "304 changed the table")
    last = [entry for entry in w.server.requests.entries if entry.path.endswith("session_laptimes.json")][-1]
    same((last.status, last.conditional), (304, True))
    w.server.republish("Race/session_laptimes.json")
    time.sleep(0.15)
    check(not race.laps.equals(before), "the republished table was not seen")
    same(w.asked("session_laptimes.json"), 3)
    return "off: never asked; on: 304 keeps, a republished file replaces"


@setting
def cache_freshness_interval(w: World) -> str:
    race = w.race()
    w.config.update({"cache_check_freshness": True, "cache_freshness_interval": 3600})
    for _ in range(3):
        race.weather  # noqa: B018
    same(w.asked("weather.json"), 1)
    w.config.cache_freshness_interval = 0.1
    time.sleep(0.15)
    race.weather  # noqa: B018
    same(w.asked("weather.json"), 2)
    return "an hour: not asked; 0.1 s: asked"


def _stored_mib(w: World) -> float:
    return w.cache.get_stats()["compressed_size_mb"]


def _limits(w: World, **settings: object) -> None:
    w.config.update({f"cache_cleanup_{name}": value for name, value in settings.items()})


@setting
def cache_auto_cleanup(w: World) -> str:
    w.config.cache_max_size_mb = 1
    for number in range(5):
        w.put(f"a{number}", 400)
    check(_stored_mib(w) > 1.8, _stored_mib(w))
    w.config.cache_auto_cleanup = True

    def is_small() -> bool:  # it looks once a second, at a write
        w.put("small")
        return _stored_mib(w) <= 1

    soon(is_small, "no cleanup")
    return f"2 MiB stay when off, {_stored_mib(w):.2f} when on"


@setting
def cache_max_size_mb(w: World) -> str:
    for number in range(4):
        w.put(f"a{number}", 400)
    _limits(w, threshold_mb=1, target_mb=0)
    same(w.cache.run_auto_cleanup(), 0)  # all are young
    w.config.cache_max_size_mb = 1
    same(w.cache.run_auto_cleanup(), 2)
    return "4 young entries spared below the limit, 2 above it"


@setting
def cache_cleanup_threshold_mb(w: World) -> str:
    for number in range(4):
        w.put(f"a{number}", 400)
    _limits(w, min_age=0, min_access=0, target_mb=0)
    same(w.cache.run_auto_cleanup(), 0)
    w.config.cache_cleanup_threshold_mb = 1
    same(w.cache.run_auto_cleanup(), 4)
    return "4,500: nothing removed; 1: all"


@setting
def cache_cleanup_target_mb(w: World) -> str:
    for number in range(4):
        w.put(f"a{number}", 700)
    _limits(w, min_age=0, min_access=0, threshold_mb=2, target_mb=1)
    removed = w.cache.run_auto_cleanup()
    check(removed == 3 and _stored_mib(w) <= 1, (removed, _stored_mib(w)))
    return f"{_stored_mib(w):.2f} MiB left with a target of 1"


@setting
def cache_cleanup_strategy(w: World) -> str:
    _limits(w, min_age=0, min_access=0, threshold_mb=1, target_mb=1)
    gone = {}
    for strategy in ("age", "size", "lru", "smart"):
        w.cache.clear()
        w.put("old", 350)
        w.put("large", 500)
        w.put("unused", 400)
        for key, column, days in (("old", "created_at", 9), ("unused", "accessed_at", 8)):
            w.sql(f"UPDATE entries SET {column} = {column} - ? WHERE key = ?", days * 86400, key)
        w.config.cache_cleanup_strategy = strategy
        w.cache.run_auto_cleanup()
        gone[strategy] = ", ".join(sorted({"old", "large", "unused"} - w.entries()))
    same([gone[name] for name in ("age", "size", "lru")], ["old", "large", "unused"])
    check(gone["smart"], gone)
    return "; ".join(f"{name}: {what} goes" for name, what in gone.items())


@setting
def cache_cleanup_min_age(w: World) -> str:
    _limits(w, min_access=0, threshold_mb=1, target_mb=0)
    w.put("a", 1500)
    same(w.cache.run_auto_cleanup(), 0)
    w.config.cache_cleanup_min_age = 0
    same(w.cache.run_auto_cleanup(), 1)
    return "7 days: spared; 0: removed"


@setting
def cache_cleanup_min_access(w: World) -> str:
    _limits(w, min_age=0, min_access=2, threshold_mb=1, target_mb=0)
    key = w.put("a", 1500)
    w.tier(key)
    w.tier(key)
    same(w.cache.run_auto_cleanup(), 0)
    w.config.cache_cleanup_min_access = 3
    same(w.cache.run_auto_cleanup(), 1)
    return "read twice: spared with 2, removed with 3"


@setting
def cache_cleanup_log(w: World) -> str:
    found = []
    for wanted in (True, False):
        w.config.cache_cleanup_log = wanted
        w.put("a")
        with listening(level=logging.INFO) as lines:
            w.cache.smart_cleanup(max_size_mb=0)
        found.append(any("cleanup removed" in line for line in lines))
    same(found, [True, False])
    return "a line when on, none when off"


@setting
def cache_cleanup_schedule(w: World) -> str:
    w.put("a", 1500)
    w.sql("UPDATE cache_metadata SET value = ? WHERE key = 'created_at'", repr(time.time() - 2 * 86400))
    soon_not = (datetime.now(UTC) + timedelta(days=40)).strftime("0 0 1 %-m *")
    _limits(w, min_age=0, min_access=0, threshold_mb=1, target_mb=0, schedule=soon_not)
    w.config.cache_auto_cleanup = True
    for _ in range(12):  # over a second: it looks once a second
        w.put("small")
        time.sleep(0.1)
    check("a" in w.entries(), "removed, though it is not the time")
    w.config.cache_cleanup_schedule = "* * * * *"

    def is_gone() -> bool:
        w.put("small")
        return "a" not in w.entries()

    soon(is_gone, "no cleanup")
    return "nothing before its time, then removed in the background"


@setting
def cache_readonly(w: World) -> str:
    w.put("a")
    w.config.cache_readonly = True
    same(w.tier("a"), "memory")
    w.cache.clear_memory()
    same(w.tier("a"), "disk")
    written = w.cache.write(EntryKey("b", "asset"), {"a": 1})
    check(not written.stored and "cache_readonly" in written.reason, written)
    message = refused(tif1.CacheReadOnlyError, w.cache.clear)
    same(w.entries(), {"a"})
    w.config.cache_readonly = False
    same(w.cache.clear(), 1)
    return message.partition(" is ")[2]


@setting
def cache_fallback_dir(w: World) -> str:
    (w.folder / "file").touch()
    w.config.cache_dir = w.folder / "file" / "cache"  # cannot be made
    check(not w.cache.write(EntryKey("a", "asset"), {"a": 1}).stored, "stored where nothing can be")
    same(tif1.check_cache_health(), "failover")
    w.config.cache_fallback_dir = w.folder / "fallback"
    with listening():
        check(w.cache.write(EntryKey("a", "asset"), {"a": 1}).stored, "not stored in the fallback")
        health = tif1.check_cache_health()
    same((health, len(list((w.folder / "fallback").glob("*.db")))), ("failover", 1))
    return f"{health}: {health.reasons[0][-40:]}"


@setting
def cache_shards(w: World) -> str:
    names = {w.put(f"a{number}").text for number in range(20)}
    used = []
    for number in (1, 3, 2, 1):
        w.config.cache_shards = number
        same(w.entries(), names)
        same({name for name in names if w.tier(name)}, names)
        files = sorted(w.config.cache_dir.glob("*.db"))
        # A file that is not used any more stays, without entries, for processes that still write to it.
        used.append(sum(bool(w.sql("SELECT count(*) FROM entries", path=file)[0][0]) for file in files))
    same(used, [1, 3, 2, 1])
    return "20 entries in 1, 3, 2 and 1 files"


def _metrics(w: World) -> Path:
    return Path(f"{w.cache.get_cache_file()}.metrics.json")


@setting
def cache_enable_metrics(w: World) -> str:
    w.tier(w.put("a"))
    check(not _metrics(w).exists(), "metrics, though they are off")
    w.config.cache_enable_metrics = True
    w.tier("a")
    soon(lambda: _metrics(w).exists(), "no metrics")
    found = json.loads(_metrics(w).read_text())
    w.config.cache_enable_metrics = False
    return f"{len(found)} figures in {_metrics(w).name}"


@setting
def cache_metrics_interval(w: World) -> str:
    w.put("a")
    w.config.cache_enable_metrics = True
    w.tier("a")
    soon(lambda: _metrics(w).exists(), "no metrics")
    first = _metrics(w).stat().st_mtime_ns
    time.sleep(0.5)
    same(_metrics(w).stat().st_mtime_ns, first)
    w.config.cache_metrics_interval = 0.1
    soon(lambda: _metrics(w).stat().st_mtime_ns != first, "not written again")
    return "300 s: left alone; 0.1 s: written again"


@setting
def cache_debug(w: World) -> str:
    w.put("a")
    with listening("tif1_pipeline.cache.trace") as lines:
        w.tier("a")
        same(lines, [])
        w.config.cache_debug = True
        w.put("b")
        w.tier("a")
        w.tier("c")
    check(len(lines) == 3 and lines[0].startswith("write b: "), lines)
    check("memory" in lines[1] and "not stored" in lines[2], lines)
    return lines[1]


@setting
def cache_audit_log(w: World) -> str:
    log = w.folder / "audit.jsonl"
    w.config.cache_audit_log = log
    w.put("a")
    w.tier("a")
    w.cache.clear()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    done = [line["operation"] for line in lines]
    check({"read", "write", "clear"} <= set(done) and all(line["pid"] == os.getpid() for line in lines), lines)
    same(stat.S_IMODE(log.stat().st_mode), 0o640)
    w.config.cache_audit_log = None
    w.put("a")
    same(len(log.read_text().splitlines()), len(lines))
    return ", ".join(done)


def _encrypted(w: World, on: Callable[[str], None]) -> str:
    key, value = EntryKey("a", "asset"), {"plan": "attack at dawn"}
    first, second = "a1" * 32, "b2" * 32
    on(first)
    check(w.cache.write(key, value).stored, "not stored")
    check(w.cache.info(key).encryption is not None, "not encrypted")
    w.cache.clear_memory()
    same(w.cache.read(key, "json").value, value)
    on(second)
    w.cache.clear_memory()
    with listening():
        same(w.cache.read(key, "json"), None)
    on(f"{second},{first}")
    same(w.cache.read(key, "json").value, value)
    return "readable with the key, a miss with another"


@setting
def cache_encryption_key(w: World) -> str:
    said = _encrypted(w, lambda keys: setattr(w.config, "cache_encryption_key", keys))
    same(w.config.to_dict()["cache_encryption_key"], "***")
    return said


@setting
def cache_encryption_key_file(w: World) -> str:
    def on(keys: str) -> None:
        file = w.folder / f"keys-{len(keys)}-{keys[:2]}"
        file.write_text(keys.replace(",", "\n") + "\n")
        file.chmod(0o600)
        w.config.cache_encryption_key_file = file

    return _encrypted(w, on)


@setting
def cdn_urls(w: World) -> str:
    w.race().weather  # noqa: B018
    w.config.cdn_urls = w.server.mirror_urls(2)[1:]
    w.race().messages  # noqa: B018
    found = {entry.path.rpartition("/")[2]: entry.mirror for entry in w.server.requests.entries}
    same((found["weather.json"], found["rcm.json"]), (1, 2))
    return "the second mirror at once"


@setting
def schedule_urls(w: World) -> str:
    w.config.schedule_urls = w.server.mirror_schedule_urls(2)[1:]
    tif1.get_events(YEAR)
    same([entry.mirror for entry in w.server.requests.entries], [2])
    return "the second mirror at once"


@setting
def max_concurrent_requests(w: World) -> str:
    race = w.race()
    drivers = race.drivers[:2]
    race.laps  # noqa: B018
    w.server.faults.set(Fault("latency", path="*_tel.json", seconds=0.05))
    peaks = []
    for number, driver in zip((2, 6), drivers, strict=True):
        w.config.max_concurrent_requests = number
        w.server.requests.clear()
        race.get_driver_telemetry(driver)
        peaks.append(w.server.requests.peak)
    check(peaks[0] <= 2 < peaks[1] <= 6, peaks)
    return f"at most {peaks[0]} with 2, {peaks[1]} with 6"


@setting
def request_timeout(w: World) -> str:
    race = w.race()
    w.config.update({"request_timeout": 0.3, "max_retries": 0})
    w.server.faults.set(Fault("hang", path="weather.json", seconds=8))
    started = time.monotonic()
    refused(tif1.NetworkError, lambda: race.weather)
    seconds = time.monotonic() - started
    check(0.2 < seconds < 6, seconds)
    return f"gave up after {seconds:.2f} s"


@setting
def max_retries(w: World) -> str:
    race = w.race()
    w.server.faults.set(Fault("error", path="weather.json"))
    asked = []
    for retries in (0, 2):
        w.config.max_retries = retries
        before = w.asked("weather.json")
        refused(tif1.NetworkError, lambda: race.weather)
        asked.append(w.asked("weather.json") - before)
    same(asked, [1, 3])
    return "1 request with 0, 3 with 2"


@setting
def telemetry_dtype(w: World) -> str:
    race = w.race()
    found = []
    for dtype in ("float32", "float64"):
        w.config.telemetry_dtype = dtype
        w.cache.clear_type("telemetry")
        row = race.laps.iloc[1]
        found.append(str(race.get_lap_telemetry(row["Driver"], row["LapNumber"])["Speed"].dtype))
    same(found, ["float32", "float64"])
    return "float32, float64"


@setting
def offline(w: World) -> str:
    race = w.race()
    laps = race.laps
    w.config.offline = True
    asked = w.asked()
    check(race.laps.equals(laps), "other laps")
    message = refused(tif1.NetworkError, lambda: race.weather)
    same(w.asked(), asked)
    w.config.offline = False
    check(len(race.weather), "no weather")
    return message[:60]


# ---- calls, in the order of the reference

CALLS: set[str] = set()


def ok(name: str, *called: str, **seen: object) -> None:
    """Print what a call gave. With ``called``: what it is of the cache, where that is not its name."""
    CALLS.update(called or (name,))
    figures = "  ".join(f"{key}={_short(value)}" for key, value in seen.items())
    print(f"ok {name:<32} {figures}", flush=True)


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 70 else f"{text[:67]}..."


def sessions(w: World) -> None:
    config = tif1.get_config()
    check(config is tif1.get_config() and config.cache_dir == w.config.cache_dir)
    ok("get_config", settings=len(config.to_dict()))
    events = tif1.get_events(YEAR)
    event = next(event for event in events if str(event) == EVENT)
    same((event["name"], event["round"], event["year"]), (EVENT, 1, YEAR))
    check(event["location"] and event["country"], event)
    ok("get_events", events=len(events), first=event)
    names = tif1.get_sessions(YEAR, event)
    check({RACE, QUALIFYING} <= set(names), names)
    ok("get_sessions", names=names)
    coming = tif1.get_next_event()
    check(coming is None or (coming["year"] >= YEAR and coming["name"] and coming["date"]), coming)
    ok("get_next_event", event=coming)

    race = tif1.get_session(YEAR, event, "R")
    for spelling in (EVENT, "australian", event["location"], event["round"], event["country"], "Australian GP"):
        same(tif1.get_session(YEAR, spelling, "race").key, race.key)
    ok("get_session", key=race.key)
    same(race.load(telemetry=False), race)
    ok("Session.load", requests=w.asked())
    same(asyncio.run(race.load_async(laps=True, telemetry=True, weather=True, messages=True)), race)
    ok("Session.load_async", requests=w.asked())
    laps = race.laps
    check(isinstance(laps, pd.DataFrame) and {"Driver", "LapNumber", "LapTime", "LapTimeSeconds"} <= set(laps.columns))
    check(not laps.duplicated(["Driver", "LapNumber"]).any(), "a lap twice")
    same(str(laps["LapTime"].dtype), "timedelta64[ns]")
    ok("Session.laps", rows=len(laps), columns=len(laps.columns), fastest=laps["LapTimeSeconds"].min())
    telemetry = race.telemetry
    check(telemetry["Speed"].between(0, 400).mean() > 0.9, "implausible speeds")
    same(telemetry["Speed"].dtype, np.float32)
    ok("Session.telemetry", rows=len(telemetry), fastest=float(telemetry["Speed"].max()))
    weather = race.weather
    check(weather["AirTemp"].between(-10, 60).mean() > 0.5, "implausible weather")
    ok("Session.weather", rows=len(weather))
    messages = race.messages
    check({"Time", "Category", "Message", "Flag"} <= set(messages.columns), messages.columns)
    ok("Session.messages", rows=len(messages))
    drivers = race.drivers
    check(drivers and all(len(code) == 3 for code in drivers), drivers)
    ok("Session.drivers", drivers=drivers)
    check(race.drivers_df["Driver"].tolist() == drivers and "Team" in race.drivers_df)
    ok("Session.drivers_df", rows=len(race.drivers_df))
    check({"X", "Y", "Distance", "Rotation"} <= set(race.corners.columns), race.corners.columns)
    ok("Session.corners", rows=len(race.corners))
    info = race.info
    check(EVENT in {str(value) for value in info.values()}, info)
    ok("Session.info", **dict(list(info.items())[:3]))
    driver = laps["Driver"].astype(str).iloc[0]
    mine = race.get_driver_laps(driver.lower())
    check(set(mine["Driver"].astype(str)) == {driver} and len(mine) == (laps["Driver"] == driver).sum())
    ok("Session.get_driver_laps", driver=driver, rows=len(mine))
    of_driver = race.get_driver_telemetry(driver)
    same(len(of_driver), int((telemetry["Driver"] == driver).sum()))
    ok("Session.get_driver_telemetry", driver=driver, rows=len(of_driver))
    lap = int(of_driver["LapNumber"].iloc[-1])
    of_lap = race.get_lap_telemetry(driver, lap)
    same(len(of_lap), int((of_driver["LapNumber"] == lap).sum()))
    ok("Session.get_lap_telemetry", lap=lap, rows=len(of_lap))
    same(len(race.get_telemetry(enable_cache=True)), len(telemetry))
    before = w.asked("*_tel.json")
    check(race.get_telemetry(enable_cache=False).equals(telemetry), "the CDN's telemetry differs from the stored")
    ok("Session.get_telemetry", requests_without_cache=w.asked("*_tel.json") - before)
    check(tif1.get_session(YEAR, EVENT, RACE, enable_cache=False).laps.equals(laps), "other laps")
    polars = tif1.get_session(YEAR, EVENT, RACE, backend="polars").laps
    check(isinstance(polars, pl.DataFrame) and polars.height == len(laps))
    ok("get_session(backend=)", "get_session", kind=type(polars).__module__, rows=polars.height)
    w.qualifying().load(telemetry=False)
    refused(tif1.EventNotFoundError, tif1.get_session, YEAR, "Nowhere", RACE)
    refused(tif1.SessionNotFoundError, tif1.get_session, YEAR, EVENT, "Warm-up")
    refused(tif1.DriverNotFoundError, race.get_driver_laps, "XXX")
    refused(tif1.ConfigError, tif1.get_session, YEAR, EVENT, RACE, backend="dask")
    ok("errors", names="EventNotFound, SessionNotFound, DriverNotFound, Config")
    same(tif1.generate_cache_key(2024, "Silverstone", "FP1", "weather"), "2024_silverstone_practice_1_weather_pandas")
    ok("generate_cache_key", key=tif1.generate_cache_key(YEAR, EVENT, RACE, "laps"))


def values(w: World) -> None:
    cache, key = w.cache, EntryKey("mine", "asset")
    written = cache.write(
        key, pa.table({"p": ["a", "b"], "n": [1, 2]}), source=Source("https://x.org"), part_by="p", schema_version=3
    )
    check(written.stored and written.reason is None and written.info.parts == ("a", "b"), written)
    ok("write", stored=written.stored, bytes=written.info.compressed_size)
    hit = cache.read(key, "pandas", columns=["n"], parts=["b"], schema_version=3)
    same((hit.value.to_dict("list"), hit.tier), ({"n": [2]}, "memory"))
    same(cache.read(key, schema_version=4), None)
    ok("read", tier=hit.tier, value=hit.value.to_dict("list"))
    through = cache.read_through(
        EntryKey("fetched", "asset"),
        lambda _: Fresh({"a": 1}),
        "json",
        columns=None,
        parts=None,
        part_by=None,
        schema_version=1,
        max_age=timedelta(days=1),
    )
    same((through.value, through.tier), ({"a": 1}, "cdn"))
    ok("read_through", tier=through.tier)
    same(cache.info("mine").source.url, "https://x.org")
    same(cache.info("2025_melbourne_race_laps_pandas").key, w.race().key.entry("laps").text)  # any spelling
    ok("info", rows=cache.info("mine").rows)
    same((cache.outdate("fetched"), cache.outdate("nothing")), (1, 0))
    through = cache.read_through(EntryKey("fetched", "asset"), lambda _: Fresh({"a": 2}), "json")
    same((through.value, through.tier), ({"a": 2}, "cdn"))
    ok("outdate", then=through.tier)
    same(cache.remove("mine") + cache.remove("fetched"), 2)


def memory_and_statistics(w: World) -> None:
    cache, laps = w.cache, w.race().key.entry("laps")
    stats = cache.get_memory_stats()
    same(set(stats), {"items", "size_mb", "hit_rate", "evictions", "hits", "misses"})
    check(stats["items"] > 0 and 0 < stats["hit_rate"] <= 1, stats)
    ok("get_memory_stats", **stats)
    same((cache.evict_memory(laps), w.tier(laps), w.tier(laps)), (1, "disk", "memory"))
    ok("evict_memory", tier_afterwards="disk")
    dropped = cache.clear_memory()
    check(dropped > 0 and cache.get_memory_stats()["items"] == 0)
    ok("clear_memory", dropped=dropped)
    stats = cache.get_stats()
    same(set(stats), STATS_KEYS)
    same(stats["total_entries"], len(cache.get_entries()))
    check(abs(stats["hit_rate"] + stats["miss_rate"] - 1) < 1e-9 and stats["compression_ratio"] > 1, stats)
    ok("get_stats", **{name: stats[name] for name in ("total_entries", "total_size_mb", "hit_rate", "avg_access_ms")})
    by_type = cache.get_stats_by_type()
    check({"laps", "telemetry", "weather", "schedule"} <= set(by_type), by_type)
    for figures in by_type.values():
        same(set(figures), {"count", "size_mb", "avg_size_mb", "hit_rate", "avg_access_ms"})
    ok("get_stats_by_type", laps=by_type["laps"])
    by_year = cache.get_stats_by_year()
    same(set(by_year[YEAR]), {"session_count", "size_mb", "most_accessed_event"})
    check(by_year[YEAR]["session_count"] == 2 and by_year[YEAR]["most_accessed_event"] == "australian", by_year)
    ok("get_stats_by_year", **by_year[YEAR])
    accesses = cache.get_access_stats()
    same(set(accesses[0]), {"year", "event", "session_type", "access_count"})
    check(accesses[0]["session_type"] == "race" and accesses[0]["access_count"] > 5, accesses)
    ok("get_access_stats", first=accesses[0])
    same(cache.get_degraded(), w.degraded)
    ok("get_degraded", causes=cache.get_degraded())
    info = cache.get_size_info()
    same(set(info), SIZE_KEYS)
    check(info["uncompressed_mb"] > info["compressed_mb"] > 0 and info["disk_mb"] >= info["compressed_mb"], info)
    ok("get_size_info", **info)
    check(abs(cache.get_size_mb() - info["disk_mb"]) < 5)
    ok("get_size_mb", mib=cache.get_size_mb())
    by_type = cache.get_size_by_type()
    check(abs(sum(by_type.values()) - info["compressed_mb"]) < 1e-6 and max(by_type, key=by_type.get) == "telemetry")
    ok("get_size_by_type", **{name: round(size, 3) for name, size in by_type.items()})
    same(set(cache.get_size_by_year()) - {YEAR, datetime.now(UTC).year}, set())
    ok("get_size_by_year", sizes=cache.get_size_by_year())
    same(cache.get_cache_dir(), w.config.cache_dir)
    ok("get_cache_dir", folder=cache.get_cache_dir().name, mode=oct(stat.S_IMODE(cache.get_cache_dir().stat().st_mode)))
    same(cache.get_cache_file(), w.config.cache_path)
    same(stat.S_IMODE(cache.get_cache_file().stat().st_mode), 0o640)
    ok("get_cache_file", file=cache.get_cache_file().name)
    same((cache.check_health(), tif1.check_cache_health()), ("healthy", "healthy"))
    same(cache.check_health().reasons, ())
    ok("check_health", health=cache.check_health())
    ok("check_cache_health", health=tif1.check_cache_health())
    seen: list[tuple] = []

    def observer(*look_up: object) -> None:
        seen.append(look_up)

    cache.observe(observer)
    w.tier(laps)
    cache.unobserve(observer)
    w.tier(laps)
    same([look_up[:3] for look_up in seen], [(laps.text, "laps", "disk")])
    ok("observe", look_up=seen[0][:3])
    ok("unobserve", look_ups_afterwards=len(seen) - 1)
    with tif1.CacheMonitor(cache) as monitor:
        w.race().laps  # noqa: B018
        w.tier("nothing")
    found = monitor.to_dict()
    same((found["hits"] >= 1, found["misses"], found["by_type"]["laps"]["hits"]), (True, 1, 1))
    monitor.export(w.folder / "monitor.json")
    same(json.loads((w.folder / "monitor.json").read_text())["misses"], 1)
    ok("CacheMonitor", hits=monitor.hits, misses=monitor.misses, avg_access_ms=monitor.avg_access_ms)


def inspection(w: World) -> None:
    cache = w.cache
    total = len(cache.get_entries())
    for sort_by in sorted(SESSION_KEYS):
        same(len(cache.list_sessions(sort_by=sort_by, limit=5)), 2)
    first = cache.list_sessions(sort_by="size_mb", limit=1)
    same((len(first), set(first[0]), first[0]["session_type"]), (1, SESSION_KEYS, "race"))
    check({"laps", "telemetry"} <= set(first[0]["data_types"]), first)
    ok("list_sessions", **{name: first[0][name] for name in ("event", "session_type", "size_mb", "data_types")})
    listed = {
        "get_largest": cache.get_largest(limit=3),
        "get_lru": cache.get_lru(limit=3),
        "get_by_type": cache.get_by_type("laps"),
        "get_by_size": cache.get_by_size(min_size_mb=0.0001),
        "get_old_entries": cache.get_old_entries(days=0),
        "get_entries": cache.get_entries(
            max_age_days=1, min_age_days=0, max_access_count=10**6, min_size_mb=0, data_type="weather", year=YEAR
        ),
        "search": cache.search("2025_AUS*_race_*"),
    }
    for name, entries in listed.items():
        check(entries, f"{name} is empty")
        for entry in entries:
            same(set(entry), ENTRY_KEYS)
            check(entry["size_mb"] > 0 and 0 <= entry["age_days"] < 1 and entry["created_at"].tzinfo is UTC, entry)
    sizes = [entry["compressed_mb"] for entry in listed["get_largest"]]
    check(sizes == sorted(sizes, reverse=True) and listed["get_largest"][0]["data_type"] == "telemetry", sizes)
    times = [entry["accessed_at"] for entry in listed["get_lru"]]
    same(times, sorted(times))
    same({entry["data_type"] for entry in listed["get_by_type"]}, {"laps"})
    same((len(listed["get_old_entries"]), cache.get_old_entries(days=1)), (total, []))
    same(len(listed["get_entries"]), 2)
    same({entry["session_type"] for entry in listed["search"]}, {"race"})
    for name, entries in listed.items():
        ok(name, entries=len(entries), first=entries[0]["key"])
    same([cache.exists(YEAR, spelling, "R") for spelling in (EVENT, "melbourne", "Australia")], [True] * 3)
    same((cache.exists(YEAR, EVENT, RACE, "laps"), cache.exists(YEAR, EVENT, "FP1", data_type="laps")), (True, False))
    ok("exists", race=True)
    metadata = cache.get_metadata(YEAR, EVENT, RACE, "laps")
    check(metadata["rows"] == len(w.race().laps), metadata)
    same(cache.get_metadata(YEAR, EVENT, "FP1", "laps"), None)
    ok("get_metadata", keys=len(metadata), rows=metadata["rows"])


def files(w: World) -> None:
    cache, race = w.cache, w.race()
    report = cache.verify_integrity()
    same((set(report), report["integrity_pct"], report["corrupted_list"]), (INTEGRITY_KEYS, 100.0, []))
    same(report["valid_entries"], len(cache.get_entries()))
    ok("verify_integrity", **{name: report[name] for name in ("total_entries", "valid_entries", "integrity_pct")})
    same((cache.verify_entry(race.key.entry("laps")), cache.verify_entry("nothing")), (True, False))
    ok("verify_entry", laps=True)
    for name in ("rebuild_indexes", "optimize", "checkpoint", "open"):
        same(getattr(cache, name)(), None)
        ok(name, result=None)
    same(cache.flush(), True)
    ok("flush", done=True)
    w.put("large", 8000)
    cache.remove("large")
    cache.checkpoint()
    freed = cache.vacuum()
    check(7 < freed < 30, freed)
    ok("vacuum", mib_freed=freed)
    entries, laps = w.entries(), race.laps
    path = cache.backup(dir=w.folder / "backups", keep=2)
    check(path.parent == w.folder / "backups" and path.stat().st_size > 0)
    same(stat.S_IMODE(path.stat().st_mode), 0o640)
    ok("backup", file=path.name, bytes=path.stat().st_size)
    number = cache.export(w.folder / "export")
    exported = sorted((w.folder / "export" / str(YEAR)).rglob("*.parquet"))
    names = {str(found.relative_to(w.folder / "export")) for found in exported}
    check(number == len(entries) and "2025/australian/race/laps.parquet" in names, names)
    same(pq.read_metadata(w.folder / "export/2025/australian/race/laps.parquet").num_rows, len(laps))
    ok("export", files=number)
    same(cache.clear(), len(entries))
    same((w.entries(), race.key.entry("laps").text in entries), (set(), True))
    ok("clear", removed=len(entries))
    same(cache.import_(dir=w.folder / "export"), number)
    same(w.entries(), entries)
    asked = w.asked()
    check(race.laps.equals(laps), "other laps after the import")
    ok("import_", entries=number)
    cache.clear()
    same(cache.restore(path=path), None)
    same((w.entries(), race.laps.equals(laps), w.asked()), (entries, True, asked))
    ok("restore", entries=len(entries))
    w.config.cache_encryption_key = "0f" * 32
    same(cache.rotate_key(), len(entries))
    cache.clear_memory()
    check(race.laps.equals(laps) and cache.info(race.key.entry("laps")).encryption, "not encrypted")
    same(cache.rotate_key(decrypt=True), len(entries))
    w.config.cache_encryption_key = None
    cache.clear_memory()
    check(race.laps.equals(laps), "other laps")
    ok("rotate_key", entries=len(entries))
    same(cache.close(), None)
    same(w.tier(race.key.entry("laps")), "disk")  # opens it again
    ok("close", reopened="by the next call")


def removal(w: World) -> None:
    cache = w.cache
    backup = cache.backup(w.folder / "backups")
    keys = [entry["key"] for entry in cache.get_entries()]
    session = [key for key in keys if "_race_" in key]
    of_event = [key for key in keys if "_australian_" in key]
    of_year = [key for key in keys if key.startswith("2025_")]
    laps = [key for key in keys if "_laps_" in key]

    def removing(name: str, expected: float | None, *arguments: Any, **named: Any) -> None:
        cache.restore(backup)
        before = len(w.entries())
        found = getattr(cache, name)(*arguments, **named)
        removed = before - len(w.entries())
        if name == "clear_largest":
            check(found > 0, found)
            found, expected = removed, 2
        check(found == removed and (expected is None or removed == expected), (name, found, removed, expected))
        ok(name, removed=removed)

    removing("clear_session", len(session), YEAR, EVENT, RACE)
    removing("clear_event", len(of_event), YEAR, "melbourne")
    removing("clear_year", len(of_year), YEAR)
    removing("clear_type", len(laps), "laps")
    removing("clear_old", len(keys), 0)
    removing("clear_largest", None, count=2)
    removing("clear_lru", 3, count=3)
    removing("clear_pattern", len(session), "2025_*_Race_*")
    removing("clear_low_access", len(keys), 10**6)
    w.config.cache_ttl_laps = 0.001
    cache.restore(backup)
    time.sleep(0.01)
    expired = cache.get_expired_entries()
    same(({entry["key"] for entry in expired}, set(expired[0])), (set(laps), ENTRY_KEYS))
    ok("get_expired_entries", entries=len(expired))
    removing("clear_expired", len(laps))
    w.config.cache_ttl_laps = None
    removing("clear_corrupted", 0)
    removing("remove", 1, laps[0])
    same(cache.remove(laps[0]), 0)
    removing("smart_cleanup", len(keys), max_age_days=0, min_access_count=10**6, max_size_mb=0)
    removing("run_auto_cleanup", 0)
    removing("invalidate_session", len(session), YEAR, EVENT, "R")
    removing("invalidate_session_data", 1, YEAR, EVENT, RACE, "laps")
    removing("invalidate_event", len(of_event), YEAR, EVENT)
    removing("invalidate_year", len(of_year), YEAR)
    removing("invalidate_pattern", len(laps), "*_laps_*")
    removing("invalidate_custom", len(laps), lambda entry: set(entry) == ENTRY_KEYS and entry["data_type"] == "laps")
    cache.restore(backup)
    same(cache.check_version_compatibility(), True)
    ok("check_version_compatibility", result=True)
    removing("upgrade_version", 0)

    cache.restore(backup)
    same(tif1.on_race_complete(YEAR, EVENT), len(of_event))
    ok("on_race_complete", removed=len(of_event))
    cache.restore(backup)
    found = tif1.on_schedule_update(YEAR)
    check(found >= 1 and not cache.search(f"{YEAR}_schedule"), found)
    ok("on_schedule_update", removed=found)
    same(tif1.on_library_update(), 0)
    ok("on_library_update", removed=0)


def warming(w: World) -> None:
    cache = w.cache
    cache.clear()
    race = w.race()
    driver = race.drivers[0]

    def warm(name: str, succeeds: bool, *arguments: Any, **options: Any) -> dict[str, Any]:
        report = getattr(cache, name)(*arguments, max_workers=2, **options)
        if asyncio.iscoroutine(report):
            report = asyncio.run(report)
        same(set(report), REPORT_KEYS)
        check(bool(report["succeeded"]) == succeeds and report["seconds"] >= 0, report)
        check(all(failure["error"] for failure in report["failed"]), report)
        shown = {key: report[key] for key in ("succeeded", "skipped", "requests", "bytes")}
        ok(name, **shown, failed=len(report["failed"]))
        return report

    report = warm("warm_event", True, YEAR, EVENT, data_types=["drivers", "laps"])
    check(cache.exists(YEAR, EVENT, RACE, "laps") and report["requests"] > 0 and report["bytes"] > 0, report)
    report = warm("warm_event_async", False, YEAR, "melbourne", data_types=["drivers", "laps"])
    check(report["skipped"] >= 4, report)
    warm("warm_types", True, ["weather"], YEAR, EVENT)
    warm("warm_types_async", False, ["weather"], YEAR, event=EVENT)
    report = warm("warm_drivers", True, [driver], YEAR, EVENT, RACE)
    same((report["succeeded"], report["failed"]), (1, []))
    report = warm("warm_drivers_async", False, [driver], YEAR, EVENT, session_type=RACE)
    same(report["skipped"], 1)
    for _ in range(6):
        race.laps  # noqa: B018
    cache.flush()
    cache.invalidate_session_data(YEAR, EVENT, RACE, "weather")
    warm("warm_frequent", cache.get_access_stats()[0]["access_count"] < 0, min_access_count=10**6)
    warm("warm_frequent_async", True, min_access_count=2)
    warm("warm_season", True, YEAR, data_types=["drivers", "messages"])
    warm("warm_season_async", False, YEAR, data_types=["drivers"])
    check(tif1.close() is None and w.tier(race.key.entry("laps")) == "disk", "not reopened")
    ok("close (package)", "tif1.close", reopened=True)
    same(tif1.get_cache() is tif1.get_cache(w.config.cache_path), True)
    ok("get_cache", same_object=True)


def run(folder: Path | None) -> tuple[int, int, list[str]]:
    """Do everything; returns the numbers of calls and settings, and what was wrong."""
    failures: list[str] = []
    content = folder or Season(YEAR, seed=7, events=1, size="tiny")
    with CdnServer(content) as server, tempfile.TemporaryDirectory(prefix="tif1-every-call-") as temporary:
        with world(server, Path(temporary) / "calls") as w:
            w.folder.mkdir()
            w.degraded = w.cache.get_degraded()
            for group in (sessions, values, memory_and_statistics, inspection, files, removal, warming):
                try:
                    group(w)
                except Exception as error:
                    where = traceback.extract_tb(error.__traceback__)
                    lines = [step.lineno for step in where if step.filename == __file__ and step.name != "check"]
                    failures.append(f"{group.__name__}, line {lines}: {type(error).__name__}: {error}")
                    print(f"WRONG {failures[-1]}", flush=True)
        for number, name in enumerate(OF_THE_CACHE):
            try:
                with world(server, Path(temporary) / f"setting-{number}") as w:
                    w.folder.mkdir()
                    print(f"ok setting {name:<32} {SETTINGS[name](w)}", flush=True)
            except Exception as error:
                failures.append(f"setting {name}: {type(error).__name__}: {error}")
                print(f"WRONG {failures[-1]}", flush=True)
    return len(CALLS), len(SETTINGS), failures


def main(arguments: list[str]) -> int:
    """Run from the command line."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(__doc__)
        return 2
    logging.getLogger("tif1_pipeline").addHandler(logging.NullHandler())
    logging.getLogger("tif1_pipeline").propagate = False  # what goes wrong on purpose is not shown
    started = time.monotonic()
    threading.excepthook = lambda failure: print(f"WRONG in a thread: {failure.exc_value!r}", flush=True)
    calls, settings, failures = run(Path(arguments[0]) if arguments else None)
    print(f"{calls} calls and {settings} settings in {time.monotonic() - started:.1f} s, {len(failures)} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
