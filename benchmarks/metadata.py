"""What inspection calls take, by number of entries and weight of the blobs: first call and median of 20, in ms.

    .venv/bin/python benchmarks/metadata.py [--gib 5]

Each cache is made in a temporary folder by plain inserts, metadata and blobs interleaved as real writes leave them, and
is removed before the next; each is measured in a new process. The goal: below 50 ms a call at 10,000 entries, whatever
the blobs weigh.
"""

import argparse
import json
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tif1_pipeline import __version__
from tif1_pipeline.cache import Cache
from tif1_pipeline.cache.codec import FORMAT_VERSION
from tif1_pipeline.config import Config
from tif1_pipeline.keys import SESSION_TYPES, SessionKey

RUNS = 20
GOAL_MS = 50
TYPES = ("drivers", "laps", "messages", "session_info", "telemetry", "weather")
DRIVERS = [f"D{number:02}" for number in range(20)]
EVENTS = ("Monaco", "British", "São Paulo", "Belgian", *(f"Number {number}" for number in range(36)))
CALLS = {
    "list_sessions()": lambda cache: cache.list_sessions(),
    "get_stats()": lambda cache: cache.get_stats(),
    "get_stats_by_type()": lambda cache: cache.get_stats_by_type(),
    "get_stats_by_year()": lambda cache: cache.get_stats_by_year(),
    "get_size_info()": lambda cache: cache.get_size_info(),
    'search("*monaco*")': lambda cache: cache.search("*monaco*"),
    'search("*")': lambda cache: cache.search("*"),
    "get_expired_entries()": lambda cache: cache.get_expired_entries(),
    "get_entries(three conditions)": lambda cache: cache.get_entries(
        data_type="laps", min_age_days=1, max_access_count=30
    ),
    "get_entries()": lambda cache: cache.get_entries(),
    "get_lru(10)": lambda cache: cache.get_lru(10),
    "check_version_compatibility()": lambda cache: cache.check_version_compatibility(),
}


def settings(folder: str) -> Config:
    return Config(cache_dir=folder, cache_ttl="15d")


def fill(folder: str, entries: int, gib: float) -> None:
    """Insert entries of all types for as many sessions as it takes; telemetry holds four fifths of the bytes."""
    cache = Cache(settings(folder))
    cache.open()
    path = cache.get_cache_file()
    cache.close()
    pick = random.Random(1)
    blob = os.urandom(1 << 20)
    of_type = gib * (1 << 30) / entries * len(TYPES)
    sessions = [
        SessionKey(year, f"{event} Grand Prix", name)
        for year in range(2018, 2026)
        for event in EVENTS
        for name in SESSION_TYPES
    ]
    keys = [(session, kind) for session in sessions for kind in TYPES][:entries]
    assert len(keys) == entries, "more entries than there are names"
    now = time.time()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("BEGIN")
    for number, (session, kind) in enumerate(keys):
        key = session.entry(kind)
        parts = DRIVERS if kind == "telemetry" else [""]
        size = round(of_type * (0.8 if kind == "telemetry" else 0.2 / (len(TYPES) - 1)))
        created = now - pick.uniform(0, 30) * 86_400
        values = {
            "key": key.text, "year": key.year, "event": key.event, "session_type": key.session_type,
            "data_type": kind, "backend": "arrow", "created_at": created,
            "accessed_at": pick.uniform(created, now), "access_count": pick.randrange(50),
            "size_bytes": size * 5, "compressed_size": size, "rows": 1000, "parts": json.dumps(parts),
            "schema_version": 1, "library_version": __version__, "format_version": FORMAT_VERSION,
            "source_url": f"https://cdn.jsdelivr.net/gh/TracingInsights/{key.year}@main/{key.event}/{kind}.json",
            "etag": f'W/"{number:040x}"', "last_modified": None, "checksum": f"{number:08x}", "pinned": 0,
            "generation": f"{number:032x}",
        }  # fmt: skip
        marks = ", ".join("?" * len(values))
        entry = connection.execute(
            f"INSERT INTO entries ({', '.join(values)}) VALUES ({marks})", list(values.values())
        ).lastrowid
        each = size // len(parts)
        for ordinal, name in enumerate(parts, 1):
            data = (blob * (each // len(blob) + 1))[:each]
            connection.execute(
                "INSERT INTO parts (entry_id, ordinal, name, size, checksum, data) VALUES (?, ?, ?, ?, ?, ?)",
                (entry, ordinal, name, each, f"{number:08x}", data),
            )
        if number % 500 == 499:
            connection.execute("COMMIT")
            connection.execute("BEGIN")
    connection.execute("COMMIT")
    connection.close()


def measure(folder: str) -> None:
    """Print the times of every call on the cache in a folder, as JSON."""
    cache = Cache(settings(folder))
    measured = {}
    for name, call in CALLS.items():
        times = []
        for _ in range(RUNS + 1):
            started = time.perf_counter()
            result = call(cache)
            times.append((time.perf_counter() - started) * 1000)
        number = len(result) if isinstance(result, list | dict) else 1
        measured[name] = (times[0], statistics.median(times[1:]), number)
    size = cache.get_size_mb() / 1024
    cache.close()
    print(json.dumps({"size": size, "measured": measured}))


def main(gib: float) -> None:
    columns = [(100, 0.1), (10_000, 0.1), (10_000, gib)]
    results = []
    for entries, size in columns:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            fill(folder, entries, size)
            print(f"filled: {entries:,} entries, {size:g} GiB, {time.perf_counter() - started:.0f} s", file=sys.stderr)
            done = subprocess.run(
                [sys.executable, str(Path(__file__)), "--measure", folder], capture_output=True, text=True, check=True
            )
            results.append(json.loads(done.stdout))
    heads = [
        f"{entries:,} entries, {result['size']:.1f} GiB" for (entries, _), result in zip(columns, results, strict=True)
    ]
    print(f"{'':31}" + "".join(f"{head:>30}" for head in heads))
    print(f"{'':31}" + f"{'first   median    rows':>30}" * len(heads))
    for name in CALLS:
        cells = [result["measured"][name] for result in results]
        row = "".join(f"{first:11.1f}{median:9.1f}{number:10,}" for first, median, number in cells)
        print(f"{name:31}{row}")
    slowest = max(median for _, median, _ in results[-1]["measured"].values())
    print(f"slowest median at {heads[-1]}: {slowest:.1f} ms (goal: below {GOAL_MS} ms)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=5.0, help="what the blobs of the large cache weigh")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
    else:
        main(arguments.gib)
