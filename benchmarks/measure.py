"""Measuring: the same work by each side in new processes, in turns, so that a machine that slows down slows all."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.files import ROOT

SIDES = Path(__file__).parent / "sides"
_SECONDS = 600


@dataclass
class Row:
    """One line of the table.

    Attributes:
        work: What was done.
        ours: What it took us, each run.
        peer: Who else did it.
        theirs: What it took them, each run; none where there is nobody to compare with.
        target: What ``ratio`` is to reach.
        unit: Of the figures.
        note: What one has to know.
    """

    work: str
    ours: list[float]
    peer: str = ""
    theirs: list[float] = field(default_factory=list)
    target: float | None = None
    unit: str = "ms"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as much the peer took: the median over the pairs of runs that followed each other."""
        if not self.theirs or (middle := statistics.median(self.ours)) <= 0:
            return None
        # What is more than something else can come out below zero.
        if len(self.ours) != len(self.theirs) or min(self.ours) <= 0:
            return statistics.median(self.theirs) / middle
        return statistics.median(theirs / ours for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def met(self) -> bool | None:
        """Whether the target was reached."""
        return None if self.target is None or self.ratio is None else self.ratio >= self.target

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON values, each side with median, minimum and maximum."""
        sides = {name: _summary(values) for name, values in (("ours", self.ours), ("theirs", self.theirs)) if values}
        rest = {"work": self.work, "peer": self.peer, "unit": self.unit, "note": self.note}
        return rest | sides | {"ratio": self.ratio, "target": self.target, "met": self.met}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "runs": len(values)}


def ask(side: str, script: str, **request: Any) -> dict[str, Any]:
    """Have a side do something in a new process; returns what it answers, and the wall time of the process.

    Raises:
        SystemExit: It failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TIF1_", "DAGSTER_"))}
    command = [str(peers.python_of(side)), str(SIDES / script), json.dumps(request)]
    os.sync()  # what the last one wrote is not to be waited for by the next
    started = time.perf_counter()
    ran = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=SIDES,  # not beside this project's pyproject.toml, which nobody else has in the working directory
        timeout=_SECONDS,
    )
    wall = (time.perf_counter() - started) * 1000
    if ran.returncode or not ran.stdout.strip():
        raise SystemExit(f"{side} failed at {request}:\n{ran.stdout[-1000:]}{ran.stderr[-4000:]}")
    return json.loads(ran.stdout.splitlines()[-1]) | {"wall_ms": wall}


def in_turns(runs: int, sides: Mapping[str, Callable[[], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Have each side do its work some times, one after the other."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, work in sides.items():
            answers[name].append(work())
    return answers


def values(answers: Sequence[Mapping[str, Any]], name: str = "ms") -> list[float]:
    """Return one figure of each answer."""
    return [answer[name] for answer in answers]


def disk_mb(folder: Path) -> float:
    """Return what a folder holds, in MB."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


@contextmanager
def serving(files: Path, scratch: Path) -> Iterator[str]:
    """Serve the files on loopback, in a process of its own; gives the server's URL."""
    ready = scratch / "port"
    command = [sys.executable, "-m", "benchmarks.server", str(files), str(ready)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit("the server did not start")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{ready.read_text()}"
        finally:
            process.terminate()
