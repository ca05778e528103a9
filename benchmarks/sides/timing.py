"""What all sides share: one request on the command line, one answer on the last line. Standard library alone."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LATER = 7
"""Reads after the first whose median is taken."""


def request() -> dict[str, Any]:
    """Return what this process is asked to do."""
    return json.loads(sys.argv[1])


def answer(**figures: Any) -> None:
    """Print what was measured, with the most memory that this process ever had."""
    print(json.dumps(figures | {"peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Return the most memory that this process had, in MB; what was its parent's before it began does not count."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS, the only other place
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run something; returns the milliseconds it took, and its result."""
    started = time.perf_counter()
    result = work()
    return (time.perf_counter() - started) * 1000, result


def by_phase(work: Callable[[], Any], phase: str, between: Callable[[], None] = lambda: None) -> None:
    """Measure a read by phase and answer.

    ``cold`` and ``first`` are the first one of the process; ``later`` and ``hot`` the median of those that follow, with
    something done before each that is not measured.
    """
    milliseconds, result = timed(work)
    if phase in ("later", "hot"):
        times = []
        for _ in range(LATER):
            result = None
            between()
            taken, result = timed(work)
            times.append(taken)
        milliseconds = statistics.median(times)
    answer(ms=milliseconds, size=len(result))
