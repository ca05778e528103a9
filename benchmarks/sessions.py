"""Sessions, through the Python APIs: this project beside tif1."""

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.files import EVENT, SESSIONS, YEAR
from benchmarks.measure import Row, ask, disk_mb, in_turns, values

PEER = "tif1"
SCRIPTS = {"ours": "ours.py", PEER: "tif1_api.py"}
WORK = ("laps", "weather", "messages", "one lap", "one driver", "all telemetry")
# Peer / ours, where a target is set.
TARGETS = {
    ("laps", "cold"): 2.0,
    ("all telemetry", "cold"): 4.0,
    ("laps", "first"): 1.0,
    ("one lap", "first"): 4.0,
    ("one driver", "first"): 5.0,
    ("all telemetry", "first"): 5.0,
    ("all telemetry", "later"): 8.0,
    ("laps", "hot"): 1.0,
    ("laps", "process"): 1.0,
    ("sessions", "cold"): 4.0,
    ("sessions", "first"): 5.0,
}
PHASES = {
    "cold": "from the server, empty cache",
    "first": "from the cache, first read of a new process",
    "later": "from the cache, later reads",
    "hot": "from memory, new session object",
    "process": "from the cache, a whole process with its imports",
}
DELAYS = (20, 80)


class Sessions:
    """The comparison.

    Args:
        server: URL of the server.
        scratch: A folder for the caches.
        runs: Of each measurement.
    """

    def __init__(self, server: str, scratch: Path, runs: int) -> None:
        self._server = server
        self._scratch = scratch
        self._runs = runs

    def rows(self) -> Iterator[Row]:
        """Measure everything, row by row."""
        self._ask("ours", "all telemetry", "cold", self._folder("ours", "warm-up"))  # wakes server and page cache
        for work in WORK:
            for phase in ("cold", "first", "hot"):
                yield self._row(work, phase)
            if work == "laps":
                yield self._row(work, "process")
            if work == "all telemetry":
                yield self._row(work, "later")
        yield from self._many_sessions()
        yield from self._costs()
        for delay in DELAYS:
            for work in ("laps", "all telemetry"):
                yield self._row(work, "cold", delay=delay)
        yield self._row("all telemetry", "cold", delay=DELAYS[-1], requests=64)

    def _folder(self, side: str, name: str) -> Path:
        folder = self._scratch / side / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _ask(
        self, side: str, work: str, phase: str, folder: Path, delay: int = 0, requests: int | None = None
    ) -> dict[str, Any]:
        if phase == "cold":
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return ask(
            side, SCRIPTS[side], server=f"{self._server}/{delay}", folder=str(folder), work=work, phase=phase,
            year=YEAR, event=EVENT, sessions=SESSIONS, requests=requests,
        )  # fmt: skip

    def _row(self, work: str, phase: str, delay: int = 0, runs: int | None = None, requests: int | None = None) -> Row:
        figure = "wall_ms" if phase == "process" else "ms"
        answers = in_turns(
            runs or self._runs,
            {
                side: lambda side=side: self._ask(side, work, phase, self._folder(side, work), delay, requests)
                for side in SCRIPTS
            },
        )
        what = "five sessions, everything" if work == "sessions" else work
        away = f", the server {delay} ms away" if delay else ""
        away += f", {requests} requests at once (tif1: 32, as by default)" if requests else ""
        target = TARGETS.get((work, phase)) if not delay else None
        return Row(
            f"{what}: {PHASES[phase]}{away}",
            values(answers["ours"], figure),
            PEER,
            values(answers[PEER], figure),
            target,
        )

    def _many_sessions(self) -> Iterator[Row]:
        for phase in ("cold", "first"):
            yield self._row("sessions", phase, runs=max(2, self._runs // 2))
        disks = {side: [disk_mb(self._folder(side, "sessions"))] for side in SCRIPTS}
        yield Row("five sessions, everything: on disk", disks["ours"], PEER, disks[PEER], None, "MB")

    def _costs(self) -> Iterator[Row]:
        """What fetching a race's telemetry costs besides time."""
        answers: dict[str, list[dict[str, Any]]] = {side: [] for side in SCRIPTS}
        requests: dict[str, list[float]] = {side: [] for side in SCRIPTS}
        for _ in range(max(2, self._runs // 2)):
            for side in SCRIPTS:
                self._asked_for()
                answers[side].append(self._ask(side, "race", "cold", self._folder(side, "race")))
                requests[side].append(self._asked_for())
        peaks = {side: values(of_side, "peak_mb") for side, of_side in answers.items()}
        disks = {side: [disk_mb(self._folder(side, "race"))] for side in SCRIPTS}
        yield Row("a race with everything: peak memory of fetching it", peaks["ours"], PEER, peaks[PEER], 2.0, "MB")
        yield Row("a race with everything: on disk", disks["ours"], PEER, disks[PEER], 4.0, "MB")
        yield Row("a race with everything: requests", requests["ours"], PEER, requests[PEER], None, "requests")

    def _asked_for(self) -> int:
        with urllib.request.urlopen(f"{self._server}/count") as answer:
            return int(answer.read())
