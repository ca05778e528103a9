"""Dagster's IO managers, handed the same frames: this project's beside each of the others."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

import tif1_pipeline as tif1
from benchmarks.files import EVENT, YEAR
from benchmarks.measure import Row, ask, disk_mb, in_turns, values
from tif1_pipeline.api import get_reader

PEERS = {
    "pickle": "Dagster's filesystem manager (pickle)",
    "polars": "dagster-polars, Parquet",
    "deltalake": "dagster-deltalake-pandas",
    "duckdb": "dagster-duckdb-pandas",
}
TABLES = ("laps", "telemetry")
TARGETS = {
    ("polars", "laps", "later"): 1.0,
    ("polars", "telemetry", "first"): 1.5,
    ("polars", "telemetry", "later"): 2.0,
}
REMARKS = {
    "pickle": "what it stores executes when it is loaded",
    "deltalake": "the frame without categories and time spans, which it does not store",
    "duckdb": "the frame without categories and time spans, which it does not store",
}


def write_frame(server: str, scratch: Path, table: str) -> Path:
    """Write a table of the race to a file that every interpreter can read, unless it is there; returns the file."""
    path = scratch / "frames" / f"{table}.arrow"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    config = tif1.get_config()
    config.cdn_urls = f"{server}/0/TracingInsights/{{year}}@main"
    config.schedule_urls = f"{server}/0/theOehrly/f1schedule@master/schedule_{{year}}.json"
    config.cache_dir = path.parent / "source"
    session = tif1.get_session(YEAR, EVENT, "Race")
    value = get_reader().table(session.key, table).value.unify_dictionaries().combine_chunks()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, value.schema) as writer:
        writer.write_table(value)
    tif1.close()
    return path


class Managers:
    """The comparison.

    Args:
        server: URL of the server.
        scratch: A folder for what the managers store.
        runs: Of each measurement.
    """

    def __init__(self, server: str, scratch: Path, runs: int) -> None:
        self._scratch = scratch / "managers"
        self._runs = max(2, runs // 2)  # each run is a median of several already
        self._frames = {table: write_frame(server, scratch, table) for table in TABLES}

    def rows(self) -> Iterator[Row]:
        """Measure everything, row by row."""
        for table in TABLES:
            yield from self._compare(f"{table} frame stored", table, "out", "all", {"out": "ms"})
            phases = {"first": "first_ms", "later": "later_ms"}
            yield from self._compare(f"{table} frame loaded", table, "load", "all", phases)
        yield from self._compare("one driver of it loaded", "telemetry", "load", "driver", {"later": "later_ms"})
        for peer in PEERS:
            disks = {side: [self._disk(side)] for side in ("ours", peer)}
            yield Row(
                "IO manager: telemetry frame on disk", disks["ours"], PEERS[peer], disks[peer], unit="MB",
                note=REMARKS.get(peer, ""),
            )  # fmt: skip

    def _disk(self, side: str) -> float:
        """What one telemetry frame takes: stored once, in a folder of its own."""
        folder = self._scratch / side / "once"
        if not folder.exists():
            frame = str(self._frames["telemetry"])
            ask(side, "managers.py", manager=side, table="telemetry", phase="once", folder=str(folder), frame=frame)
        return disk_mb(folder)

    def _compare(self, work: str, table: str, phase: str, what: str, figures: dict[str, str]) -> Iterator[Row]:
        answers = in_turns(
            self._runs,
            {
                side: lambda side=side: ask(
                    side, "managers.py", manager=side, table=table, phase=phase, what=what,
                    folder=str(self._scratch / side / table), frame=str(self._frames[table]),
                )
                for side in ("ours", *PEERS)
            },
        )  # fmt: skip
        for moment, figure in figures.items():
            when = {"out": "", "first": ", first read of a process", "later": ", later reads"}[moment]
            for peer, name in PEERS.items():
                yield Row(
                    f"IO manager: {work}{when}", values(answers["ours"], figure), name, values(answers[peer], figure),
                    TARGETS.get((peer, table, moment)) if what == "all" else None, note=REMARKS.get(peer, ""),
                )  # fmt: skip
