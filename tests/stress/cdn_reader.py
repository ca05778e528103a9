"""A process that reads one small session through the cache, as a notebook would; told what to do by lines of JSON.

It is a process of its own so that its memory can be measured, and so that it can be ended when it hangs.
"""

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from tif1_pipeline.cache import Cache
from tif1_pipeline.cdn.base import CdnStats, Timing
from tif1_pipeline.cdn.client import CdnClient
from tif1_pipeline.config import Config
from tif1_pipeline.datasets import DATASETS
from tif1_pipeline.exceptions import Tif1Error
from tif1_pipeline.keys import SessionKey
from tif1_pipeline.reading import Reader
from tif1_pipeline.session import Session

TABLES = ("laps", "weather", "messages", "telemetry")
TIMING = Timing(wait_initial=0.02, wait_max=0.1, retry_after_max=1.0, set_aside=1.0, set_aside_alone=0.3)
_RESETS_PEAK = "5"


class Reading:
    """A cache, a client and a session on them."""

    def __init__(self, key: list[Any], settings: dict[str, Any]) -> None:
        self.key = SessionKey(*key)
        self.config = Config(**settings)
        self.open()

    def open(self) -> None:
        """Begin with nothing in memory."""
        self.client = CdnClient(self.config, TIMING)
        self.cache = Cache(self.config)
        self.reader = Reader(self.config, self.cache, lambda: self.client)

    def load(self, tables: list[str]) -> dict[str, Any]:
        """Read tables at once, each in a thread; tell what came of each."""
        before, started = self.client.totals.requests, time.monotonic()
        with ThreadPoolExecutor(len(tables)) as pool:
            told = dict(zip(tables, pool.map(self._one, tables), strict=True))
        seconds = time.monotonic() - started
        return {"tables": told, "seconds": seconds, "requests": self.client.totals.requests - before}

    def _one(self, table: str) -> dict[str, Any]:
        def read() -> Any:
            if table == "schedule":
                return self.reader.schedule(self.key.year, "pandas").value
            found = self.reader.calendar(self.key.year).find(self.key.event).key(self.key.session_type)
            return getattr(Session(found, self.reader, "pandas", Reader(self.config, None, lambda: self.client)), table)

        return outcome(read)

    def stored(self) -> dict[str, str | None]:
        """Tell what another process would find stored, without asking the CDN."""
        with closing(Cache(self.config)) as cache:
            found = {}
            for table in ("drivers", *TABLES):
                hit = cache.read(self.key.entry(table), "pandas", schema_version=DATASETS[table].schema_version)
                found[table] = None if hit is None else digest(hit.value)
            return found

    def reload(self, folder: str) -> dict[str, Any]:
        """Read all tables into another folder, with the client that has seen it all."""
        self.cache.close()
        self.config.cache_dir = folder
        self.cache = Cache(self.config)
        self.reader = Reader(self.config, self.cache, lambda: self.client)
        return self.load(list(TABLES))

    def close(self) -> None:
        """Let go of everything."""
        self.client.close()
        self.cache.close()


def outcome(read: Callable[[], Any]) -> dict[str, Any]:
    """Read, and tell a digest of what came or the error."""
    try:
        return {"digest": digest(read())}
    except Tif1Error as error:
        return {"error": type(error).__name__, "message": error.message, "url": error.details.get("url")}
    except (Exception, asyncio.CancelledError) as error:
        return {"foreign": f"{type(error).__name__}: {str(error)[:300]}"}


def digest(frame: Any) -> str:
    """Return what stands for every cell, name and type of a pandas frame."""
    told = [(str(name), str(frame[name].dtype), frame[name].astype(object).tolist()) for name in frame.columns]
    return hashlib.sha256(repr(told).encode()).hexdigest()


def peak_mb() -> float:
    """Return the most memory that this process had since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text(_RESETS_PEAK)
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def flights(orders: dict[str, Any]) -> dict[str, Any]:
    """Read until every table is there, from many threads with one cache."""
    reading = Reading(orders["key"], orders["settings"])
    until = time.monotonic() + orders["most_seconds"]

    def read(table: str) -> dict[str, Any]:
        while True:
            told = reading._one(table)
            if "error" not in told or time.monotonic() > until:
                return told

    wanted = [table for table in orders["tables"] for _ in range(orders["threads"])]
    with ThreadPoolExecutor(len(wanted)) as pool:
        told = list(zip(wanted, pool.map(read, wanted), strict=True))
    reading.close()
    return {"read": told, "requests": reading.client.totals.requests}


def many(orders: dict[str, Any]) -> dict[str, Any]:
    """Fetch thousands of files that are one and the same, straight with the client."""
    from tif1_pipeline.cdn.base import CdnFile

    client = CdnClient(Config(**orders["settings"]), TIMING)
    files = [CdnFile(2025, ("Storm", "Race", "VER", f"{number}_tel.json")) for number in range(orders["files"])]
    started, stats = time.monotonic(), CdnStats()
    results = client.fetch_many(files, lambda _, body: len(body), stats=stats)
    client.close()
    failed = [str(result)[:300] for result in results if isinstance(result, Exception)]
    return {
        "seconds": time.monotonic() - started,
        "requests": stats.requests,
        "failed": len(failed),
        "first": failed[:1],
    }


def main() -> None:
    """Do what the lines say, and answer each with a line."""
    readings: dict[str, Reading] = {}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed by anybody else is no answer
    for line in sys.stdin:
        orders = json.loads(line)
        peak_mb()
        match orders["do"]:
            case "open":
                readings[orders["id"]] = Reading(orders["key"], orders["settings"])
                answer: dict[str, Any] = {}
            case "load":
                answer = readings[orders["id"]].load(orders["tables"])
            case "reload":
                answer = readings[orders["id"]].reload(orders["folder"])
            case "stored":
                answer = {"tables": readings[orders["id"]].stored()}
            case "close":
                readings.pop(orders["id"]).close()
                answer = {}
            case "flights":
                answer = flights(orders)
            case "many":
                answer = many(orders)
            case other:
                raise ValueError(other)
        answers.write(json.dumps(answer | {"peak_mb": peak_mb()}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
